"""The study `refreshed-reward`: GRPO paid by a reward model that learns from the policy as it has become, and by one
that stays as it was (iterative GRPO: DeepSeekMath, arXiv 2402.03300, Algorithm 1 and figure 6).

The first iteration is that of `recipes/iterative.yaml` as it stands: SFT, a reward model of samples of the SFT model,
GRPO paid by it. From there the second iteration is run three times: with the reward model as it was; with one that has
learnt from as many new labels as the recipe says, of samples of the policy as it is; and with one that has learnt from
as many new labels, of samples of the SFT model. The last tells fresh labels from more labels.

Seeds 0, 1, 2, … and the recipe's budget were fixed before the first run on them.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from outscore.config import Recipe, dump_recipe, load_recipe, parse_recipe
from outscore.studies.over_seeds import above, after, evaluated, interval, sem, with_seed
from outscore.studies.records import Claim, Figure, Panel, Progress, Row, Series, StudyResult

POLICIES: Mapping[str, str] = {
    "sft": "SFT",
    "grpo-1": "iteration 1",
    "grpo-fixed": "iteration 2, fixed",
    "grpo-more": "iteration 2, as many labels",
    "grpo-2": "iteration 2, refreshed",
}
"""Stage -> what tables call the policy after it."""
PAID_BY = {"grpo-1": "rm-1", "grpo-fixed": "rm-1", "grpo-more": "rm-more", "grpo-2": "rm-2"}
"""Stage -> that of its reward model."""
MEASURES = ("pass@1", "maj@8", "greedy")

Table = Mapping[str, Mapping[str, Sequence[float]]]
"""Stage -> measure -> its value for each seed."""


def run(*, num_seeds: int, progress: Progress, runs: Path) -> StudyResult:
    """One run for each seed, and their evaluations together."""
    made = branches(load_recipe(Path(str(files("outscore") / "recipes" / "iterative.yaml"))))
    found = evaluated(partial(with_seed, made), num_seeds, progress, runs)
    table = {
        stage: {key: [after(each, stage).metrics[key] for each in found] for key in MEASURES} for stage in POLICIES
    }
    told = {
        stage: [after(each, stage).metrics["label_accuracy"] for each in found]
        for stage in dict.fromkeys(PAID_BY.values())
    }
    return StudyResult(
        settings={"study": "refreshed-reward", "recipe": "iterative.yaml", "seeds": num_seeds},
        summary=[_row(stage, measures) for stage, measures in table.items()],
        curves=[
            {"policy": POLICIES[stage], "seed": seed, **{key: values[seed] for key, values in measures.items()}}
            for stage, measures in table.items()
            for seed in range(num_seeds)
        ],
        claims=[
            _claim(table, "DeepSeekMath, fig. 6", "a refreshed reward model above a fixed one", "grpo-fixed", "grpo-2"),
            _claim(table, "control", "and above one of as many labels", "grpo-more", "grpo-2"),
            _claim(table, "DeepSeekMath, fig. 6", "the second iteration goes on above the first", "grpo-1", "grpo-2"),
        ],
        figures=[_figure(table)],
        notes=[
            "± is half of a 95 % interval over seeds (Student's t); % of 200 held-out problems.",
            "Share of held-out labels that a reward model has on the right side of 1/2, each on samples of the policy "
            "that its last labels are of: "
            + ", ".join(f"{stage} {100 * fmean(own):.1f} ± {100 * interval(own):.1f} %" for stage, own in told.items())
            + ".",
        ],
    )


def branches(recipe: Recipe) -> Recipe:
    """The recipe with its second iteration three times."""
    data: dict[str, Any] = dump_recipe(recipe)
    by_name = {stage["name"] or stage["algorithm"]: stage for stage in data["stages"]}
    by_name["grpo-2"]["start"] = "grpo-1"
    by_name["grpo-fixed"] = _paid(by_name["grpo-2"], "grpo-fixed")
    by_name["rm-more"] = {**by_name["rm-2"], "name": "rm-more", "start": "sft"}
    by_name["grpo-more"] = _paid(by_name["grpo-2"], "grpo-more")
    data["stages"] = list(by_name.values())
    return parse_recipe(data)


def _paid(stage: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A stage of GRPO under another name, paid by the reward model that goes with it."""
    first, *others = stage["rewards"]
    return {**stage, "name": name, "rewards": [{**first, "stage": PAID_BY[name]}, *others]}


def _claim(table: Table, where: str, claim: str, low: str, high: str) -> Claim:
    return above(where, claim, POLICIES[low], table[low]["pass@1"], POLICIES[high], table[high]["pass@1"])


def _row(stage: str, measures: Mapping[str, Sequence[float]]) -> Row:
    shown = {key: f"{100 * fmean(values):.1f} ± {100 * interval(values):.1f}" for key, values in measures.items()}
    return {"after": POLICIES[stage], **shown}


def _figure(table: Table) -> Figure:
    series = [
        Series(label=POLICIES[stage], x=[0], mean=[fmean(own["pass@1"])], sem=[sem(own["pass@1"])])
        for stage, own in table.items()
    ]
    panel = Panel(title="pass@1 on held-out problems", x_label="", y_label="share", series=series, kind="bars")
    return Figure(name="refreshed-reward", title="A fixed and a refreshed reward model", panels=[panel])
