"""The recipe: everything a run depends on, checked before any work starts.

A recipe is a YAML file. Unknown keys, wrong types and impossible combinations are refused with the key, the value and
the nearest right one. Defaults work on a laptop. Command-line overrides are dotted paths: `stages.grpo.steps=200`,
`model.source=my-model`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from outscore.inputs import apply_overrides, expected, nearest, read_yaml

LR_SFT, LR_POLICY, LR_LORA_FACTOR = 2e-5, 1e-5, 10.0
"""Peak learning rates where a recipe gives none. SFT of all weights: as Stanford Alpaca and Tulu 2 for 7B. GRPO of all
weights: DeepSeekMath's 1e-6 is for 7B, and models that a laptop trains want more. LoRA: ten times the rate of all
weights, for both ("LoRA Without Regret", Schulman et al. 2025; QLoRA's 2e-4 for SFT)."""
WARMUP_SHARE, WARMUP_MOST = 0.05, 10
"""Warm-up where a recipe gives none: this share of the stage's optimizer steps, at most so many. Adam's second moment
is an average over few steps at first; Alpaca and Tulu 2 warm up over 3 % of theirs."""


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class LoraSettings(Settings):
    """Low-rank adapters (peft). The reference model is then the same weights with the adapter switched off."""

    rank: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the modules to adapt; empty adapts all linear layers but the head."""


class TinySettings(Settings):
    """Shape of the model that is built from scratch when `model.source` is `tiny`."""

    hidden_size: int = Field(256, ge=8)
    """Width."""
    num_layers: int = Field(2, ge=1)
    """Depth."""
    num_heads: int = Field(16, ge=1)
    """Attention heads; keys and values use half as many when that divides evenly."""


class ModelSettings(Settings):
    """Which model is trained, and in which precision."""

    source: str = "tiny"
    """`tiny` (built from scratch), a local directory, a local .gguf file, or a Hugging Face hub id."""
    tiny: TinySettings = TinySettings()
    """Shape of the tiny model."""
    lora: LoraSettings | None = None
    """Train low-rank adapters instead of all weights."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the model computes in; master weights are always fp32. `auto` takes what a short probe finds faster."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Let a model repository run its own Python code."""
    allow_pickle: bool = False
    """Load pickled (.bin) weights, which can run code."""


class PromptSettings(Settings):
    """How a question becomes what the model reads."""

    template: str = "auto"
    """`chat` (the tokenizer's template), `none`, `r1-zero`, or a text with {question}; `auto` is `chat` where there
    is one, else `none`."""
    system: str | None = None
    """A system message for chat templates."""


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
    return _stage_kind(value).model_validate(value) if isinstance(value, Mapping) else handler(value)


def _check_start(stage: StageSettings, labels: Sequence[str], place: int) -> None:
    """ValueError where a stage begins with weights that will not be there, or is called what means something else."""
    if stage.label in (PREVIOUS, BASE):
        raise ValueError(
            f"stages: {stage.label!r} cannot be a stage's name, because `start` means something else by it"
        )
    if stage.start in (PREVIOUS, BASE) or stage.start in labels[:place]:
        return
    if stage.start in labels:
        raise ValueError(f"stage `{stage.label}`: start = {stage.start!r} is no earlier stage, and a cycle has no end")
    known = [PREVIOUS, BASE, *labels[:place]]
    raise ValueError(f"stage `{stage.label}`: start = {stage.start!r} is no earlier stage{nearest(stage.start, known)}")


def _with_defaults(stage: StageSettings, lora: bool) -> StageSettings:
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


def _stage_kind(value: Mapping[str, Any]) -> type[StageSettings]:
    return _KINDS.get(str(value.get("algorithm")), PolicySettings)


_KINDS: Mapping[str, type[StageSettings]] = {
    name: kind
    for kind in (SftSettings, PreferenceSettings, RejectionSettings, RewardModelSettings)
    for name in get_args(kind.model_fields["algorithm"].annotation)
}
"""Algorithm -> its kind of stage, where that is not sampling from the policy."""
_GIVEN: Mapping[type[StageSettings], str] = {
    SftSettings: "supervised fine-tuning: a demonstration is a group of one",
    PreferenceSettings: "preferences: their completions are given, not sampled",
    RejectionSettings: "rejection sampling: its samples are drawn once, and then imitated",
    RewardModelSettings: "a reward model: it learns from preferences, whose completions are given",
}
"""Why a key about sampling has no effect on a kind of stage."""


class EvaluationSettings(Settings):
    """Held-out evaluation."""

    problems: int = Field(200, ge=0)
    """Held-out problems to use; 0 switches evaluation off."""
    every: int = Field(0, ge=0)
    """Steps between greedy evaluations within a stage; 0 evaluates only between stages."""
    samples: int = Field(8, ge=1)
    """Sampled completions of each problem, for pass@k and maj@k between stages; 1 evaluates greedily only."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of those samples."""
    max_new_tokens: int = Field(0, ge=0)
    """Limit on an answer; 0 takes the most that a stage's sampling allows, or 256 where no stage samples."""
    correct: str = ""
    """The reward that says whether an answer is correct: where it gives its greatest value, 1 for one of your own.
    Empty takes the last listed whose greatest value is 1, else the last of your own."""
    patience: int = Field(0, ge=0)
    """Stop a stage after so many evaluations without a better one; 0 never does."""


class CheckpointSettings(Settings):
    """What is kept."""

    every: int = Field(50, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(2, ge=2)
    """Newest checkpoints kept, beside the best one and the last of each stage. At least two: where the newest is
    damaged, a resume takes the one before."""


class Recipe(Settings):
    """A whole run."""

    name: str = "run"
    """The run directory is `runs/NAME` unless the command says otherwise."""
    seed: int = Field(0, ge=0)
    """Decides initial weights, data order and every sampled token."""
    model: ModelSettings = ModelSettings()
    """The model."""
    task: Mapping[str, Any]
    """`kind` and the options of the task; see docs/tasks.md."""
    prompt: PromptSettings = PromptSettings()
    """The prompt template."""
    rewards: tuple[str | Mapping[str, Any], ...] = ()
    """Rewards by name or as file.py:function, with options and weight; see docs/rewards.md."""
    on_reward_failure: Literal["stop", "exclude"] = "stop"
    """What a reward that fails means: stop the run, or leave the completion out of its group's baseline and out of
    training."""
    stages: tuple[Annotated[StageSettings, WrapValidator(_stage)], ...] = Field(min_length=1)
    """What is done, in order."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Held-out evaluation."""
    checkpoints: CheckpointSettings = CheckpointSettings()
    """Checkpoints and how many are kept."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides the run directory."""

    @field_validator("stages", mode="after")
    @classmethod
    def _defaults(cls, stages: tuple[StageSettings, ...], info: ValidationInfo) -> tuple[StageSettings, ...]:
        model = info.data.get("model", ModelSettings())  # missing when it is wrong itself, which is then reported
        return tuple(_with_defaults(stage, model.lora is not None) for stage in stages)

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        labels = [stage.label for stage in self.stages]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"stages: the name {twice[0]!r} stands twice; give one of them another `name`")
        for task in (self.task, *(stage.task for stage in self.stages if stage.task is not None)):
            if "kind" not in task:
                raise ValueError("task: `kind` is missing; for example kind: arithmetic")
        for place, stage in enumerate(self.stages):
            _check_start(stage, labels, place)
        if any(isinstance(stage, SamplingStage) and not (stage.rewards or self.rewards) for stage in self.stages):
            raise ValueError("rewards: at least one is needed to train on sampled completions")
        if self.evaluation.patience and not self.evaluation.every:
            raise ValueError(f"evaluation: patience = {self.evaluation.patience} counts evaluations; give `every` too")
        if self.model.lora is not None and self.model.source == "tiny":
            raise ValueError("model: lora adapts a trained model, but source = 'tiny' builds a random one; drop it")
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `key=value` overrides.

    Raises:
        ValueError: if the file is missing, is no YAML, gives a key twice, or does not hold a valid recipe; the message
        names key, value and nearest key.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"recipe {str(path)!r} does not exist{_nearest_file(file)}")
    data = read_yaml(file.read_text(encoding="utf-8"), where=str(path))
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a recipe is a mapping of keys to values, found {type(data).__name__}")
    return parse_recipe(apply_overrides(data, overrides), where=str(path))


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe given as nested mappings; see `load_recipe`."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        details = error.errors()
        # A stage that failed leaves pydantic an empty list of stages, which it also reports.
        deeper = [detail for detail in details if detail["type"] != "too_short" or detail["input"] == []] or details
        raise ValueError("\n".join(f"{where}: {_explain(detail, data)}" for detail in deeper)) from None


def dump_recipe(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain data, defaults included."""
    return {**recipe.model_dump(mode="json"), "stages": [stage.model_dump(mode="json") for stage in recipe.stages]}


def _explain(detail: Any, data: Mapping[str, Any]) -> str:
    location = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        wrong = str(detail["loc"][-1])
        known = _keys_at(detail["loc"][:-1], data)
        if wrong in PolicySettings.model_fields and "stages" in detail["loc"]:
            kind = _stage_kind(data["stages"][detail["loc"][1]])
            return f"key `{location}` has no effect on {_GIVEN[kind]}"
        return f"unknown key `{location}` (value {detail['input']!r}){nearest(wrong, known)}"
    if detail["type"] == "missing":
        return f"key `{location}` is missing"
    return f"`{location}` = {detail['input']!r}: {expected(detail)}" if location else expected(detail)


def _keys_at(location: Sequence[int | str], data: Any) -> list[str]:
    """The keys that are known where an unknown one stands."""
    kinds: list[type[BaseModel]] = [Recipe]
    for part in location:
        data = data[part]
        if part == "stages":
            kinds = [StageSettings]
        elif kinds == [StageSettings] and isinstance(part, int):
            kinds = [_stage_kind(data)]
        else:
            fields = [kind.model_fields[part] for kind in kinds if part in kind.model_fields]
            kinds = [kind for field in fields for kind in _settings_in(field.annotation)]
    return sorted({name for kind in kinds for name in kind.model_fields})


def _settings_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in getattr(annotation, "__args__", ()) for kind in _settings_in(part)]


def _nearest_file(file: Path) -> str:
    folder = file.parent if file.parent.is_dir() else Path(".")
    return nearest(file.name, sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml")))
