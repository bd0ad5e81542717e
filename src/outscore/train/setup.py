"""From a recipe to what a run works with: model, prompts, rewards. Everything that can be wrong is found here, before
any work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from outscore.config import ModelSettings, Recipe
from outscore.model.adapters import add_lora, require_peft
from outscore.model.export import is_adapter, load_with_adapter
from outscore.model.load import LoadedModel, encode, load_model, stop_token_ids, turn_end_id, weights_sha256
from outscore.model.policy import Policy
from outscore.model.precision import DTYPES, MasterWeights, probe_precision
from outscore.model.probe import probe_layout
from outscore.model.tiny import tiny_model
from outscore.objectives.algorithms import Algorithm, Source, algorithm
from outscore.records import Completion, DemonstrationGroup, Problem, Prompt, RankedGroup, Ranking
from outscore.report import StagePlan, require_trackers
from outscore.rewards import Rewards
from outscore.stages import (
    PolicySettings,
    PreferenceSettings,
    RejectionSettings,
    RewardModelSettings,
    SamplingSettings,
    SamplingStage,
    SftSettings,
    StageSettings,
)
from outscore.tasks import RankingTask, Task, make_task, render
from outscore.tasks.templates import check_template
from outscore.train.evaluate import Judge


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """Everything a run works with."""

    policy: Policy
    """The model that is trained."""
    masters: MasterWeights
    """Its trained weights in fp32; they live through all stages."""
    train_prompts: Sequence[Prompt]
    """Prompts to sample from."""
    eval_prompts: Sequence[Prompt]
    """Held-out prompts."""
    demonstrations: Sequence[DemonstrationGroup]
    """Demonstrations, if a stage needs them."""
    rankings: Sequence[RankedGroup]
    """Preferences to train on, if a stage needs them."""
    eval_rankings: Sequence[RankedGroup]
    """Preferences on held-out problems, if a stage trains on preferences."""
    rewards: Rewards
    """What scores completions."""
    judge: Judge
    """What is correct."""
    facts: Mapping[str, Any]
    """What was found out on the way and is kept in the run's config: weights' SHA-256, precision, layout."""


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
    if rewards is None:
        rewards = Rewards(recipe.rewards, on_failure=recipe.on_reward_failure, scoring=recipe.scoring)
    rewards.start()  # workers load while the model does
    judge = make_judge(recipe, rewards)
    policy, found = load_policy(recipe.model, task, recipe.seed, weights=weights, facts=facts)
    needs_rollouts = not evaluation_only and any(isinstance(stage, SamplingStage) for stage in recipe.stages)
    needs_demonstrations = not evaluation_only and any(isinstance(stage, SftSettings) for stage in recipe.stages)
    needs_rankings = any(isinstance(stage, PreferenceSettings) for stage in recipe.stages)

    def prompts(problems: Sequence[Problem], room: int) -> list[Prompt]:
        return [render_prompt(problem, policy, recipe, room=room) for problem in problems]

    train = prompts(task.train_problems(), sampling_limit(recipe)) if needs_rollouts else []
    if needs_rollouts and not train:
        raise ValueError(f"task: {task.name} has no training problems")
    held_out = task.eval_problems()[: recipe.evaluation.problems] if recipe.rewards else []
    demonstrations = demonstration_groups(task, policy, recipe) if needs_demonstrations else []
    rankings: list[RankedGroup] = []
    if needs_rankings and not evaluation_only:
        rankings = ranked_groups(train_rankings(task), policy, recipe)
    shown = (
        task.eval_rankings()[: recipe.evaluation.problems] if needs_rankings and isinstance(task, RankingTask) else []
    )
    return Workshop(
        policy=policy,
        masters=MasterWeights(policy.model, DTYPES[found["precision"]]),
        train_prompts=train,
        eval_prompts=prompts(held_out, answer_limit(recipe)),
        demonstrations=demonstrations,
        rankings=rankings,
        eval_rankings=ranked_groups(shown, policy, recipe),
        rewards=rewards,
        judge=judge,
        facts=found,
    )


def load_policy(
    settings: ModelSettings,
    task: Task | None,
    seed: int,
    *,
    weights: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> tuple[Policy, dict[str, Any]]:
    """Load or build the model, add adapters, choose precision and layout; returns the policy and what was chosen."""
    facts = facts or {}
    precision = settings.precision if settings.precision != "auto" else facts.get("precision")
    probed = facts.get("precision_probe", "given")
    if precision is None:
        probe = probe_precision(default_device())
        precision, probed = probe.precision, probe.reason
    source = str(weights) if weights is not None and settings.lora is None else settings.source
    loaded = _load(source, settings, task, seed)
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


def _load(source: str, settings: ModelSettings, task: Task | None, seed: int) -> LoadedModel:
    if source == "tiny":
        characters = getattr(task, "characters", None) or _characters(task)
        strings = getattr(task, "special_strings", ())
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


def sampling_limit(recipe: Recipe) -> int:
    """New tokens that every sampled prompt leaves room for: the most that a stage's sampling allows, or sampling's
    default where no stage samples."""
    allowed = [stage.sampling.max_new_tokens for stage in recipe.stages if isinstance(stage, SamplingStage)]
    return max(allowed, default=SamplingSettings().max_new_tokens)


def answer_limit(recipe: Recipe) -> int:
    """New tokens that an answer may have in an evaluation: what the recipe says, or as many as a stage may sample."""
    return recipe.evaluation.max_new_tokens or sampling_limit(recipe)


def render_prompt(problem: Problem, policy: Policy, recipe: Recipe, *, room: int) -> Prompt:
    """Render a problem with the recipe's template; ValueError where the model's context has not `room` more tokens."""
    return render(
        problem,
        policy.tokenizer,
        recipe.prompt.template,
        system=recipe.prompt.system,
        limit=policy.context_length,
        room=room,
    )


def make_judge(recipe: Recipe, rewards: Rewards) -> Judge:
    """The judge of the recipe's evaluation: by the reward it names, or the one that `Rewards.says_correct` chooses."""
    name = recipe.evaluation.correct
    if rewards.names and name and name not in rewards.names:
        raise ValueError(f"evaluation.correct = {name!r} is none of the rewards: {', '.join(rewards.names)}")
    chosen = rewards.named(name) if rewards.names and name else rewards.says_correct()
    if chosen is None:
        return Judge(reward_name="", extract=str.strip)
    return Judge(reward_name=chosen.name, full=1.0 if chosen.full is None else chosen.full, extract=chosen.extract)


