"""The kinds of stage of a recipe and their settings.

The kind of a stage is what its completions are: sampled from the policy, demonstrations, preferences, or samples that
pass. Each has its own keys, so that a key which has no effect is refused, and says of itself, as class attributes and
properties, what other rooms would otherwise ask its class for.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from outscore.algorithms.choices import Source
from outscore.settings import Settings
from outscore.stage_parts import (
    LR_POLICY,
    LR_SFT,
    CriticSettings,
    OptimizerSettings,
    PlateauSettings,
    PopulationSettings,
    PtxSettings,
    SamplingSettings,
    SolutionSampling,
    StepSampling,
)

PREVIOUS, BASE = "previous", "base"
"""Where a stage's weights may come from besides stages."""


class StageSettings(Settings):
    """What every stage has."""

    source: ClassVar[Source] = "policy"
    """Where the kind has its completions from: the cell `source` of its rows."""
    trains: ClassVar[Literal["policy", "reward_model"]] = "policy"
    """What the kind trains: the cell `trains` of its rows. A reward model leaves the policy as it is."""
    usual_lr: ClassVar[float] = LR_POLICY
    """The learning rate where a recipe gives none."""
    no_sampling_because: ClassVar[str] = ""
    """What the kind is instead, where a key about sampling has no effect on it."""

    name: str = ""
    """What the stage is called in files and tables; the algorithm's name when empty."""
    algorithm: str
    """A row of the table of algorithms (`outscore algorithms`)."""
    steps: int = Field(ge=1)
    """Steps to take. Each is one batch, of demonstrations or of sampled groups, for example."""
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
    def unweighable(self) -> str:
        """Why a stage's populations cannot be weighed; empty where they can."""
        return ""

    @property
    def leaves_critic(self) -> bool:
        """Whether a later critic may begin as what the stage leaves: a critic, or a reward model of completions."""
        return False

    @model_validator(mode="after")
    def _populations_can_be_weighed(self) -> "StageSettings":
        if self.populations is not None and self.unweighable:
            raise ValueError(f"populations: {self.unweighable}")
        return self

    @property
    def num_updates(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.steps


class TextSettings(StageSettings):
    """Pre-training on the task's plain text."""

    source = "texts"
    usual_lr = LR_SFT
    no_sampling_because = "pre-training: a text has no prompt and no completions"

    algorithm: Literal["pretrain"] = "pretrain"
    """Maximise the log-likelihood of text, every token of it."""
    batch_size: int = Field(32, ge=1)
    """Pieces of text in a step."""
    piece: int = Field(256, ge=2)
    """Tokens of a piece at most: a longer document is cut, and no piece has a part of two."""

    @property
    def unweighable(self) -> str:
        """Nothing names the population of a text."""
        return "plain text has none; weigh those of sft, or another stage"


class SftSettings(StageSettings):
    """Supervised fine-tuning on the task's demonstrations: groups of one."""

    source = "demonstrations"
    usual_lr = LR_SFT
    no_sampling_because = "supervised fine-tuning: a demonstration is a group of one"

    algorithm: Literal["sft"] = "sft"
    """Maximise the log-likelihood of demonstrations."""
    batch_size: int = Field(16, ge=1)
    """Demonstrations in a step."""


class PreferenceSettings(StageSettings):
    """Training on the task's preferences: groups of completions, ordered by how much somebody liked them."""

    source = "preferences"
    no_sampling_because = "preferences: their completions are given, not sampled"

    algorithm: Literal["dpo", "dpo-mean", "cdpo", "ipo"] = "dpo"
    """A row of the table of algorithms whose source is preferences."""
    batch_size: int = Field(16, ge=1)
    """Pairs or rankings in a step."""
    ties: Literal["drop", "half"] = "drop"
    """What a pair of equal rank means: nothing (`drop`), or that either is the better one with chance 1/2 (`half`)."""


class RejectionSettings(StageSettings):
    """Supervised fine-tuning on samples of the model that the stage begins with. Samples that pass are imitated."""

    source = "samples"
    usual_lr = LR_SFT
    no_sampling_because = "rejection sampling: its samples are drawn once, and then imitated"

    algorithm: Literal["rft"] = "rft"
    """Maximise the log-likelihood of right samples."""
    batch_size: int = Field(16, ge=1)
    """Kept samples in a step."""
    num_prompts: int = Field(0, ge=0)
    """Training problems to sample for; 0 takes all."""
    group_size: int = Field(8, ge=1)
    """Samples of each prompt."""
    samples_from: str = ""
    """Which weights sample; empty takes those that the stage begins with. `base`, the name of an earlier stage, a
    model's directory, or the directory of another run's stage; the last two may be a larger model of the same family.
    R1 samples its second stage, and fine-tunes the base model and smaller models on that."""
    filters: Mapping[str, float] = Field(default_factory=dict)
    """The least value of single rewards for a sample to pass, such as `language_consistency: 0.9`. A reward that does
    not apply to a sample does not stop it."""
    demonstrations: bool = False
    """Imitate the task's demonstrations as well."""
    keep: int = Field(1, ge=0)
    """At most this many of a prompt's samples are kept, the best that pass, none twice; 0 keeps all that pass."""
    min_kept: int = Field(1, ge=1)
    """The run stops where fewer samples than this are kept."""
    min_reward: float | None = Field(None, allow_inf_nan=False)
    """The least total reward of a sample that passes. Without it, a sample passes if its answer is correct."""
    sampling: SamplingSettings = SamplingSettings()
    """How samples are drawn."""

    @property
    def unweighable(self) -> str:
        """Which demonstrations there will be is known when it has sampled."""
        return "rft chooses its own demonstrations; weigh those of sft, or another stage"


class RewardModelSettings(PreferenceSettings):
    """Training a reward model, which begins as a copy of the policy with a fresh head, on the task's preferences. The
    policy stays as it is."""

    trains = "reward_model"
    no_sampling_because = "a reward model: it learns from preferences, whose completions are given"

    algorithm: Literal["reward-model"] = "reward-model"  # type: ignore[assignment]  # another row of the table
    """A row of the table of algorithms that trains a reward model."""
    normalise: bool = True
    """Bring the scores of training completions to mean 0 and variance 1, before the first step and after the last."""

    @property
    def leaves_critic(self) -> bool:
        """It scores whole completions."""
        return True


class OutcomeRewardModelSettings(StageSettings):
    """Training a reward model on completions that have a number each: a rating of the task, or whether a sample of the
    policy is right. The policy stays as it is."""

    source = "labels"
    trains = "reward_model"
    no_sampling_because = "a reward model: it learns from labels; what it samples stands under `sample`"

    algorithm: Literal["outcome-reward-model"] = "outcome-reward-model"
    """A row of the table whose source is labels."""
    batch_size: int = Field(16, ge=1)
    """Completions in a step."""
    sample: SolutionSampling | None = None
    """Sample the policy and label what it writes; without it the labels are the task's."""
    continues: str = ""
    """An earlier stage of this algorithm whose reward model is trained on, instead of a copy of the policy."""
    replay: float = Field(0.1, ge=0, lt=1)
    """With `continues`: the share of the training completions that come from the stages before."""

    @model_validator(mode="after")
    def _replays_something(self) -> "OutcomeRewardModelSettings":
        if not self.continues and self.replay != OutcomeRewardModelSettings.model_fields["replay"].default:
            raise ValueError(f"replay = {self.replay:g} has no effect without `continues`, whose completions it is of")
        return self

    @property
    def unweighable(self) -> str:
        """Which completions get labels is known when they have been sampled."""
        return "`sample` makes its own labels; weigh those of the task (without `sample`)" if self.sample else ""

    @property
    def leaves_critic(self) -> bool:
        """It scores whole completions."""
        return True


class ProcessRewardModelSettings(OutcomeRewardModelSettings):
    """Training a process reward model, which scores each step of a solution. The steps of its training solutions are
    labelled by hand, or by sampling completions from each step. The policy stays as it is."""

    no_sampling_because = "a process reward model: it learns from labels; what it samples stands under `sample`"

    algorithm: Literal["process-reward-model"] = "process-reward-model"  # type: ignore[assignment]  # another row
    """A row of the table whose source is labels of steps."""
    batch_size: int = Field(16, ge=1)
    """Solutions in a step."""
    sample: StepSampling | None = None
    """Label steps by sampling; without it the labels are the task's."""
    separators: tuple[str, ...] = ("\n",)
    """Texts that end a step. Steps of labelled data that end with none of them are closed by the first."""
    neutral: Literal["right", "wrong", "drop"] = "right"
    """What a step counts as that was labelled neither right nor wrong (Lightman et al. count it as right)."""

    @property
    def leaves_critic(self) -> bool:
        """It scores steps."""
        return False


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
    """Passes over the groups of a step: the µ of DeepSeekMath's Algorithm 1. With several mini-batches each pass after
    the first puts other groups together."""
    sampling: SamplingSettings = SamplingSettings()
    """How completions are drawn."""
    truncated: Literal["keep", "mask"] = "keep"
    """What happens to completions that reached the length limit: `keep` trains on them as they were scored; `mask`
    counts them in the baseline but gives them no loss."""
    truncated_score: float | None = Field(None, allow_inf_nan=False)
    """The reward of every completion that reached the length limit, in the place of what it was scored. -1 is the EOS
    trick of Stiennon et al. (arXiv 2009.01325). None leaves rewards as they are."""
    refills: int = Field(0, ge=0)
    """Dynamic sampling: how often a group with nothing to teach (its rewards are all equal, for example) may be
    replaced by that of another prompt before it is taken as it is. `algorithm: dapo` has 10 where a recipe gives
    none."""
    overlong_buffer: int = Field(0, ge=0)
    """DAPO's soft overlong punishment: the number of tokens before the limit over which the penalty on the reward rises
    from 0 to 1; 0 is no penalty. `algorithm: dapo` has a fifth of `max_new_tokens` where a recipe gives none. The
    reward `soft_overlong` is the same penalty: give one of the two."""
    teacher: str = ""
    """The teacher model for `kl_to: teacher`: the name of an earlier stage (as it ended), a model's directory, or the
    directory of a stage's checkpoints."""
    refresh_reference_every: int = Field(0, ge=0)
    """Copy the policy into the reference model each time this many steps have been taken; 0 never does."""
    critic: CriticSettings | None = None
    """The critic of algorithms with `baseline: critic`; where a recipe gives none, one with all defaults."""
    ptx: PtxSettings | None = None
    """Plain text that each update of the policy also predicts (PPO-ptx), whatever the algorithm is."""

    @property
    def leaves_critic(self) -> bool:
        """A critic of its own; one that shares its trunk is a head on the policy."""
        return self.critic is not None and self.critic.trunk == "own"

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
        if self.critic is not None and (warmup := self.critic.warmup_steps) >= self.steps:
            raise ValueError(f"critic.warmup_steps = {warmup} leaves none of steps = {self.steps} for the policy")
        return self


SamplingStage = PolicySettings | RejectionSettings
"""Kinds of stage that always sample for training prompts, and need rewards."""


def sampling_of(stage: StageSettings) -> SamplingSettings | None:
    """How a stage samples for training prompts; None where it does not."""
    if isinstance(stage, OutcomeRewardModelSettings):
        return None if stage.sample is None else stage.sample.sampling
    return stage.sampling if isinstance(stage, SamplingStage) else None


def _stage(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Choose the settings class by the kind of source, so that a stage accepts only keys that have an effect on it."""
    return stage_kind(value).model_validate(value) if isinstance(value, Mapping) else handler(value)


AnyStage = Annotated[StageSettings, WrapValidator(_stage)]
"""A stage of whichever kind its algorithm is."""


def stage_kind(value: Mapping[str, Any]) -> type[StageSettings]:
    """The kind of a stage given as a mapping."""
    return _KINDS.get(str(value.get("algorithm")), PolicySettings)


def kinds_of_stage() -> dict[type[StageSettings], tuple[str, ...]]:
    """The kinds of stage with the algorithms that they are the kind of; the last is that of all other algorithms."""
    kinds = dict.fromkeys(_KINDS.values())
    named = {kind: tuple(name for name, own in _KINDS.items() if own is kind) for kind in kinds}
    return {**named, PolicySettings: ("grpo",)}


_KINDS: Mapping[str, type[StageSettings]] = {
    name: kind
    for kind in (
        *(TextSettings, SftSettings, PreferenceSettings, RejectionSettings, RewardModelSettings),
        *(OutcomeRewardModelSettings, ProcessRewardModelSettings),
    )
    for name in get_args(kind.model_fields["algorithm"].annotation)
}
"""Algorithm -> its kind of stage, where that is not sampling from the policy."""
