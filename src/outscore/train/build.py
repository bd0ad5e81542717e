"""From a recipe's stage and the workshop to a stage that can run."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from outscore.config import Recipe
from outscore.model.adapters import trainable_parameters
from outscore.model.heads import RewardModel
from outscore.model.rows import TrainingGroup
from outscore.objectives.algorithms import Algorithm
from outscore.objectives.kl import kl_estimate, kl_per_completion
from outscore.records import RankedGroup, ScoredGroup
from outscore.report import RunDirectory
from outscore.rollout import make_sampler
from outscore.stages import (
    PolicySettings,
    PreferenceSettings,
    RejectionSettings,
    RewardModelSettings,
    SftSettings,
    StageSettings,
)
from outscore.train.evaluate import Evaluator, Measure
from outscore.train.loop import Stage
from outscore.train.materials import answer_limit, end_token_id
from outscore.train.optim import make_optimizer
from outscore.train.order import Strata
from outscore.train.populations import PopulationWeights, stage_weights
from outscore.train.preferences import PreferenceMeasure, PreferenceSource
from outscore.train.rejection import RejectionSource
from outscore.train.reward_models import RewardModelMeasure, normalise, reward_learner, update_reward_model
from outscore.train.setup import Workshop, stage_algorithm
from outscore.train.sources import DemonstrationSource, RolloutSource, Source
from outscore.train.step import Batch, Learner, Reference, UpdatePlan, batch_logprobs
from outscore.train.worth import Penalty

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
    if isinstance(settings, RewardModelSettings):
        return _reward_model_stage(recipe, index, settings, workshop, resumed)
    row = stage_algorithm(settings)
    policy = workshop.policy
    masters = workshop.masters
    learner = Learner(
        policy=policy,
        masters=masters,
        optimizer=make_optimizer(masters.parameters.values(), settings.optimizer),
        reference=Reference(trainable_parameters(policy.model)) if row.needs_reference else None,
        populations=_populations(recipe, index, workshop)[0],
    )
    return Stage(
        recipe=recipe,
        settings=settings,
        learner=learner,
        source=_source(recipe, index, workshop, learner, run),
        plan=UpdatePlan(
            algorithm=row,
            optimizer=settings.optimizer,
            total_updates=settings.num_updates,
            token_budget=settings.token_budget,
            minibatches=settings.minibatches if isinstance(settings, PolicySettings) else 1,
            epochs=settings.epochs if isinstance(settings, PolicySettings) else 1,
        ),
        sampler=make_sampler(policy, EVALUATION_ROWS),
        evaluator=build_evaluator(recipe, workshop, settings, learner.reference),
        judge=workshop.materials[index].judge,
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
            penalty=reward_penalty(learner, settings, row) if row.needs_reference and row.kl_place != "loss" else None,
            verdict=materials.judge.correct,
            strata=_populations(recipe, index, workshop)[1],
        )
    if isinstance(settings, RejectionSettings):
        return RejectionSource(
            prompts=materials.train_prompts,
            sampler=make_sampler(workshop.policy, settings.sampling.max_rows),
            rewards=materials.rewards,
            judge=materials.judge,
            settings=settings,
            seed=recipe.seed,
            stage=index,
            run=run,
        )
    if isinstance(settings, PreferenceSettings):
        return preference_source(recipe, index, settings, workshop)
    assert isinstance(settings, SftSettings)
    return DemonstrationSource(
        demonstrations=materials.demonstrations,
        batch_size=settings.batch_size,
        seed=recipe.seed,
        stage=index,
        strata=_populations(recipe, index, workshop)[1],
    )


def _populations(recipe: Recipe, index: int, workshop: Workshop) -> tuple[PopulationWeights | None, Strata | None]:
    """The weights a stage begins with, and what it draws from; nothing where every example counts the same."""
    prompts = workshop.materials[index].prompts
    return stage_weights(recipe.stages[index], [prompt.problem.population for prompt in prompts]) or (None, None)


def _reward_model_stage(
    recipe: Recipe, index: int, settings: RewardModelSettings, workshop: Workshop, resumed: Path | None
) -> Stage:
    """A stage that trains a model of its own; the policy only lends it its weights to begin with."""
    policy = workshop.policy
    is_chat = bool(policy.tokenizer.chat_template) and recipe.prompt.template in ("auto", "chat")
    seed = recipe.seed + index
    learner = reward_learner(policy, settings, seed, end_token_id(policy, is_chat), resumed)
    learner.populations = _populations(recipe, index, workshop)[0]
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
    if rankings := comparable(workshop.eval_rankings):
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
        strata=_populations(recipe, index, workshop)[1],
    )


def comparable(rankings: Sequence[RankedGroup]) -> list[RankedGroup]:
    """Those that prefer something: one that is all ties cannot be told right or wrong."""
    return [group for group in rankings if len(set(group.ranks)) > 1]


def build_evaluator(
    recipe: Recipe, workshop: Workshop, stage: StageSettings | None = None, reference: Reference | None = None
) -> Evaluator | None:
    """The evaluator a recipe asks for, in a stage with its reference or outside; None where there is nothing to
    evaluate on."""
    measures: list[Measure] = []
    if rankings := comparable(workshop.eval_rankings):
        own = stage if isinstance(stage, PreferenceSettings) else None
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


def reward_penalty(learner: Learner, settings: PolicySettings, row: Algorithm) -> Penalty:
    """KL to the reference as a cost of the reward: kl_coef times the KL of each completion, or of each token where
    these pay for themselves, without gradient (DeepSeekMath eq. 2)."""

    def penalty(groups: Sequence[ScoredGroup]) -> list[Tensor]:
        assert learner.reference is not None
        batch = _plain_batch(groups, settings.sampling.temperature)
        anchor = batch_logprobs(learner.policy, batch, batch.groups, settings.token_budget)
        with learner.reference.in_place():
            ref = batch_logprobs(learner.policy, batch, batch.groups, settings.token_budget)
        if row.kl_place == "token_reward":
            each = row.kl_coef * kl_estimate(anchor - ref, estimator=row.kl_estimator)
            ends = [batch.starts[group.completion_index[-1] + 1] for group in batch.groups]
            return list(each.cpu().tensor_split(ends[:-1]))
        lengths = batch.lengths(anchor.device)
        index = torch.repeat_interleave(torch.arange(len(lengths), device=anchor.device), lengths)
        costs = row.kl_coef * kl_per_completion(
            anchor, ref, index, estimator=row.kl_estimator, level=row.kl_level, num_completions=len(lengths)
        )
        return list(costs.cpu().split([len(group.scores) for group in groups]))

    return penalty


def _plain_batch(groups: Sequence[ScoredGroup], temperature: float) -> Batch:
    completions = [drawn.completion for group in groups for drawn in group.sampled.completions]
    rows: list[TrainingGroup] = []
    first = 0
    for group in groups:
        last = first + len(group.scores)
        own = TrainingGroup(
            prompt_ids=group.sampled.prompt.token_ids,
            completions=tuple(completions[first:last]),
            completion_index=tuple(range(first, last)),
        )
        rows.append(own)
        first = last
    return Batch(
        groups=tuple(rows),
        completions=tuple(completions),
        advantages=None,
        sampler_logprobs=None,
        temperature=temperature,
    )
