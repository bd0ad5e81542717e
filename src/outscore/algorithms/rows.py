"""An algorithm is a row of choices. Code that trains reads the cells and never asks for the row's name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from outscore.algorithms.cell_checks import (
    PAIRWISE,
    POINTWISE,
    check_demonstrations,
    check_labels,
    check_number,
    check_preferences,
    check_together,
)
from outscore.algorithms.cell_effects import check_read
from outscore.algorithms.choices import (
    Aggregation,
    Baseline,
    BatchNorm,
    KlEstimator,
    KlLevel,
    KlPlace,
    KlTarget,
    MismatchLevel,
    MismatchMode,
    PairObjective,
    RatioBase,
    RatioLevel,
    RewardKind,
    Scale,
    Source,
    Supervision,
    Surrogate,
    Trained,
)
from outscore.algorithms.critic_cells import check_critic
from outscore.algorithms.presets import PRESETS
from outscore.inputs import nearest


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
    supervision: Supervision = "outcome"
    """Whether a completion has one reward, or one for each of its steps."""
    reward: RewardKind = "total"
    """Which reward is compared."""
    baseline: Baseline
    """What a reward is compared with."""
    scale: Scale
    """What the difference is divided by."""
    advantage_eps: float = 1e-6
    """Added to what the difference is divided by, in units of the reward. A group without variance is 0 anyway."""
    batch_norm: BatchNorm = "none"
    """Whether advantages are then normalised over the batch, and over its completions or its tokens."""
    gae_lambda: float = 0.95
    """`baseline: critic`: how far an advantage looks ahead before it takes the critic's word; 1 to the end."""
    critic_lambda: float | None = None
    """The same for what the critic learns from; None is `gae_lambda` (VC-PPO has 1)."""
    lambda_alpha: float | None = None
    """VAPO's lambda of the policy, 1 - 1 / (alpha * length), instead of `gae_lambda`."""
    value_clip: float = 0.2
    """How far an update may move a value for its loss to count; .inf is no clip."""
    whiten_rewards: bool = False
    """`baseline: critic`: divide the tokens' rewards by their standard deviation, without a shift."""
    zero_negative: bool = False
    """Set negative advantages to 0, so that nothing is made less likely for its own sake: an ablation."""
    ratio_level: RatioLevel = "token"
    """Whether the ratio policy / base, or the log-likelihood where there is no ratio, is a token's or the whole
    completion's."""
    ratio_base: RatioBase = "anchor"
    """What the policy is divided by."""
    surrogate: Surrogate
    """What is maximised on each token."""
    clip_low: float = 0.2
    """The ratio is clipped (`clipped`) or raised to (`capped_weight`) 1 - clip_low; `tv_masked`: how far the
    probability may fall."""
    clip_high: float = 0.2
    """The ratio is clipped at or capped to 1 + clip_high; `tv_masked`: how far the probability may rise."""
    gate_positive: float = 1.0
    """Temperature of `soft_gate` where the advantage is positive: the larger, the sooner the gate closes."""
    gate_negative: float = 1.05
    """Temperature of `soft_gate` elsewhere."""
    aggregation: Aggregation
    """How tokens are averaged."""
    aggregation_constant: int | None = None
    """The fixed length of aggregation "constant", usually max_new_tokens; unused otherwise."""
    kl_estimator: KlEstimator = "k3"
    """Which estimate of KL(policy || reference) is the penalty; `outscore.objectives.kl` says what each one's gradient
    is."""
    kl_coef: float = 0.0
    """beta; at 0 there is no penalty and no reference model is needed. In DPO and IPO it is the beta of the loss."""
    kl_place: KlPlace = "loss"
    """Whether the penalty is a term of the loss or is taken off the reward, or off each token's advantage."""
    kl_level: KlLevel = "token"
    """Whether the estimate is that of a token or of the whole completion."""
    kl_to: KlTarget = "reference"
    """Whom the penalty keeps the policy near."""
    kl_adapt_to: float | None = None
    """The KL of a completion, in nats, to which `kl_coef` is steered from where it begins; None keeps it."""
    kl_horizon: int = 10_000
    """The greater, the slower: completions over which an error of 20 % changes `kl_coef` by 20 %."""
    kl_weighted: bool = False
    """Multiply the estimate in the loss by policy / base, gradient included, which makes it unbiased off-policy."""
    mismatch_cap: float | None = None
    """Upper bound of the importance weight anchor / sampler; None leaves the weight out."""
    mismatch_floor: float = 0.0
    """Its lower bound; for `mismatch_mode: mask`."""
    mismatch_mode: MismatchMode = "truncate"
    """Whether a weight out of bounds becomes the bound, or 0."""
    mismatch_level: MismatchLevel = "token"
    """Whether the weight is that of a token or of the whole completion."""
    stale_threshold: float | None = None
    """Drop completions of negative advantage whose mean log(base / policy) exceeds this; None drops none."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, averaged over tokens as the objective is; needs the entropy of every token."""
    label_smoothing: float = 0.0
    """The chance that a preference is the wrong way round (cDPO)."""

    def __post_init__(self) -> None:
        _check_cells(_cells(self))

    @property
    def needs_reference(self) -> bool:
        """Whether a reference policy's log-probs enter the objective."""
        return self.kl_coef > 0.0 and self.kl_to == "reference"

    @property
    def needs_teacher(self) -> bool:
        """Whether the log-probs of another model enter the objective."""
        return self.kl_coef > 0.0 and self.kl_to == "teacher"

    @property
    def needs_anchor(self) -> bool:
        """Whether the policy before a step's updates enters the objective, so that several updates must remember it."""
        pulls = self.kl_coef > 0.0 and self.kl_to == "anchor"
        weighs = self.mismatch_cap is not None  # by anchor / sampler, where there is no ratio, too
        return pulls or weighs or (self.ratio_base == "anchor" and self.uses_ratio)

    @property
    def needs_sampler(self) -> bool:
        """Whether the log-probs that tokens were drawn with enter the objective."""
        return self.mismatch_cap is not None or (self.ratio_base == "sampler" and self.uses_ratio)

    @property
    def uses_ratio(self) -> bool:
        """Whether policy / base enters the objective."""
        weighted = self.kl_weighted and self.kl_coef > 0.0 and self.kl_place == "loss"
        return self.is_off_policy or weighted or self.stale_threshold is not None

    @property
    def is_off_policy(self) -> bool:
        """Whether the surrogate itself has policy / base in it, times an advantage."""
        return self.surrogate not in ("log_likelihood", *PAIRWISE, *POINTWISE)

    @property
    def needs_whole_completions(self) -> bool:
        """Whether a micro-batch must hold all tokens of a completion or none."""
        levels = [self.ratio_level]
        if self.kl_coef > 0.0 and self.kl_place == "loss":
            levels.append(self.kl_level)
        if self.mismatch_cap is not None:
            levels.append(self.mismatch_level)
        return any(level != "token" for level in levels) or self.stale_threshold is not None or self.is_pairwise

    @property
    def compares_completions(self) -> bool:
        """Whether a group needs two completions or more to say anything."""
        return self.baseline not in ("none", "critic") or self.scale not in ("none", "batch_std") or self.is_pairwise

    @property
    def has_critic(self) -> bool:
        """Whether a critic is trained beside the policy."""
        return self.baseline == "critic"

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
        """Whether a KL is a term of the loss by itself."""
        return self.kl_coef > 0.0 and self.kl_place == "loss" and not self.is_pairwise


