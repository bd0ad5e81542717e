"""The critic's loss and what is reported of it: by hand, by gradcheck, and over micro-batches; its cells."""

import math

import pytest
import torch

from outscore.algorithms.rows import algorithm
from outscore.objectives.critic import critic_loss, explained_variance
from outscore.objectives.loss import add_loss_terms


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_loss_and_metrics_by_hand() -> None:
    # V - R: 1 (moved by 0.1, within), -0.5 of V clipped from 0.5 to 0.2: (0.2 - 1)^2 = 0.64 is the larger, and holds.
    values, old, returns = doubles(1.1, 0.5), doubles(1.0, 0.0), doubles(0.1, 1.0)
    terms = critic_loss(values, old, returns, clip=0.2, num_tokens=4)
    assert terms.loss.item() == pytest.approx(0.5 * (1.0 + 0.64) / 4)
    assert terms.coefficients.tolist() == pytest.approx([-1.0 / 4, 0.0])
    metrics = add_loss_terms([terms])
    assert metrics["value_loss"] == (pytest.approx(0.82), 2)
    assert metrics["value_clip_fraction"] == (1.0, 2)
    assert metrics["returns"] == (pytest.approx(1.1), 2) and metrics["values"] == (pytest.approx(1.6), 2)


def test_the_gradient_is_that_of_finite_differences_and_of_the_coefficients() -> None:
    generator = torch.Generator().manual_seed(0)
    old, returns = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    values = (old + 0.3 * torch.randn(9, generator=generator, dtype=torch.float64)).requires_grad_()

    def loss(values: torch.Tensor) -> torch.Tensor:
        return critic_loss(values, old, returns, clip=0.2, num_tokens=9).loss

    assert torch.autograd.gradcheck(loss, (values,))
    (gradient,) = torch.autograd.grad(loss(values), values)
    terms = critic_loss(values, old, returns, clip=0.2, num_tokens=9)
    assert 0 < terms.means["value_clip_fraction"][0] < 9
    torch.testing.assert_close(terms.coefficients, -gradient, rtol=1e-12, atol=1e-14)


def test_explained_variance() -> None:
    returns = doubles(0.0, 1.0, 2.0)
    assert explained_variance(returns + 3.0, returns) == pytest.approx(1.0)
    assert explained_variance(doubles(5.0, 5.0, 5.0), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(1.0 - 4.0)
    assert math.isnan(explained_variance(returns, doubles(1.0, 1.0, 1.0)))
    assert math.isnan(explained_variance(doubles(), doubles()))


@pytest.mark.parametrize(
    ("name", "cells", "message"),
    [
        ("ppo", {"scale": "population_std"}, "scale='population_std' does not go with baseline='critic'"),
        ("ppo", {"reward": "parts"}, "reward='parts' does not go with baseline='critic'"),
        ("ppo", {"batch_norm": "completions"}, "batch_norm='completions' does not go"),
        ("ppo", {"lambda_alpha": 0.05}, "give critic_lambda too"),
        ("ppo", {"gae_lambda": 1.5}, "gae_lambda=1.5: must be a number between 0 and 1"),
        ("ppo", {"critic_lambda": -0.1}, "critic_lambda=-0.1: must be a number between 0 and 1"),
        ("ppo", {"value_clip": 0.0}, "value_clip=0.0: must be a number above 0"),
        ("ppo", {"kl_horizon": 0}, "kl_horizon=0: must be a number of at least 1"),
        (
            "ppo",
            {"kl_adapt_to": 6.0, "kl_coef": 0.0},
            "kl_adapt_to=6.0 has no effect with kl_coef=0.0; it counts where kl_coef is above 0",
        ),
        (
            "grpo",
            {"kl_adapt_to": 6.0},
            "kl_adapt_to=6.0 has no effect with kl_place='loss'; it counts where kl_place is 'token_reward'",
        ),
        (
            "grpo",
            {"critic_lambda": 1.0},
            "critic_lambda=1.0 has no effect with baseline='group_mean'; it counts where baseline is",
        ),
        ("grpo", {"gae_lambda": 1.0}, "gae_lambda=1.0 has no effect with baseline='group_mean'"),
        ("grpo", {"value_clip": math.inf}, "value_clip=inf has no effect with baseline='group_mean'"),
        ("grpo", {"whiten_rewards": True}, "whiten_rewards=True has no effect with baseline='group_mean'"),
        ("sft", {"baseline": "critic"}, "source='demonstrations'"),
    ],
)
def test_cells_that_cannot_be_are_refused(name: str, cells: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        algorithm(name, **cells)
    assert message in str(caught.value)
