"""From a recipe to what a run works with: model, prompts, rewards. Everything that can be wrong is found here, before
any work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outscore.config import ModelSettings, Recipe
from outscore.model.adapters import add_lora, require_peft
from outscore.model.export import is_adapter, load_with_adapter
from outscore.model.load import LoadedModel, load_model, stop_token_ids, weights_sha256
from outscore.model.policy import Policy
from outscore.model.precision import DTYPES, MasterWeights, probe_precision
from outscore.model.probe import probe_layout
from outscore.model.tiny import tiny_model
from outscore.objectives.algorithms import Algorithm, Source, algorithm
from outscore.records import Problem, Prompt, RankedGroup, Ranking
from outscore.report import StagePlan, require_trackers
from outscore.rewards import Rewards
from outscore.stages import (
    PolicySettings,
    PreferenceSettings,
    RejectionSettings,
    RewardModelSettings,
    SftSettings,
    StageSettings,
)
from outscore.tasks import RankingTask, Task, make_task
from outscore.tasks.base import question_text
from outscore.train.evaluate import Judge
from outscore.train.materials import (
    Materials,
    answer_limit,
    make_judge,
    population_notices,
    ranked_groups,
    render_prompt,
    stage_materials,
)
from outscore.train.populations import evaluation_column, in_population


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
    """Preferences on held-out problems, if a stage trains on preferences."""
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


SOURCES: Mapping[type[StageSettings], Source] = {
    SftSettings: "demonstrations",
    PreferenceSettings: "preferences",
    RejectionSettings: "samples",
    RewardModelSettings: "preferences",
}
"""Where a kind of stage has its completions from; the policy where it is not named."""


def stage_algorithm(stage: StageSettings) -> Algorithm:
    """The stage's row of the table, its own cells put in.

    Raises:
        ValueError: naming the stage, if the algorithm or a cell is not known or does not fit the stage.
    """
    cells = dict(stage.cells)
    source = SOURCES.get(type(stage), "policy")
    if cells.get("source", source) != source:
        raise ValueError(
            f"stage `{stage.label}`: cells.source = {cells['source']!r} does not fit algorithm {stage.algorithm!r}, "
            f"whose completions come from {source!r}; leave it out (algorithm: sft trains on demonstrations)"
        )
    try:
        row = algorithm(stage.algorithm)
        if isinstance(stage, PolicySettings) and row.aggregation == "constant":
            cells.setdefault("aggregation_constant", stage.sampling.max_new_tokens)
        row = algorithm(stage.algorithm, **cells)
    except ValueError as error:
        raise ValueError(f"stage `{stage.label}`: {error}") from None
    if isinstance(stage, PolicySettings) and stage.refresh_reference_every and not row.needs_reference:
        raise ValueError(
            f"stage `{stage.label}`: refresh_reference_every = {stage.refresh_reference_every} has no effect, because "
            f"kl_coef is 0; give cells: {{kl_coef: 0.04}} or leave it out"
        )
    return row


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
    for stage in recipe.stages:
        stage_algorithm(stage)
    require_trackers(recipe.trackers)
    if recipe.model.lora is not None:
        require_peft()


def prepare(
    recipe: Recipe,
    *,
    weights: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    evaluation_only: bool = False,
    task: Task | None = None,
    rewards: Rewards | None = None,
) -> Workshop:
    """Build everything a run works with.

    Args:
        recipe: the checked recipe.
        weights: a checkpoint's directory to take the weights from instead of the recipe's source (on resume).
        facts: what the run's config says was found when it began; its choices are kept instead of probing again.
        evaluation_only: leave training prompts and demonstrations out.
        task: a task object instead of the one the recipe names.
        rewards: rewards instead of those the recipe names.

    Raises:
        ValueError: if the model, the task, the template, a reward or their combination cannot work.
        ImportError: if a package is missing that the recipe needs.
    """
    check_before_loading(recipe)
    task = make_task(**recipe.task) if task is None else task
    tasks = [task if stage.task is None else make_task(**stage.task) for stage in recipe.stages]
    scoring = partial(Rewards, on_failure=recipe.on_reward_failure, scoring=recipe.scoring)
    rewards = scoring(recipe.rewards) if rewards is None else rewards
    rewards.start()  # workers load while the model does
    judge = make_judge(recipe, rewards)
    distinct = list({id(each): each for each in (task, *tasks)}.values())
    load = partial(load_policy, recipe.model, distinct, recipe.seed)
    policy, found = load(weights=weights, facts=facts)
    held_out = task.eval_problems()
    unseen = {question_text(problem) for problem in held_out}
    materials = []
    for stage, own_task in zip(() if evaluation_only else recipe.stages, tasks, strict=False):
        scorers, verdicts = rewards, judge
        if stage.rewards is not None:
            scorers = scoring(stage.rewards)
            verdicts = make_judge(recipe, scorers, own=True)
        # A task holds its own evaluation problems out; another task may have them.
        others = set() if own_task is task else unseen
        materials.append(stage_materials(stage, own_task, scorers, verdicts, policy, recipe, unseen=others))
    of_preferences = [each for stage, each in zip(recipe.stages, tasks, strict=True) if _compares(stage)]
    ranked = [each for each in of_preferences if isinstance(each, RankingTask)][:1]
    shown = [ranking for each in ranked for ranking in each.eval_rankings()[: recipe.evaluation.problems]]
    asked, shown = _in_populations(recipe, held_out[: recipe.evaluation.problems] if recipe.rewards else [], shown)
    return Workshop(
        policy=policy,
        masters=MasterWeights(policy.model, DTYPES[found["precision"]]),
        base=partial(_trained_weights, load, found),
        materials=materials,
        eval_prompts=[render_prompt(problem, policy, recipe, room=answer_limit(recipe)) for problem in asked],
        eval_rankings=ranked_groups(shown, policy, recipe),
        rewards=rewards,
        judge=judge,
        facts=found,
        notices=[] if evaluation_only else population_notices(recipe.stages, materials, asked, shown),
    )


def _in_populations(
    recipe: Recipe, asked: Sequence[Problem], shown: Sequence[Ranking]
) -> tuple[Sequence[Problem], Sequence[Ranking]]:
    """What is held out, with the populations that stages find in it."""
    column = evaluation_column(recipe.stages)
    if column is None:
        return asked, shown
    placed = [replace(each, problem=in_population(each.problem, column)) for each in shown]
    return [in_population(problem, column) for problem in asked], placed


def _compares(stage: StageSettings) -> bool:
    return isinstance(stage, PreferenceSettings)


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
) -> tuple[Policy, dict[str, Any]]:
    """Load or build the model, add adapters, choose precision and layout; returns the policy and what was chosen.

    `task`, or several, gives a `tiny` model its tokenizer's characters.
    """
    facts = facts or {}
    precision = settings.precision if settings.precision != "auto" else facts.get("precision")
    probed = facts.get("precision_probe", "given")
    if precision is None:
        probe = probe_precision(default_device())
        precision, probed = probe.precision, probe.reason
    source = str(weights) if weights is not None and settings.lora is None else settings.source
    tasks = [task] if isinstance(task, Task) else [] if task is None else task
    loaded = _load(source, settings, tasks, seed)
    model, tokenizer = loaded.model, loaded.tokenizer
    stops = stop_token_ids(model, tokenizer)
    if "layout_probe" in facts:
        layout, tried = facts["layout"], facts["layout_probe"]
    else:
        found_layout = probe_layout(model, tokenizer, stops)
        layout, tried = found_layout.layout, found_layout.reason
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    torch.nn.Module.to(model, default_device())
    if settings.lora is not None:
        add_lora(model, rank=settings.lora.rank, alpha=settings.lora.alpha, targets=settings.lora.targets, seed=seed)
    policy = Policy(model, tokenizer, stop_token_ids=stops, layout=layout)
    found = {
        "weights_sha256": facts.get("weights_sha256", loaded.sha256),
        "precision": precision,
        "precision_probe": probed,
        "layout": layout,
        "layout_probe": tried,
    }
    return policy, found


def _load(source: str, settings: ModelSettings, tasks: Sequence[Task], seed: int) -> LoadedModel:
    if source == "tiny":
        if not tasks:
            raise ValueError("model.source = 'tiny' builds a model for a task: name the directory of a trained one")
        known = [getattr(task, "characters", None) or _characters(task) for task in tasks]
        characters = known[0] if len(known) == 1 else "".join(sorted(set("".join(known))))
        strings = tuple(dict.fromkeys(text for task in tasks for text in getattr(task, "special_strings", ())))
        model, tokenizer = tiny_model(characters, strings, seed, **settings.tiny.model_dump())
        return LoadedModel(model=model, tokenizer=tokenizer, sha256=weights_sha256(model), source=source)
    if is_adapter(Path(source)):
        return load_with_adapter(
            Path(source), trust_remote_code=settings.trust_remote_code, allow_pickle=settings.allow_pickle
        )
    return load_model(
        source,
        precision_dtype=torch.float32,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
    )


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _characters(task: Task) -> str:
    """Every character of a task's text, for a tokenizer made for it."""
    problems = [*task.train_problems(), *task.eval_problems()]
    demonstrations = task.demonstrations()
    rankings = [*task.train_rankings(), *task.eval_rankings()] if isinstance(task, RankingTask) else []
    answered = [*problems, *(d.problem for d in demonstrations), *(r.problem for r in rankings)]
    texts = [p.question for p in answered if isinstance(p.question, str)]
    texts += [p.answer for p in problems if p.answer is not None] + [d.response for d in demonstrations]
    texts += [response for ranking in rankings for response in ranking.responses]
    return "".join(sorted({character for text in texts for character in text}))
