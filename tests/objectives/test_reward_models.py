"""What a reward model learns from: worked numbers, laws of Bradley-Terry, and calibration counted by hand."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from outscore.algorithms.rows import algorithm
from outscore.objectives.loss import LossTerms, add_loss_terms
from outscore.objectives.preferences import pair_losses, ranked_pairs
from outscore.objectives.reward_models import calibration_error, normalisation, rating_loss, reward_model_loss

ROW = algorithm("reward-model")
SCORES = torch.tensor([0.3, -1.2, 2.0, 0.7, 0.1, -0.4], dtype=torch.float64)
RANKS = [(0, 1), (2, 0, 1, 1)]


def loss_of(scores: Tensor, *, half: bool = False) -> LossTerms:
    pairs = ranked_pairs(RANKS, ties="half" if half else "drop")
    return reward_model_loss(scores, torch.arange(6), pairs, ROW.pair_objective, num_completions=6)


def test_a_difference_of_1_7_costs_0_16779_and_equal_scores_log_2() -> None:
    pair = ranked_pairs([(0, 1)], ties="drop")
    for scores, expected in (([2.0, 0.3], 0.16779), ([0.5, 0.5], math.log(2))):
        numbers = torch.arange(2)
        terms = reward_model_loss(torch.tensor(scores), numbers, pair, ROW.pair_objective, num_completions=2)
        assert terms.loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_a_ranking_is_the_mean_over_its_pairs_and_prompts_count_once(half: bool) -> None:
    def cost(d: float) -> float:
        return math.log(1 + math.exp(-d))

    s = SCORES.tolist()
    wins = [(3, 2), (3, 4), (3, 5), (4, 2), (5, 2)]
    second = [cost(s[i] - s[j]) for i, j in wins]
    if half:
        second.append((cost(s[4] - s[5]) + cost(s[5] - s[4])) / 2)
    expected = cost(s[0] - s[1]) / 2 + sum(second) / len(second) / 2
    assert loss_of(SCORES, half=half).loss.item() == pytest.approx(expected, rel=1e-12)


def test_a_shift_of_all_scores_changes_nothing() -> None:
    assert loss_of(SCORES + 5.0).loss.item() == pytest.approx(loss_of(SCORES).loss.item(), rel=1e-12)
    assert loss_of(SCORES).coefficients.sum().item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("half", [False, True])
def test_the_coefficients_are_minus_the_gradient(half: bool) -> None:
    scores = SCORES.clone().requires_grad_(True)
    terms = loss_of(scores, half=half)
    (gradient,) = torch.autograd.grad(terms.loss, scores)
    torch.testing.assert_close(terms.coefficients, -gradient)
    # Of the only pair of its prompt: weight 1/2, slope sigmoid(d) - 1.
    assert gradient[0].item() == pytest.approx(0.5 * (1 / (1 + math.exp(-1.5)) - 1))


def test_micro_batches_and_order_change_nothing() -> None:
    pairs = ranked_pairs(RANKS, ties="drop")
    parts = [
        reward_model_loss(SCORES[order], torch.tensor(order), pairs, ROW.pair_objective, num_completions=6)
        for order in ([1, 0], [4, 2, 5, 3])
    ]
    whole = loss_of(SCORES)
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-12)
    split, together = add_loss_terms(parts), add_loss_terms([whole])
    assert {k: pytest.approx(v) for k, v in split.items()} == together
    with pytest.raises(ValueError, match="only one of them is in this micro-batch"):
        reward_model_loss(SCORES[:1], torch.tensor([0]), pairs, ROW.pair_objective, num_completions=6)


def test_it_is_dpo_with_the_score_for_the_log_ratio() -> None:
    """A completion of one token whose log-ratio is its score, beta 1: the same loss and coefficients."""
    from outscore.objectives.loss import policy_loss

    pairs = ranked_pairs(RANKS, ties="drop")
    terms = policy_loss(
        SCORES,
        algorithm=algorithm("dpo", kl_coef=1.0),
        completion_index=torch.arange(6),
        completion_lengths=torch.ones(6, dtype=torch.long),
        num_completions=6,
        num_tokens=6,
        ref_logprobs=torch.zeros(6, dtype=torch.float64),
        pairs=pairs,
    )
    assert terms.loss.item() == pytest.approx(loss_of(SCORES).loss.item(), rel=1e-12)
    torch.testing.assert_close(terms.coefficients, loss_of(SCORES).coefficients)


def test_ranked_scores_end_in_the_order_they_were_ranked_and_ties_together() -> None:
    """D > G > A = B, with the tie as a half."""
    scores, pairs = torch.zeros(4, dtype=torch.float64), ranked_pairs([(2, 2, 0, 1)], ties="half")
    for _ in range(200):
        scores = (
            scores
            + reward_model_loss(scores, torch.arange(4), pairs, ROW.pair_objective, num_completions=4).coefficients
        )
    a, b, d, g = scores.tolist()
    assert d > g + 1 > a + 2 and abs(a - b) < 1e-9


def test_the_squared_error_of_the_sources_is_0_04() -> None:
    assert rating_loss(torch.tensor([0.8]), torch.tensor([1.0]), num_completions=1).item() == pytest.approx(0.04)
    both = rating_loss(torch.tensor([0.8, 0.0]), torch.tensor([1.0, 2.0]), num_completions=2)
    assert both.item() == pytest.approx((0.04 + 4.0) / 2)


def test_normalised_scores_have_mean_0_and_variance_1() -> None:
    gain, bias = normalisation(SCORES)
    scaled = gain * SCORES + bias
    assert scaled.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert scaled.square().mean().item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="3 completions have the same score"):
        normalisation(torch.ones(3))


def test_calibration_is_counted_by_hand() -> None:
    # Sure to 0.9 (d = log 9) ten times and right seven times; sure to 0.6 (d = log 1.5) five times, right three.
    high, low = math.log(9), math.log(1.5)
    d = torch.tensor([high] * 7 + [-high] * 3 + [low] * 3 + [-low] * 2, dtype=torch.float64)
    assert calibration_error(d) == pytest.approx((10 * abs(0.7 - 0.9) + 5 * abs(0.6 - 0.6)) / 15)
    assert calibration_error(torch.zeros(4)) == 0.0
    assert calibration_error(torch.tensor([-50.0])) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least one pair"):
        calibration_error(torch.zeros(0))


def test_a_model_that_knows_its_chances_is_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    d = 4 * torch.rand(20_000, generator=generator, dtype=torch.float64)
    right = torch.rand(20_000, generator=generator, dtype=torch.float64) < torch.sigmoid(d)
    sure = torch.where(right, d, -d)
    assert calibration_error(sure) < 0.02 < calibration_error(3 * sure)


def test_cells_of_the_row() -> None:
    assert ROW.trains == "reward_model" and not ROW.needs_reference and ROW.pair_objective.beta == 1.0
    for cells, message in (
        ({"kl_coef": 0.1}, "a reward model has no reference"),
        ({"source": "policy"}, "trains='reward_model' needs preferences"),
    ):
        with pytest.raises(ValueError, match=message):
            algorithm("reward-model", **cells)


def test_smoothed_labels_reach_the_reward_model_too() -> None:
    objective = algorithm("reward-model", label_smoothing=0.2).pair_objective
    d = torch.tensor([1.0], dtype=torch.float64)
    smoothed, plain = (pair_losses(d, torch.ones_like(d), o) for o in (objective, ROW.pair_objective))
    assert smoothed.item() == pytest.approx(plain.item() + 0.2)


def test_six_completions_have_fifteen_pairs_of_one_forward_each() -> None:
    pairs = ranked_pairs([range(6)], ties="drop")
    assert {tuple(p) for p in torch.stack([pairs.better, pairs.worse], 1).tolist()} == set(
        itertools.combinations(range(6), 2)
    )
