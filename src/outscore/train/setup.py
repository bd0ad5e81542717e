"""From a recipe to what a run works with: model, prompts, rewards. Everything that can be wrong is found here, before
any work."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outscore.config import ModelSettings, Recipe
from outscore.model.adapters import add_lora, require_peft
from outscore.model.export import is_adapter, load_with_adapter
from outscore.model.kernels import heads_of, probe_kernel
from outscore.model.load import LoadedModel, load_model, outline_model, stop_token_ids, weights_sha256
from outscore.model.policy import Policy
from outscore.model.precision import DTYPES, MasterWeights, probe_precision
from outscore.model.probe import probe_layout
from outscore.model.tiny import tiny_model
from outscore.records import DemonstrationGroup, Problem, Prompt, RankedGroup
from outscore.report import StagePlan, require_trackers
from outscore.rewards import Rewards
from outscore.stage_rows import stage_algorithm
from outscore.stages import (
    PolicySettings,
    PreferenceSettings,
    StageSettings,
    TextSettings,
)
from outscore.tasks import Task, make_task
from outscore.tasks.base import CorpusTask, characters_of, question_text
from outscore.train.evaluate import Judge
from outscore.train.materials import (
    Materials,
    answer_limit,
    eval_rankings,
    make_judge,
    ranked_groups,
    render_prompt,
    stage_materials,
    text_groups,
)
from outscore.train.named_models import check_models
from outscore.train.optim import require_8bit
from outscore.train.order import Strata
from outscore.train.populations import (
    PopulationWeights,
    evaluation_column,
    in_population,
    population_notices,
    stage_weights,
)
from outscore.train.provenance import digests


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """Everything a run works with."""

    policy: Policy
    """The model that is trained."""
    masters: MasterWeights
    """Its trained weights in fp32; they live through all stages."""
    base: Callable[[], Mapping[str, Tensor]]
    """Loads the trained weights again as the run began with them, by name, in fp32."""
    materials: Sequence[Materials]
    """What each stage works on; none where nothing is trained."""
    eval_prompts: Sequence[Prompt]
    """Held-out prompts."""
    eval_rankings: Sequence[RankedGroup]
    """Preferences on held-out problems of the run's task, if a stage trains on its preferences."""
    eval_texts: Sequence[DemonstrationGroup]
    """Held-out text, if a stage trains on text."""
    rewards: Rewards
    """What scores completions in evaluations, and in stages that have no rewards of their own."""
    judge: Judge
    """What is correct in evaluations."""
    facts: Mapping[str, Any]
    """What was found out on the way and is kept in the run's config: weights' SHA-256, precision, layout."""
    notices: Sequence[str] = ()
    """What a person should know before the run begins."""

    @property
    def all_rewards(self) -> list[Rewards]:
        """The run's rewards and those that stages have to themselves."""
        return list({id(each): each for each in (self.rewards, *(item.rewards for item in self.materials))}.values())


def stage_populations(
    recipe: Recipe, index: int, workshop: Workshop
) -> tuple[PopulationWeights, Strata] | tuple[None, None]:
    """The weights a stage begins with, and what it draws from; nothing where every example counts the same."""
    prompts = workshop.materials[index].prompts
    return stage_weights(recipe.stages[index], [prompt.problem.population for prompt in prompts]) or (None, None)


def stage_plans(recipe: Recipe) -> list[StagePlan]:
    """The recipe's stages as the run directory lists them; ValueError for a name that cannot name files."""
    return [StagePlan(name=stage.label, num_steps=stage.steps) for stage in recipe.stages]


def check_before_loading(recipe: Recipe) -> None:
    """Try what needs neither data nor a model: stage names, algorithms and their cells, optional packages.

    Raises:
        ValueError: naming the stage and what is wrong with it.
        ImportError: naming the extra that a tracker or LoRA needs.
    """
    stage_plans(recipe)
    evaluation_column(recipe.stages)
    for place, stage in enumerate(recipe.stages):
        check_models(stage, stage_algorithm(stage), [each.label for each in recipe.stages[:place]])
        if stage.optimizer.states == "8bit":
            require_8bit(f"stage `{stage.label}`")
    require_trackers(recipe.trackers)
    if recipe.model.lora is not None:
        require_peft()
        if is_adapter(Path(recipe.model.source).expanduser()):
            raise ValueError(
                f"model.source = {recipe.model.source!r} holds a LoRA adapter, and model.lora would put another one on "
                f"it: merge it first (`outscore export {recipe.model.source} DIRECTORY`) and give that directory, or "
                "leave model.lora out"
            )