def demonstration_groups(task: Task, policy: Policy, recipe: Recipe) -> list[DemonstrationGroup]:
    """The task's demonstrations as groups of one, each closed by its end token.

    Raises:
        ValueError: if there is none, or one does not fit into the model's context with its prompt.
    """
    groups = []
    answered = partial(_answered, "demonstration", policy, recipe, cache(partial(end_token_id, policy)))
    for demonstration in task.demonstrations():
        prompt, [completion] = answered(demonstration.problem, [demonstration.response])
        groups.append(DemonstrationGroup(prompt=prompt, completion=completion))
    if not groups:
        raise ValueError(f"stages: supervised fine-tuning needs demonstrations, and task {task.name} has none")
    return groups


def train_rankings(task: Task) -> Sequence[Ranking]:
    """The task's preferences to train on; ValueError where it has none."""
    rankings = task.train_rankings() if isinstance(task, RankingTask) else []
    if not rankings:
        raise ValueError(
            f"stages: training on preferences needs pairs or rankings, and task {task.name} has none (columns `chosen` "
            "and `rejected`, or `completions` and `ranking`)"
        )
    return rankings


def ranked_groups(rankings: Sequence[Ranking], policy: Policy, recipe: Recipe) -> list[RankedGroup]:
    """Preferences as groups, each completion closed by its end token.

    Raises:
        ValueError: if one does not fit into the model's context with its prompt.
    """
    groups = []
    answered = partial(_answered, "preference", policy, recipe, cache(partial(end_token_id, policy)))
    for ranking in rankings:
        prompt, completions = answered(ranking.problem, ranking.responses)
        groups.append(RankedGroup(prompt=prompt, completions=tuple(completions), ranks=ranking.ranks))
    return groups


def _answered(
    what: str, policy: Policy, recipe: Recipe, end: Callable[[bool], int], problem: Problem, responses: Sequence[str]
) -> tuple[Prompt, list[Completion]]:
    """The prompt of a problem, and the responses to it with their end token."""
    prompt = render_prompt(problem, policy, recipe, room=0)
    template = check_template(problem, policy.tokenizer, recipe.prompt.template, recipe.prompt.system)
    completions = []
    for response in responses:
        ids = (*encode(policy.tokenizer, response), end(template == "chat"))
        total = len(prompt.token_ids) + len(ids)
        if policy.context_length is not None and total > policy.context_length:
            raise ValueError(
                f"{what} {problem.id!r} has {total} tokens with its prompt, more than the model's context of "
                f"{policy.context_length}: shorten it or leave it out; its prompt begins {prompt.text[:80]!r}"
            )
        completions.append(Completion(token_ids=ids, text=response, counts=(True,) * len(ids)))
    return prompt, completions


def end_token_id(policy: Policy, is_chat: bool) -> int:
    """The token that closes a demonstration: the turn end of the chat template where the prompt is chat, else the
    tokenizer's end of text, else any token that ends a completion.

    Raises:
        ValueError: if the model has none.
    """
    candidates: list[int | None] = [policy.tokenizer.eos_token_id, *sorted(policy.stop_token_ids)]
    if is_chat:
        candidates.insert(0, turn_end_id(policy.tokenizer))
    known = [token for token in candidates if token is not None]
    if not known:
        raise ValueError(
            "model: neither tokenizer nor config names an end token, so demonstrations cannot teach where to stop; "
            "set eos_token in its tokenizer_config.json"
        )
    return known[0]


def _characters(task: Task | None) -> str:
    """Every character of a task's text, for a tokenizer made for it."""
    if task is None:
        raise ValueError("model.source = 'tiny' builds a model for a task: name the directory of a trained one")
    problems = [*task.train_problems(), *task.eval_problems()]
    demonstrations = task.demonstrations()
    rankings = [*task.train_rankings(), *task.eval_rankings()] if isinstance(task, RankingTask) else []
    answered = [*problems, *(d.problem for d in demonstrations), *(r.problem for r in rankings)]
    texts = [p.question for p in answered if isinstance(p.question, str)]
    texts += [p.answer for p in problems if p.answer is not None] + [d.response for d in demonstrations]
    texts += [response for ranking in rankings for response in ranking.responses]
    return "".join(sorted({character for text in texts for character in text}))
