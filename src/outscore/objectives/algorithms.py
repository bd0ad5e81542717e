"""An algorithm is a row of choices. Code that trains reads the cells and never asks for the row's name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from outscore.inputs import nearest
from outscore.objectives.advantages import Baseline, Scale
from outscore.objectives.aggregation import Aggregation
from outscore.objectives.kl import KlEstimator, KlPlace
from outscore.objectives.preferences import PairLoss, PairObjective
from outscore.objectives.ratios import RatioLevel
from outscore.objectives.surrogates import Surrogate

Source = Literal["demonstrations", "samples", "policy", "preferences"]
"""Where completions come from: a data set of responses, samples of the model as a stage finds it, samples of the policy
as it is trained, or a data set of ranked responses."""
Trained = Literal["policy", "reward_model"]
"""Which model an update moves."""
PAIRWISE: tuple[Surrogate, ...] = get_args(PairLoss)
"""The surrogates that compare two completions whose order is given."""


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
    trains: Trained = "policy"
    """Which model is trained: the policy, or a reward model that begins as a copy of it."""
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
    """beta; at 0 there is no penalty and no reference model is needed. DPO and IPO have no term of their own for it: it
    is the beta in their loss."""
    kl_place: KlPlace = "loss"
    """Whether the penalty is a term of the loss or is taken off the reward."""
    mismatch_cap: float | None = None
    """Cap of the truncated importance weight anchor / sampler; None leaves the weight out."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, averaged over tokens as the objective is; needs the entropy of every token."""
    label_smoothing: float = 0.0
    """The chance that a preference is the wrong way round (cDPO)."""

    def __post_init__(self) -> None:
        _check_cells(_cells(self))

    @property
    def needs_reference(self) -> bool:
        """Whether a reference policy's log-probs enter the objective."""
        return self.kl_coef > 0.0

    @property
    def compares_completions(self) -> bool:
        """Whether a group needs two completions or more to say anything."""
        return self.baseline != "none" or self.scale != "none" or self.is_pairwise

    @property
    def is_pairwise(self) -> bool:
        """Whether the loss is one of pairs of completions whose order is given."""
        return self.surrogate in PAIRWISE

    @property
    def pair_objective(self) -> PairObjective:
        """The cells that a loss of pairs has."""
        return PairObjective(
            kind="logistic" if self.surrogate == "logistic" else "squared",
            beta=self.kl_coef if self.trains == "policy" else 1.0,
            per_token=self.aggregation == "completion_mean",
            label_smoothing=self.label_smoothing,
        )

    @property
    def penalises_kl(self) -> bool:
        """Whether the KL to the reference is a term of the loss by itself."""
        return self.kl_coef > 0.0 and self.kl_place == "loss" and not self.is_pairwise


