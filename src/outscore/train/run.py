"""Whole runs: start one from a recipe, or go on with one that was interrupted."""

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from outscore.config import Recipe, dump_recipe, parse_recipe
from outscore.report import Console, Evaluation, Reporter, RunDirectory, open_trackers
from outscore.report.run import FACTS
from outscore.stages import StageSettings
from outscore.train.build import build_stage
from outscore.train.changes import going_on, nothing_left
from outscore.train.checkpoint import (
    Progress,
    best_checkpoint,
    environment,
    load_trainer_state,
    load_weights,
    newest_sound,
    prune_checkpoints,
    read_progress,
)
from outscore.train.home import WORKING_DIRECTORY, at_home, working_directory
from outscore.train.lineage import begin_with, policy_weights
from outscore.train.loop import StageRun, shrink
from outscore.train.objects import RewardSpec, TaskSpec, missing_objects, with_objects
from outscore.train.plateaus import check_plateaus
from outscore.train.provenance import differences
from outscore.train.setup import Workshop, prepare
from outscore.train.unused import unused_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """How a run ended."""

    path: Path
    """The run directory."""
    evaluations: Sequence[Evaluation]
    """Every evaluation, in order."""
    finished: bool
    """False if it was interrupted and can be resumed."""
    checkpoint: Path | None
    """The newest checkpoint: a Hugging Face model directory."""
    best: Path | None
    """The one of the last stage with the best evaluation; None where none of them was evaluated."""


def run_recipe(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    path: str | Path | None = None,
    *,
    task: TaskSpec | None = None,
    rewards: Sequence[RewardSpec] | None = None,
    console: Console | None = None,
) -> RunResult:
    """Run a recipe from its beginning.

    Args:
        recipe: a checked recipe, the same as nested mappings, or a recipe file.
        path: the run directory, `runs/NAME` by default; it must not exist.
        task: instead of the recipe's: a kind of task, a mapping of `kind` and options, a task object, or rows such as
            `{"question": …, "answer": …}` (a list of them, a Hugging Face `Dataset`, or anything else that is iterated
            over).
        rewards: a list of functions (or anything a recipe may name) instead of the recipe's rewards.
        console: where to show progress; None shows nothing.

    Raises:
        ValueError: if something in the recipe cannot work, before any work; or if the run directory exists.
    """
    chosen, own_task, own_rewards = with_objects(recipe, task, rewards)
    directory = Path(path) if path is not None else Path("runs") / chosen.name
    _check_vacant(directory)
    workshop = prepare(chosen, task=own_task, rewards=own_rewards)
    check_plateaus(chosen, workshop)
    began = {"environment": environment(), WORKING_DIRECTORY: working_directory(directory)}
    config = {**dump_recipe(chosen), FACTS: {**workshop.facts, **began}}
    run = RunDirectory.create(directory, config=config)
    return _go(run, chosen, workshop, None, console)


def resume(
    path: str | Path,
    *,
    task: TaskSpec | None = None,
    rewards: Sequence[RewardSpec] | None = None,
    console: Console | None = None,
) -> RunResult:
    """Go on with a run from its newest sound checkpoint; what lies after that is discarded and done again. The stages
    are those that config.yaml has by now: the last that has begun may take more steps, and others may follow it.

    `task` must be given again if `run_recipe` was given it, and `rewards` if there were functions among those it was
    given. The process works in the directory that the run was started in until this returns: the recipe's paths are
    relative to that.

    Raises:
        ValueError: if there is no run at `path`, another process is writing it, objects must be given again or are
            others, stages that have begun were changed in what is done, or it has checkpoints and none is sound; the
            run is then as it was. Or if the weights that it began
            with are needed and are others. Other data and other reward files are reported.
    """
    with at_home(Path(path)) as place:
        return _resume(RunDirectory.open(place), task, rewards, console)


