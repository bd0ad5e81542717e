"""Uniform draws that depend on names, not on history: a counter-based generator.

The draw for one token is a function of (seed, step, slot, attempt, sample, token index) and of nothing else, so it is
the same whatever else is sampled beside it, in whatever order, and whether the run was resumed in between.

Each name is absorbed into a 64-bit state by SplitMix64's finaliser (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators", constants of Stafford's variant 13). In arithmetic modulo 2^64:

    mix(x):          x = (x ^ x >> 30) · 0xBF58476D1CE4E5B9;  x = (x ^ x >> 27) · 0x94D049BB133111EB;  x ^ x >> 31
    absorb(h, name): mix(h ^ mix(name + 0x9E3779B97F4A7C15))
    key  = absorb(... absorb(absorb(0x6F757473636F7265, seed), step) ..., sample)
    draw = (absorb(key, token index) >> 11) · 2^-53
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, UInt64

_MASK = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ORIGIN = 0x6F757473636F7265  # "outscore": any constant that keeps these draws apart from others keyed by the same seed

Words = UInt64[np.ndarray, " row"]
Shared = UInt64[np.ndarray, "#row"]  # one for all rows, or one for each


def _mix(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = words ^ (words >> np.uint64(31))
    return mixed


def _absorb(state: Shared, names: Shared) -> Words:
    return _mix(state ^ _mix(names + _GOLDEN))


def _words(values: Sequence[int]) -> Words:
    return np.array([value & _MASK for value in values], dtype=np.uint64)


def row_keys(seed: int, step: int, slot: int, attempt: int, samples: Sequence[int]) -> Words:
    """The keys of some samples of one group: what `uniforms` draws from.

    Args:
        seed: the run's seed; any integer, taken modulo 2^64.
        step: the optimizer step the group is for.
        slot: the group's place in the step.
        attempt: how often the slot was refilled.
        samples: sample indices within the group.
    """
    state = _words([_ORIGIN])
    for name in (seed, step, slot, attempt):
        state = _absorb(state, _words([name]))
    return _absorb(state, _words(samples))


def uniforms(keys: Words, token_index: Int64[np.ndarray, " row"]) -> Float64[np.ndarray, " row"]:
    """One draw for each row, uniform on the multiples of 2^-53 in [0, 1): of row i for its token `token_index[i]`."""
    bits: Words = _absorb(keys, token_index.astype(np.uint64)) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
