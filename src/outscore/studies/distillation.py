"""The study `distillation`: a small student learns from a teacher, or from rewards, of equally many samples.

DeepSeek-R1 (arXiv 2501.12948, 4.1) finds that a small model that imitates a large one's reasoning beats the same small
model trained by reinforcement. Here the teacher is the first two stages of `recipes/distill.yaml`, and the student
`recipes/distill-student.yaml` as it stands: a quarter of the weights, three ways from one stage of supervised
fine-tuning, `STUDENT_SAMPLES` samples drawn in each. A seed changes the weights of both, the questions, and the
sampling. Seeds 0, 1, 2, … and the budget were fixed before the first run, and every run is in the table.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from outscore.config import Recipe, dump_recipe, load_recipe, parse_recipe
from outscore.report import Evaluation
from outscore.studies.over_seeds import after, completed, interval, sem, with_seed
from outscore.studies.records import Claim, Figure, Panel, Progress, Row, Series, StudyResult

STUDENT_SAMPLES = 25 * 32 * 8
TEACHER_GRPO = {"steps": 40, "prompts_per_step": 32}
"""Less than the recipe's, so that three seeds take some minutes."""
MEASURES = ("pass@1", "greedy")
TEACHER_SFT, TEACHER, START = "teacher, sft", "teacher", "sft"
WAYS = ("imitate", "advised", "reinforced")
"""The student's stages, each from its SFT."""

Table = Mapping[str, Mapping[str, Sequence[float]]]
"""Model -> measure -> its value for each seed."""


def run(*, num_seeds: int, progress: Progress, runs: Path) -> StudyResult:
    """Train a teacher and a student for each seed, and put their evaluations together."""
    found: list[tuple[Sequence[Evaluation], Sequence[Evaluation]]] = []
    for seed in range(num_seeds):
        progress(f"seed {seed}", seed, num_seeds)
        place = runs / f"teacher-{seed}"
        taught = completed(teacher(seed), place)
        learnt = completed(student(seed, place / "checkpoints" / "grpo"), runs / f"student-{seed}")
        found.append((taught.evaluations(), learnt.evaluations()))
    progress("done", num_seeds, num_seeds)
    table = collected(found)
    return StudyResult(
        settings={"study": "distillation", "samples": STUDENT_SAMPLES, "seeds": num_seeds},
        summary=[_row(name, measures) for name, measures in table.items()],
        curves=[
            {"model": name, "seed": seed, **{measure: values[seed] for measure, values in measures.items()}}
            for name, measures in table.items()
            for seed in range(num_seeds)
        ],
        claims=claims(table),
        figures=[_figure(table)],
        notes=["± is half of a 95 % interval over seeds (Student's t); % of 200 held-out problems."],
    )


def teacher(seed: int) -> Recipe:
    """The teacher's run: the stages of its recipe that make it, and evaluations as the student's."""
    data = dump_recipe(_recipe("distill.yaml"))
    sft, grpo = data["stages"][:2]
    data["stages"] = [sft, {**grpo, **TEACHER_GRPO}]
    data["evaluation"] = {**data["evaluation"], "samples": 4}
    return with_seed(parse_recipe(data), seed)


def student(seed: int, taught_by: Path) -> Recipe:
    """The student's run, with the checkpoints of a teacher."""
    data: dict[str, Any] = dump_recipe(_recipe("distill-student.yaml"))
    for stage in data["stages"]:
        for key in ("samples_from", "teacher"):
            if stage.get(key):
                stage[key] = str(taught_by)
    return with_seed(parse_recipe(data), seed)


def collected(found: Sequence[tuple[Sequence[Evaluation], Sequence[Evaluation]]]) -> Table:
    """The measures of teacher and student, the first before and after GRPO, the other after each way."""
    places = {
        TEACHER_SFT: [after(taught, "sft") for taught, _ in found],
        TEACHER: [after(taught, "grpo") for taught, _ in found],
        START: [after(learnt, START) for _, learnt in found],
        **{way: [after(learnt, way) for _, learnt in found] for way in WAYS},
    }
    return {
        name: {measure: [each.metrics[measure] for each in own] for measure in MEASURES} for name, own in places.items()
    }


def claims(table: Table) -> list[Claim]:
    """What was said of distillation, held against the differences of the same seeds."""
    said = [
        ("DeepSeek-R1, 4.1", "imitating the teacher's right samples beats RL of the student", *WAYS[::2]),
        ("Qwen3, arXiv 2505.09388, 4.5", "on-policy distillation beats RL of the student", "advised", "reinforced"),
        ("GKD, arXiv 2306.13649", "and imitating the teacher's samples", "advised", "imitate"),
    ]
    return [_claim(table, where, claim, high, low) for where, claim, high, low in said]


def _claim(table: Table, where: str, claim: str, high: str, low: str) -> Claim:
    gained = [a - b for a, b in zip(table[high]["pass@1"], table[low]["pass@1"], strict=True)]
    return Claim(
        where=where,
        claim=claim,
        measured=f"{high} - {low}: {100 * fmean(gained):+.1f} ± {100 * interval(gained):.1f}",
        holds=fmean(gained) > 0,
    )


def _recipe(name: str) -> Recipe:
    return load_recipe(Path(str(files("outscore") / "recipes" / name)))


def _row(name: str, measures: Mapping[str, Sequence[float]]) -> Row:
    return {"model": name, **{k: f"{100 * fmean(v):.1f} ± {100 * interval(v):.1f}" for k, v in measures.items()}}


def _figure(table: Table) -> Figure:
    series = [
        Series(label=name, x=[0], mean=[fmean(measures["pass@1"])], sem=[sem(measures["pass@1"])])
        for name, measures in table.items()
    ]
    panel = Panel(title="pass@1 on held-out problems", x_label="", y_label="share", series=series, kind="bars")
    return Figure(name="distillation", title="A small student, equally many samples", panels=[panel])
