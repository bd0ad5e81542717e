"""Ratios over a flat token axis, by hand."""

import math

import pytest
import torch

from outscore.objectives.ratios import (
    bounded_exp,
    bounded_expm1,
    completion_sums,
    log_ratio,
    masked_importance_weights,
    stale_completions,
    truncated_importance_weights,
)

POLICY = torch.tensor([-1.0, -2.0, -0.5, -3.0], dtype=torch.float64)
ANCHOR = torch.tensor([-1.5, -2.0, -1.0, -1.0], dtype=torch.float64)
INDEX = torch.tensor([2, 0, 2, 0])  # tokens of a completion need not be neighbours, and completion 1 has none


def test_token_level_is_the_difference() -> None:
    ratio = log_ratio(POLICY, ANCHOR, INDEX, level="token", num_completions=3)
    assert ratio.tolist() == [0.5, 0.0, 0.5, -2.0]


def test_sequence_level_is_the_sum_over_the_completion_on_each_of_its_tokens() -> None:
    ratio = log_ratio(POLICY, ANCHOR, INDEX, level="sequence", num_completions=3)
    assert ratio.tolist() == [1.0, -2.0, 1.0, -2.0]


def test_sums_per_completion() -> None:
    assert completion_sums(POLICY, INDEX, 3).tolist() == [-5.0, 0.0, -1.5]


@pytest.mark.parametrize("value", [-800.0, -30.0, -1.0, 0.0, 1e-9, 3.0, 19.9, 20.0])
def test_bounded_exponentials_are_the_exponentials_up_to_the_limit(value: float) -> None:
    exponent = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    for function, expected in ((bounded_exp, math.exp(value)), (bounded_expm1, math.expm1(value))):
        result = function(exponent)
        (slope,) = torch.autograd.grad(result, exponent)
        assert result.item() == pytest.approx(expected, rel=1e-12)
        assert slope.item() == pytest.approx(math.exp(value), rel=1e-12)


@pytest.mark.parametrize("value", [21.0, 100.0, 1e6])
def test_beyond_the_limit_they_go_on_along_the_tangent_and_stay_finite_in_float32(value: float) -> None:
    exponent = torch.tensor(value, requires_grad=True)
    result = bounded_exp(exponent)
    (slope,) = torch.autograd.grad(result, exponent)
    assert result.item() == pytest.approx(math.exp(20) * (1 + value - 20), rel=1e-6)
    assert slope.item() == pytest.approx(math.exp(20), rel=1e-6)


def test_truncated_importance_weights() -> None:
    mismatch = torch.tensor([0.0, math.log(1.5), math.log(4.0), math.log(0.1)], requires_grad=True)
    weights, capped = truncated_importance_weights(mismatch, cap=2.0)
    assert weights.tolist() == pytest.approx([1.0, 1.5, 2.0, 0.1])
    assert capped.tolist() == [False, False, True, False]
    assert not weights.requires_grad


def test_the_sequences_mean_is_the_geometric_mean_and_its_token_form_has_the_tokens_own_gradient() -> None:
    for level, slope in (("sequence_mean", [1.0, 1.5, 1.0, 1.5]), ("sequence_mean_token", [2.0, 0.0, 0.0, 3.0])):
        policy = POLICY.clone().requires_grad_(True)
        ratio = log_ratio(policy, ANCHOR, INDEX, level=level, num_completions=3)  # type: ignore[arg-type]
        assert ratio.tolist() == pytest.approx([0.5, -1.0, 0.5, -1.0], abs=1e-15)
        # Weights 2, 0, 0, 3: in the mean, both tokens of a completion share half of either's weight.
        (gradient,) = torch.autograd.grad((ratio * torch.tensor([2.0, 0.0, 0.0, 3.0])).sum(), policy)
        assert gradient.tolist() == pytest.approx(slope, abs=1e-15)


@pytest.mark.parametrize(
    ("floor", "cap", "weights", "masked"),
    [
        (0.0, 2.0, [1.0, 1.5, 0.0, 0.1], [False, False, True, False]),
        (0.5, 2.0, [1.0, 1.5, 0.0, 0.0], [False, False, True, True]),
        (0.0, math.inf, [1.0, 1.5, 4.0, 0.1], [False] * 4),
    ],
)
def test_masked_importance_weights(floor: float, cap: float, weights: list[float], masked: list[bool]) -> None:
    mismatch = torch.tensor([0.0, math.log(1.5), math.log(4.0), math.log(0.1)], requires_grad=True)
    found, out = masked_importance_weights(mismatch, floor=floor, cap=cap)
    assert found.tolist() == pytest.approx(weights) and out.tolist() == masked
    assert not found.requires_grad


def test_stale_completions_are_bad_ones_that_the_policy_has_left() -> None:
    # Mean log(anchor / policy): completion 0 +1.0, completion 2 -0.5
    for advantages, threshold, stale in (
        ([-1.0, -1.0, -1.0, -1.0], 0.9, [False, True, False, True]),
        ([-1.0, -1.0, -1.0, -1.0], 1.1, [False] * 4),
        ([1.0, 1.0, 1.0, 1.0], 0.9, [False] * 4),
        ([-1.0, -1.0, -1.0, -1.0], -1.0, [True] * 4),
    ):
        found = stale_completions(
            ANCHOR, POLICY, torch.tensor(advantages), INDEX, threshold=threshold, num_completions=3
        )
        assert found.tolist() == stale
