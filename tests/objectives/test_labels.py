"""Reward models of labels: losses against hand-worked numbers and loops, coefficients against autograd."""

import math

import pytest
import torch

from outscore.objectives.reward_models import label_accuracy, label_calibration_error, label_loss, label_losses

SCORES = torch.tensor([2.0, -1.0, 0.5, -3.0, 0.0], dtype=torch.float64)
LABELS = torch.tensor([1.0, 0.0, 0.25, 0.75, 0.5], dtype=torch.float64)


def test_cross_entropy_of_chances_is_the_loop() -> None:
    expected = []
    for s, y in zip(SCORES.tolist(), LABELS.tolist(), strict=True):
        p = 1 / (1 + math.exp(-s))
        expected.append(-y * math.log(p) - (1 - y) * math.log(1 - p))
    assert label_losses(SCORES, LABELS, "cross_entropy").tolist() == pytest.approx(expected, abs=1e-12)
    assert expected[0] == pytest.approx(0.126928, abs=1e-6)  # log(1 + e^-2)


def test_squared_error_of_the_records_example_is_0_04() -> None:
    """expected_reward 1.0, predicted_reward 0.8."""
    assert label_losses(torch.tensor([0.8]), torch.tensor([1.0]), "squared_error").item() == pytest.approx(0.04)


def test_a_soft_label_is_met_where_the_chance_equals_it() -> None:
    at = torch.tensor([math.log(0.25 / 0.75)], dtype=torch.float64)
    terms = label_loss(at, torch.tensor([0.25]), "cross_entropy", num_labels=1)
    assert terms.coefficients.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", ["cross_entropy", "squared_error"])
def test_coefficients_are_minus_the_gradient_and_shares_add_up(kind) -> None:
    leaf = SCORES.clone().requires_grad_(True)
    whole = label_loss(leaf, LABELS, kind, num_labels=5)
    (gradient,) = torch.autograd.grad(whole.loss, leaf)
    torch.testing.assert_close(whole.coefficients, -gradient)
    parts = [label_loss(SCORES[part], LABELS[part], kind, num_labels=5) for part in (slice(0, 2), slice(2, 5))]
    assert float(sum(part.loss for part in parts)) == pytest.approx(whole.loss.item())
    torch.testing.assert_close(torch.cat([part.coefficients for part in parts]), whole.coefficients)


def test_accuracy_leaves_out_what_has_no_side() -> None:
    assert label_accuracy(SCORES, LABELS).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert label_accuracy(torch.tensor([0.0]), torch.tensor([1.0])).tolist() == [0.5]
    total, count = label_loss(SCORES, LABELS, "cross_entropy", num_labels=5).means["label_accuracy"]
    assert (float(total), count) == (2.0, 4)
    assert "label_accuracy" not in label_loss(SCORES, LABELS, "squared_error", num_labels=5).means


def test_calibration_counts_by_hand() -> None:
    # Bins of width 1/2: chances .2 and .4 with labels 0 and 1, gap |.5 - .3| of two; .9 with label 1, gap .1 of one.
    chances, labels = torch.tensor([0.2, 0.9, 0.4]), torch.tensor([0.0, 1.0, 1.0])
    assert label_calibration_error(chances, labels, num_bins=2) == pytest.approx((2 * 0.2 + 0.1) / 3)
    assert label_calibration_error(torch.tensor([1.0]), torch.tensor([1.0])) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        label_calibration_error(chances[:0], labels[:0])


def test_a_model_that_knows_its_chances_is_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(40_000, generator=generator)
    labels = (torch.rand(40_000, generator=generator) < chances).float()
    assert label_calibration_error(chances, labels) < 0.02
    assert label_calibration_error(chances.sqrt(), labels) > 0.1
