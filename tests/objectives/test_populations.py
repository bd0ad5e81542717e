"""Population weights: worked by hand, as products of exponentials in exact arithmetic, and as laws."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from outscore.objectives.populations import (
    ascend_populations,
    checked_weights,
    importance_weights,
    population_counts,
    population_losses,
    population_shares,
    relative_weights,
    trade_off,
)

DOUBLE = torch.float64
INDEX = torch.tensor([0, 1, 1, 2, 1])
NAMES = ["Egypt", "Japan", "China"]


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def log(*values: float) -> Tensor:
    return doubles(*values).log()


def test_counts_shares_and_importance_weights_by_hand() -> None:
    counts = population_counts(INDEX, NAMES)
    assert counts.tolist() == [1, 3, 1]
    assert population_shares(counts).tolist() == pytest.approx([0.2, 0.6, 0.2], abs=1e-15)
    # 1, 1/3, 1 over 7/3
    assert importance_weights(counts).tolist() == pytest.approx([3 / 7, 1 / 7, 3 / 7], abs=1e-15)


def test_the_five_countries_of_the_paper_are_weighted_by_the_inverse_of_their_sizes() -> None:
    sizes = [572, 570, 376, 309, 712]
    weights = importance_weights(torch.tensor(sizes)).tolist()
    assert [w * n for w, n in zip(weights, sizes, strict=True)] == pytest.approx([weights[0] * 572] * 5, abs=1e-12)
    assert math.fsum(weights) == pytest.approx(1.0, abs=1e-15)


def test_a_population_without_an_example_is_named() -> None:
    with pytest.raises(ValueError, match="no example of population 'China'"):
        population_counts(torch.tensor([0, 1]), NAMES)
    with pytest.raises(ValueError, match=r"population_index\[1\] is 3; with 3 populations"):
        population_counts(torch.tensor([0, 3]), NAMES)
    with pytest.raises(ValueError, match="at least one"):
        population_counts(torch.tensor([0]), [])
    for function in (population_shares, importance_weights):
        with pytest.raises(ValueError, match="must have at least 1"):
            function(torch.tensor([3, 0]))


def test_weights_that_people_write_are_checked_and_scaled() -> None:
    assert checked_weights(doubles(0.2, 0.3, 0.5 + 5e-7), NAMES).sum().item() == pytest.approx(1.0, abs=1e-15)
    for wrong, message in (
        (doubles(0.5, 0.5, 0.5), "add up to 1.5"),
        (doubles(-0.1, 0.6, 0.5), "population 'Egypt' is -0.1"),
        (doubles(0.5, math.nan, 0.5), "population 'Japan' is nan"),
        (doubles(0.5, 0.5), "2 weights for 3 populations"),
    ):
        with pytest.raises(ValueError, match=message):
            checked_weights(wrong, NAMES)


def test_over_all_data_the_losses_are_the_populations_means() -> None:
    losses, shares = doubles(1, 2, 3, 5, 7), population_shares(population_counts(INDEX, NAMES))
    means = population_losses(losses, INDEX, shares=shares, num_examples=5)
    assert means.tolist() == pytest.approx([1, 4, 5], abs=1e-12)
    assert (shares * means).sum().item() == pytest.approx(losses.mean().item(), abs=1e-12)


def test_the_published_forms_for_one_example_and_for_a_batch() -> None:
    shares = population_shares(torch.tensor([60, 240]))
    # Algorithm 1: N l / N_g of the one population that was drawn
    drawn = population_losses(doubles(0.7), torch.tensor([0]), shares=shares, num_examples=1)
    assert drawn.tolist() == pytest.approx([300 * 0.7 / 60, 0.0], abs=1e-12)
    # divide_by_totalcount: N times the batch's sum over N_g
    batch = population_losses(doubles(1, 2, 3), torch.tensor([1, 0, 1]), shares=shares, num_examples=1)
    assert batch.tolist() == pytest.approx([300 * 2 / 60, 300 * 4 / 240], abs=1e-12)
    # Algorithm 3: l itself
    uniform = population_losses(doubles(0.7), torch.tensor([1]), shares=torch.ones(2, dtype=DOUBLE), num_examples=1)
    assert uniform.tolist() == [0.0, 0.7]


def test_the_estimate_from_a_batch_is_unbiased() -> None:
    """The mean over all equally likely batches of two, enumerated, is the mean of each population."""
    losses, shares = doubles(1, 2, 3, 5, 7), population_shares(population_counts(INDEX, NAMES))
    batches = [torch.tensor([i, j]) for i in range(5) for j in range(5)]
    estimates = [population_losses(losses[b], INDEX[b], shares=shares, num_examples=2) for b in batches]
    assert torch.stack(estimates).mean(0).tolist() == pytest.approx([1, 4, 5], abs=1e-12)


def test_micro_batches_add_up() -> None:
    losses, shares = torch.randn(50, dtype=DOUBLE), doubles(0.1, 0.6, 0.3)
    index = torch.randint(3, (50,))
    whole = population_losses(losses, index, shares=shares, num_examples=50)
    parts = [population_losses(losses[p], index[p], shares=shares, num_examples=50) for p in torch.arange(50).split(7)]
    assert torch.allclose(torch.stack(parts).sum(0), whole, atol=1e-12, rtol=0)


def test_weights_are_the_exponential_of_the_summed_losses() -> None:
    start, step = doubles(0.5, 0.3, 0.2), 0.37
    history = torch.randn(200, 3, dtype=DOUBLE)
    weights = start.log()
    for losses in history:
        weights = ascend_populations(weights, losses, step_size=step)
    expected = [
        p * math.exp(step * math.fsum(column)) for p, column in zip(start.tolist(), history.T.tolist(), strict=True)
    ]
    assert weights.exp().tolist() == pytest.approx([e / math.fsum(expected) for e in expected], abs=1e-12)


def test_one_step_by_hand() -> None:
    # 1/4 e^0 against 3/4 e^(0.5 ln 9) = 3/4 * 3
    raised = ascend_populations(log(0.25, 0.75), doubles(0.0, math.log(9)), step_size=0.5)
    assert raised.exp().tolist() == pytest.approx([0.1, 0.9], abs=1e-15)


def test_thousands_of_large_losses_neither_overflow_nor_lose_the_way_back() -> None:
    weights = log(0.5, 0.5)
    for _ in range(1000):
        weights = ascend_populations(weights, doubles(2500.0, 0.0), step_size=0.5)
    assert weights.exp().tolist() == [1.0, 0.0] and torch.isfinite(weights).all()
    for _ in range(1000):
        weights = ascend_populations(weights, doubles(0.0, 2500.0), step_size=0.5)
    assert weights.exp().tolist() == pytest.approx([0.5, 0.5], abs=1e-9)


def test_step_size_zero_keeps_the_weights_and_equal_losses_do_too() -> None:
    weights = log(0.2, 0.3, 0.5)
    assert torch.equal(
        ascend_populations(weights, doubles(9, 1, 4), step_size=0.0).exp().round(decimals=15), weights.exp()
    )
    same = ascend_populations(weights, doubles(4, 4, 4), step_size=3.0)
    assert torch.allclose(same, weights, atol=1e-14)


def test_the_worse_a_population_does_the_more_it_gains() -> None:
    before = doubles(0.4, 0.3, 0.2, 0.1)
    after = ascend_populations(before.log(), doubles(1, 2, 3, 4), step_size=0.1).exp()
    assert all(low < high for low, high in pairwise((after / before).tolist()))
    assert after.sum().item() == pytest.approx(1.0, abs=1e-15)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="need finite losses"):
        ascend_populations(log(0.5, 0.5), doubles(1.0, math.inf), step_size=0.1)


def test_the_ascent_is_along_the_gradient_of_the_traded_off_objective() -> None:
    """The exponent is eta times the derivative by alpha, here by autograd."""
    alpha, mu, losses, chi = doubles(0.3, 0.7).requires_grad_(), doubles(0.5, 0.5), doubles(2.0, 5.0), 0.4
    (gradient,) = torch.autograd.grad((trade_off(alpha, mu, chi) * losses).sum(), alpha)
    by_hand = torch.softmax(alpha.detach().log() + 0.1 * gradient, -1)
    raised = ascend_populations(alpha.log(), losses, step_size=0.1, tradeoff=chi)
    assert torch.allclose(raised.exp(), by_hand, atol=1e-14) and not raised.requires_grad


def test_the_trade_off_runs_from_the_fixed_weights_to_the_climbing_ones() -> None:
    alpha, mu = doubles(0.9, 0.1), doubles(0.5, 0.5)
    assert torch.equal(trade_off(alpha, mu, 0.0), mu) and torch.equal(trade_off(alpha, mu, 1.0), alpha)
    assert trade_off(alpha, mu, 0.25).tolist() == pytest.approx([0.6, 0.4], abs=1e-15)
    runs = trade_off(alpha.expand(2, 2), mu.expand(2, 2), doubles(0.0, 1.0).unsqueeze(-1))
    assert torch.equal(runs, torch.stack([mu, alpha]))
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="must be between 0"):
            trade_off(alpha, mu, wrong)


def test_relative_weights_turn_a_mean_over_examples_into_the_weighted_mean() -> None:
    """Value and gradient, for any loss: the one factor that an objective needs."""
    counts = population_counts(INDEX, NAMES)
    shares, weights = population_shares(counts), doubles(0.7, 0.1, 0.2)
    theta = torch.randn(4, dtype=DOUBLE, requires_grad=True)
    losses = (torch.randn(5, 4, dtype=DOUBLE) @ theta).exp()
    plain = (relative_weights(weights, shares)[INDEX] * losses).mean()
    robust = torch.stack([weights[g] * losses[torch.eq(INDEX, g)].mean() for g in range(3)]).sum()
    assert plain.item() == pytest.approx(robust.item(), rel=1e-12)
    (ours,), (naive,) = (torch.autograd.grad(x, theta, retain_graph=True) for x in (plain, robust))
    assert torch.allclose(ours, naive, rtol=1e-12)
    assert relative_weights(weights, shares)[INDEX].mean().item() == pytest.approx(1.0, abs=1e-12)


def test_weights_equal_to_the_shares_are_no_weights_and_equal_ones_are_importance_sampling() -> None:
    counts = torch.tensor([60, 240])
    shares = population_shares(counts)
    assert relative_weights(shares, shares).tolist() == [1.0, 1.0]
    equal = relative_weights(doubles(0.5, 0.5), shares)
    assert (equal / equal.sum()).tolist() == pytest.approx(importance_weights(counts).tolist(), abs=1e-15)


def test_losses_carry_their_gradient_and_float32_is_welcome() -> None:
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    means = population_losses(losses, torch.tensor([0, 1]), shares=doubles(0.25, 0.75), num_examples=2)
    assert means.dtype == DOUBLE
    means.sum().backward()
    assert losses.grad is not None and losses.grad.tolist() == pytest.approx([2.0, 2 / 3])
    for shares, count, message in ((doubles(0.0, 1.0), 2, "share above 0"), (doubles(0.5, 0.5), 0, "num_examples=0")):
        with pytest.raises(ValueError, match=message):
            population_losses(losses, torch.tensor([0, 1]), shares=shares, num_examples=count)
