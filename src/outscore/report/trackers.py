"""Metrics to TensorBoard, Weights & Biases or trackio, for recipes that name them. Each is imported only then."""

import hashlib
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Somewhere else that metrics go. The run directory stays the record; a tracker gets a copy."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Take the finite metrics of a step of a stage."""
        ...

    def close(self) -> None:
        """Send what is still held back."""
        ...


def require_trackers(names: Sequence[str]) -> None:
    """Import the packages of the trackers a recipe names, so that one that is missing is found before any work.

    Raises ImportError naming the extra.
    """
    for name in names:
        for module in _MODULES[name]:
            _import(module, name)


def open_trackers(names: Sequence[str], *, run: Path, config: Mapping[str, Any], project: str) -> list[Tracker]:
    """The trackers a recipe names, each ready to log.

    Raises ValueError for a name that is none, ImportError naming the extra when its package is not installed.
    """
    unknown = [name for name in names if name not in _OPENERS]
    if unknown:
        raise ValueError(f"trackers: {unknown[0]!r} is none of {', '.join(_OPENERS)}")
    return [_OPENERS[name](run, config, project) for name in names]


class TensorBoardTracker:
    """Event files under `RUN/tensorboard`, a tag `stage/metric` each. Needs no torch."""

    def __init__(self, run: Path, config: Mapping[str, Any], project: str) -> None:
        events, summaries, writers = (_import(module, "tensorboard") for module in _MODULES["tensorboard"])
        self._event, self._summary = events.Event, summaries.Summary
        self._writer = writers.EventFileWriter(str(run / "tensorboard"))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One event with a scalar for each metric."""
        scalars = [self._summary.Value(tag=f"{stage}/{name}", simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run that a resume continues: its id is drawn from the run directory's path."""

    def __init__(self, run: Path, config: Mapping[str, Any], project: str) -> None:
        wandb = _import("wandb", "wandb")
        self._run = wandb.init(
            project=project, name=run.name, id=_id_of(run), resume="allow", config=dict(config), dir=str(run)
        )
        self._stages: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One record; every stage has its own step axis, since W&B's own must never go back."""
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log(_tagged(stage, step, values))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class TrackioTracker:
    """A trackio run, kept on this machine."""

    def __init__(self, run: Path, config: Mapping[str, Any], project: str) -> None:
        self._trackio = _import("trackio", "trackio")
        self._trackio.init(project=project, name=f"{run.name}-{_id_of(run)}", resume="allow", config=dict(config))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One record."""
        self._trackio.log(_tagged(stage, step, values))

    def close(self) -> None:
        """Finish the run."""
        self._trackio.finish()


_OPENERS: Mapping[str, Callable[[Path, Mapping[str, Any], str], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}


_MODULES: Mapping[str, tuple[str, ...]] = {
    "tensorboard": (
        "tensorboard.compat.proto.event_pb2",
        "tensorboard.compat.proto.summary_pb2",
        "tensorboard.summary.writer.event_file_writer",
    ),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
}


def _tagged(stage: str, step: int, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in values.items()}}


def _id_of(run: Path) -> str:
    return hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:8]


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"trackers: {extra} is named in the recipe but is not installed: pip install 'outscore[{extra}]'"
        ) from error
