"""The figures of the bandit experiment as data."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from outscore.studies.group_robust.measure import Found, mean_and_sem
from outscore.studies.group_robust.settings import CHIS, Family, Setup
from outscore.studies.records import Figure, Panel, Series


def figure(setup: Setup, families: dict[Family, Found]) -> Figure:
    """Curves of both families and bars of the reward error, or, in figure 6, both losses over chi."""
    if setup.ablation:
        panels = _ablation(families["IPO"])
    else:
        panels = [_curves(family, found) for family, found in families.items()]
        panels.append(_errors(list(families.values())))
    title = f"Figure {setup.figure}: {setup.scenario}, {setup.features} features"
    return Figure(name=f"figure-{setup.figure}", title=title, panels=panels)


def _curves(family: Family, found: Found) -> Panel:
    steps = found.steps.tolist()
    values = found.curves["max_loss"]
    return Panel(
        title=f"{family}: maximum validation loss",
        x_label="iteration",
        y_label="loss of the worse-off population",
        series=[_series(method.name, steps, values[:, place]) for place, method in enumerate(found.methods)],
    )


def _errors(families: Sequence[Found]) -> Panel:
    return Panel(
        title="maximum reward error",
        x_label="",
        y_label="(best - reached) / best",
        kind="bars",
        series=[
            _series(method.name, [0.0], found.curves["max_error"][-1:, place])
            for found in families
            for place, method in enumerate(found.methods)
        ],
    )


def _ablation(found: Found) -> list[Panel]:
    titles = {"max_loss": "GR-IPO: maximum validation loss", "mean_loss": "GR-IPO: mean validation loss"}
    return [
        Panel(
            title=title,
            x_label="χ",
            y_label="loss",
            series=[
                _series("published iterations", CHIS, found.curves[metric][-1]),
                _series("exact", CHIS, found.optimum[metric]),
            ],
        )
        for metric, title in titles.items()
    ]


def _series(label: str, x: Sequence[float], values: Float[Tensor, "point seed"]) -> Series:
    mean, sem = mean_and_sem(values)
    return Series(label=label, x=list(x), mean=mean.tolist(), sem=sem.tolist())