_CHOICES: dict[str, tuple[str, ...]] = {
    "source": get_args(Source),
    "trains": get_args(Trained),
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
    _check_number("label_smoothing", cells["label_smoothing"], low=0.0)
    if cells["label_smoothing"] >= 0.5:
        raise ValueError(
            f"label_smoothing={cells['label_smoothing']}: must be below 0.5, where preferences say nothing"
        )
    if cells["source"] in ("demonstrations", "samples"):
        _check_demonstrations(cells)
    if cells["trains"] != "policy" and cells["source"] != "preferences":
        raise ValueError(f"trains={cells['trains']!r} needs preferences, but source={cells['source']!r}")
    if cells["source"] == "preferences":
        _check_preferences(cells)
    elif cells["surrogate"] in PAIRWISE or cells["label_smoothing"]:
        key = "surrogate" if cells["surrogate"] in PAIRWISE else "label_smoothing"
        raise ValueError(f"{key}={cells[key]!r} is about pairs, but source={cells['source']!r} has no preferences")


def _check_demonstrations(cells: Mapping[str, Any]) -> None:
    """ValueError for a cell that compares completions, or needs a sampler's log-probs or a reward: demonstrations are
    groups of one and have neither."""
    excluded = {"surrogate": ("clipped", "log_likelihood"), "kl_place": ("reward", "loss")}
    for key, (choice, instead) in excluded.items():
        if cells[key] == choice:
            raise ValueError(
                f"{key}={choice!r} needs completions sampled from the policy, but source={cells['source']!r}; "
                f"use {key}={instead!r}"
            )
    for key in ("baseline", "scale"):
        if cells[key] != "none":
            raise ValueError(
                f"{key}={cells[key]!r} compares the completions of a group, but source={cells['source']!r} has groups "
                f"of one; use {key}='none'"
            )
    if cells["mismatch_cap"] is not None:
        raise ValueError(
            f"mismatch_cap={cells['mismatch_cap']} weighs tokens by their sampler's log-probs, which "
            f"source={cells['source']!r} does not have; leave it out"
        )


def _check_preferences(cells: Mapping[str, Any]) -> None:
    """ValueError for a cell that means nothing where completions come in a given order."""
    wanted = {
        "surrogate": PAIRWISE,
        "baseline": ("none",),
        "scale": ("none",),
        "ratio_level": ("token",),
        "aggregation": ("completion_sum", "completion_mean"),
        "kl_place": ("loss",),
        "mismatch_cap": (None,),
    }
    for key, choices in wanted.items():
        if cells[key] not in choices:
            raise ValueError(
                f"{key}={cells[key]!r} has no meaning where source='preferences'; use {' or '.join(map(repr, choices))}"
            )
    if cells["trains"] == "reward_model" and cells["kl_coef"]:
        raise ValueError(f"kl_coef={cells['kl_coef']}: a reward model has no reference to be near to; leave it at 0")
    if cells["trains"] == "policy" and not cells["kl_coef"] > 0:
        raise ValueError(f"kl_coef={cells['kl_coef']}: it is the beta of the loss of preferences, and must be above 0")


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

# Rafailov et al. (arXiv 2305.18290) eq. 7, its beta of 0.1.
_DPO = Algorithm(
    name="dpo",
    source="preferences",
    baseline="none",
    scale="none",
    surrogate="logistic",
    aggregation="completion_sum",
    kl_coef=0.1,
)

ALGORITHMS: dict[str, Algorithm] = {
    row.name: row
    for row in (
        _SFT,
        # Rejection-sampling fine-tuning, in DeepSeekMath's unified paradigm (arXiv 2402.03300, eq. 5): its coefficient
        # I(o is right) is the choice of what is imitated.
        replace(_SFT, name="rft", source="samples"),
        _GRPO,
        # DeepSeek-R1 (arXiv 2501.12948) eq. 1: ratio and KL of whole answers. Clip and beta as in its first RL stage.
        replace(_GRPO, name="grpo-r1", ratio_level="sequence", clip_low=10.0, clip_high=10.0, kl_coef=0.001),
        # arXiv 2503.20783: neither the standard deviation nor 1/|o|. Set aggregation_constant to max_new_tokens.
        replace(_GRPO, name="dr-grpo", scale="none", aggregation="constant", kl_coef=0.0),
        # arXiv 2602.02710: maximises log p(right) instead of p(right), as far as G samples can tell. Rewards 0 and 1.
        replace(_GRPO, name="maxrl", scale="mean", kl_coef=0.0),
        # DAPO's loss (arXiv 2503.14476) without its dynamic sampling and overlong shaping.
        replace(_GRPO, name="dapo-loss", aggregation="token_mean", clip_high=0.28, kl_coef=0.0),
        _DPO,
        # DeepSeekMath (arXiv 2402.03300) app. A.1.4: each log-ratio divided by |o|. A mean is |o| times smaller than a
        # sum, so beta is larger.
        replace(_DPO, name="dpo-mean", aggregation="completion_mean", kl_coef=2.0),
        # Mitchell's note on conservative DPO: a tenth of the labels taken to be wrong.
        replace(_DPO, name="cdpo", label_smoothing=0.1),
        # arXiv 2310.12036 eq. 17, tau as kl_coef.
        replace(_DPO, name="ipo", surrogate="squared"),
        # InstructGPT (arXiv 2203.02155) eq. 1: DPO's loss with a score in the place of beta times the log-ratio.
        replace(_DPO, name="reward-model", trains="reward_model", kl_coef=0.0),
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
