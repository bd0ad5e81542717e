"""Returns, advantage estimation and PPO's helpers against loops, by hand, and by identities."""

import math

import pytest
import torch

from outscore.objectives.advantages import group_advantages
from outscore.objectives.returns import (
    adaptive_kl_coef,
    clipped_value_loss,
    gae,
    length_adaptive_lambda,
    suffix_sums,
    token_rewards,
    whiten,
)

LENGTHS = torch.tensor([3, 0, 1, 5])
GENERATOR = torch.Generator().manual_seed(0)
REWARDS = torch.randn(9, generator=GENERATOR, dtype=torch.float64)
VALUES = torch.randn(9, generator=GENERATOR, dtype=torch.float64)


def _rows(values: torch.Tensor) -> list[list[float]]:
    return [part.tolist() for part in values.split(LENGTHS.tolist())]


def _naive_gae(gamma: float, lams: list[float], last: list[float]) -> list[float]:
    """The double sum of its definition."""
    found = []
    for own, values, lam, end in zip(_rows(REWARDS), _rows(VALUES), lams, last, strict=True):
        after = [*values[1:], end]
        deltas = [r + gamma * n - v for r, v, n in zip(own, values, after, strict=False)]
        for t in range(len(own)):
            found.append(sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(own))))
    return found


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_is_its_double_sum(gamma: float, lam: float) -> None:
    found = gae(REWARDS, VALUES, LENGTHS, gamma=gamma, lam=lam)
    assert found.tolist() == pytest.approx(_naive_gae(gamma, [lam] * 4, [0.0] * 4), abs=1e-12)


def test_gae_with_a_lambda_for_each_completion_and_bootstrapped_ends() -> None:
    lams, last = [0.2, 0.5, 0.9, 0.7], [0.3, -1.0, 0.0, 2.0]
    as_tensor = [torch.tensor(values, dtype=torch.float64) for values in (lams, last)]
    found = gae(REWARDS, VALUES, LENGTHS, gamma=0.9, lam=as_tensor[0], last_values=as_tensor[1])
    assert found.tolist() == pytest.approx(_naive_gae(0.9, lams, last), abs=1e-12)


def test_lambda_one_is_the_return_less_the_value_and_lambda_zero_the_temporal_difference() -> None:
    returns = torch.tensor([sum(own[t:]) for own in _rows(REWARDS) for t in range(len(own))], dtype=torch.float64)
    torch.testing.assert_close(gae(REWARDS, VALUES, LENGTHS, lam=1.0), returns - VALUES, rtol=1e-12, atol=1e-12)
    after = torch.tensor([v for own in _rows(VALUES) for v in [*own[1:], 0.0][: len(own)]], dtype=torch.float64)
    torch.testing.assert_close(gae(REWARDS, VALUES, LENGTHS, lam=0.0), REWARDS + after - VALUES, rtol=1e-12, atol=1e-12)


