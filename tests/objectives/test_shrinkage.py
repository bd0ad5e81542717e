"""A baseline that knows how sure it is: by hand, against loops, and its gradient over every batch that can be drawn."""

import itertools
import math

import pytest
import torch
from oracles.worth import naive_advantages, random_worth
from torch import Tensor

from outscore.algorithms.rows import algorithm
from outscore.objectives.batch import batch_advantages, is_silent
from outscore.objectives.shrinkage import shrunk_advantages


def _shrunk(*groups: list[float]) -> tuple[list[float], list[float]]:
    rewards = torch.tensor([reward for own in groups for reward in own], dtype=torch.float64)
    advantages, certainties = shrunk_advantages(rewards, ~rewards.isnan(), [len(own) for own in groups])
    return advantages.tolist(), certainties.tolist()


def test_a_group_mean_is_trusted_as_far_as_the_others_differ_by_more_than_luck() -> None:
    # For the first: others have means 1 and 0 and no luck in them. For the second: means 1/2 and 0, whose variance 1/8
    # is what luck of variance 1/4 gives means of two; so its prompt is taken for one like the others. As for the third.
    advantages, certainties = _shrunk([1, 0], [1, 1], [0, 0])
    assert certainties == [1.0, 0.0, 0.0]
    assert advantages == pytest.approx([1, -1, 1 - 1 / 4, 1 - 1 / 4, 0 - 3 / 4, 0 - 3 / 4], abs=1e-12)


def test_shrinkage_by_hand() -> None:
    # Of the first: sigma^2 = (2 + 2) / 2, tau^2 = 12.5 - 2 / 2, two siblings: kappa = 23 / 25. Elsewhere it is 3.5.
    advantages, certainties = _shrunk([3, 1, 2], [0, 2], [5, 7])
    assert certainties[0] == pytest.approx(0.92, abs=1e-12)
    expected = [reward - 0.92 * rest - 0.08 * 3.5 for reward, rest in ((3, 1.5), (1, 2.5), (2, 2.0))]
    assert advantages[:3] == pytest.approx(expected, abs=1e-12)


def test_without_two_other_groups_it_is_leave_one_out_and_alone_a_completion_is_compared_with_the_rest() -> None:
    assert _shrunk([6, 0, 3]) == (pytest.approx([4.5, -4.5, 0.0], abs=1e-12), [1.0])
    assert _shrunk([6, 0, 3], [1, 2]) == (pytest.approx([4.5, -4.5, 0, -1, 1], abs=1e-12), [1.0, 1.0])
    advantages, certainties = _shrunk([5], [1, 3], [2, 4])
    assert (advantages[0], certainties[0]) == (5 - 2.5, 0.0)
    assert _shrunk([5]) == ([0.0], [0.0])


def test_what_was_not_scored_enters_nothing() -> None:
    nan = math.nan
    advantages, certainties = _shrunk([3, nan, 1, 2], [nan, nan], [0, 2], [5, 7, nan])
    without = _shrunk([3, 1, 2], [0, 2], [5, 7])
    assert [*advantages[:1], *advantages[2:4], *advantages[6:10]] == without[0]
    assert [advantages[i] for i in (1, 4, 5, 10)] == [0.0] * 4
    assert [*certainties[:1], *certainties[2:]] == without[1] and math.isnan(certainties[1])


def test_equal_rewards_are_worth_exactly_nothing_and_a_group_that_differs_from_the_batch_is_not_silent() -> None:
    assert _shrunk([0.1, 0.1, 0.1], [0.1 + 0.2 - 0.2, 0.1], [0.1])[0] == [0.0] * 6
    flat = random_worth([2, 3], seed=1).tensors()
    row = algorithm("dr-grpo", baseline="shrunk_mean")
    assert not is_silent(flat, row)


GROUPS = [random_worth(lengths, seed=seed) for seed, lengths in ((1, [3, 5, 1, 4]), (2, [2, 6, 4]), (5, [4, 4, 2, 3]))]
GROUPS += [random_worth([2, 1, 5], seed=9)]


@pytest.mark.parametrize("name", ["dr-grpo", "rloo", "lite-ppo", "reinforce++-baseline"])
@pytest.mark.parametrize("cells", [{}, {"zero_negative": True}], ids=str)
def test_every_row_has_the_advantages_of_loops(name: str, cells: dict[str, object]) -> None:
    row = algorithm(name, baseline="shrunk_mean", **cells)
    found = batch_advantages([group.tensors() for group in GROUPS], row)
    expected = [value for own in naive_advantages(GROUPS, row) for value in own]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    plain = batch_advantages([group.tensors() for group in GROUPS], algorithm(name, **cells))
    assert not torch.allclose(found, plain, rtol=0.05)


def _over_all_batches(chances: Tensor, rewards: Tensor, baseline: str) -> tuple[Tensor, float]:
    """Mean and total variance of 1/2 sum A grad log pi of four prompts, of which each has two arms and two samples."""
    row = algorithm("dr-grpo", baseline=baseline)
    mean, square = torch.zeros(4, 2, dtype=torch.float64), 0.0
    index = torch.arange(4).repeat_interleave(2)
    for drawn in itertools.product((0, 1), repeat=8):
        arms = torch.tensor(drawn)
        weight = chances[index, arms].prod().item()
        worth = rewards[index, arms]
        if row.baseline == "shrunk_mean":
            advantages = shrunk_advantages(worth, torch.ones(8, dtype=torch.bool), [2] * 4)[0]
        else:
            pairs = worth.view(4, 2)
            advantages = (pairs - pairs.flip(1)).flatten()
        slopes = torch.nn.functional.one_hot(arms, 2) - chances[index]
        gradient = torch.zeros_like(mean).index_add(0, index, advantages[:, None] * slopes / 2)
        mean += weight * gradient
        square += weight * float(gradient.square().sum())
    return mean, square - float(mean.square().sum())


@pytest.mark.parametrize("alike", [True, False])
def test_over_all_batches_the_gradient_is_that_of_the_expected_reward_and_varies_less_than_leave_one_outs(
    alike: bool,
) -> None:
    """Enumerated: unbiased whatever prompts are like. Where they are alike, a prompt's own two samples say little that
    the batch does not say better; where they are not, the other groups show it and little is borrowed."""
    right = torch.tensor([0.5, 0.5, 0.5, 0.5] if alike else [0.05, 0.95, 0.1, 0.9], dtype=torch.float64)
    chances = torch.stack([1 - right, right], dim=1)
    rewards = torch.tensor([[0.0, 1.0]] * 4, dtype=torch.float64)
    expected = chances * (rewards - (chances * rewards).sum(1, keepdim=True))  # of J = sum pi r, for logits
    found, variance = _over_all_batches(chances, rewards, "shrunk_mean")
    plain, variance_plain = _over_all_batches(chances, rewards, "leave_one_out")
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(plain, expected, rtol=0.0, atol=1e-12)
    assert variance < variance_plain * (0.25 if alike else 0.8)
