"""The keyed draws: pinned by an implementation in plain integers, uniform, and a function of their names alone."""

import numpy as np
import pytest

from outscore.rollout.random import row_keys, uniforms

M = 2**64 - 1


def _mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & M
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & M
    return x ^ (x >> 31)


def _draw(*names: int) -> float:
    state = int.from_bytes(b"outscore", "big")
    for name in names:
        state = _mix(state ^ _mix((name + 0x9E3779B97F4A7C15) & M))
    return (state >> 11) / 2**53


def test_the_finaliser_is_splitmix64():
    """The first outputs of SplitMix64 seeded with 1234567, as its authors' reference code prints them."""
    state, outputs = 1234567, []
    for _ in range(5):
        state = (state + 0x9E3779B97F4A7C15) & M
        outputs.append(_mix(state))
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize(
    "names", [(0, 0, 0, 0, 0, 0), (0, 1, 0, 0, 3, 17), (2**63 + 5, 10**6, 255, 7, 63, 4095), (-1, 0, 1, 0, 0, 1)]
)
def test_draws_equal_big_integer_arithmetic(names):
    seed, step, slot, attempt, sample, token = names
    keys = row_keys(seed, step, slot, attempt, [sample])
    assert uniforms(keys, np.array([token]))[0] == _draw(*names)


def test_a_pinned_draw():
    """Written down once: a change of the generator changes every run there ever was."""
    assert uniforms(row_keys(0, 1, 2, 0, [3]), np.array([4]))[0] == 0.5809460449263243


def test_draws_are_uniform_along_every_name():
    """Chi-square over 256 cells (255 degrees of freedom: mean 255, deviation 22.6) for runs that differ in one name."""
    count = 1 << 15
    ramp = range(count)
    one = np.zeros(count, dtype=np.int64)
    runs = {
        "token": uniforms(np.repeat(row_keys(0, 1, 0, 0, [0]), count), np.arange(count)),
        "sample": uniforms(row_keys(0, 1, 0, 0, ramp), one),
        "slot": np.concatenate([uniforms(row_keys(0, 1, slot, 0, range(64)), one[:64]) for slot in range(count // 64)]),
        "step": np.concatenate([uniforms(row_keys(0, step, 0, 0, range(64)), one[:64]) for step in range(count // 64)]),
    }
    for name, draws in runs.items():
        assert (draws >= 0).all() and (draws < 1).all()
        counts = np.bincount((draws * 256).astype(int), minlength=256)
        chi_square = ((counts - count / 256) ** 2 / (count / 256)).sum()
        assert 155 < chi_square < 355, name
        # Neighbours must be unrelated too: the correlation of n pairs deviates by 1/√n.
        assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 5 / count**0.5, name


def test_every_name_changes_the_draw():
    base = (0, 1, 2, 3, 4, 5)
    draws = {_draw_by_library(*base)}
    for place in range(6):
        draws.add(_draw_by_library(*(name + (place == index) * 7 for index, name in enumerate(base))))
    assert len(draws) == 7


def _draw_by_library(seed: int, step: int, slot: int, attempt: int, sample: int, token: int) -> float:
    return float(uniforms(row_keys(seed, step, slot, attempt, [sample]), np.array([token]))[0])


def test_a_draw_does_not_depend_on_what_shares_its_batch():
    keys = row_keys(5, 6, 7, 0, range(10))
    together = uniforms(keys, np.arange(10) % 3)
    for row in (0, 4, 9):
        assert uniforms(keys[row : row + 1], np.array([row % 3]))[0] == together[row]
        assert row_keys(5, 6, 7, 0, [row])[0] == keys[row]