def _resume(
    run: RunDirectory,
    task: TaskSpec | None,
    rewards: Sequence[RewardSpec] | None,
    console: Console | None,
) -> RunResult:
    path, config = run.path, run.config()
    facts = config.pop(FACTS)
    written = parse_recipe(config, where=str(run.path / "config.yaml"))
    recipe, own_task, own_rewards = with_objects(written, task, rewards)
    _check_objects(written, path, task=task, rewards=rewards)
    if recipe.rewards != written.rewards:
        raise ValueError(
            f"{path} was started with the rewards {_names(written.rewards)}, and is given {_names(recipe.rewards)}: "
            "give the same ones, of the same names and weights"
        )
    with run.lock():
        found, notes = newest_sound(run)
        progress, saved_in = (None, {}) if found is None else read_progress(found.path)
        reopened, changed = going_on(run, recipe, progress)
        if found is None:
            run.truncate_after(run.stages[0].name, -1)
        else:
            run.truncate_after(found.stage, found.step)
            notes += _differences(saved_in)
        if progress and reopened and progress.finished and not reopened.finished:
            run.reopen(progress.stage)
        progress = reopened
        _say([*notes, *changed], run, console)
        if nothing_left(recipe, progress):
            return _nothing_to_do(run, console)
    weights = policy_weights(run, found.path if found else None)
    workshop = prepare(recipe, weights=weights, facts=facts, task=own_task, rewards=own_rewards)
    _say(differences(facts, workshop.facts), run, console)
    check_plateaus(recipe, workshop)
    return _go(run, recipe, workshop, (progress, found.path) if progress and found else None, console)


def _say(notes: Sequence[str], run: RunDirectory, console: Console | None) -> None:
    for note in notes:
        run.log(note)
        if console:
            console.message(note, warning=True)


def _check_objects(recipe: Recipe, path: Path, *, task: object, rewards: object) -> None:
    """ValueError where the run was given objects that it is not given now."""
    if missing := missing_objects(recipe, task=task, rewards=rewards):
        again = ", ".join(f"{name}=…" for name in missing)
        raise ValueError(
            f"{path} was started from Python with its own {' and '.join(missing.values())}: resume it with "
            f"outscore.resume(path, {again})"
        )


def _names(rewards: Sequence[str | Mapping[str, Any]]) -> str:
    """Rewards of a recipe, for a message: `a × 0.5, b`."""
    parts = [each if isinstance(each, Mapping) else {"name": each} for each in rewards]
    return ", ".join(f"{part['name']} × {part['weight']:g}" if "weight" in part else part["name"] for part in parts)


def _go(
    run: RunDirectory,
    recipe: Recipe,
    workshop: Workshop,
    start: tuple[Progress, Path] | None,
    console: Console | None,
) -> RunResult:
    trackers = open_trackers(recipe.trackers, run=run.path, config=dump_recipe(recipe), project="outscore")
    reporter = Reporter(run, console=console, trackers=trackers)
    finished, failed = False, None
    with run.lock(), _interrupts(reporter) as interrupted:
        if start is None:
            _report_facts(workshop, recipe, reporter)
        for rewards in workshop.all_rewards:
            rewards.listen(lambda text, shown: reporter.message(text, warning=True) if shown else run.log(text))
        try:
            stopped = _stages(run, recipe, workshop, start, reporter, interrupted)
            finished = stopped is None
        except Exception as error:  # whatever it is, the run's own record says why it ended
            failed = error
            raise
        finally:
            done = run.evaluations()
            for rewards in workshop.all_rewards:
                rewards.close()
            reporter.close([e for e in done if finished and (e.label.startswith(("before ", "after ")))])
            if failed is not None:
                _say_failed(failed, run, reporter)
        if stopped is not None:
            # Last on the screen, below what the live view leaves there.
            reporter.message(f"stopped after step {stopped.step}; go on with: outscore resume {run.path}")
    return _result(run, finished=finished)


def _result(run: RunDirectory, *, finished: bool) -> RunResult:
    checkpoints = run.checkpoints()
    return RunResult(
        path=run.path,
        evaluations=run.evaluations(),
        finished=finished,
        checkpoint=checkpoints[-1].path if checkpoints else None,
        best=best_checkpoint(run),
    )


