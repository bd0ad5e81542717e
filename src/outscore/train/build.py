"""From a recipe's stage and the workshop to a stage that can run."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from outscore.config import Recipe
from outscore.model.adapters import trainable_parameters
from outscore.model.heads import RewardModel
from outscore.model_places import names_other_model
from outscore.records import RankedGroup
from outscore.report import RunDirectory
from outscore.rollout import make_sampler
from outscore.stage_parts import COEF_VALUE, CriticSettings
from outscore.stage_rows import stage_algorithm
from outscore.stages import (
    OutcomeRewardModelSettings,
    PolicySettings,
    PreferenceSettings,
    RejectionSettings,
    RewardModelSettings,
    SftSettings,
    TextSettings,
)
from outscore.train.critic import CriticValues, critic_learner, update_both, update_shared
from outscore.train.demonstrations import DemonstrationSource
from outscore.train.evaluate import Evaluator, Measure
from outscore.train.label_stage import label_stage, locate_models
from outscore.train.lineage import weights_of
from outscore.train.loop import Stage, Updater
from outscore.train.materials import answer_limit, end_token_id
from outscore.train.optim import make_optimizer
from outscore.train.penalty import RewardKl
from outscore.train.preferences import PreferenceMeasure, PreferenceSource
from outscore.train.ptx import step_texts, text_term
from outscore.train.rejection import RejectionSource
from outscore.train.reward_models import RewardModelMeasure, normalise, reward_learner, update_reward_model
from outscore.train.setup import Workshop, stage_populations
from outscore.train.sources import RolloutSource, Source
from outscore.train.step import Learner, Reference, UpdatePlan, update
from outscore.train.teacher import load_other, load_teacher
from outscore.train.texts import TextMeasure

EVALUATION_ROWS = 256
"""Completions decoded at once in an evaluation, which keeps no activations."""
TOKEN_BUDGET = 4096
"""Tokens forwarded at once in an evaluation outside a stage."""


def build_stage(
    recipe: Recipe, index: int, workshop: Workshop, *, run: RunDirectory | None = None, resumed: Path | None = None
) -> Stage:
    """Put together one stage of a recipe around the workshop's policy as it stands.

    `run` is where a stage that samples before it trains keeps its samples. `resumed` is the checkpoint the stage goes
    on from; the policy has its weights already, a reward model has not.
    """
    settings = recipe.stages[index]
    locate_models(workshop.materials[index].rewards, run)
    if isinstance(settings, RewardModelSettings):
        return _reward_model_stage(recipe, index, settings, workshop, resumed)
    if isinstance(settings, OutcomeRewardModelSettings):
        evaluator = partial(_evaluator, recipe, workshop)
        return label_stage(recipe, index, settings, workshop, evaluator, run=run, resumed=resumed)
    row = stage_algorithm(settings)
    policy = workshop.policy
    masters = workshop.masters
    learner = Learner(
        policy=policy,
        masters=masters,
        optimizer=make_optimizer(masters.parameters.values(), settings.optimizer),
        reference=Reference(trainable_parameters(policy.model)) if row.needs_reference else None,
        kl_coef=row.kl_coef,
        teacher=load_teacher(recipe, settings, policy, run) if row.needs_teacher else None,
        populations=stage_populations(recipe, index, workshop)[0],
    )
    plan = UpdatePlan(
        algorithm=row,
        optimizer=settings.optimizer,
        total_updates=settings.num_updates,
        token_budget=settings.token_budget,
        minibatches=settings.minibatches if isinstance(settings, PolicySettings) else 1,
        epochs=settings.epochs if isinstance(settings, PolicySettings) else 1,
        order=(recipe.seed, index),
        beside=text_term(settings),
    )
    take: Updater = update
    if row.has_critic:
        assert isinstance(settings, PolicySettings)
        take = _with_critic(recipe, settings, learner, plan, run, resumed)
    return Stage(
        recipe=recipe,
        settings=settings,
        learner=learner,
        source=_source(recipe, index, workshop, learner, run),
        plan=plan,
        sampler=make_sampler(policy, EVALUATION_ROWS),
        evaluator=build_evaluator(recipe, workshop, index, learner.reference),
        judge=workshop.materials[index].judge,
        update=take,
    )


def _with_critic(
    recipe: Recipe,
    settings: PolicySettings,
    learner: Learner,
    plan: UpdatePlan,
    run: RunDirectory | None,
    resumed: Path | None,
) -> Updater:
    """Give the learner its critic; what updates both."""
    critic = settings.critic or CriticSettings()
    optimizer = settings.optimizer.model_copy(update={"lr": critic.lr})
    learner.critic = critic_learner(learner.policy, critic, optimizer, run=run, resumed=resumed)
    if recipe.model.activation_checkpointing:
        learner.critic.policy.base.activation_checkpointing_enable({"use_reentrant": False})
    total_updates = settings.steps * settings.updates_per_step
    shared = critic.trunk == "shared"
    return partial(
        partial(update_shared, coef=critic.coef or COEF_VALUE) if shared else update_both,
        critic_plan=replace(plan, optimizer=optimizer, total_updates=total_updates),
        warmup_updates=critic.warmup_steps * settings.updates_per_step,
    )


def _source(recipe: Recipe, index: int, workshop: Workshop, learner: Learner, run: RunDirectory | None) -> Source:
    """Where a stage that trains the policy has its groups from."""
    settings, materials = recipe.stages[index], workshop.materials[index]
    if isinstance(settings, PolicySettings):
        row = stage_algorithm(settings)
        return RolloutSource(
            prompts=materials.train_prompts,
            sampler=make_sampler(workshop.policy, settings.sampling.max_rows),
            rewards=materials.rewards,
            settings=settings,
            algorithm=row,
            seed=recipe.seed,
            stage=index,
            penalty=RewardKl(learner, settings, row) if row.needs_reference and row.kl_place != "loss" else None,
            verdict=materials.judge.correct,
            values=CriticValues(learner.critic, settings.token_budget) if learner.critic else None,
            strata=stage_populations(recipe, index, workshop)[1],
            texts=step_texts(settings, materials.texts, seed=recipe.seed, stage=index),
        )
    if isinstance(settings, RejectionSettings):
        return _rejection_source(recipe, index, settings, workshop, run)
    if isinstance(settings, PreferenceSettings):
        return preference_source(recipe, index, settings, workshop)
    assert isinstance(settings, SftSettings | TextSettings)
    return DemonstrationSource(
        demonstrations=materials.demonstrations,
        batch_size=settings.batch_size,
        seed=recipe.seed,
        stage=index,
        strata=stage_populations(recipe, index, workshop)[1],
    )


def _rejection_source(
    recipe: Recipe, index: int, settings: RejectionSettings, workshop: Workshop, run: RunDirectory | None
) -> RejectionSource:
    """Samples of the policy, of the policy with other weights, or of another model."""
    policy, materials = workshop.policy, workshop.materials[index]
    sampled_as: Callable[[], AbstractContextManager[None]] = nullcontext
    if names_other_model(settings.samples_from, [stage.label for stage in recipe.stages[:index]]):
        policy = load_other(recipe, settings, "samples_from", settings.samples_from, policy)
    elif settings.samples_from and run is not None:
        sampled_as = partial(weights_of, run, recipe, settings.samples_from, workshop)
    return RejectionSource(
        prompts=materials.train_prompts,
        sampler=make_sampler(policy, settings.sampling.max_rows),
        rewards=materials.rewards,
        judge=materials.judge,
        settings=settings,
        seed=recipe.seed,
        stage=index,
        run=run,
        demonstrations=materials.demonstrations,
        sampled_as=sampled_as,
    )


def _reward_model_stage(
    recipe: Recipe, index: int, settings: RewardModelSettings, workshop: Workshop, resumed: Path | None
) -> Stage:
    """A stage that trains a model of its own; the policy only lends it its weights to begin with."""
    policy = workshop.policy
    is_chat = bool(policy.tokenizer.chat_template) and recipe.prompt.template in ("auto", "chat")
    seed = recipe.seed + index
    learner = reward_learner(policy, settings, seed, end_token_id(policy, is_chat), resumed)
    learner.populations = stage_populations(recipe, index, workshop)[0]
    plan = UpdatePlan(
        algorithm=stage_algorithm(settings),
        optimizer=settings.optimizer,
        total_updates=settings.num_updates,
        token_budget=settings.token_budget,
    )
    scale = partial(normalise, learner, workshop.materials[index].rankings, settings.token_budget)
    if settings.normalise and resumed is None:
        scale()
    evaluator = None
    if rankings := comparable(workshop.materials[index].eval_rankings):
        measure = RewardModelMeasure(rankings=rankings, model=cast(RewardModel, learner.policy), plan=plan)
        evaluator = replace(_evaluator(recipe, workshop, [measure]), prompts=())
    return Stage(
        recipe=recipe,
        settings=settings,
        learner=learner,
        source=preference_source(recipe, index, settings, workshop),
        plan=plan,
        sampler=make_sampler(policy, EVALUATION_ROWS),
        evaluator=evaluator,
        judge=workshop.materials[index].judge,
        update=update_reward_model,
        closing=scale if settings.normalise else None,
    )


def preference_source(recipe: Recipe, index: int, settings: PreferenceSettings, workshop: Workshop) -> PreferenceSource:
    """The workshop's preferences as a stage takes them."""
    return PreferenceSource(
        rankings=workshop.materials[index].rankings,
        batch_size=settings.batch_size,
        ties=settings.ties,
        seed=recipe.seed,
        stage=index,
        strata=stage_populations(recipe, index, workshop)[1],
    )


