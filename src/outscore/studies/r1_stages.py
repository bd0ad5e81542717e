"""The study `r1-stages`: DeepSeek-R1's stages in miniature over seeds, and the pattern of R1's stage table held against
what is measured (arXiv 2501.12948, table of Dev1 to R1).

The pipeline is `recipes/r1.yaml` as it stands; a seed changes the model's weights, the questions of every set, and the
sampling. Seeds 0, 1, 2, … and the recipe's budget were fixed before the first run.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import fmean

from outscore.config import Recipe, load_recipe
from outscore.report import Evaluation
from outscore.stages import RewardModelSettings
from outscore.studies.over_seeds import after, evaluated, interval, sem, with_seed
from outscore.studies.records import Claim, Figure, Panel, Progress, Row, Series, StudyResult

MEASURES = ("reasoning", "instructions", "language", "helpful", "safe")
"""The recipe's rewards, as evaluations measure them."""
Table = Mapping[str, Mapping[str, Sequence[float]]]
"""Stage -> measure -> its value for each seed."""


def run(*, num_seeds: int, progress: Progress, runs: Path) -> StudyResult:
    """Run the pipeline for each seed and put its evaluations together."""
    recipe = load_recipe(Path(str(files("outscore") / "recipes" / "r1.yaml")))
    found = evaluated(partial(with_seed, recipe), num_seeds, progress, runs)
    table = collected(recipe, found)
    agreement = _agreement(recipe, found)
    return StudyResult(
        settings={"study": "r1-stages", "recipe": "r1.yaml", "seeds": num_seeds},
        summary=[_row(stage, measures) for stage, measures in table.items()],
        curves=[
            {"stage": stage, "seed": seed, **{name: values[seed] for name, values in measures.items()}}
            for stage, measures in table.items()
            for seed in range(num_seeds)
        ],
        claims=claims(table),
        figures=[_figure(table)],
        notes=[
            "± is half of a 95 % interval over seeds (Student's t).",
            *(f"Reward model {name}: {text} of held-out pairs, which have no noise." for name, text in agreement),
        ],
    )


def collected(recipe: Recipe, found: Sequence[Sequence[Evaluation]]) -> Table:
    """The measures after each stage that trains the policy."""
    table: dict[str, dict[str, list[float]]] = {}
    for stage in recipe.stages:
        if isinstance(stage, RewardModelSettings):
            continue
        table[stage.label] = {
            name: [after(run, stage.label).metrics[f"part/{name}"] for run in found] for name in MEASURES
        }
    return table


def claims(table: Table) -> list[Claim]:
    """What R1's table shows, on means over seeds."""
    said = [
        ("zero > pretrain", "RL by rules alone teaches reasoning", "reasoning", "pretrain", "zero"),
        ("dev1 > zero", "the cold start lifts the form (one language)", "language", "zero", "dev1"),
        ("dev1 < zero", "and lowers reasoning", "reasoning", "dev1", "zero"),
        ("dev2 > dev1", "reasoning RL restores it", "reasoning", "dev1", "dev2"),
        ("dev3 > dev2", "SFT on everything lifts instructions", "instructions", "dev2", "dev3"),
        ("dev3 > dev2", "and helpfulness", "helpful", "dev2", "dev3"),
        ("r1 > dev3", "the last stage moves what preferences are about: helpfulness", "helpful", "dev3", "r1"),
        ("r1 > dev3", "and safety", "safe", "dev3", "r1"),
    ]
    return [
        Claim(
            where=where,
            claim=claim,
            measured=f"{low} {fmean(table[low][name]):.2f}, {high} {fmean(table[high][name]):.2f}",
            holds=fmean(table[high][name]) > fmean(table[low][name]),
        )
        for where, claim, name, low, high in said
    ]


def _row(stage: str, measures: Mapping[str, Sequence[float]]) -> Row:
    return {"after": stage, **{name: f"{fmean(v):.2f} ± {interval(v):.2f}" for name, v in measures.items()}}


def _agreement(recipe: Recipe, found: Sequence[Sequence[Evaluation]]) -> list[tuple[str, str]]:
    """How often each reward model ranks held-out pairs as the hidden rule does."""
    models = [stage.label for stage in recipe.stages if isinstance(stage, RewardModelSettings)]
    shares = {name: [after(run, name).metrics["preference_accuracy"] for run in found] for name in models}
    return [(name, f"agrees with the hidden rule in {100 * fmean(values):.1f} %") for name, values in shares.items()]


def _figure(table: Table) -> Figure:
    stages = range(len(table))
    series = [
        Series(
            label=name,
            x=list(stages),
            mean=[fmean(measures[name]) for measures in table.values()],
            sem=[sem(measures[name]) for measures in table.values()],
        )
        for name in MEASURES
    ]
    stages_in_order = " · ".join(table)
    panel = Panel(title="held-out greedy answers", x_label=stages_in_order, y_label="mean", series=series)
    return Figure(name="r1-stages", title="DeepSeek-R1's stages in miniature", panels=[panel])
