"""What studies that repeat a run over seeds share: a recipe's seed, a stage's evaluation, a mean's uncertainty, and
claims judged by it."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from outscore.config import Recipe, dump_recipe, parse_recipe
from outscore.report import Evaluation, RunDirectory
from outscore.report.run import FACTS
from outscore.studies.records import Claim, Panel, Progress, Series
from outscore.train.run import resume, run_recipe

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Degrees of freedom -> the quantile of Student's t that a 95 % interval takes."""


def completed(recipe: Recipe | Mapping[str, Any], path: Path) -> RunDirectory:
    """A recipe's run, to its end; one that is there already goes on from where it was left.

    Raises:
        ValueError: if the run that is there is of another recipe.
        KeyboardInterrupt: where it was asked to stop: half a run is no result.
    """
    wanted = parse_recipe(dump_recipe(recipe)) if isinstance(recipe, Recipe) else parse_recipe(recipe)
    if not path.exists():
        result = run_recipe(wanted, path)
    elif _recipe_of(path) == wanted:
        result = resume(path)
    else:
        raise ValueError(f"{path} is a run of another recipe: remove it, or have the study's results elsewhere (--out)")
    if not result.finished:
        raise KeyboardInterrupt
    return RunDirectory.open(path)


def _recipe_of(path: Path) -> Recipe:
    written = RunDirectory.open(path).config()
    return parse_recipe({key: value for key, value in written.items() if key != FACTS})


def evaluated(
    recipe: Callable[[int], Recipe | Mapping[str, Any]], num_seeds: int, progress: Progress, runs: Path
) -> list[Sequence[Evaluation]]:
    """The evaluations of a run for each seed, which is `runs`/SEED."""
    found: list[Sequence[Evaluation]] = []
    for seed in range(num_seeds):
        progress(f"seed {seed}", seed, num_seeds)
        found.append(completed(recipe(seed), runs / str(seed)).evaluations())
    progress("done", num_seeds, num_seeds)
    return found


def sem(values: Sequence[float]) -> float:
    """The standard error of the mean."""
    return stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean, by Student's t; infinite for one value, and 2 for t beyond ten."""
    return math.inf if len(values) < 2 else T_95.get(len(values) - 1, 2.0) * sem(values)


def after(run: Sequence[Evaluation], stage: str) -> Evaluation:
    """A run's evaluation at the end of a stage."""
    return next(each for each in run if each.label == f"after {stage}")


def course(run: Sequence[Evaluation], start: str, stage: str) -> list[tuple[int, float, float | None]]:
    """(step, greedy accuracy, pass@1 where it was sampled for) of a stage, from the end of the stage it started at."""
    own = [each for each in run if each.stage == stage and not each.label.startswith("before ")]
    by_step = {0: after(run, start)} | {each.step: each for each in own}
    return [(step, each.metrics["greedy"], each.metrics.get("pass@1")) for step, each in by_step.items()]


def courses(found: Sequence[Sequence[Evaluation]], start: str, stages: Mapping[str, str]) -> Panel:
    """Greedy accuracy by step, a line for each label with the stage that it is of; bands are of one standard error."""
    series = []
    for label, stage in stages.items():
        by_step = list(zip(*(course(run, start, stage) for run in found), strict=True))
        values = [[greedy for _, greedy, _ in points] for points in by_step]
        steps = [points[0][0] for points in by_step]
        series.append(Series(label=label, x=steps, mean=list(map(fmean, values)), sem=list(map(sem, values))))
    return Panel(title="greedy, on held-out problems", x_label="step", y_label="share right", series=series)


def above(
    where: str, claim: str, low: str, low_shares: Sequence[float], high: str, high_shares: Sequence[float]
) -> Claim:
    """The claim that what is called `high` lies above what is called `low`, by the differences of each seed.

    Shares, one for each seed and in the same order. It holds where the 95 % interval of the mean difference lies above
    0; where 0 is in it, the two were not told apart, and the text says so.
    """
    gained = gains(low_shares, high_shares)
    told_apart = abs(fmean(gained)) > interval(gained)
    return Claim(
        where=where,
        claim=claim,
        measured=f"{low} {100 * fmean(low_shares):.1f} %, {high} {100 * fmean(high_shares):.1f} %: "
        f"{100 * fmean(gained):+.1f} ± {100 * interval(gained):.1f}{'' if told_apart else ', not told apart'}",
        holds=told_apart and fmean(gained) > 0.0,
    )


def within(
    where: str,
    claim: str,
    margin: float,
    low: str,
    low_shares: Sequence[float],
    high: str,
    high_shares: Sequence[float],
) -> Claim:
    """The claim that two are no further apart than `margin`: it holds where the whole 95 % interval of the mean
    difference over seeds lies between -margin and margin, so that few seeds do not make two things alike."""
    gained = gains(low_shares, high_shares)
    mean, half = fmean(gained), interval(gained)
    holds = abs(mean) + half <= margin
    apart = abs(mean) - half > margin
    return Claim(
        where=where,
        claim=f"{claim}: within {100 * margin:g} points",
        measured=f"{low} {100 * fmean(low_shares):.1f} %, {high} {100 * fmean(high_shares):.1f} %: "
        f"{100 * mean:+.1f} ± {100 * half:.1f}{'' if holds or apart else ', not told'}",
        holds=holds,
    )


def gains(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """The difference of each seed."""
    return [later - earlier for earlier, later in zip(before, after, strict=True)]


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another seed, for the run and for the questions of every task in it."""
    data: dict[str, Any] = dump_recipe(recipe)
    data["seed"] = seed
    for part in (data, *data["stages"]):
        if part.get("task"):
            part["task"] = {**part["task"], "seed": seed}
    return parse_recipe(data)