def _nothing_to_do(run: RunDirectory, console: Console | None) -> RunResult:
    """Say that a run is finished, and how it would be trained longer."""
    if console:
        console.message(f"{run.path} is finished: nothing to do")
        console.message(
            f"to train on, raise `steps` of its last stage in {run.path / 'config.yaml'}, or add a stage there"
        )
    return _result(run, finished=True)


def _say_failed(error: Exception, run: RunDirectory, reporter: Reporter) -> None:
    """Record what ended a run, and say how to go on, unless the error does. What a full disk refuses is left."""
    with suppress(OSError):
        run.log_error(error)
        if "outscore resume" not in str(error):
            reporter.message(
                f"stopped by an error; what the last checkpoint holds is kept. Once it is mended, go on with: "
                f"outscore resume {run.path}",
                warning=True,
            )


def _stages(
    run: RunDirectory,
    recipe: Recipe,
    workshop: Workshop,
    start: tuple[Progress, Path] | None,
    reporter: Reporter,
    interrupted: "_Interrupt",
) -> Progress | None:
    """Train the stages that are left. Returns where an interrupt stopped them, None if they ended."""
    first = 0
    policy = workshop.policy
    if start is not None:
        first = [stage.label for stage in recipe.stages].index(start[0].stage)
        policy.version = start[0].policy_version
        prune_checkpoints(run, start[0], recipe.checkpoints.keep)
        # Before any stage is built: its reference is the policy as the stage finds it.
        if weights := policy_weights(run, start[1]):
            load_weights(weights, workshop.masters)
        if start[0].finished:
            first, start = first + 1, None
    for index in range(first, len(recipe.stages)):
        if start is None:
            begin_with(run, recipe, recipe.stages[index].start, workshop)
        stage = build_stage(recipe, index, workshop, run=run, resumed=start[1] if start else None)
        progress = _fresh_progress(recipe.stages[index], policy.version)
        if start is not None:
            progress, path = start
            load_trainer_state(path, stage.learner, progress)
            shrink(stage.learner, recipe.stages[index].plateau, progress.num_plateaus)
            start = None
        staged = StageRun(stage=stage, run=run, reporter=reporter, progress=progress, interrupted=interrupted)
        if index == 0 and progress.step == 0 and stage.evaluator is not None:
            staged.evaluate(f"before {recipe.stages[0].label}", 0)
        progress = staged.go()
        if not progress.finished:
            return progress
    return None


def _fresh_progress(stage: StageSettings, version: int) -> Progress:
    return Progress(
        stage=stage.label, step=0, finished=False, policy_version=version, num_updates=0, num_steps=stage.steps
    )


def _check_vacant(directory: Path) -> None:
    """Refuse an existing run directory before the model is loaded, not after."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(
            f"{directory} already exists and is not overwritten: continue it with `outscore resume {directory}`, "
            "give the new run another name (name=…), or remove it"
        )


def _report_facts(workshop: Workshop, recipe: Recipe, reporter: Reporter) -> None:
    facts = workshop.facts
    probes = "; ".join(facts[name] for name in ("layout_probe", "attention_probe") if name in facts)
    reporter.message(f"model: weights {facts['weights_sha256'][:12]}, computing in {facts['precision']}; {probes}")
    for notice in (*unused_settings(recipe), *workshop.notices):
        reporter.message(notice, warning=True)


def _differences(saved_in: Mapping[str, Any]) -> list[str]:
    """What differs between the machine a checkpoint was written on and this one."""
    here = environment()
    return [
        f"resuming with {name} {here.get(name)} where the run had {value}: results may differ in rounding"
        for name, value in saved_in.items()
        if here.get(name) != value
    ]


class _Interrupt:
    """Whether somebody asked to stop. The first signal asks; a second one stops at once."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._reporter.message("stopping after this step, with everything saved; once more stops at once", warning=True)


@contextmanager
def _interrupts(reporter: Reporter) -> Iterator[_Interrupt]:
    """Catch SIGINT and SIGTERM inside the block, where the platform lets this thread do so."""
    interrupt = _Interrupt(reporter)
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, interrupt.handle)
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
