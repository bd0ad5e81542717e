"""An algorithm is a row of choices. Code that trains reads the cells and never asks for the row's name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from outscore.inputs import nearest
from outscore.objectives.advantages import Baseline, Scale
from outscore.objectives.aggregation import Aggregation
from outscore.objectives.critic_cells import check_critic
from outscore.objectives.kl import KlEstimator, KlPlace, KlTarget
from outscore.objectives.preferences import PairLoss, PairObjective
from outscore.objectives.presets import PRESETS
from outscore.objectives.ratios import KlLevel, MismatchLevel, MismatchMode, RatioLevel
from outscore.objectives.surrogates import Surrogate

Source = Literal["demonstrations", "samples", "policy", "preferences"]
"""Where completions come from: a data set of responses, samples of the model as a stage finds it, samples of the policy
as it is trained, or a data set of ranked responses."""
Trained = Literal["policy", "reward_model"]
"""Which model an update moves."""
Supervision = Literal["outcome", "process"]
"""Whether a completion has one reward, or one for each of its steps."""
RewardKind = Literal["total", "parts", "correct"]
"""Which reward is compared: the weighted total, each reward alone (GDPO), or whether the answer is right, 1 or 0."""
BatchNorm = Literal["none", "completions", "tokens", "whiten"]
"""Whether advantages are shifted and divided by mean and standard deviation of the batch's, and over what; `whiten` is
over tokens, as in PPO: with 1e-8 under the root."""
RatioBase = Literal["anchor", "sampler"]
"""What the policy is divided by: the trainer's policy when the update began, or what the tokens were drawn with."""
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
    def needs_anchor(self) -> bool:
        """Whether the policy before a step's updates enters the objective, so that several updates must remember it."""
        pulls = self.kl_coef > 0.0 and self.kl_to == "anchor"
        return pulls or (self.ratio_base == "anchor" and self.uses_ratio)

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
        return self.surrogate != "log_likelihood" and not self.is_pairwise

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

_OF_DEMONSTRATIONS = {
    "surrogate": "log_likelihood",
    "kl_place": "loss",
    "kl_to": "reference",
    "kl_weighted": False,
    "supervision": "outcome",
    "reward": "total",
    "batch_norm": "none",
    "zero_negative": False,
    "stale_threshold": None,
}
"""The only choice of these cells where nothing is sampled."""

_EXCLUDED: tuple[tuple[tuple[str, str], tuple[str, str], str], ...] = (
    (("supervision", "process"), ("reward", "parts"), "steps are those of the total; use reward='total'"),
    (("supervision", "process"), ("reward", "correct"), "steps are those of the total; use reward='total'"),
    (("supervision", "process"), ("baseline", "leave_one_out"), "a step's pool is the group's; use 'group_mean'"),
    (("supervision", "process"), ("scale", "batch_std"), "use batch_norm='tokens', or scale='population_std'"),
    (("supervision", "process"), ("batch_norm", "completions"), "tokens differ in advantage; use 'tokens'"),
    (("reward", "parts"), ("scale", "batch_std"), "each part is normalised in its group; use 'population_std'"),
    (("reward", "parts"), ("kl_place", "reward"), "the parts are compared each alone; use kl_place='loss'"),
    (("kl_place", "token_reward"), ("batch_norm", "completions"), "tokens differ in advantage; use 'tokens'"),
    (("kl_place", "token_reward"), ("kl_level", "sequence"), "each token pays its own KL; use kl_level='token'"),
    (("kl_to", "anchor"), ("kl_place", "reward"), "before the update the two are one; use kl_place='loss'"),
    (("kl_to", "anchor"), ("kl_place", "token_reward"), "before the update the two are one; use kl_place='loss'"),
    (("surrogate", "tv_masked"), ("ratio_level", "sequence"), "it compares probabilities of tokens; use 'token'"),
    (("surrogate", "tv_masked"), ("ratio_level", "sequence_mean"), "it compares probabilities of tokens; use 'token'"),
    (("surrogate", "tv_masked"), ("ratio_level", "sequence_mean_token"), "it compares tokens; use 'token'"),
)
"""Two choices that exclude each other, and why."""


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
    _check_number("mismatch_floor", cells["mismatch_floor"], low=0.0)
    for key in ("gate_positive", "gate_negative"):
        _check_number(key, cells[key], low=math.ulp(0.0))
    if cells["stale_threshold"] is not None:
        _check_number("stale_threshold", cells["stale_threshold"], low=-math.inf)
    check_critic(cells)
    for key in ("zero_negative", "kl_weighted", "whiten_rewards"):
        if not isinstance(cells[key], bool):
            raise ValueError(f"{key}={cells[key]!r}: must be true or false")
    _check_together(cells)
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


def _check_together(cells: Mapping[str, Any]) -> None:
    """ValueError for two cells that exclude each other, or one that has no effect without another."""
    for (key, choice), (other, excluded), why in _EXCLUDED:
        if cells[key] == choice and cells[other] == excluded:
            raise ValueError(f"{key}={choice!r} does not go with {other}={excluded!r}: {why}")
    floor, cap = cells["mismatch_floor"], cells["mismatch_cap"]
    if floor > 0.0 and (cap is None or cells["mismatch_mode"] != "mask" or floor > cap):
        raise ValueError(
            f"mismatch_floor={floor} bounds a masked weight from below: it needs mismatch_mode='mask' and a "
            f"mismatch_cap above it, found {cells['mismatch_mode']!r} and {cap}"
        )
    if cells["mismatch_mode"] == "mask" and cap is None:
        raise ValueError("mismatch_mode='mask' has no effect without mismatch_cap; give one, such as 2.0")
    if cap is not None and cells["ratio_base"] == "sampler" and cells["surrogate"] != "log_likelihood":
        raise ValueError(
            f"mismatch_cap={cap} corrects anchor / sampler, which ratio_base='sampler' has in its ratio already; leave "
            "one of them out"
        )


def _check_demonstrations(cells: Mapping[str, Any]) -> None:
    """ValueError for a cell that compares completions, or needs a sampler's log-probs or a reward: demonstrations are
    groups of one and have neither."""
    for key, only in _OF_DEMONSTRATIONS.items():
        if cells[key] != only:
            raise ValueError(
                f"{key}={cells[key]!r} needs completions sampled from the policy, but source={cells['source']!r}; "
                f"use {key}={only!r}"
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
    wanted: dict[str, tuple[Any, ...]] = {
        **{key: (only,) for key, only in _OF_DEMONSTRATIONS.items()},
        "surrogate": PAIRWISE,
        "baseline": ("none",),
        "scale": ("none",),
        "ratio_level": ("token",),
        "aggregation": ("completion_sum", "completion_mean"),
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