_CHOICES: dict[str, tuple[str, ...]] = {
    "source": get_args(Source),
    "trains": get_args(Trained),
    "supervision": get_args(Supervision),
    "reward": get_args(RewardKind),
    "batch_norm": get_args(BatchNorm),
    "baseline": get_args(Baseline),
    "scale": get_args(Scale),
    "ratio_level": get_args(RatioLevel),
    "ratio_base": get_args(RatioBase),
    "surrogate": get_args(Surrogate),
    "aggregation": get_args(Aggregation),
    "kl_estimator": get_args(KlEstimator),
    "kl_place": get_args(KlPlace),
    "kl_level": get_args(KlLevel),
    "kl_to": get_args(KlTarget),
    "mismatch_mode": get_args(MismatchMode),
    "mismatch_level": get_args(MismatchLevel),
}


def _cells(row: Algorithm) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in fields(row)}


def _check_cells(cells: Mapping[str, Any]) -> None:
    """ValueError for an unknown choice, a number out of its range, or cells that exclude each other."""
    for key, choices in _CHOICES.items():
        if cells[key] not in choices:
            raise ValueError(f"{key}={cells[key]!r} is not known{nearest(cells[key], choices)}")
    check_number("advantage_eps", cells["advantage_eps"], low=0.0)
    check_number("clip_low", cells["clip_low"], low=0.0, or_infinite=True)
    check_number("clip_high", cells["clip_high"], low=0.0, or_infinite=True)
    check_number("kl_coef", cells["kl_coef"], low=0.0)
    check_number("entropy_coef", cells["entropy_coef"], low=-math.inf)
    if cells["mismatch_cap"] is not None:
        check_number("mismatch_cap", cells["mismatch_cap"], low=math.ulp(0.0), or_infinite=True)
    check_number("mismatch_floor", cells["mismatch_floor"], low=0.0)
    for key in ("gate_positive", "gate_negative"):
        check_number(key, cells[key], low=math.ulp(0.0))
    if cells["stale_threshold"] is not None:
        check_number("stale_threshold", cells["stale_threshold"], low=-math.inf)
    check_critic(cells)
    for key in ("zero_negative", "kl_weighted", "whiten_rewards"):
        if not isinstance(cells[key], bool):
            raise ValueError(f"{key}={cells[key]!r}: must be true or false")
    check_together(cells)
    constant = cells["aggregation_constant"]
    if constant is not None and (not isinstance(constant, int) or isinstance(constant, bool) or constant < 1):
        raise ValueError(f"aggregation_constant={constant!r}: must be a whole number of tokens, at least 1")
    check_number("label_smoothing", cells["label_smoothing"], low=0.0)
    if cells["label_smoothing"] >= 0.5:
        raise ValueError(
            f"label_smoothing={cells['label_smoothing']}: must be below 0.5, where preferences say nothing"
        )
    if cells["source"] in ("texts", "demonstrations", "samples"):
        check_demonstrations(cells)
    if cells["trains"] != "policy" and cells["source"] not in ("preferences", "labels"):
        raise ValueError(f"trains={cells['trains']!r} needs preferences, but source={cells['source']!r}")
    if cells["source"] == "labels":
        check_labels(cells)
    elif cells["surrogate"] in POINTWISE:
        raise ValueError(f"surrogate={cells['surrogate']!r} is of scores, but source={cells['source']!r} has no labels")
    elif cells["source"] == "preferences":
        check_preferences(cells)
    elif cells["surrogate"] in PAIRWISE or cells["label_smoothing"]:
        key = "surrogate" if cells["surrogate"] in PAIRWISE else "label_smoothing"
        raise ValueError(f"{key}={cells[key]!r} is about pairs, but source={cells['source']!r} has no preferences")


# DeepSeekMath (arXiv 2402.03300) eq. 3, beta as in 4.2. The paper leaves open which standard deviation, its epsilon
# and the clip: here the population's, 1e-6 and PPO's 0.2. Sources of all rows stand beside them in `presets`.
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
    row.name: row for row in (replace(_GRPO, name=preset.name, **preset.cells) for preset in PRESETS.values())
}
"""The presets by name."""


def algorithm(name: str, /, **overrides: Any) -> Algorithm:
    """The preset `name` with some cells replaced.

    Raises ValueError naming the nearest right word when the preset, a cell or a choice is not known, and when a value
    is out of its range, two cells exclude each other, or a cell is given another value and has no effect.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm {name!r} is not known{nearest(name, ALGORITHMS)}")
    cells = _cells(ALGORITHMS[name])
    known = [key for key in cells if key != "name"]
    for key in overrides:
        if key not in known:
            raise ValueError(f"{key!r} is not a cell of an algorithm{nearest(key, known)}")
    own = dict(cells)
    cells |= overrides
    _check_cells(cells)
    check_read(cells, own, overrides)
    return Algorithm(**cells)
