"""KL estimates by value; their expectations and gradients are in oracles/test_objective_kl_enumerated.py."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.untimed import UNTIMED

from outscore.objectives.kl import kl_estimate, kl_per_completion


def test_values_by_hand() -> None:
    log_ratio = torch.tensor([math.log(2.0), math.log(0.5)], dtype=torch.float64)
    ln2 = math.log(2.0)
    assert kl_estimate(log_ratio, estimator="k1").tolist() == pytest.approx([ln2, -ln2], abs=1e-12)
    assert kl_estimate(log_ratio, estimator="k2").tolist() == pytest.approx([ln2**2 / 2] * 2, abs=1e-12)
    # reference / policy = 1/2 and 2: r - 1 - ln r
    assert kl_estimate(log_ratio, estimator="k3").tolist() == pytest.approx([0.5 - 1 + ln2, 2 - 1 - ln2], abs=1e-12)


@pytest.mark.parametrize("log_ratio", [1e-3, -1e-3, 1e-4, -1e-4, 1e-6, 0.0])
def test_k3_near_zero_has_no_cancellation_in_float32(log_ratio: float) -> None:
    value = kl_estimate(torch.tensor([log_ratio]), estimator="k3").item()
    # e^-x - 1 + x = x^2/2 - x^3/6 + ...; float32 resolves x itself to 6e-8 |x|, the naive formula only to 6e-8
    assert value == pytest.approx(log_ratio**2 / 2 - log_ratio**3 / 6, abs=1.3e-7 * abs(log_ratio))


@UNTIMED
@given(st.floats(-1e6, 1e6, width=32))
def test_k3_is_finite_and_not_negative_beyond_rounding_for_any_ratio(log_ratio: float) -> None:
    ratio = torch.tensor([log_ratio], requires_grad=True)
    value = kl_estimate(ratio, estimator="k3")
    (gradient,) = torch.autograd.grad(value.sum(), ratio)
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
    assert value.item() >= -1.3e-7 * abs(log_ratio)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_float64_gradcheck(estimator: str) -> None:
    ratio = torch.tensor([0.3, -0.7, 1e-3, 2.5, -3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, estimator=estimator), (ratio,))  # type: ignore[arg-type]


def test_per_completion_sums_for_the_reward() -> None:
    anchor = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-1.5, -1.0, -3.5], dtype=torch.float64)  # log ratios 0.5, -1, 0.5
    index = torch.tensor([0, 0, 2])
    by_token = kl_per_completion(anchor, ref, index, estimator="k2", level="token", num_completions=3)
    whole = kl_per_completion(anchor, ref, index, estimator="k2", level="sequence", num_completions=3)
    assert by_token.tolist() == [0.125 + 0.5, 0.0, 0.125]
    assert whole.tolist() == [0.125, 0.0, 0.125]
    assert not by_token.requires_grad and not whole.requires_grad
    for level in ("token", "sequence"):
        k1 = kl_per_completion(anchor, ref, index, estimator="k1", level=level, num_completions=3)  # type: ignore[arg-type]
        assert k1.tolist() == [-0.5, 0.0, 0.5]
