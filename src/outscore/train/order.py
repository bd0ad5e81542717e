"""Which problem comes when, as a function of the seed and the step alone: nothing to save, nothing to lose."""

from functools import lru_cache

import numpy as np


def batch_indices(seed: int, stage: int, step: int, batch_size: int, num_items: int) -> list[int]:
    """The items of a step: each epoch is a permutation of all items, and a batch may span two epochs.

    Args:
        seed: the run's seed.
        stage: the stage's place in the run; stages draw different orders.
        step: 1 for the first.
        batch_size: items in a step.
        num_items: items in the data set.
    """
    first = (step - 1) * batch_size
    return [
        int(_permutation(seed, stage, place // num_items, num_items)[place % num_items])
        for place in range(first, first + batch_size)
    ]


def refill_index(seed: int, stage: int, step: int, slot: int, attempt: int, num_items: int) -> int:
    """The item that replaces a slot's group on its `attempt`-th refill: drawn uniformly, apart from the order of
    epochs."""
    return int(np.random.default_rng([seed, stage, step, slot, attempt]).integers(num_items))


@lru_cache(maxsize=8)
def _permutation(seed: int, stage: int, epoch: int, num_items: int) -> np.ndarray:
    return np.random.default_rng([seed, stage, epoch]).permutation(num_items)
