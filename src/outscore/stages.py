"""The kinds of stage of a recipe and their settings, with what a recipe leaves out filled in.

The kind of a stage is what its completions are: sampled from the policy, demonstrations, preferences, or samples that
pass. Each has its own keys, so that a key which has no effect is refused.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from outscore.settings import Settings

LR_SFT, LR_POLICY, LR_LORA_FACTOR = 2e-5, 1e-5, 10.0
"""Peak learning rates where a recipe gives none. SFT of all weights: as Stanford Alpaca and Tulu 2 for 7B. GRPO of all
weights: DeepSeekMath's 1e-6 is for 7B, and models that a laptop trains want more. LoRA: ten times the rate of all
weights, for both ("LoRA Without Regret", Schulman et al. 2025; QLoRA's 2e-4 for SFT)."""
WARMUP_SHARE, WARMUP_MOST = 0.05, 10
"""Warm-up where a recipe gives none: this share of the stage's optimizer steps, at most so many. Adam's second moment
is an average over few steps at first; Alpaca and Tulu 2 warm up over 3 % of theirs."""


class OptimizerSettings(Settings):
    """AdamW and its schedule."""

    lr: float = Field(LR_POLICY, gt=0)
    """Peak learning rate; a recipe that leaves it out gets 2e-5 for SFT, else 1e-5, and ten times that with LoRA."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps of linear warm-up; a recipe that leaves it out gets 5 % of the stage's, at most 10."""
    final_fraction: float = Field(0.1, ge=0, le=1)
    """The rate at the end as a fraction of the peak (`linear`, `cosine`)."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""


class SamplingSettings(Settings):
    """How completions are drawn."""

    max_new_tokens: int = Field(256, ge=1)
    """Limit on new tokens, the stop token included."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits, when sampling and when training."""
    top_k: int = Field(0, ge=0)
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the smallest set of tokens whose probability reaches p."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Keep tokens at least this fraction as probable as the most probable."""
    max_rows: int = Field(256, ge=1)
    """Completions decoded at the same time. Memory grows with what is different in them."""


def _known_weights(value: Any, *, words: tuple[str, ...]) -> Any:
    """The word or the mapping; ValueError for another word, and for weights that are none."""
    if isinstance(value, str) and value in words:
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"must be {', '.join(words)}, or a weight for each population, such as {{a: 0.3, b: 0.7}}")
    for name, weight in value.items():
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight <= 1:
            raise ValueError(f"the weight of population {name!r} is {weight!r}; it must be between 0 and 1")
    if abs(sum(value.values()) - 1.0) > 1e-6:
        raise ValueError(f"the weights of the populations add up to {sum(value.values()):.9g}; they must add up to 1")
    return {str(name): float(weight) for name, weight in value.items()}


FixedWeights = Annotated[
    Literal["equal", "shares"] | Mapping[str, float],
    BeforeValidator(partial(_known_weights, words=("equal", "shares"))),
]
"""Weights of populations: all the same (importance sampling), as many as their examples are (the plain mean over
examples), or a number for each by name."""
AnyWeights = Annotated[
    Literal["robust", "equal", "shares"] | Mapping[str, float],
    BeforeValidator(partial(_known_weights, words=("robust", "equal", "shares"))),
]
"""The same, or weights that climb."""


class PopulationSettings(Settings):
    """Weights of populations in a stage's loss; docs/algorithms/group-robust.md."""

    column: str = ""
    """The column of the data that names an example's population; empty takes the population that the task names."""
    weights: AnyWeights = "robust"
    """`robust` climbs towards the worst-off population; `equal`, `shares` or a weight for each name stay as they
    are."""
    initial: FixedWeights = "equal"
    """What robust weights begin with, and the fixed weights of `trade_off`."""
    step_size: float = Field(0.01, ge=0)
    """Of robust weights, in units of 1 / loss: they are multiplied by exp(step_size * loss) at each optimizer step."""
    trade_off: float = Field(1.0, ge=0, le=1)
    """Robust weights count so much (1: the worst case), those of `initial` the rest."""
    draw: Literal["shares", "equal"] = "shares"
    """Whether a batch has as many examples of a population as the data, or as many of each."""

    @model_validator(mode="after")
    def _consistent(self) -> "PopulationSettings":
        of_robust = ("initial", "step_size", "trade_off")
        given = [key for key in of_robust if getattr(self, key) != type(self).model_fields[key].default]
        if self.weights != "robust" and given:
            raise ValueError(f"{given[0]} has no effect on weights: {self.weights}, which are fixed; it is of `robust`")
        return self