def comparable(rankings: Sequence[RankedGroup]) -> list[RankedGroup]:
    """Those that prefer something: one that is all ties cannot be told right or wrong."""
    return [group for group in rankings if len(set(group.ranks)) > 1]


def build_evaluator(
    recipe: Recipe, workshop: Workshop, index: int | None = None, reference: Reference | None = None
) -> Evaluator | None:
    """The evaluator a recipe asks for, in the stage of this index with its reference or outside; None where there is
    nothing to evaluate on."""
    measures: list[Measure] = []
    stage = None if index is None else recipe.stages[index]
    own = stage if isinstance(stage, PreferenceSettings) else None
    shared = own is None or index is None or not workshop.materials  # outside of training there are no materials
    held_out = workshop.eval_rankings if shared or index is None else workshop.materials[index].eval_rankings
    if rankings := comparable(held_out):
        measures.append(
            PreferenceMeasure(
                rankings=rankings,
                policy=workshop.policy,
                token_budget=stage.token_budget if stage else TOKEN_BUDGET,
                reference=reference if own else None,
                algorithm=stage_algorithm(own) if own else None,
                ties=own.ties if own else "drop",
            )
        )
    if workshop.eval_texts:
        budget = stage.token_budget if stage else TOKEN_BUDGET
        measures.append(TextMeasure(pieces=workshop.eval_texts, policy=workshop.policy, token_budget=budget))
    return _evaluator(recipe, workshop, measures) if workshop.eval_prompts or measures else None


def _evaluator(recipe: Recipe, workshop: Workshop, measures: Sequence[Measure]) -> Evaluator:
    return Evaluator(
        prompts=workshop.eval_prompts,
        rewards=workshop.rewards,
        judge=workshop.judge,
        samples=recipe.evaluation.samples,
        temperature=recipe.evaluation.temperature,
        max_new_tokens=answer_limit(recipe),
        seed=recipe.seed,
        measures=measures,
    )
