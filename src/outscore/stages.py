"""The kinds of stage of a recipe and their settings, with what a recipe leaves out filled in.

The kind of a stage is what its completions are: sampled from the policy, demonstrations, preferences, or samples that
pass. Each has its own keys, so that a key which has no effect is refused.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from outscore.settings import Settings

LR_SFT, LR_POLICY, LR_LORA_FACTOR, LR_CRITIC_FACTOR = 2e-5, 1e-5, 10.0, 2.0
"""Peak learning rates where a recipe gives none. SFT of all weights: as Stanford Alpaca and Tulu 2 for 7B. GRPO of all
weights: DeepSeekMath's 1e-6 is for 7B, and models that a laptop trains want more. LoRA: ten times the rate of all
weights, for both ("LoRA Without Regret", Schulman et al. 2025; QLoRA's 2e-4 for SFT). A critic: twice the policy's, as
in VC-PPO (arXiv 2503.01491) and VAPO (arXiv 2504.05118)."""
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

    @property
    def label(self) -> str:
        """The stage's name."""
        return self.name or self.algorithm

    @property
    def num_updates(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.steps


class TextSettings(StageSettings):
    """Pre-training on the task's plain text."""

    algorithm: Literal["pretrain"] = "pretrain"
    """Maximise the log-likelihood of text, every token of it."""
    batch_size: int = Field(32, ge=1)
    """Pieces of text in a step."""
    piece: int = Field(256, ge=2)
    """Tokens of a piece at most: a longer document is cut, and no piece has a part of two."""


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
    samples_from: str = ""
    """Which weights sample: `base`, or an earlier stage's; empty means those that the stage begins with. R1 samples its
    second stage and fine-tunes the base model on that."""
    filters: Mapping[str, float] = Field(default_factory=dict)
    """What a sample must score at least by single rewards, as `language_consistency: 0.9`; a reward that does not apply
    to it is no obstacle."""
    demonstrations: bool = False
    """Imitate the task's demonstrations as well."""
    keep: int = Field(1, ge=0)
    """How many of a prompt's samples that pass are kept at most, the best first, none twice; 0 keeps all."""
    min_reward: float | None = None
    """What a sample must score to pass; without it those pass whose answer is correct."""
    sampling: SamplingSettings = SamplingSettings()
    """How samples are drawn."""


class RewardModelSettings(PreferenceSettings):
    """Training a reward model, which begins as a copy of the policy with a fresh head, on the task's preferences. The
    policy stays as it is."""

    algorithm: Literal["reward-model"] = "reward-model"  # type: ignore[assignment]  # another row of the table
    """A row of the table of algorithms that trains a reward model."""
    normalise: bool = True
    """Bring the scores of training completions to mean 0 and variance 1, before the first step and after the last."""


POLICY = "policy"
"""What a critic may begin as besides a model's directory and an earlier stage's."""


class CriticSettings(Settings):
    """The model that says what a state is worth, trained beside the policy."""

    start: str = POLICY
    """What it begins as: `policy`, a copy of the policy with a head that says 0; the reward model or critic of an
    earlier stage, by the stage's name; or the directory of a reward model. These bring their head along."""
    lr: float = Field(LR_CRITIC_FACTOR * LR_POLICY, gt=0)
    """Peak learning rate; else its optimizer is the stage's. A recipe that leaves it out gets twice the policy's,
    LoRA's factor of ten aside: all weights of a critic are trained."""
    warmup_steps: int = Field(0, ge=0)
    """Steps at the beginning in which only the critic learns (value pre-training)."""


class PolicySettings(StageSettings):
    """Training on groups sampled from the policy itself: GRPO and its relatives."""

    algorithm: str = "grpo"
    """A row of the table of algorithms whose source is the policy."""
    prompts_per_step: int = Field(8, ge=1)
    """Groups in a step."""
    group_size: int = Field(8, ge=1)
    """Completions of each prompt, G. What compares them needs at least two."""
    minibatches: int = Field(1, ge=1)
    """Optimizer updates that share the groups of a step, each on its own part."""
    epochs: int = Field(1, ge=1)
    """Passes over the groups of a step: the µ of DeepSeekMath's Algorithm 1."""
    sampling: SamplingSettings = SamplingSettings()
    """How completions are drawn."""
    truncated: Literal["keep", "mask"] = "keep"
    """Completions that reached the length limit: `keep` trains on them as scored; `mask` counts them in the baseline
    but gives them no loss."""
    truncated_score: float | None = None
    """What the reward of a completion counts as that reached the length limit, whatever it was scored: -1 is the EOS
    trick of Stiennon et al. (arXiv 2009.01325). None leaves rewards as they are."""
    refills: int = Field(0, ge=0)
    """How often a group with nothing to teach, as where all rewards are equal, may be replaced by another prompt's
    before it is accepted as it is. `algorithm: dapo` has 10 where a recipe gives none."""
    overlong_buffer: int = Field(0, ge=0)
    """DAPO's soft overlong punishment: up to 1 is taken off a reward as the completion grows over the last so many of
    the tokens it may have; 0 takes nothing. `algorithm: dapo` has a fifth of `max_new_tokens` where a recipe gives
    none."""
    refresh_reference_every: int = Field(0, ge=0)
    """Copy the policy into the reference model every so many steps; 0 never does."""
    critic: CriticSettings | None = None
    """The critic, for algorithms with `baseline: critic`: those have one with defaults where a recipe gives none."""

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps on the groups of a step."""
        return self.minibatches * self.epochs

    @property
    def num_updates(self) -> int:
        """Optimizer steps of the policy in the whole stage."""
        return (self.steps - (self.critic.warmup_steps if self.critic else 0)) * self.updates_per_step

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
        if self.critic is not None and self.critic.warmup_steps >= self.steps:
            raise ValueError(
                f"critic.warmup_steps = {self.critic.warmup_steps} leaves none of steps = {self.steps} for the policy"
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
    """The stage with what it leaves out and its algorithm asks for, with a rate and a warm-up, so that the run's config
    shows what was used."""
    if isinstance(stage, PolicySettings):
        stage = _filled(stage, _suggestions(stage))
    factor = LR_LORA_FACTOR if lora else 1.0
    rate = LR_SFT if isinstance(stage, TextSettings | SftSettings | RejectionSettings) else LR_POLICY
    warmup = min(int(WARMUP_SHARE * stage.num_updates), WARMUP_MOST)
    stage = _filled(stage, {"optimizer": {"lr": factor * rate, "warmup_steps": warmup}})
    if isinstance(stage, PolicySettings) and stage.critic is not None:
        stage = _filled(stage, {"critic": {"lr": LR_CRITIC_FACTOR * stage.optimizer.lr / factor}})
    return stage


SettingsType = TypeVar("SettingsType", bound=Settings)


def _filled(given: SettingsType, suggested: Mapping[str, Any]) -> SettingsType:
    """The settings with values for keys that they leave out, also within settings that they hold."""
    chosen: dict[str, Any] = {}
    for key, value in suggested.items():
        own = getattr(given, key)
        if isinstance(own, Settings):
            chosen[key] = _filled(own, value)
        elif own is None or key not in given.model_fields_set:
            chosen[key] = value
    return given.model_copy(update=chosen)


def _suggestions(stage: PolicySettings) -> dict[str, Any]:
    """What the algorithm asks of the stage: a critic, to be filled in, where the row or a cell has one."""
    suggested = dict(STAGE_DEFAULTS.get(stage.algorithm, _nothing)(stage))
    of_critic = suggested.pop("critic", None)
    row = "" if of_critic is None else "critic"
    if stage.critic is not None:
        suggested["critic"] = of_critic or {}
    elif stage.cells.get("baseline", row) == "critic":
        suggested["critic"] = CriticSettings(**(of_critic or {}))
    return suggested


def _nothing(stage: PolicySettings) -> dict[str, Any]:
    return {}


def _dapo(stage: PolicySettings) -> dict[str, Any]:
    """Dynamic sampling (arXiv 2503.14476, 3.2; verl's recipe draws up to 10 batches), and an overlong buffer that is to
    the limit as DAPO's 4096 to 20480 tokens."""
    return {"refills": 10, "overlong_buffer": max(stage.sampling.max_new_tokens // 5, 1)}


def _critic(stage: PolicySettings) -> dict[str, Any]:
    """A critic that learns from the first step on together with the policy."""
    return {"critic": {"warmup_steps": 0}}


def _pretrained_critic(stage: PolicySettings) -> dict[str, Any]:
    """Value pre-training of VAPO's 50 steps (arXiv 2504.05118, 5.1), of short stages a half."""
    return {"critic": {"warmup_steps": min(50, stage.steps // 2)}}


STAGE_DEFAULTS: Mapping[str, Callable[[PolicySettings], Mapping[str, Any]]] = {
    "dapo": _dapo,
    "ppo": _critic,
    "vc-ppo": _pretrained_critic,
    "vapo": _pretrained_critic,
}
"""What an algorithm asks of its stage beside its row, for settings that a recipe leaves out: the run's config shows
what was used."""


def stage_kind(value: Mapping[str, Any]) -> type[StageSettings]:
    """The kind of a stage given as a mapping."""
    return _KINDS.get(str(value.get("algorithm")), PolicySettings)


_KINDS: Mapping[str, type[StageSettings]] = {
    name: kind
    for kind in (TextSettings, SftSettings, PreferenceSettings, RejectionSettings, RewardModelSettings)
    for name in get_args(kind.model_fields["algorithm"].annotation)
}
"""Algorithm -> its kind of stage, where that is not sampling from the policy."""
WITHOUT_SAMPLING: Mapping[type[StageSettings], str] = {
    TextSettings: "pre-training: a text has no prompt and no completions",
    SftSettings: "supervised fine-tuning: a demonstration is a group of one",
    PreferenceSettings: "preferences: their completions are given, not sampled",
    RejectionSettings: "rejection sampling: its samples are drawn once, and then imitated",
    RewardModelSettings: "a reward model: it learns from preferences, whose completions are given",
}
"""Why a key about sampling has no effect on a kind of stage."""