def prepare(
    recipe: Recipe,
    *,
    weights: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    evaluation_only: bool = False,
    task: Task | None = None,
    rewards: Rewards | None = None,
    outlined: bool = False,
) -> Workshop:
    """Build everything a run works with.

    Args:
        recipe: the checked recipe.
        weights: a checkpoint's directory to take the weights from instead of the recipe's source (on resume).
        facts: what the run's config says was found when it began; its choices are kept instead of probing again.
        evaluation_only: leave training prompts and demonstrations out.
        task, rewards: objects instead of what the recipe names.
        outlined: for counting alone: the model has shapes and no weights, and no worker starts.

    Raises:
        ValueError: if the model, the task, the template, a reward or their combination cannot work.
        ImportError: if a package is missing that the recipe needs.
    """
    check_before_loading(recipe)
    task = make_task(**recipe.task) if task is None else task
    tasks = [task if stage.task is None else make_task(**stage.task) for stage in recipe.stages]
    corpora = [_corpus(stage, own_task) for stage, own_task in zip(recipe.stages, tasks, strict=True)]
    scoring = partial(Rewards, on_failure=recipe.on_reward_failure, scoring=recipe.scoring)
    rewards = scoring(recipe.rewards) if rewards is None else rewards
    if not outlined:
        rewards.start()  # workers load while the model does
    judge = make_judge(recipe, rewards)
    load = partial(load_policy, recipe.model, _different((task, *tasks, *corpora)), recipe.seed, outlined=outlined)
    load = partial(load, keep_adapter=evaluation_only)
    policy, found = load(weights=weights, facts=facts)
    _bind(rewards, recipe, load, found)
    materials, unseen = [], {question_text(problem) for problem in task.eval_problems()}
    for stage, own_task, corpus in zip(() if evaluation_only else recipe.stages, tasks, corpora, strict=False):
        scorers = rewards if stage.rewards is None else scoring(stage.rewards)
        verdicts = judge if stage.rewards is None else make_judge(recipe, scorers, own=True)
        _bind(scorers, recipe, load, found)
        # A task holds its own evaluation problems out; another task may have them.
        made = partial(stage_materials, unseen=set() if own_task is task else unseen, corpus=corpus)
        materials.append(made(stage, own_task, scorers, verdicts, policy, recipe))
    asked = _asked(recipe, task.eval_problems()) if recipe.rewards else []
    workshop = Workshop(
        policy=policy,
        masters=MasterWeights(policy.model, DTYPES[found["precision"]]),
        base=partial(_trained_weights, load, found),
        materials=materials,
        eval_prompts=[render_prompt(problem, policy, recipe, room=answer_limit(recipe)) for problem in asked],
        eval_rankings=_held_out_rankings(recipe, task, policy),
        eval_texts=_held_out_text(recipe, corpora, policy),
        rewards=rewards,
        judge=judge,
        facts=found,
        notices=_population_notices(recipe.stages, materials, asked),
    )
    return workshop if outlined or evaluation_only else _traced(workshop, recipe.stages)


def _traced(made: Workshop, stages: Sequence[StageSettings]) -> Workshop:
    """The workshop with digests of what it was made from among its facts."""
    data = {stage.label: own for stage, own in zip(stages, made.materials, strict=True)}
    held_out = (*made.eval_prompts, *made.eval_rankings, *made.eval_texts)
    return replace(made, facts={**made.facts, **digests(data, held_out, made.all_rewards)})


def _asked(recipe: Recipe, held_out: Sequence[Problem]) -> Sequence[Problem]:
    """The problems of evaluations, in the populations that these are split by."""
    column, asked = evaluation_column(recipe.stages), held_out[: recipe.evaluation.problems]
    return asked if column is None else [in_population(problem, column) for problem in asked]


def _population_notices(
    stages: Sequence[StageSettings], materials: Sequence[Materials], asked: Sequence[Problem]
) -> list[str]:
    """What a person should know of the populations of stages; `asked` are the run's held-out problems."""
    notices = []
    for stage, own in zip(stages, materials, strict=False):
        of_run = [] if stage.task is not None else [problem.population for problem in asked]
        evaluated = max(of_run, [prompt.problem.population for prompt in own.held_out], key=len)
        notices += population_notices(stage, [prompt.problem.population for prompt in own.prompts], evaluated)
    return notices


def _held_out_rankings(recipe: Recipe, task: Task, policy: Policy) -> list[RankedGroup]:
    """Preferences on held-out problems of the run's task, where a stage trains on its preferences."""
    compares = any(isinstance(stage, PreferenceSettings) and stage.task is None for stage in recipe.stages)
    return ranked_groups(eval_rankings(task, recipe), policy, recipe) if compares else []


def _different(tasks: Sequence[Task]) -> list[Task]:
    return list({id(each): each for each in tasks}.values())


def _corpus(stage: StageSettings, task: Task) -> Task:
    """The task whose texts a stage takes: its own, unless it has another for them."""
    beside = stage.ptx.task if isinstance(stage, PolicySettings) and stage.ptx else None
    return task if beside is None else make_task(**beside)


