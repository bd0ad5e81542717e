"""The recipe: everything a run depends on, checked before any work starts.

A recipe is a YAML file. Unknown keys, wrong types and impossible combinations are refused with the key, the value and
the nearest right one. Defaults work on a laptop. Command-line overrides are dotted paths: `stages.grpo.steps=200`,
`model.source=my-model`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from outscore.algorithms.rows import ALGORITHMS
from outscore.inputs import apply_overrides, check_file_name, expected, nearest, read_yaml
from outscore.model_places import check_model_place
from outscore.settings import OnFailure, ScoringSettings, Settings
from outscore.stage_parts import POLICY
from outscore.stage_rows import stage_algorithm, with_defaults
from outscore.stages import (
    BASE,
    PREVIOUS,
    AnyStage,
    OutcomeRewardModelSettings,
    PolicySettings,
    RejectionSettings,
    StageSettings,
    sampling_of,
    stage_kind,
)


class LoraSettings(Settings):
    """Low-rank adapters (peft). The reference model is then the same weights with the adapter switched off."""

    rank: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: float = Field(32.0, gt=0, allow_inf_nan=False)
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
    """`chat` (the tokenizer's template), `none`, `r1-zero`, or a text with {question}, and {COLUMN} for columns
    of the data; `auto` is `chat` where there is one, else `none`."""
    system: str | None = None
    """A system message for chat templates."""


class EvaluationSettings(Settings):
    """Held-out evaluation."""

    problems: int = Field(200, ge=0)
    """Held-out problems to use; 0 switches evaluation off."""
    every: int = Field(0, ge=0)
    """Steps between greedy evaluations within a stage; 0 evaluates only between stages."""
    samples: int = Field(8, ge=1)
    """Sampled completions of each problem, for pass@k and maj@k between stages; 1 evaluates greedily only."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Temperature of those samples."""
    max_new_tokens: int = Field(0, ge=0)
    """Limit on an answer; 0 takes the most that a stage's sampling allows, or 256 where no stage samples."""
    correct: str = ""
    """The reward that says whether an answer is correct: where it gives its greatest value, 1 for one of your own.
    Empty takes the last listed whose greatest value is 1, else the last of your own."""
    patience: int = Field(0, ge=0)
    """Stop a stage after this many evaluations in a row without a better one. It then ends with the weights of the
    best, and the next stage goes on from these. 0 never does."""


class CheckpointSettings(Settings):
    """What is kept."""

    every: int = Field(50, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(2, ge=2)
    """Newest checkpoints kept of the stage in hand, beside the best one and the last of each stage. At least two: where
    the newest is damaged, a resume takes the one before."""


class Recipe(Settings):
    """A whole run."""

    name: str = "run"
    """The run directory is `runs/NAME` unless the command says otherwise. Letters, digits, `.`, `_`, `+` and `-`."""
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
    on_reward_failure: OnFailure = "stop"
    """What a reward that fails means: `stop` the run; `exclude` the completion from its group's baseline and from
    training; or count as this number. A reward's own `on_failure` comes before it."""
    scoring: ScoringSettings = ScoringSettings()
    """Worker processes of rewards and their limits."""
    stages: tuple[AnyStage, ...] = Field(min_length=1)
    """What is done, in order."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Held-out evaluation."""
    checkpoints: CheckpointSettings = CheckpointSettings()
    """Checkpoints and how many are kept."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides the run directory."""

    @field_validator("name")
    @classmethod
    def _names_a_directory(cls, name: str) -> str:
        check_file_name(name, "run name")
        return name

    @field_validator("stages", mode="after")
    @classmethod
    def _defaults(cls, stages: tuple[StageSettings, ...], info: ValidationInfo) -> tuple[StageSettings, ...]:
        model = info.data.get("model", ModelSettings())  # missing when it is wrong itself, which is then reported
        return tuple(with_defaults(stage, model.lora is not None) for stage in stages)

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        labels = [stage.label for stage in self.stages]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"stages: the name {twice[0]!r} stands twice; give one of them another `name`")
        for task in (self.task, *(stage.task for stage in self.stages if stage.task is not None)):
            if "kind" not in task:
                raise ValueError("task: `kind` is missing; for example kind: arithmetic")
        for place, stage in enumerate(self.stages):
            stage_algorithm(stage)
            _check_start(stage, labels, place)
            _check_critic(stage, self.stages[:place])
            _check_reward_models(stage, self.stages[:place])
            _check_weights_climb(stage, bool(stage.rewards or self.rewards))
            _check_plateau(stage, self.evaluation)
        if named := [each["stage"] for each in self.rewards if isinstance(each, Mapping) and "stage" in each]:
            raise ValueError(
                f"rewards: stage = {named[0]!r} names a reward model that this run trains, and the run's rewards score "
                "evaluations before it; let the stage that uses it have `rewards` of its own"
            )
        taught = [isinstance(stage, PolicySettings) and bool(stage.teacher) for stage in self.stages]
        if any(
            sampling_of(stage) and not (stage.rewards or self.rewards) and not is_taught
            for stage, is_taught in zip(self.stages, taught, strict=True)
        ):
            raise ValueError("rewards: at least one is needed to train on sampled completions")
        _check_patience(self.evaluation, max(stage.steps for stage in self.stages))
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
    _check_algorithms(data, where)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        details = error.errors()
        # A stage that failed leaves pydantic an empty list of stages, which it also reports.
        deeper = [detail for detail in details if detail["type"] != "too_short" or detail["input"] == []] or details
        raise ValueError("\n".join(f"{where}: {_explain(detail, data)}" for detail in deeper)) from None


def _check_algorithms(data: Mapping[str, Any], where: str) -> None:
    """ValueError for an algorithm that is not known, before anything is said of keys, which depend on it."""
    stages = data.get("stages")
    for place, stage in enumerate(stages if isinstance(stages, list | tuple) else ()):
        name = stage.get("algorithm") if isinstance(stage, Mapping) else None
        if isinstance(name, str) and name not in ALGORITHMS:
            raise ValueError(f"{where}: `stages.{place}.algorithm` = {name!r} is not known{nearest(name, ALGORITHMS)}")


def dump_recipe(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain data, defaults included."""
    return {**recipe.model_dump(mode="json"), "stages": [stage.model_dump(mode="json") for stage in recipe.stages]}


def _explain(detail: Any, data: Mapping[str, Any]) -> str:
    location = _location(detail["loc"], data)
    if detail["type"] == "extra_forbidden":
        wrong = str(detail["loc"][-1])
        known = _keys_at(detail["loc"][:-1], data)
        if wrong in PolicySettings.model_fields and "stages" in detail["loc"]:
            kind = stage_kind(data["stages"][detail["loc"][1]])
            return f"key `{location}` has no effect on {kind.no_sampling_because}"
        return f"unknown key `{location}` (value {detail['input']!r}){nearest(wrong, known)}"
    if detail["type"] == "missing":
        return f"key `{location}` is missing"
    return f"`{location}` = {detail['input']!r}: {expected(detail)}" if location else expected(detail)


def _location(path: Sequence[int | str], data: Mapping[str, Any]) -> str:
    """Where an error is, as an override would say it: a stage by what it is called, where it is called anything."""
    parts = [str(part) for part in path]
    if parts[:1] == ["stages"] and len(path) > 1 and isinstance(path[1], int):
        stage = data["stages"][path[1]]
        called = (stage.get("name") or stage.get("algorithm")) if isinstance(stage, Mapping) else None
        parts[1] = called if isinstance(called, str) else parts[1]
    return ".".join(parts)


def _keys_at(location: Sequence[int | str], data: Any) -> list[str]:
    """The keys that are known where an unknown one stands."""
    kinds: list[type[BaseModel]] = [Recipe]
    for part in location:
        data = data[part]
        if part == "stages":
            kinds = [StageSettings]
        elif kinds == [StageSettings] and isinstance(part, int):
            kinds = [stage_kind(data)]
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


def _check_patience(evaluation: EvaluationSettings, steps: int) -> None:
    """ValueError where no stage, the longest of which has so many steps, could be stopped before its end."""
    patience, every = evaluation.patience, evaluation.every
    if patience and not every:
        raise ValueError(f"evaluation: patience = {patience} counts evaluations; give `every` too")
    if patience and (steps - 1) // every <= patience:
        raise ValueError(
            f"evaluation: patience = {patience} has no effect: every = {every} makes {(steps - 1) // every} "
            f"evaluations before step {steps}, the last of the longest stage, and {patience + 1} are needed, the first "
            "of which is the best so far; evaluate more often, or take more steps"
        )


def _check_plateau(stage: StageSettings, evaluation: EvaluationSettings) -> None:
    """ValueError where a plateau could never be found: too few evaluations come before the stage's last step."""
    if stage.plateau is None:
        return
    if not evaluation.every:
        raise ValueError(f"stage `{stage.label}`: plateau has no effect without evaluation.every")
    within, needed = (stage.steps - 1) // evaluation.every, stage.plateau.evaluations + 1
    if within < needed:
        raise ValueError(
            f"stage `{stage.label}`: plateau has no effect: evaluation.every = {evaluation.every} makes {within} "
            f"evaluations before step {stage.steps}, the last, and plateau.evaluations = {stage.plateau.evaluations} "
            f"asks for {needed}, the first of which is the best so far; evaluate more often, or take more steps"
        )


def _check_start(stage: StageSettings, labels: Sequence[str], place: int) -> None:
    """ValueError where a stage begins with weights that will not be there, or is called what means something else."""
    if stage.label in (PREVIOUS, BASE):
        raise ValueError(
            f"stages: {stage.label!r} cannot be a stage's name, because `start` means something else by it"
        )
    lends = stage.samples_from if isinstance(stage, RejectionSettings) else ""
    for key, named in (("start", stage.start), ("samples_from", lends)):
        where = f"stage `{stage.label}`: {key} = {named!r}"
        if named in labels[place:]:
            raise ValueError(f"{where} is no earlier stage, and a cycle has no end")
        known = [PREVIOUS, BASE, *labels[:place]]
        if key == "start" and named not in known:
            raise ValueError(f"{where} is no earlier stage{nearest(named, known)}")
        # What has a slash is looked for with the other models of the run, when it begins.
        if key == "samples_from" and named and "/" not in named:
            check_model_place(named, known[1:], where=where)


def _check_critic(stage: StageSettings, earlier: Sequence[StageSettings]) -> None:
    """ValueError where a critic begins as what an earlier stage does not leave, or as what is not there."""
    if not isinstance(stage, PolicySettings) or stage.critic is None or stage.critic.start == POLICY:
        return
    start, where = stage.critic.start, f"stage `{stage.label}`: critic.start = {stage.critic.start!r}"
    named = next((each for each in earlier if each.label == start), None)
    if named is not None and not named.leaves_critic:
        shared = isinstance(named, PolicySettings) and named.critic is not None
        what = (
            "whose critic is a head on its policy"
            if shared
            else ("that leaves neither a reward model of whole completions nor a critic")
        )
        raise ValueError(f"{where} is an earlier stage, but one {what}")
    if named is None and not Path(start).expanduser().is_dir():
        known = [POLICY, *(each.label for each in earlier if each.leaves_critic)]
        raise ValueError(
            f"{where} is neither a directory nor an earlier stage with a reward model or a critic"
            f"{nearest(start, known)}"
        )


def _check_weights_climb(stage: StageSettings, has_rewards: bool) -> None:
    """ValueError where robust weights have nothing to climb by: samples of the policy that nothing scores."""
    robust = stage.populations is not None and stage.populations.weights == "robust"
    if robust and isinstance(stage, PolicySettings) and not has_rewards:
        raise ValueError(
            f"stage `{stage.label}`: populations.weights = 'robust' climbs by rewards where completions are sampled, "
            "and there are none; give rewards, or weights that stay: equal, shares or a weight for each population"
        )


def _check_reward_models(stage: StageSettings, before: Sequence[StageSettings]) -> None:
    """ValueError where a stage asks for the reward model of a stage that is not there, or trains none."""
    trained = [each.label for each in before if each.trains == "reward_model"]
    for given in stage.rewards or ():
        asked = given.get("stage", []) if isinstance(given, Mapping) else []
        for name in [asked] if isinstance(asked, str) else asked:
            if name not in trained:
                raise ValueError(
                    f"stage `{stage.label}`: its reward's stage = {name!r} is no earlier stage that trains a reward "
                    f"model{nearest(str(name), trained)}"
                )
    if not isinstance(stage, OutcomeRewardModelSettings) or not stage.continues:
        return
    fitting = [each.label for each in before if type(each) is type(stage)]
    if stage.continues not in fitting:
        raise ValueError(
            f"stage `{stage.label}`: continues = {stage.continues!r} is no earlier stage with algorithm: "
            f"{stage.algorithm}{nearest(stage.continues, fitting)}"
        )
