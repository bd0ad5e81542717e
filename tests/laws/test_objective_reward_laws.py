"""What rewards may be changed by without changing advantages, and what advantages always satisfy."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles.untimed import UNTIMED

from outscore.algorithms.choices import Baseline, Scale
from outscore.objectives.advantages import group_advantages, is_zero_variance

GROUPS = st.lists(st.integers(-4, 4).map(lambda halves: halves / 2), min_size=2, max_size=12)
BASELINES = st.sampled_from(["group_mean", "leave_one_out"])
SCALES = st.sampled_from(["population_std", "sample_std", "none"])


def _advantages(rewards: list[float], baseline: Baseline, scale: Scale) -> torch.Tensor:
    return group_advantages(torch.tensor(rewards, dtype=torch.float64), baseline=baseline, scale=scale, eps=0.0)


@UNTIMED
@given(GROUPS, BASELINES, SCALES)
def test_advantages_of_a_group_add_up_to_zero(rewards: list[float], baseline: Baseline, scale: Scale) -> None:
    assert _advantages(rewards, baseline, scale).sum().item() == pytest.approx(0.0, abs=1e-10)


@UNTIMED
@given(GROUPS)
def test_their_squares_add_up_to_n_or_to_n_minus_one(rewards: list[float]) -> None:
    assume(len(set(rewards)) > 1)
    for scale, total in (("population_std", len(rewards)), ("sample_std", len(rewards) - 1)):
        squares = _advantages(rewards, "group_mean", scale).square().sum()  # type: ignore[arg-type]
        assert squares.item() == pytest.approx(total, abs=1e-10)


@UNTIMED
@given(GROUPS, BASELINES, SCALES, st.sampled_from([0.125, 1.0, 3.0, 100.0]), st.sampled_from([-7.0, 0.0, 0.3]))
def test_shifting_rewards_changes_nothing_and_scaling_them_only_what_has_no_standard_deviation(
    rewards: list[float], baseline: Baseline, scale: Scale, factor: float, shift: float
) -> None:
    moved = _advantages([factor * reward + shift for reward in rewards], baseline, scale)
    expected = _advantages(rewards, baseline, scale) * (factor if scale == "none" else 1.0)
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)


@UNTIMED
@given(GROUPS, SCALES)
def test_the_mean_baseline_is_leave_one_out_shrunk_by_n_minus_one_over_n(rewards: list[float], scale: Scale) -> None:
    size = len(rewards)
    torch.testing.assert_close(
        _advantages(rewards, "group_mean", scale),
        _advantages(rewards, "leave_one_out", scale) * ((size - 1) / size),
        rtol=1e-12,
        atol=1e-12,
    )


@UNTIMED
@given(GROUPS, BASELINES, SCALES, st.randoms(use_true_random=False))
def test_advantages_follow_a_permutation_of_the_group(
    rewards: list[float], baseline: Baseline, scale: Scale, draw: object
) -> None:
    order = list(range(len(rewards)))
    draw.shuffle(order)  # type: ignore[attr-defined]
    permuted = _advantages([rewards[i] for i in order], baseline, scale)
    torch.testing.assert_close(permuted, _advantages(rewards, baseline, scale)[order], rtol=1e-12, atol=1e-12)


@UNTIMED
@given(GROUPS, BASELINES, SCALES, st.data())
def test_an_invalid_completion_might_as_well_not_be_there(
    rewards: list[float], baseline: Baseline, scale: Scale, data: st.DataObject
) -> None:
    valid = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(rewards), max_size=len(rewards))))
    values = torch.tensor(rewards, dtype=torch.float64)
    masked = group_advantages(values, baseline=baseline, scale=scale, eps=0.0, valid=valid)
    alone = group_advantages(values[valid], baseline=baseline, scale=scale, eps=0.0)
    assert torch.equal(masked[valid], alone)
    assert torch.equal(masked[~valid], torch.zeros_like(masked[~valid]))
    assert is_zero_variance(values, valid) == is_zero_variance(values[valid])


def test_the_group_is_not_mutated() -> None:
    rewards, valid = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([True, True, False])
    group_advantages(rewards, baseline="group_mean", scale="sample_std", eps=1e-6, valid=valid)
    assert rewards.tolist() == [1.0, 0.0, 2.0] and valid.tolist() == [True, True, False]
