"""An algorithm is a row of choices. Code that trains reads the cells and never asks for the row's name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from outscore.inputs import nearest
from outscore.objectives.advantages import Baseline, Scale
from outscore.objectives.aggregation import Aggregation
from outscore.objectives.kl import KlEstimator, KlPlace
from outscore.objectives.ratios import RatioLevel
from outscore.objectives.surrogates import Surrogate

Source = Literal["demonstrations", "policy"]
"""Where completions come from: a data set, or samples of the policy that is trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """One row of the table: where completions come from, what they are worth, and how that moves the policy.

    >>> algorithm("grpo", kl_coef=0.0).clip_high
    0.2
    """

    name: str
    """The preset the row started from; for display only."""
    source: Source
    """Where completions come from."""
    baseline: Baseline
    """What a reward is compared with."""
    scale: Scale
    """What the difference is divided by."""
    advantage_eps: float = 1e-6
    """Added to what the difference is divided by, in units of the reward. A group without variance is 0 anyway."""
    ratio_level: RatioLevel = "token"
    """Whether policy / anchor, the KL and the mismatch weight are those of a token or of the whole completion."""
    surrogate: Surrogate
    """What is maximised on each token."""
    clip_low: float = 0.2
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped above at 1 + clip_high."""
    aggregation: Aggregation
    """How tokens are averaged."""
    aggregation_constant: int | None = None
    """The fixed length of aggregation "constant", usually max_new_tokens; unused otherwise."""
    kl_estimator: KlEstimator = "k3"
    """Which estimate of KL(policy || reference) is the penalty; `outscore.objectives.kl` says what each one's gradient
    is."""
    kl_coef: float = 0.0
    """beta; at 0 there is no penalty and no reference model is needed."""
    kl_place: KlPlace = "loss"
    """Whether the penalty is a term of the loss or is taken off the reward."""
    mismatch_cap: float | None = None
    """Cap of the truncated importance weight anchor / sampler; None leaves the weight out."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, averaged over tokens as the objective is; needs the entropy of every token."""

    def __post_init__(self) -> None:
        _check_cells(_cells(self))

    @property
    def needs_reference(self) -> bool:
        """Whether a reference policy's log-probs enter the objective."""
        return self.kl_coef > 0.0

    @property
    def compares_completions(self) -> bool:
        """Whether a group needs two completions or more to say anything."""
        return self.baseline != "none" or self.scale != "none"


_CHOICES: dict[str, tuple[str, ...]] = {
    "source": get_args(Source),
    "baseline": get_args(Baseline),
    "scale": get_args(Scale),
    "ratio_level": get_args(RatioLevel),
    "surrogate": get_args(Surrogate),
    "aggregation": get_args(Aggregation),
    "kl_estimator": get_args(KlEstimator),
    "kl_place": get_args(KlPlace),
}


def _cells(row: Algorithm) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in fields(row)}


def _check_cells(cells: Mapping[str, Any]) -> None:
    """ValueError for an unknown choice, a number out of its range, or cells that exclude each other."""
    for key, choices in _CHOICES.items():
        if cells[key] not in choices:
            raise ValueError(f"{key}={cells[key]!r} is not known{nearest(cells[key], choices)}")
    _check_number("advantage_eps", cells["advantage_eps"], low=0.0)
    _check_number("clip_low", cells["clip_low"], low=0.0, or_infinite=True)
    _check_number("clip_high", cells["clip_high"], low=0.0, or_infinite=True)
    _check_number("kl_coef", cells["kl_coef"], low=0.0)
    _check_number("entropy_coef", cells["entropy_coef"], low=-math.inf)
    if cells["mismatch_cap"] is not None:
        _check_number("mismatch_cap", cells["mismatch_cap"], low=math.ulp(0.0), or_infinite=True)
    constant = cells["aggregation_constant"]
    if constant is not None and (not isinstance(constant, int) or isinstance(constant, bool) or constant < 1):
        raise ValueError(f"aggregation_constant={constant!r}: must be a whole number of tokens, at least 1")
    if cells["source"] == "demonstrations":
        _check_demonstrations(cells)