def test_a_critic_that_says_the_groups_mean_makes_ppo_dr_grpo() -> None:
    """V = group mean everywhere, reward at the end, lambda 1."""
    lengths, scores = torch.tensor([3, 1, 4, 2]), torch.tensor([1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    rewards = token_rewards(scores, torch.zeros(10, dtype=torch.float64), lengths)
    values = scores.mean().expand(10)
    expected = group_advantages(scores, baseline="group_mean", scale="none", eps=0.0).repeat_interleave(lengths)
    torch.testing.assert_close(gae(rewards, values, lengths, lam=1.0), expected, rtol=0.0, atol=1e-12)


def test_separate_lambdas_leave_the_critics_target_alone() -> None:
    """VC-PPO: with lambda 1 for the critic its target is the return, whatever the actor's lambda."""
    target = gae(REWARDS, VALUES, LENGTHS, lam=1.0) + VALUES
    torch.testing.assert_close(target, suffix_sums(REWARDS, LENGTHS), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(gae(REWARDS, VALUES, LENGTHS, lam=0.95) + VALUES, target)


def test_suffix_sums_by_hand() -> None:
    values, lengths = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([3, 1])
    assert suffix_sums(values, lengths).tolist() == [7.0, 6.0, 4.0, 8.0]
    assert suffix_sums(values, lengths, decay=0.5).tolist() == [3.0, 4.0, 4.0, 8.0]
    assert suffix_sums(values, lengths, decay=torch.tensor([0.0, 1.0])).tolist() == [1.0, 2.0, 4.0, 8.0]
    assert suffix_sums(torch.zeros(0), torch.tensor([0, 0])).tolist() == []
    with pytest.raises(ValueError, match="completion_lengths add up to 3, but there are 4"):
        suffix_sums(values, torch.tensor([3]))


def test_ppos_reward_is_the_score_at_the_end_less_the_kl_of_each_token() -> None:
    costs = torch.tensor([0.25, 0.5, 1.0])
    assert token_rewards(torch.tensor([2.0, 9.0, 1.0]), costs, torch.tensor([2, 0, 1])).tolist() == [-0.25, 1.5, 0.0]


@pytest.mark.parametrize(("length", "lam"), [(100, 0.8), (1000, 0.98), (5, 0.0), (0, 0.0)])
def test_vapos_lambda_grows_with_the_length(length: int, lam: float) -> None:
    assert length_adaptive_lambda(torch.tensor([length])).item() == pytest.approx(lam, abs=1e-12)
    with pytest.raises(ValueError, match=r"alpha=0.0"):
        length_adaptive_lambda(torch.tensor([length]), alpha=0.0)


def test_the_value_losss_clip_by_hand() -> None:
    # values, old, return: within; moved up past the clip away from R; towards R past the clip; no move
    values = torch.tensor([1.1, 2.0, 2.0, 1.0], dtype=torch.float64, requires_grad=True)
    old, returns = torch.ones(4, dtype=torch.float64), torch.tensor([2.0, 0.0, 3.0, 1.0], dtype=torch.float64)
    losses, clipped = clipped_value_loss(values, old, returns, clip=0.2)
    assert losses.tolist() == pytest.approx([0.405, 2.0, 0.5 * 1.8**2, 0.0], abs=1e-12)
    assert clipped.tolist() == [False, False, True, False]
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    assert gradient.tolist() == pytest.approx([-0.9, 2.0, 0.0, 0.0], abs=1e-12)
    free, _ = clipped_value_loss(values, old, returns, clip=math.inf)
    assert free.tolist() == pytest.approx([0.405, 2.0, 0.5, 0.0], abs=1e-12)


def test_the_value_losss_gradient_in_float64() -> None:
    values = torch.tensor([1.1, 2.0, 2.0, 0.3], dtype=torch.float64, requires_grad=True)
    old, returns = torch.ones(4, dtype=torch.float64), torch.tensor([2.0, 0.0, 3.0, 1.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: clipped_value_loss(v, old, returns, clip=0.2)[0], (values,))


def test_whitening_uses_the_biased_variance_and_may_keep_the_mean() -> None:
    values = torch.tensor([1.0, 3.0], dtype=torch.float64)  # mean 2, population variance 1, sample variance 2
    shifted = 1 / math.sqrt(1 + 1e-8)
    assert whiten(values).tolist() == pytest.approx([-shifted, shifted], abs=1e-12)
    assert whiten(values, shift_mean=False).tolist() == pytest.approx([2 - shifted, 2 + shifted], abs=1e-12)
    assert whiten(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0] and whiten(torch.zeros(0)).numel() == 0


@pytest.mark.parametrize(("measured", "factor"), [(6.0, 1.0), (6.6, 1.001), (60.0, 1.002), (0.0, 0.998)])
def test_the_adaptive_coefficient_follows_the_clipped_error(measured: float, factor: float) -> None:
    # 100 of a horizon of 10000 samples: 1 + e / 100, e = 0, 0.1, and clipped to 0.2 and -0.2
    assert adaptive_kl_coef(0.15, measured_kl=measured, num_samples=100) == pytest.approx(0.15 * factor, rel=1e-12)
    with pytest.raises(ValueError, match=r"target=0.0"):
        adaptive_kl_coef(0.15, measured_kl=1.0, target=0.0, num_samples=1)
