"""Which groups of a step share an update, and what share of a step its updates are."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

Group = TypeVar("Group")
_PASSES = 700_001
"""Keeps the orders of passes apart from those of problems, which are drawn from seed and stage, too."""


def minibatches(groups: Sequence[Group], count: int) -> list[Sequence[Group]]:
    """The groups of each update of a pass that takes them in order."""
    edges = [round(i * len(groups) / count) for i in range(count + 1)]
    return [groups[first:last] for first, last in pairwise(edges)]


def updates_of(
    groups: Sequence[Group], *, num_minibatches: int, num_passes: int, seed: int, stage: int, num_updates: int
) -> list[Sequence[Group]]:
    """The groups of each update of a step, pass after pass.

    Each pass has every group once. The first takes them as they were drawn, which is at random; a later one in an order
    of its own, so that other groups share an update (PPO's shuffled mini-batches; Huang et al., arXiv 2403.17031).
    Where a pass is one update there is nothing to order.

    Args:
        groups: those of the step.
        num_minibatches: updates in a pass.
        num_passes: passes over the groups.
        seed: the run's seed.
        stage: the stage's place in the run.
        num_updates: updates of the stage before the step, by which a resume knows where it is.
    """
    parts = minibatches(groups, num_minibatches)
    for epoch in range(1, num_passes):
        order: Sequence[int] = range(len(groups))
        if num_minibatches > 1:
            order = pass_order(seed, stage, num_updates + epoch * num_minibatches, len(groups))
        parts += minibatches([groups[place] for place in order], num_minibatches)
    return parts


def pass_order(seed: int, stage: int, num_updates: int, num_groups: int) -> Sequence[int]:
    """The order of groups in a pass that `num_updates` updates of the stage were taken before."""
    order: list[int] = np.random.default_rng([seed, stage, num_updates, _PASSES]).permutation(num_groups).tolist()
    return order


def part_of(before: int, total: int, on_progress: Callable[[float], None]) -> Callable[[float], None]:
    """Hears the share of one of `total` equal parts, and tells that of the whole."""
    return lambda share: on_progress((before + share) / total)
