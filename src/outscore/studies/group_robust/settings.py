"""What the paper says of its bandit experiment: figures, methods, step sizes, and the values its axes show.

arXiv 2405.20304, table 1 and figures 2 and 4 to 12; `scripts` are the values in the authors' published scripts, which
differ from table 1.
"""

from dataclasses import dataclass
from typing import Literal

from outscore.studies.group_robust.bandit import FeatureMap
from outscore.studies.group_robust.log_linear import MarginLoss

Family = Literal["DPO", "IPO"]
Weighting = Literal["plain", "sampled", "robust"]
"""Weights of the populations' mean losses: their shares, equal, or climbing."""
SettingsName = Literal["paper", "scripts"]
"""Step sizes as in the paper's table 1, or as in its scripts."""

CHIS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The trade-offs of figure 6."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A way to weigh the populations.

    >>> [method.name for method in METHODS["DPO"]]
    ['DPO', 'IS-DPO', 'GR-DPO']
    """

    name: str
    """As the paper names it."""
    family: Family
    """Which loss is made small."""
    weighting: Weighting
    """How the populations are weighed."""
    chi: float = 1.0
    """The trade-off of a robust method."""


METHODS: dict[Family, tuple[Method, ...]] = {
    family: (
        Method(name=family, family=family, weighting="plain"),
        Method(name=f"IS-{family}", family=family, weighting="sampled"),
        Method(name=f"GR-{family}", family=family, weighting="robust"),
    )
    for family in ("DPO", "IPO")
}
"""Plain, importance sampled and robust, of both families."""

ABLATION = tuple(Method(name=f"χ={chi:g}", family="IPO", weighting="robust", chi=chi) for chi in CHIS)
"""GR-IPO from the fixed weights 1/K to the worst case."""

KIND: dict[Family, MarginLoss] = {"DPO": "logistic", "IPO": "squared"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Step sizes and how long they are taken."""

    beta: float
    """beta of the loss."""
    step_size: float
    """eta of theta; a closed form needs none."""
    weight_step: float
    """eta of alpha."""
    num_steps: int
    """Iterations of the published curve."""


_IPO = Steps(beta=0.1, step_size=0.0, weight_step=0.01, num_steps=100)
_TABLE_1: dict[Family, Steps] = {"DPO": Steps(beta=1.0, step_size=0.9, weight_step=0.5, num_steps=10_000), "IPO": _IPO}
_SCRIPTS: dict[str, Steps] = {
    "even-imbalanced": Steps(beta=1.0, step_size=0.5, weight_step=0.9, num_steps=10_000),
    "uneven-balanced": Steps(beta=2.0, step_size=5.0, weight_step=0.01, num_steps=5_000),
    "uneven-imbalanced": Steps(beta=1.0, step_size=0.9, weight_step=0.5, num_steps=20_000),
}


def steps_of(name: SettingsName, scenario: str, family: Family) -> Steps:
    """The published step sizes for a scenario; the scripts have 1000 iterations of IPO's closed form."""
    if name == "paper":
        return _TABLE_1[family]
    return _SCRIPTS[scenario] if family == "DPO" else Steps(beta=0.1, step_size=0.0, weight_step=0.01, num_steps=1_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """A figure of the paper.

    >>> SETUPS[2].scenario, SETUPS[2].features
    ('uneven-imbalanced', 'swapped')
    """

    figure: int
    """Its number."""
    scenario: str
    """How preferences are gathered."""
    features: FeatureMap
    """How the populations differ."""
    bands: dict[str, tuple[float, float]]
    """What its axes show, by "DPO" and "IPO" (maximum validation loss), "error" (maximum reward error) and, in figure
    6, "average" (mean validation loss)."""
    ablation: bool = False
    """Whether it compares values of chi, not methods."""


def _setup(
    figure: int, scenario: str, features: FeatureMap, dpo: tuple[float, float], ipo: tuple[float, float], error: float
) -> Setup:
    return Setup(
        figure=figure, scenario=scenario, features=features, bands={"DPO": dpo, "IPO": ipo, "error": (0.0, error)}
    )


SETUPS = {
    setup.figure: setup
    for setup in (
        _setup(2, "uneven-imbalanced", "swapped", (0.5, 0.6), (18, 20), 0.10),
        _setup(4, "even-imbalanced", "swapped", (0.6, 0.8), (20, 25), 0.10),
        _setup(5, "uneven-balanced", "swapped", (0.45, 0.60), (17, 20), 0.10),
        Setup(
            figure=6,
            scenario="uneven-imbalanced",
            features="swapped",
            bands={"IPO": (18, 20), "average": (14, 16)},
            ablation=True,
        ),
        _setup(7, "even-imbalanced", "same", (0.4, 0.8), (16, 18), 0.10),
        _setup(8, "uneven-balanced", "same", (0.4, 0.6), (17, 19), 0.075),
        _setup(9, "uneven-imbalanced", "same", (0.4, 0.6), (18, 20), 0.075),
        _setup(10, "even-imbalanced", "flipped", (0.3, 0.6), (14, 18), 0.06),
        _setup(11, "uneven-balanced", "flipped", (0.3, 0.6), (16, 18), 0.06),
        _setup(12, "uneven-imbalanced", "flipped", (0.3, 0.6), (16, 22), 0.10),
    )
}
"""The figures by number, with the ranges that can be read off their axes."""