def _check_demonstrations(cells: Mapping[str, Any]) -> None:
    """ValueError for a cell that compares completions, or needs a sampler's log-probs or a reward: demonstrations are
    groups of one and have neither."""
    excluded = {"surrogate": ("clipped", "log_likelihood"), "kl_place": ("reward", "loss")}
    for key, (choice, instead) in excluded.items():
        if cells[key] == choice:
            raise ValueError(
                f"{key}={choice!r} needs completions sampled from the policy, but source='demonstrations'; "
                f"use {key}={instead!r}"
            )
    for key in ("baseline", "scale"):
        if cells[key] != "none":
            raise ValueError(
                f"{key}={cells[key]!r} compares the completions of a group, but source='demonstrations' has groups of "
                f"one; use {key}='none'"
            )
    if cells["mismatch_cap"] is not None:
        raise ValueError(
            f"mismatch_cap={cells['mismatch_cap']} weighs tokens by their sampler's log-probs, which "
            "source='demonstrations' does not have; leave it out"
        )


def _check_number(key: str, value: object, *, low: float, or_infinite: bool = False) -> None:
    """ValueError unless `value` is a number of at least `low`, and finite unless infinity means something."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{key}={value!r}: must be a number")
    if not value >= low or (math.isinf(value) and not or_infinite):
        bound = "" if math.isinf(low) else " and above 0" if 0.0 < low < 1e-300 else f" and at least {low:g}"
        raise ValueError(f"{key}={value}: must be a number{'' if or_infinite else ', finite'}{bound}")


_SFT = Algorithm(
    name="sft",
    source="demonstrations",
    baseline="none",
    scale="none",
    surrogate="log_likelihood",
    aggregation="token_mean",
)

# DeepSeekMath (arXiv 2402.03300) eq. 3, beta as in 4.2. The paper leaves open which standard deviation, its epsilon
# and the clip: here the population's, 1e-6 and PPO's 0.2.
_GRPO = Algorithm(
    name="grpo",
    source="policy",
    baseline="group_mean",
    scale="population_std",
    surrogate="clipped",
    aggregation="completion_mean",
    kl_coef=0.04,
)

ALGORITHMS: dict[str, Algorithm] = {
    row.name: row
    for row in (
        _SFT,
        _GRPO,
        # DeepSeek-R1 (arXiv 2501.12948) eq. 1: ratio and KL of whole answers. Clip and beta as in its first RL stage.
        replace(_GRPO, name="grpo-r1", ratio_level="sequence", clip_low=10.0, clip_high=10.0, kl_coef=0.001),
        # arXiv 2503.20783: neither the standard deviation nor 1/|o|. Set aggregation_constant to max_new_tokens.
        replace(_GRPO, name="dr-grpo", scale="none", aggregation="constant", kl_coef=0.0),
        # arXiv 2602.02710: maximises log p(right) instead of p(right), as far as G samples can tell. Rewards 0 and 1.
        replace(_GRPO, name="maxrl", scale="mean", kl_coef=0.0),
        # DAPO's loss (arXiv 2503.14476) without its dynamic sampling and overlong shaping.
        replace(_GRPO, name="dapo-loss", aggregation="token_mean", clip_high=0.28, kl_coef=0.0),
    )
}
"""The presets by name."""


def algorithm(name: str, /, **overrides: Any) -> Algorithm:
    """The preset `name` with some cells replaced.

    Raises ValueError naming the nearest right word when the preset, a cell or a choice is not known, and when a value
    is out of its range or two cells exclude each other.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm {name!r} is not known{nearest(name, ALGORITHMS)}")
    cells = _cells(ALGORITHMS[name])
    known = [key for key in cells if key != "name"]
    for key in overrides:
        if key not in known:
            raise ValueError(f"{key!r} is not a cell of an algorithm{nearest(key, known)}")
    cells |= overrides
    _check_cells(cells)
    return Algorithm(**cells)
