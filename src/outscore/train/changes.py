"""What a run's config.yaml asks for now, held against what the run has done.

Stages and their steps stand in config.yaml alone, where they can be changed as far as that has one meaning: the last
stage that has begun may take more steps, and others may follow it.
"""

from dataclasses import replace
from pathlib import Path

from outscore.config import Recipe
from outscore.report import RunDirectory
from outscore.stages import RewardModelSettings, StageSettings
from outscore.train.checkpoint import Progress, recorded_progress


def going_on(run: RunDirectory, recipe: Recipe, progress: Progress | None) -> tuple[Progress | None, list[str]]:
    """Where a run goes on that stands at `progress` (None: at its beginning), and what a person should know of it. A
    stage that was finished is not, where it has more steps now.

    Raises:
        ValueError: if a stage that has begun has another name or place or is gone, if a finished one cannot have
            the steps that it has now, or if one was to end before where it stands; with the way out.
    """
    _check_places(run, recipe)
    if progress is None:
        return None, []
    stages = {stage.label: stage for stage in recipe.stages}
    *ended, last = run.begun()
    for label, path in {item.stage: item.path for item in run.checkpoints()}.items():
        if label in ended:
            _check_unchanged(run, stages[label], path)
    stage = stages[progress.stage]
    if progress.stage != last:
        return progress, []
    planned = progress.num_steps or stage.steps
    if progress.finished and stage.steps != planned:
        _check_extended(run, stage, progress)
        progress = replace(progress, finished=False)
    if not progress.finished and stage.steps <= progress.step:
        raise ValueError(
            f"{_steps(run, stage)}, and it has taken {progress.step}: give more, as {progress.step + 1}, or put "
            f"{planned} back"
        )
    schedule = stage.optimizer.schedule
    depends = stage.steps != planned and not progress.finished and schedule != "constant"
    note = (
        f"stage `{stage.label}` has {stage.steps} steps now, where it had {planned}: from step {progress.step + 1} on "
        f"its rate is what schedule: {schedule} has at these steps of {stage.steps}, another curve than before"
    )
    return replace(progress, num_steps=stage.steps), [note] if depends else []


def nothing_left(recipe: Recipe, progress: Progress | None) -> bool:
    """Whether the last stage is finished."""
    return progress is not None and progress.finished and progress.stage == recipe.stages[-1].label


def _check_places(run: RunDirectory, recipe: Recipe) -> None:
    """ValueError unless the stages that have begun are the first of the recipe's, in this order."""
    begun, now = run.begun(), [stage.label for stage in recipe.stages]
    if now[: len(begun)] != begun:
        raise ValueError(
            f"{run.path} has begun the stages {', '.join(begun)}, and its config.yaml has {', '.join(now)}: what has "
            "begun keeps its name and its place, and others may only follow; put it back, or begin a new run with "
            f"these stages{_from_weights(run, begun[-1])}"
        )


def _check_unchanged(run: RunDirectory, stage: StageSettings, checkpoint: Path) -> None:
    """ValueError where a stage that others have followed, with this last checkpoint, was to have other steps."""
    try:
        done = recorded_progress(checkpoint)
    except ValueError:  # damaged: it says nothing of its steps, and whoever needs its weights refuses it
        return
    if done.finished and done.num_steps and stage.steps != done.num_steps:
        raise ValueError(
            f"{_steps(run, stage)}, and it was finished with {done.num_steps}, which the stages after it go on from: "
            f"put {done.num_steps} back, or begin a new run{_from_weights(run, stage.label)}"
        )


def _check_extended(run: RunDirectory, stage: StageSettings, done: Progress) -> None:
    """ValueError where a finished stage cannot go on as if it had had these steps from the start."""
    way_out = f"put {done.num_steps} back, or begin a new run{_from_weights(run, stage.label)}"
    if done.step < done.num_steps:
        raise ValueError(
            f"{_steps(run, stage)}, and it ended early, after step {done.step} of {done.num_steps}, with the weights "
            f"of step {done.best_step} (evaluation.patience): {way_out}"
        )
    if stage.steps < done.step:
        raise ValueError(f"{_steps(run, stage)}, and it has taken {done.step}: {way_out}")
    if isinstance(stage, RewardModelSettings) and stage.normalise:
        raise ValueError(
            f"{_steps(run, stage)}, and its reward model was normalised after step {done.step}, which was its last: "
            f"{way_out}"
        )


def _steps(run: RunDirectory, stage: StageSettings) -> str:
    return f"{run.path / 'config.yaml'}: stage `{stage.label}` has steps = {stage.steps}"


def _from_weights(run: RunDirectory, stage: str) -> str:
    """How to begin a new run with what a stage left; nothing where it has left nothing yet."""
    saved = [item.path for item in run.checkpoints() if item.stage == stage]
    return f" (`outscore train RECIPE model.source={saved[-1]}` begins with its weights)" if saved else ""
