"""Exact optima: stationary by autograd, no worse than where steps lead, and a saddle."""

import pytest
import torch
from studies.test_log_linear import conflicting_data, smallest_worst_loss

from outscore.studies.group_robust.log_linear import (
    PairData,
    WeightRule,
    feature_margins,
    margin_losses,
    mirror_descent,
    robust_least_squares,
    weighted_least_squares,
)
from outscore.studies.group_robust.log_linear_optimum import fixed_weight_optimum, robust_optimum

DOUBLE = torch.float64


def test_the_gradient_vanishes_by_autograd() -> None:
    data = conflicting_data(3)
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]], dtype=DOUBLE)
    theta = fixed_weight_optimum(data, weights, kind="logistic", beta=0.7).requires_grad_()
    losses = margin_losses(feature_margins(data.differences, theta), kind="logistic", beta=0.7) @ data.averaging
    (gradient,) = torch.autograd.grad((weights * losses).sum(), theta)
    assert gradient.abs().max().item() < 1e-9


def test_of_the_squared_loss_it_is_least_squares() -> None:
    data, weights = conflicting_data(2), torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=DOUBLE)
    found = fixed_weight_optimum(data, weights, kind="squared", beta=0.1)
    assert torch.allclose(found, weighted_least_squares(data, weights, beta=0.1), atol=1e-9)


def test_the_saddle_point_of_dpo_is_the_one_another_solver_finds() -> None:
    data = conflicting_data(1)
    theta, alpha = robust_optimum(data, kind="logistic", beta=1.0)
    losses = margin_losses(feature_margins(data.differences, theta), kind="logistic", beta=1.0) @ data.averaging
    assert losses.max().item() == pytest.approx(smallest_worst_loss(data.differences[0].numpy()), abs=1e-7)
    assert (alpha * losses).sum().item() == pytest.approx(losses.max().item(), abs=1e-9)  # no weight on the better off


def test_the_steps_of_both_algorithms_lead_to_the_saddle_point() -> None:
    data = conflicting_data(1)
    theta, alpha = robust_optimum(data, kind="logistic", beta=1.0)
    rule, start = WeightRule.robust(1, 2, step_size=0.5), torch.zeros(1, 2, dtype=DOUBLE)
    steps = mirror_descent(
        data, rule, start, kind="logistic", beta=1.0, step_size=0.9, num_steps=1500, record_every=1500
    )
    assert torch.allclose(steps.params[-1], theta, atol=1e-5) and torch.allclose(steps.weights[-1], alpha, atol=1e-5)
    theta, alpha = robust_optimum(data, kind="squared", beta=0.1)
    closed = robust_least_squares(data, WeightRule.robust(1, 2, step_size=0.01), start, beta=0.1, num_steps=300)
    assert torch.allclose(closed.params[-1], theta, atol=1e-5) and torch.allclose(closed.weights[-1], alpha, atol=1e-5)


def test_without_a_trade_off_it_is_importance_sampling() -> None:
    data = conflicting_data(1)
    theta, _ = robust_optimum(data, kind="logistic", beta=1.0, tradeoff=0.0)
    equal = fixed_weight_optimum(data, torch.full((1, 2), 0.5, dtype=DOUBLE), kind="logistic", beta=1.0)
    assert torch.allclose(theta, equal, atol=1e-9)


def test_pairs_that_a_theta_puts_all_right_have_no_finite_optimum() -> None:
    differences = torch.tensor([[[1.0, 0.1], [0.5, -0.2], [0.3, 0.3]]], dtype=DOUBLE)
    data = PairData.of(differences, torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="no finite optimum"):
        fixed_weight_optimum(data, data.shares.expand(1, -1), kind="logistic", beta=1.0)


def test_three_populations_have_no_saddle_point_here() -> None:
    data = PairData.of(torch.randn(1, 6, 2, dtype=DOUBLE), torch.tensor([0, 0, 1, 1, 2, 2]))
    with pytest.raises(ValueError, match="3 populations"):
        robust_optimum(data, kind="squared", beta=0.1)


def test_features_in_too_few_dimensions_are_refused() -> None:
    flat = torch.randn(1, 6, 2, dtype=DOUBLE) * torch.tensor([1.0, 0.0], dtype=DOUBLE)
    data = PairData.of(flat, torch.tensor([0, 0, 0, 1, 1, 1]))
    with pytest.raises(ValueError, match="do not determine theta"):
        fixed_weight_optimum(data, data.shares.expand(1, -1), kind="squared", beta=0.1)
