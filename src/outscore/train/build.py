"""From a recipe's stage and the workshop to a stage that can run."""

from collections.abc import Sequence

import torch
from torch import Tensor

from outscore.config import PolicySettings, Recipe, SftSettings
from outscore.model.adapters import trainable_parameters
from outscore.model.rows import TrainingGroup
from outscore.objectives.algorithms import Algorithm
from outscore.objectives.kl import kl_estimate, kl_per_completion
from outscore.records import ScoredGroup
from outscore.rollout import make_sampler
from outscore.train.evaluate import Evaluator
from outscore.train.loop import Stage
from outscore.train.optim import make_optimizer
from outscore.train.setup import Workshop, answer_limit, stage_algorithm
from outscore.train.sources import DemonstrationSource, RolloutSource, Source
from outscore.train.step import Batch, Learner, Reference, UpdatePlan, batch_logprobs
from outscore.train.worth import Penalty

EVALUATION_ROWS = 256
"""Completions decoded at once in an evaluation, which keeps no activations."""


def build_stage(recipe: Recipe, index: int, workshop: Workshop) -> Stage:
    """Put together one stage of a recipe around the workshop's policy as it stands."""
    settings = recipe.stages[index]
    row = stage_algorithm(settings)
    policy = workshop.policy
    masters = workshop.masters
    learner = Learner(
        policy=policy,
        masters=masters,
        optimizer=make_optimizer(masters.parameters.values(), settings.optimizer),
        reference=Reference(trainable_parameters(policy.model)) if row.needs_reference else None,
    )
    sampler = make_sampler(policy, EVALUATION_ROWS)
    source: Source
    minibatches = epochs = 1
    if isinstance(settings, PolicySettings):
        minibatches, epochs = settings.minibatches, settings.epochs
        source = RolloutSource(
            prompts=workshop.train_prompts,
            sampler=make_sampler(policy, settings.sampling.max_rows),
            rewards=workshop.rewards,
            settings=settings,
            algorithm=row,
            seed=recipe.seed,
            stage=index,
            penalty=reward_penalty(learner, settings, row) if row.needs_reference and row.kl_place != "loss" else None,
            verdict=workshop.judge.correct,
        )
    else:
        assert isinstance(settings, SftSettings)
        source = DemonstrationSource(
            demonstrations=workshop.demonstrations, batch_size=settings.batch_size, seed=recipe.seed, stage=index
        )
    return Stage(
        recipe=recipe,
        settings=settings,
        learner=learner,
        source=source,
        plan=UpdatePlan(
            algorithm=row,
            optimizer=settings.optimizer,
            total_updates=settings.num_updates,
            token_budget=settings.token_budget,
            minibatches=minibatches,
            epochs=epochs,
        ),
        sampler=sampler,
        evaluator=build_evaluator(recipe, workshop),
        judge=workshop.judge,
    )


def build_evaluator(recipe: Recipe, workshop: Workshop) -> Evaluator | None:
    """The evaluator a recipe asks for; None where there is nothing to evaluate on."""
    if not workshop.eval_prompts:
        return None
    return Evaluator(
        prompts=workshop.eval_prompts,
        rewards=workshop.rewards,
        judge=workshop.judge,
        samples=recipe.evaluation.samples,
        temperature=recipe.evaluation.temperature,
        max_new_tokens=answer_limit(recipe),
        seed=recipe.seed,
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
