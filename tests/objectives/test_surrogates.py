"""The clip's truth table and the gradients of the surrogates."""

import math

import pytest
import torch

from outscore.objectives import clipped_surrogate, clipped_tokens, log_likelihood

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