class PlateauSettings(Settings):
    """Smaller steps where evaluations within a stage no longer get better."""

    metric: str = "preference_loss"
    """Which metric of the evaluations; `worst/METRIC` is that of the worst-off population."""
    evaluations: int = Field(2, ge=1)
    """After so many evaluations in a row without a new best value."""
    lr_factor: float = Field(0.1, gt=0, le=1)
    """What the learning rate is then multiplied by."""
    step_size_factor: float = Field(0.5, gt=0, le=1)
    """What the step size of robust weights is then multiplied by."""


PREVIOUS, BASE = "previous", "base"
"""Where a stage's weights may come from besides stages."""


class StageSettings(Settings):
    """What every stage has."""

    name: str = ""
    """What the stage is called in files and tables; the algorithm's name when empty."""
    algorithm: str
    """A row of the table of algorithms (`outscore algorithms`)."""
    steps: int = Field(ge=1)
    """Steps to take: one batch of demonstrations, or one batch of sampled groups, each."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimizer and schedule."""
    token_budget: int = Field(4096, ge=1)
    """Tokens forwarded at once when training; bounds memory, never changes the gradient."""
    start: str = PREVIOUS
    """Which weights the policy begins the stage with: `previous` (as the stage before left them), `base` (as the run
    began), or the name of an earlier stage."""
    task: Mapping[str, Any] | None = None
    """A task of this stage's own, instead of the run's; evaluations keep to the run's."""
    rewards: tuple[str | Mapping[str, Any], ...] | None = None
    """Rewards of this stage's own, instead of the run's; evaluations keep to the run's."""
    cells: Mapping[str, Any] = Field(default_factory=dict)
    """Overrides of single cells of the algorithm's row, such as `clip_high: 0.28`."""
    populations: PopulationSettings | None = None
    """Weights of populations in the loss; without them every example counts the same."""
    plateau: PlateauSettings | None = None
    """Smaller steps where evaluations no longer get better."""

    @property
    def label(self) -> str:
        """The stage's name."""
        return self.name or self.algorithm

    @property
    def num_updates(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.steps


class SftSettings(StageSettings):
    """Supervised fine-tuning on the task's demonstrations: groups of one."""

    algorithm: Literal["sft"] = "sft"
    """Maximise the log-likelihood of demonstrations."""
    batch_size: int = Field(16, ge=1)
    """Demonstrations in a step."""


class PreferenceSettings(StageSettings):
    """Training on the task's preferences: groups of completions in the order somebody liked them."""

    algorithm: Literal["dpo", "dpo-mean", "cdpo", "ipo"] = "dpo"
    """A row of the table of algorithms whose source is preferences."""
    batch_size: int = Field(16, ge=1)
    """Pairs or rankings in a step."""
    ties: Literal["drop", "half"] = "drop"
    """What a pair of equal rank says: nothing, or that either is the better one with chance 1/2."""


class RejectionSettings(StageSettings):
    """Supervised fine-tuning on samples of the model that the stage begins with: those that pass are imitated."""

    algorithm: Literal["rft"] = "rft"
    """Maximise the log-likelihood of right samples."""
    batch_size: int = Field(16, ge=1)
    """Kept samples in a step."""
    num_prompts: int = Field(0, ge=0)
    """Training problems to sample for; 0 takes all."""
    group_size: int = Field(8, ge=1)
    """Samples of each prompt."""
    keep: int = Field(1, ge=0)
    """How many of a prompt's samples that pass are kept at most, the best first, none twice; 0 keeps all."""
    min_reward: float | None = None
    """What a sample must score to pass; without it those pass whose answer is correct."""
    sampling: SamplingSettings = SamplingSettings()
    """How samples are drawn."""

    @model_validator(mode="after")
    def _no_populations(self) -> "RejectionSettings":
        if self.populations is not None:
            raise ValueError("populations: rft chooses its own demonstrations; weigh those of sft, or another stage")
        return self


class RewardModelSettings(PreferenceSettings):
    """Training a reward model, which begins as a copy of the policy with a fresh head, on the task's preferences. The
    policy stays as it is."""

    algorithm: Literal["reward-model"] = "reward-model"  # type: ignore[assignment]  # another row of the table
    """A row of the table of algorithms that trains a reward model."""
    normalise: bool = True
    """Bring the scores of training completions to mean 0 and variance 1, before the first step and after the last."""


class PolicySettings(StageSettings):
    """Training on groups sampled from the policy itself: GRPO and its relatives."""

    algorithm: str = "grpo"
    """A row of the table of algorithms whose source is the policy."""
    prompts_per_step: int = Field(8, ge=1)
    """Groups in a step."""
    group_size: int = Field(8, ge=2)
    """Completions of each prompt, G. A baseline needs at least two."""
    minibatches: int = Field(1, ge=1)
    """Optimizer updates that share the groups of a step, each on its own part."""
    epochs: int = Field(1, ge=1)
    """Passes over the groups of a step: the µ of DeepSeekMath's Algorithm 1."""
    sampling: SamplingSettings = SamplingSettings()
    """How completions are drawn."""
    truncated: Literal["keep", "mask"] = "keep"
    """Completions that reached the length limit: `keep` trains on them as scored; `mask` counts them in the baseline
    but gives them no loss."""
    refills: int = Field(0, ge=0)
    """How often a group with nothing to teach, as where all rewards are equal, may be replaced by another prompt's
    before it is accepted as it is. `algorithm: dapo` has 10 where a recipe gives none."""
    overlong_buffer: int = Field(0, ge=0)
    """DAPO's soft overlong punishment: up to 1 is taken off a reward as the completion grows over the last so many of
    the tokens it may have; 0 takes nothing. `algorithm: dapo` has a fifth of `max_new_tokens` where a recipe gives
    none."""
    refresh_reference_every: int = Field(0, ge=0)
    """Copy the policy into the reference model every so many steps; 0 never does."""

    @property
    def num_updates(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.steps * self.minibatches * self.epochs

    @model_validator(mode="after")
    def _consistent(self) -> "PolicySettings":
        if self.minibatches > self.prompts_per_step:
            raise ValueError(
                f"minibatches = {self.minibatches} is more than prompts_per_step = {self.prompts_per_step}"
            )
        if self.overlong_buffer > self.sampling.max_new_tokens:
            raise ValueError(
                f"overlong_buffer = {self.overlong_buffer} is more than sampling.max_new_tokens = "
                f"{self.sampling.max_new_tokens}"
            )
        return self


SamplingStage = PolicySettings | RejectionSettings
"""Kinds of stage that sample for training prompts, and need rewards."""


def _stage(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Choose the settings class by the kind of source, so that a stage accepts only keys that have an effect on it."""
    return stage_kind(value).model_validate(value) if isinstance(value, Mapping) else handler(value)


AnyStage = Annotated[StageSettings, WrapValidator(_stage)]
"""A stage of whichever kind its algorithm is."""


def with_defaults(stage: StageSettings, lora: bool) -> StageSettings:
    """The stage with the rate and the warm-up that it leaves out, so that the run's config shows what was used."""
    rate = (LR_SFT if isinstance(stage, SftSettings | RejectionSettings) else LR_POLICY) * (
        LR_LORA_FACTOR if lora else 1.0
    )
    chosen = {"lr": rate, "warmup_steps": min(int(WARMUP_SHARE * stage.num_updates), WARMUP_MOST)}
    left_out = {key: value for key, value in chosen.items() if key not in stage.optimizer.model_fields_set}
    filled = stage.model_copy(update={"optimizer": stage.optimizer.model_copy(update=left_out)})
    if isinstance(filled, PolicySettings) and (suggest := STAGE_DEFAULTS.get(filled.algorithm)):
        suggested = {key: value for key, value in suggest(filled).items() if key not in stage.model_fields_set}
        filled = filled.model_copy(update=suggested)
    return filled


def _dapo(stage: PolicySettings) -> dict[str, int]:
    """Dynamic sampling (arXiv 2503.14476, 3.2; verl's recipe draws up to 10 batches), and an overlong buffer that is to
    the limit as DAPO's 4096 to 20480 tokens."""
    return {"refills": 10, "overlong_buffer": max(stage.sampling.max_new_tokens // 5, 1)}


STAGE_DEFAULTS: Mapping[str, Callable[[PolicySettings], Mapping[str, Any]]] = {"dapo": _dapo}
"""What an algorithm asks of its stage beside its row, for settings that a recipe leaves out: the run's config shows
what was used."""


def stage_kind(value: Mapping[str, Any]) -> type[StageSettings]:
    """The kind of a stage given as a mapping."""
    return _KINDS.get(str(value.get("algorithm")), PolicySettings)


_KINDS: Mapping[str, type[StageSettings]] = {
    name: kind
    for kind in (SftSettings, PreferenceSettings, RejectionSettings, RewardModelSettings)
    for name in get_args(kind.model_fields["algorithm"].annotation)
}
"""Algorithm -> its kind of stage, where that is not sampling from the policy."""
WITHOUT_SAMPLING: Mapping[type[StageSettings], str] = {
    SftSettings: "supervised fine-tuning: a demonstration is a group of one",
    PreferenceSettings: "preferences: their completions are given, not sampled",
    RejectionSettings: "rejection sampling: its samples are drawn once, and then imitated",
    RewardModelSettings: "a reward model: it learns from preferences, whose completions are given",
}
"""Why a key about sampling has no effect on a kind of stage."""
