"""Which weights a stage begins with, and which it samples with, where those are others."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from outscore.config import Recipe
from outscore.report import RunDirectory
from outscore.stages import BASE, PREVIOUS
from outscore.train.checkpoint import policy_checkpoints, read_progress, trained_weights
from outscore.train.setup import Workshop


def begin_with(run: RunDirectory, recipe: Recipe, start: str, workshop: Workshop) -> None:
    """Give the policy the weights that a stage begins with, where those are not what the stage before left."""
    if start != PREVIOUS:
        workshop.masters.load_state_dict(_weights(run, recipe, start, workshop))


@contextmanager
def weights_of(run: RunDirectory, recipe: Recipe, start: str, workshop: Workshop) -> Iterator[None]:
    """Lend the policy the weights of `start`, `base` or an earlier stage; it has its own again afterwards."""
    masters = workshop.masters
    with torch.no_grad():
        own = {name: weight.clone() for name, weight in masters.state_dict().items()}
    masters.load_state_dict(_weights(run, recipe, start, workshop))
    try:
        yield
    finally:
        masters.load_state_dict(own)


def policy_weights(run: RunDirectory, newest: Path | None) -> Path | None:
    """The newest checkpoint that holds the policy, which a stage of a reward model leaves as it is; None where the
    policy is what the recipe names. `newest` is the newest of all, which is known to be sound.

    Raises:
        ValueError: if it is another one, and damaged.
    """
    saved = policy_checkpoints(run)
    if not saved:
        return None
    if saved[-1].path != newest:
        read_progress(saved[-1].path)
    return saved[-1].path


def _weights(run: RunDirectory, recipe: Recipe, start: str, workshop: Workshop) -> Mapping[str, Tensor]:
    if start == BASE:
        return workshop.base()
    path = [item.path for item in run.checkpoints() if item.stage == start][-1]
    read_progress(path)
    return trained_weights(path, trust_remote_code=recipe.model.trust_remote_code)
