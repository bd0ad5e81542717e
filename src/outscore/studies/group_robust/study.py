"""The study `group-robust-bandit`: plain, importance-sampled and robust preference optimization on the two-population
bandit of arXiv 2405.20304, all seeds and methods side by side."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from outscore.studies.group_robust.bandit import NUM_POPULATIONS, SCENARIOS, FeatureMap, draw
from outscore.studies.group_robust.claims import judge
from outscore.studies.group_robust.figures import figure
from outscore.studies.group_robust.measure import METRICS, Found, mean_and_sem, measure
from outscore.studies.group_robust.settings import (
    ABLATION,
    METHODS,
    SETUPS,
    Family,
    Method,
    SettingsName,
    Setup,
    steps_of,
)
from outscore.studies.records import Progress, Row, StudyResult


def run(
    *,
    num_seeds: int,
    progress: Progress,
    features: FeatureMap | None = None,
    figures: Sequence[int] | None = None,
    settings: SettingsName = "paper",
) -> StudyResult:
    """Do the experiment of some of the paper's figures.

    `features` takes all figures of a feature map (`swapped`: 2, 4, 5, 6; `same`: 7, 8, 9; `flipped`: 10, 11, 12), and
    `figures` only those; `swapped` when neither is given. `settings` are the step sizes: of the paper's table 1, or of
    its scripts. Raises ValueError for a figure that is not there.
    """
    chosen = _chosen(features, figures)
    plan = [
        (setup, family, steps_of(settings, setup.scenario, family)) for setup in chosen for family in _families(setup)
    ]
    total, done = sum(steps.num_steps for _, _, steps in plan), 0
    found: dict[int, dict[Family, Found]] = {setup.figure: {} for setup in chosen}
    for setup, family, steps in plan:
        data = draw(SCENARIOS[setup.scenario], setup.features, num_seeds)
        tick = partial(_tick, progress, f"figure {setup.figure}, {family}", done, total)
        tick(0)
        with _one_thread():
            found[setup.figure][family] = measure(data, methods_of(setup, family), family, steps, tick)
        done += steps.num_steps
    progress("done", total, total)
    return StudyResult(
        settings={
            "study": "group-robust-bandit",
            "figures": " ".join(str(setup.figure) for setup in chosen),
            "settings": settings,
            "seeds": num_seeds,
        },
        summary=[row for setup in chosen for row in _summary(setup, found[setup.figure])],
        curves=[row for setup in chosen for row in _curves(setup, found[setup.figure])],
        claims=[claim for setup in chosen for claim in judge(setup, found[setup.figure])],
        figures=[figure(setup, found[setup.figure]) for setup in chosen],
        notes=(
            "at: iterations, or `exact`: where the method leads whatever the step size. loss: mean validation loss of "
            "the worse-off population; average: of both. error: largest relative reward error of a population. KL: "
            "largest KL(softmax of the reward || policy). ±: standard error over seeds.",
        ),
    )


def methods_of(setup: Setup, family: Family) -> tuple[Method, ...]:
    """What a figure compares. With balanced data importance sampling is the plain method, and is left out."""
    if setup.ablation:
        return ABLATION
    skipped = {"sampled"} if SCENARIOS[setup.scenario].is_balanced else set()
    return tuple(method for method in METHODS[family] if method.weighting not in skipped)


def _chosen(features: FeatureMap | None, figures: Sequence[int] | None) -> list[Setup]:
    if figures is None:
        return [setup for setup in SETUPS.values() if setup.features == (features or "swapped")]
    known = [setup.figure for setup in SETUPS.values() if features in (None, setup.features)]
    wrong = [number for number in figures if number not in known]
    if wrong or not figures:
        of = "" if features is None else f" with features={features}"
        raise ValueError(f"figures={list(figures)}: the paper's figures{of} are {', '.join(map(str, known))}")
    return [SETUPS[number] for number in dict.fromkeys(figures)]


def _families(setup: Setup) -> tuple[Family, ...]:
    return ("IPO",) if setup.ablation else ("DPO", "IPO")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from a second thread, and its waiting costs five times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tick(progress: Progress, part: str, before: int, total: int, step: int) -> None:
    progress(part, before + step, total)


def _summary(setup: Setup, families: dict[Family, Found]) -> list[Row]:
    rows: list[Row] = []
    for found in families.values():
        for place, method in enumerate(found.methods):
            published = {name: values[-1, place] for name, values in found.curves.items()}
            exact = {name: values[place] for name, values in found.optimum.items()}
            for at, values in ((f"{int(found.steps[-1])}", published), ("exact", exact)):
                loss, loss_sem = mean_and_sem(values["max_loss"])
                error, error_sem = mean_and_sem(values["max_error"])
                rows.append(
                    {
                        "fig": setup.figure,
                        "method": method.name,
                        "at": at,
                        "loss": float(loss),
                        "± loss": float(loss_sem),
                        "average": float(values["mean_loss"].mean()),
                        "error": float(error),
                        "± error": float(error_sem),
                        "KL": float(values["max_kl"].mean()),
                    }
                )
    return rows


def _curves(setup: Setup, families: dict[Family, Found]) -> list[Row]:
    rows: list[Row] = []
    for family, found in families.items():
        for place, method in enumerate(found.methods):
            for record, step in enumerate(found.steps.tolist()):
                row: dict[str, object] = {"figure": setup.figure, "scenario": setup.scenario}
                row |= {"features": setup.features, "family": family, "method": method.name, "step": step}
                for name in METRICS:
                    mean, sem = mean_and_sem(found.curves[name][record, place])
                    row |= {name: float(mean), f"{name}_sem": float(sem)}
                for population in range(NUM_POPULATIONS):
                    row[f"weight_{population}"] = float(found.weights[record, place, :, population].mean())
                rows.append(row)
    return rows