def _held_out_text(recipe: Recipe, corpora: Sequence[Task], policy: Policy) -> list[DemonstrationGroup]:
    """Held-out documents of the first stage that trains on text, at most as many as problems are evaluated on."""
    for stage, task in zip(recipe.stages, corpora, strict=True):
        reads = stage if isinstance(stage, TextSettings) else getattr(stage, "ptx", None)
        if reads is not None and isinstance(task, CorpusTask):
            return text_groups(task.eval_texts()[: recipe.evaluation.problems], policy, reads.piece)
    return []


def _bind(rewards: Rewards, recipe: Recipe, load: Callable[..., tuple[Policy, Any]], facts: Mapping[str, Any]) -> None:
    """Tell rewards how to load the policy as the run began with it, whatever has been trained or resumed since."""
    rewards.bind(None if recipe.model.source == "tiny" else lambda: load(facts=facts)[0])


def _trained_weights(load: Callable[..., tuple[Policy, Any]], facts: Mapping[str, Any]) -> dict[str, Tensor]:
    model = load(facts=facts)[0].model
    return {name: weight.detach().float() for name, weight in model.named_parameters() if weight.requires_grad}


def load_policy(
    settings: ModelSettings,
    task: Task | Sequence[Task] | None,
    seed: int,
    *,
    weights: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    outlined: bool = False,
    keep_adapter: bool = False,
) -> tuple[Policy, dict[str, Any]]:
    """Load or build the model, add adapters, choose precision and layout; returns the policy and what was chosen.

    `task`, or several, gives a `tiny` model its tokenizer's characters. A model that is `outlined` has no weights. A
    LoRA adapter that is the source is merged into its base, unless `keep_adapter` leaves it in, frozen.
    ValueError where `facts` has the digest of other weights than those that `settings` names.
    """
    granted: Mapping[str, Any] = {"layout": "group_rows", "layout_probe": "not probed: no weights"} if outlined else {}
    facts = facts or granted
    precision = settings.precision if settings.precision != "auto" else facts.get("precision")
    probed = facts.get("precision_probe", "given")
    if precision is None:
        probe = probe_precision(default_device())
        precision, probed = probe.precision, probe.reason
    resumed = weights is not None and settings.lora is None  # else the weights are those that the run began with
    source = str(weights) if resumed else settings.source
    tasks = [task] if isinstance(task, Task) else [] if task is None else task
    with torch.device("meta") if outlined else nullcontext():
        loaded = _load(source, settings, tasks, seed, outlined=outlined, merged=not keep_adapter)
    model, tokenizer, began_with = loaded.model, loaded.tokenizer, facts.get("weights_sha256", loaded.sha256)
    if not resumed and source != "tiny" and loaded.sha256 not in ("", began_with):
        raise ValueError(
            f"model.source = {source!r}: its weights are not those the run began with (SHA-256 {loaded.sha256[:12]}…, "
            f"and {began_with[:12]}… then); put those back, or begin a new run"
        )
    stops = stop_token_ids(model, tokenizer)
    if "layout_probe" in facts:
        layout, tried = facts["layout"], facts["layout_probe"]
    else:
        found_layout = probe_layout(model, tokenizer, stops)
        layout, tried = found_layout.layout, found_layout.reason
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if not outlined:
        torch.nn.Module.to(model, default_device())
    if settings.lora is not None:
        add_lora(model, rank=settings.lora.rank, alpha=settings.lora.alpha, targets=settings.lora.targets, seed=seed)
    policy = Policy(model, tokenizer, stop_token_ids=stops, layout=layout)
    found = {
        "weights_sha256": began_with if resumed else loaded.sha256,
        "precision": precision,
        "precision_probe": probed,
        "layout": layout,
        "layout_probe": tried,
    }
    if layout == "group_rows" and policy.device.type == "cuda":
        found["attention_probe"] = probe_kernel(heads_of(policy.config, policy.device, DTYPES[precision])).reason
    return policy, found


def _load(
    source: str, settings: ModelSettings, tasks: Sequence[Task], seed: int, *, outlined: bool, merged: bool
) -> LoadedModel:
    if source == "tiny":
        if not tasks:
            raise ValueError("model.source = 'tiny' builds a model for a task: name the directory of a trained one")
        known = [getattr(task, "characters", None) or characters_of(task) for task in tasks]
        characters = known[0] if len(known) == 1 else "".join(sorted(set("".join(known))))
        strings = tuple(dict.fromkeys(text for task in tasks for text in getattr(task, "special_strings", ())))
        model, tokenizer = tiny_model(characters, strings, seed, **settings.tiny.model_dump())
        digest = "" if model.device.type == "meta" else weights_sha256(model)
        return LoadedModel(model=model, tokenizer=tokenizer, sha256=digest, source=source)
    load = outline_model if outlined else load_model
    allowed = {"trust_remote_code": settings.trust_remote_code, "allow_pickle": settings.allow_pickle}
    if is_adapter(directory := Path(source).expanduser()):
        return load_with_adapter(directory, load=load, merged=merged, **allowed)
    return load(source, precision_dtype=torch.float32, **allowed)


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
