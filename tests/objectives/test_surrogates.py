"""The clip's truth table and the gradients of the surrogates."""

import math

import pytest
import torch

from outscore.objectives.surrogates import (
    capped_weights,
    clipped_surrogate,
    clipped_tokens,
    log_likelihood,
    soft_gate,
    soft_gate_weights,
    tv_masked_tokens,
)

LOW, HIGH = 0.2, 0.28


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        # slope is d value / d log ratio: ratio * advantage, or 0 where clipped
        (1.0, 2.0, 2.0, 2.0),
        (1.0, -2.0, -2.0, -2.0),
        (1.2, 1.0, 1.2, 1.2),
        (1.5, 1.0, 1.28, 0.0),  # A > 0 and ratio > 1 + high
        (1.5, -1.0, -1.5, -1.5),
        (0.5, 1.0, 0.5, 0.5),
        (0.5, -1.0, -0.8, 0.0),  # A < 0 and ratio < 1 - low
        (0.9, -1.0, -0.9, -0.9),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_truth_table_of_the_clip(ratio: float, advantage: float, value: float, slope: float) -> None:
    log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([advantage], dtype=torch.float64)
    result = clipped_surrogate(log_ratio, advantages, clip_low=LOW, clip_high=HIGH)
    (gradient,) = torch.autograd.grad(result.sum(), log_ratio)
    assert result.item() == pytest.approx(value, abs=1e-12)
    assert gradient.item() == pytest.approx(slope, abs=1e-12)
    low, high = clipped_tokens(log_ratio, advantages, clip_low=LOW, clip_high=HIGH)
    assert bool(low.item()) == (advantage < 0 and slope == 0.0)
    assert bool(high.item()) == (advantage > 0 and slope == 0.0)


def test_at_ratio_one_the_whole_gradient_passes_however_narrow_the_clip() -> None:
    log_ratio = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    result = clipped_surrogate(log_ratio, advantages, clip_low=0.0, clip_high=0.0)
    (gradient,) = torch.autograd.grad(result.sum(), log_ratio)
    assert torch.equal(gradient, advantages)


def test_an_infinite_clip_is_no_clip() -> None:
    log_ratio = torch.tensor([3.0, -3.0], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0], dtype=torch.float64)
    result = clipped_surrogate(log_ratio, advantages, clip_low=math.inf, clip_high=math.inf)
    assert result.tolist() == pytest.approx([math.exp(3), -math.exp(-3)], rel=1e-12)


def test_float64_gradcheck_away_from_the_kinks() -> None:
    log_ratio = torch.tensor([0.1, -0.1, 0.6, -0.6, 0.7, -0.7], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, -0.3, 0.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, advantages, clip_low=LOW, clip_high=HIGH), (log_ratio,)
    )


def test_a_huge_ratio_stays_finite_in_float32() -> None:
    log_ratio = torch.tensor([200.0, 200.0, 200.0], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 0.0])
    result = clipped_surrogate(log_ratio, advantages, clip_low=LOW, clip_high=HIGH)
    (gradient,) = torch.autograd.grad(result.sum(), log_ratio)
    assert torch.isfinite(result).all() and torch.isfinite(gradient).all()
    assert gradient[1] < 0.0 and gradient[0] == 0.0 and gradient[2] == 0.0


def test_log_likelihood_has_coefficient_one_unless_told() -> None:
    logprobs = torch.tensor([-1.0, -2.0])
    assert log_likelihood(logprobs).tolist() == [-1.0, -2.0]
    assert log_likelihood(logprobs, torch.tensor([0.0, 3.0])).tolist() == [0.0, -6.0]


def test_a_capped_weight_takes_no_tokens_gradient_away() -> None:
    """CISPO's gradient is cap * A * grad log pi where PPO's is 0."""
    log_ratio = torch.tensor([math.log(r) for r in (0.1, 1.0, 3.0, 9.0)], dtype=torch.float64, requires_grad=True)
    weights, raised, lowered = capped_weights(log_ratio, clip_low=math.inf, clip_high=4.0)
    assert weights.tolist() == pytest.approx([0.1, 1.0, 3.0, 5.0], abs=1e-12)
    assert raised.tolist() == [False] * 4 and lowered.tolist() == [False, False, False, True]
    assert not weights.requires_grad
    both, raised, _ = capped_weights(log_ratio, clip_low=0.5, clip_high=4.0)
    assert both.tolist() == pytest.approx([0.5, 1.0, 3.0, 5.0], abs=1e-12) and raised.tolist() == [True] + [False] * 3


@pytest.mark.parametrize(
    ("before", "after", "advantage", "dropped", "clipped"),
    [
        # DPPO with 0.15 and PPO with 0.35 disagree both ways; signs as in the clip's truth table.
        (0.001, 0.002, 1.0, False, True),
        (0.5, 0.66, 1.0, True, False),
        (0.5, 0.66, -1.0, False, False),
        (0.66, 0.5, -1.0, True, False),
        (0.002, 0.001, -1.0, False, True),
        (0.66, 0.5, 1.0, False, False),
        (0.5, 0.66, 0.0, False, False),
    ],
)
def test_total_variation_masks_by_probabilities_not_by_their_ratio(
    before: float, after: float, advantage: float, dropped: bool, clipped: bool
) -> None:
    base, policy = (torch.tensor([math.log(p)], dtype=torch.float64) for p in (before, after))
    advantages = torch.tensor([advantage], dtype=torch.float64)
    low, high = tv_masked_tokens(policy, base, advantages, clip_low=0.15, clip_high=0.15)
    assert (low.item(), high.item()) == (dropped and advantage < 0, dropped and advantage > 0)
    ppo = clipped_tokens(policy - base, advantages, clip_low=0.35, clip_high=0.35)
    assert bool(ppo[0].item() or ppo[1].item()) == clipped


def test_the_soft_gate_by_hand_and_its_share_of_the_gradient() -> None:
    log_ratio = torch.tensor([0.0, 0.0, math.log(2.0), math.log(0.5)], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 1.0, -1.0], dtype=torch.float64)
    gains = soft_gate(log_ratio, advantages, positive=1.0, negative=1.05)

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert gains.tolist() == pytest.approx([2.0, -4 / 1.05, 4 * logistic(1.0), -4 / 1.05 * logistic(-0.525)], abs=1e-12)
    (gradient,) = torch.autograd.grad(gains.sum(), log_ratio)
    shares = soft_gate_weights(log_ratio.detach(), advantages, positive=1.0, negative=1.05)
    expected = shares * log_ratio.detach().exp() * advantages
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    assert shares[:2].tolist() == [1.0, 1.0] and bool((shares[2:] < 1.0).all())


def test_the_soft_gates_gradient_in_float64_and_at_huge_ratios() -> None:
    log_ratio = torch.tensor([0.4, -0.4, 1.5, -2.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, -0.3, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: soft_gate(x, advantages, positive=1.0, negative=1.05), (log_ratio,))
    far = torch.tensor([200.0, 200.0], requires_grad=True)
    gains = soft_gate(far, torch.tensor([1.0, -1.0]), positive=1.0, negative=1.05)
    (gradient,) = torch.autograd.grad(gains.sum(), far)
    assert torch.isfinite(gains).all() and torch.isfinite(gradient).all()
