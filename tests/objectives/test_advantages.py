"""Hand-worked advantages."""

import math

import pytest
import torch
from torch import Tensor

from outscore.objectives.advantages import group_advantages, is_zero_variance


def _advantages(rewards: list[float], **options: object) -> Tensor:
    settings: dict[str, object] = {"baseline": "group_mean", "scale": "population_std", "eps": 0.0} | options
    return group_advantages(torch.tensor(rewards, dtype=torch.float64), **settings)  # type: ignore[arg-type]


def test_two_right_two_wrong_as_in_the_founding_documents_table() -> None:
    assert _advantages([1, 0, 1, 0]).tolist() == [1.0, -1.0, 1.0, -1.0]
    expected = math.sqrt(3) / 2  # 0.8660
    assert _advantages([1, 0, 1, 0], scale="sample_std").tolist() == pytest.approx(
        [expected, -expected, expected, -expected], abs=1e-12
    )


@pytest.mark.parametrize(
    ("num_correct", "right", "wrong"), [(1, 2.6458, -0.3780), (4, 1.0, -1.0), (7, 0.3780, -2.6458)]
)
def test_eight_binary_rewards(num_correct: int, right: float, wrong: float) -> None:
    advantages = _advantages([1.0] * num_correct + [0.0] * (8 - num_correct)).tolist()
    assert advantages == pytest.approx([right] * num_correct + [wrong] * (8 - num_correct), abs=5e-5)


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    # 6 - (0 + 3) / 2, 0 - (6 + 3) / 2, 3 - (6 + 0) / 2
    advantages = _advantages([6, 0, 3], baseline="leave_one_out", scale="none")
    assert advantages.tolist() == pytest.approx([4.5, -4.5, 0.0], abs=1e-12)


def test_without_scale_the_difference_to_the_mean_is_left() -> None:
    assert _advantages([3, 0, 0], scale="none").tolist() == pytest.approx([2.0, -1.0, -1.0], abs=1e-12)


def test_divided_by_the_mean_a_rare_success_weighs_as_much_as_it_is_rare() -> None:
    # mean 1/4: (1 - 1/4) / (1/4) and (0 - 1/4) / (1/4)
    assert _advantages([0, 1, 0, 0], scale="mean").tolist() == [-1.0, 3.0, -1.0, -1.0]
    assert _advantages([0.5, 1.5], scale="mean").tolist() == [-0.5, 0.5]
    with pytest.raises(ValueError, match=r"scale='mean' needs rewards that are never negative, got -1.0"):
        _advantages([-1, 3], scale="mean")


def test_epsilon_is_added_to_the_standard_deviation() -> None:
    # population standard deviation 0.5: 0.5 / (0.5 + 0.5)
    assert _advantages([1, 0], eps=0.5).tolist() == [0.5, -0.5]


@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3, 1e-8, -123.456, 0.0])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 16, 64])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["population_std", "sample_std", "mean", "none"])
def test_equal_rewards_give_exactly_zero_in_float32(reward: float, size: int, baseline: str, scale: str) -> None:
    rewards = torch.full((size,), reward, dtype=torch.float32)
    advantages = group_advantages(rewards, baseline=baseline, scale=scale, eps=0.0)  # type: ignore[arg-type]
    assert advantages.dtype == torch.float32
    assert torch.equal(advantages, torch.zeros(size))


def test_rewards_that_differ_by_the_order_of_a_sum_are_equal() -> None:
    rewards = torch.tensor([0.1 + 0.2, 0.3], dtype=torch.float64)
    assert rewards[0] != rewards[1]
    assert is_zero_variance(rewards)
    assert _advantages([0.1 + 0.2, 0.3]).tolist() == [0.0, 0.0]
    assert not is_zero_variance(torch.tensor([0.3, 0.3 + 1e-12], dtype=torch.float64))


def test_invalid_completions_get_zero_and_do_not_enter_the_statistics() -> None:
    rewards = torch.tensor([1.0, math.nan, 0.0, 99.0], dtype=torch.float64)
    valid = torch.tensor([True, False, True, False])
    advantages = group_advantages(rewards, baseline="group_mean", scale="population_std", eps=0.0, valid=valid)
    assert advantages.tolist() == [1.0, 0.0, -1.0, 0.0]


@pytest.mark.parametrize("valid", [[False, False, False], [True, False, False]])
def test_fewer_than_two_valid_completions_give_zeros(valid: list[bool]) -> None:
    rewards, mask = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(valid)
    assert is_zero_variance(rewards, mask)
    advantages = group_advantages(rewards, baseline="group_mean", scale="none", eps=0.0, valid=mask)
    assert advantages.tolist() == [0.0, 0.0, 0.0]


def test_without_baseline_and_scale_the_advantage_is_the_reward_even_alone_or_all_equal() -> None:
    assert _advantages([1, 1, 1], baseline="none", scale="none").tolist() == [1.0, 1.0, 1.0]
    assert _advantages([1], baseline="none", scale="none").tolist() == [1.0]
    assert _advantages([1, 1], baseline="none").tolist() == [0.0, 0.0]


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_with_its_place(reward: float) -> None:
    with pytest.raises(ValueError, match=r"rewards\[1\]"):
        _advantages([1.0, reward, 0.0])
    with pytest.raises(ValueError, match=r"rewards\[1\]"):
        is_zero_variance(torch.tensor([1.0, reward, 0.0]))
