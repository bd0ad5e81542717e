"""Which problem comes when, as a function of the seed and the step alone: nothing to save, nothing to lose."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Strata:
    """Items by population, for a draw that heeds populations.

    >>> Strata(members=((0, 1, 2), (3,)), equal=True)
    """

    members: tuple[tuple[int, ...], ...]
    """The items of each population."""
    equal: bool
    """Whether all populations are drawn equally often; else as often as they have items."""

    def beside(self, item: int) -> tuple[int, ...]:
        """The items of an item's population."""
        return next(own for own in self.members if item in own)


def batch_indices(
    seed: int, stage: int, step: int, batch_size: int, num_items: int, strata: Strata | None = None
) -> list[int]:
    """The items of a step: each epoch is a permutation of all items, and a batch may span two epochs.

    Where populations are drawn equally often, they come in rounds: in each all of them once, in random order, and each
    has epochs of its own.

    Args:
        seed: the run's seed.
        stage: the stage's place in the run; stages draw different orders.
        step: 1 for the first.
        batch_size: items in a step.
        num_items: items in the data set.
        strata: which items are of which population, where that matters.
    """
    first = (step - 1) * batch_size
    if strata is not None and strata.equal:
        return [_stratified(seed, stage, place, strata) for place in range(first, first + batch_size)]
    return [
        int(_permutation(seed, stage, place // num_items, num_items)[place % num_items])
        for place in range(first, first + batch_size)
    ]


def refill_index(
    seed: int, stage: int, step: int, slot: int, attempt: int, num_items: int, among: tuple[int, ...] | None = None
) -> int:
    """The item that replaces a slot's group on its `attempt`-th refill: drawn uniformly, apart from the order of
    epochs, from all items or `among` some."""
    drawn = int(np.random.default_rng([seed, stage, step, slot, attempt]).integers(len(among) if among else num_items))
    return among[drawn] if among else drawn


def _stratified(seed: int, stage: int, place: int, strata: Strata) -> int:
    turn, position = divmod(place, len(strata.members))
    population = int(_permutation(seed, stage, turn, len(strata.members), 0)[position])
    own = strata.members[population]
    return own[int(_permutation(seed, stage, turn // len(own), len(own), population + 1)[turn % len(own)])]


@lru_cache(maxsize=64)
def _permutation(seed: int, stage: int, epoch: int, num_items: int, *stratum: int) -> np.ndarray:
    return np.random.default_rng([seed, stage, epoch, *stratum]).permutation(num_items)
