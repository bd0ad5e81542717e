"""A stage that trains a reward model on labels, put together."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from outscore.config import Recipe
from outscore.model.heads import RewardModel
from outscore.model.steps import decoder
from outscore.records import LabelledGroup
from outscore.report import RunDirectory
from outscore.report.rows import read_parquet
from outscore.rewards import Rewards
from outscore.rewards.model_based import Ensemble, ModelScorer
from outscore.rollout import make_sampler
from outscore.stage_rows import stage_algorithm
from outscore.stages import OutcomeRewardModelSettings
from outscore.train.evaluate import Evaluator, Measure
from outscore.train.labels import GivenLabels, LabelMeasure, Labels, LabelSource
from outscore.train.loop import Stage
from outscore.train.materials import end_token_id
from outscore.train.reward_models import reward_learner, update_reward_model
from outscore.train.setup import Workshop, stage_populations
from outscore.train.step import UpdatePlan
from outscore.train.step_labels import SampledLabels, labelled_row

EVALUATION_ROWS = 256
"""Completions decoded at once where a stage of given labels evaluates."""


def label_stage(
    recipe: Recipe,
    index: int,
    settings: OutcomeRewardModelSettings,
    workshop: Workshop,
    evaluator: Callable[[Sequence[Measure]], Evaluator],
    *,
    run: RunDirectory | None,
    resumed: Path | None,
) -> Stage:
    """The stage at `index`; `run` is where its samples are kept and the stage that it continues is found, and `resumed`
    the checkpoint that it goes on from."""
    policy, row = workshop.policy, stage_algorithm(settings)
    is_chat = bool(policy.tokenizer.chat_template) and recipe.prompt.template in ("auto", "chat")
    weights = resumed
    if weights is None and settings.continues and run is not None:
        weights = last_checkpoint(run, settings.continues)
    learner = reward_learner(policy, settings, recipe.seed + index, end_token_id(policy, is_chat), weights)
    learner.populations, strata = stage_populations(recipe, index, workshop)
    labels = stage_labels(recipe, index, settings, workshop, run)
    measured = None
    if settings.sample.held_out if settings.sample else workshop.materials[index].eval_labelled:
        measure = LabelMeasure(
            labels=labels,
            model=cast(RewardModel, learner.policy),
            algorithm=row,
            token_budget=settings.token_budget,
        )
        measured = replace(evaluator([measure]), prompts=())
    return Stage(
        recipe=recipe,
        settings=settings,
        learner=learner,
        source=LabelSource(labels=labels, batch_size=settings.batch_size, seed=recipe.seed, stage=index, strata=strata),
        plan=UpdatePlan(
            algorithm=row,
            optimizer=settings.optimizer,
            total_updates=settings.num_updates,
            token_budget=settings.token_budget,
        ),
        sampler=make_sampler(policy, EVALUATION_ROWS),
        evaluator=measured,
        judge=workshop.materials[index].judge,
        update=update_reward_model,
    )


def stage_labels(
    recipe: Recipe, index: int, settings: OutcomeRewardModelSettings, workshop: Workshop, run: RunDirectory | None
) -> Labels:
    """What a stage learns: the task's labels, or those that it makes of the policy's samples."""
    materials, policy = workshop.materials[index], workshop.policy
    if settings.sample is None:
        return GivenLabels(train=materials.labelled, evaluation=materials.eval_labelled)
    return SampledLabels(
        prompts=materials.train_prompts,
        sampler=make_sampler(policy, settings.sample.sampling.max_rows),
        decode=decoder(policy.tokenizer),
        rewards=materials.rewards,
        judge=materials.judge,
        settings=settings,
        seed=recipe.seed,
        stage=index,
        run=run,
        history=None if run is None else partial(_history, recipe, settings.continues, workshop, run),
    )


def last_checkpoint(run: RunDirectory, stage: str) -> Path:
    """The newest checkpoint of a stage; ValueError where it has none."""
    saved = [item.path for item in run.checkpoints() if item.stage == stage]
    if not saved:
        raise ValueError(f"{run.path}: stage `{stage}` has no checkpoint, and its reward model is asked for")
    return saved[-1]


def locate_models(rewards: Rewards, run: RunDirectory | None) -> list[str]:
    """Give reward models that are named by a stage of this run their weights: its newest checkpoint.

    Without a run nothing is located. Returns the names of those stages.
    """
    functions = [each.function for each in rewards.rewards]
    members = [member for each in functions for member in (each.members if isinstance(each, Ensemble) else [each])]
    named = [scorer for scorer in members if isinstance(scorer, ModelScorer) and scorer.stage]
    for scorer in named:
        if run is not None:
            scorer.locate(last_checkpoint(run, scorer.stage))
    return [scorer.stage for scorer in named]


def _history(recipe: Recipe, stage: str, workshop: Workshop, run: RunDirectory) -> list[LabelledGroup]:
    """What the stage of this name and those that it continued trained on, the first of them first."""
    place = next((i for i, each in enumerate(recipe.stages) if each.label == stage), None)
    if place is None:
        return []
    settings = recipe.stages[place]
    assert isinstance(settings, OutcomeRewardModelSettings)
    before = _history(recipe, settings.continues, workshop, run)
    if settings.sample is None:
        return [*before, *workshop.materials[place].labelled]
    rows = read_parquet(run.groups_path(stage, 0))
    return [*before, *(group for group in map(labelled_row, rows) if group is not None)]
