"""Losses of preferences against worked numbers, printed equations and closed forms."""

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles.ragged import RaggedBatch, flat, index_of, random_batch
from torch import Tensor

from outscore.algorithms.choices import PairObjective
from outscore.algorithms.rows import Algorithm, algorithm
from outscore.objectives.loss import LossTerms, add_loss_terms, policy_loss
from outscore.objectives.preferences import Pairs, pair_losses, ranked_pairs

LENGTHS = (2, 8, 1, 5, 3, 3)
RANKS = [(0, 1), (2, 0, 1, 1)]
"""A pair, and the ranking B > C = D > A."""
PRESETS = ("dpo", "dpo-mean", "cdpo", "ipo")


def arguments_of(batch: RaggedBatch, pairs: Pairs) -> dict[str, Any]:
    lengths = batch.lengths
    return {
        "completion_index": index_of(lengths),
        "completion_lengths": torch.tensor(lengths),
        "num_completions": len(lengths),
        "num_tokens": sum(lengths),
        "ref_logprobs": flat(batch.ref),
        "pairs": pairs,
    }


def loss_of(batch: RaggedBatch, row: Algorithm, pairs: Pairs) -> tuple[LossTerms, Tensor]:
    policy = flat(batch.policy).requires_grad_(True)
    terms = policy_loss(policy, algorithm=row, **arguments_of(batch, pairs))
    (gradient,) = torch.autograd.grad(terms.loss, policy)
    return terms, gradient


def log_ratio(batch: RaggedBatch, i: int, row: Algorithm) -> float:
    terms = [p - r for p, r in zip(batch.policy[i], batch.ref[i], strict=True)]
    return sum(terms) / (len(terms) if row.aggregation == "completion_mean" else 1)


def printed(batch: RaggedBatch, row: Algorithm, groups: list[tuple[int, ...]], *, half: bool) -> float:
    """The printed equations, prompt by prompt and pair by pair: DPO eq. 7 with smoothed labels, IPO eq. 17."""
    total, first = 0.0, 0
    for ranks in groups:
        losses = []
        for i, j in itertools.combinations(range(len(ranks)), 2):
            if ranks[i] == ranks[j] and not half:
                continue
            high, low = (i, j) if ranks[i] <= ranks[j] else (j, i)
            h = log_ratio(batch, first + high, row) - log_ratio(batch, first + low, row)
            right = 0.5 if ranks[i] == ranks[j] else 1 - row.label_smoothing
            beta = row.kl_coef
            if row.surrogate == "logistic":
                both = [-math.log(1 / (1 + math.exp(-sign * beta * h))) for sign in (1, -1)]
            else:
                both = [(sign * h - 1 / (2 * beta)) ** 2 for sign in (1, -1)]
            losses.append(right * both[0] + (1 - right) * both[1])
        total += sum(losses) / len(losses) / len(groups)
        first += len(ranks)
    return total


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_the_loss_is_the_printed_one_and_its_gradient_that_of_finite_differences(name: str, half: bool) -> None:
    row, batch = algorithm(name), random_batch(LENGTHS, seed=3)
    terms, gradient = loss_of(batch, row, ranked_pairs(RANKS, ties="half" if half else "drop"))
    assert terms.loss.item() == pytest.approx(printed(batch, row, RANKS, half=half), rel=1e-12)
    slopes, step = [], 1e-5
    for i, tokens in enumerate(batch.policy):
        for t in range(len(tokens)):
            ends = []
            for shift in (step, -step):
                moved = [list(other) for other in batch.policy]
                moved[i][t] += shift
                ends.append(printed(replace(batch, policy=moved), row, RANKS, half=half))
            slopes.append((ends[0] - ends[1]) / (2 * step))
    torch.testing.assert_close(gradient, torch.tensor(slopes, dtype=torch.float64), rtol=1e-6, atol=1e-8)


def test_numbers_worked_by_hand() -> None:
    d, sure = torch.tensor([1.7, -1.7, 0.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    # log(1 + exp(-1.7)) = 0.16779, and 1.7 more for the wrong order.
    logistic = pair_losses(d, sure, PairObjective(kind="logistic", beta=1.0))
    assert logistic.tolist() == pytest.approx([0.16779, 1.86779, math.log(2)], abs=1e-5)
    # (1.7 - 2)^2, (-1.7 - 2)^2, 2^2 with beta 1/4.
    squared = pair_losses(d, sure, PairObjective(kind="squared", beta=0.25))
    assert squared.tolist() == pytest.approx([0.09, 13.69, 4.0])
    # 0.9 * 0.16779 + 0.1 * 1.86779
    smoothed = pair_losses(d[:1], sure[:1], PairObjective(kind="logistic", beta=1.0, label_smoothing=0.1))
    assert smoothed.item() == pytest.approx(0.33779, abs=1e-5)


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("name", PRESETS)
def test_at_the_reference_the_loss_is_log_2_or_one_over_4_beta_squared(name: str, beta: float) -> None:
    batch = random_batch(LENGTHS)
    batch = replace(batch, ref=batch.policy)
    terms, _ = loss_of(batch, algorithm(name, kl_coef=beta), ranked_pairs(RANKS, ties="half"))
    assert terms.loss.item() == pytest.approx(1 / (4 * beta**2) if name == "ipo" else math.log(2), rel=1e-12)


def test_the_coefficient_of_a_token_is_the_closed_form() -> None:
    """weight * beta * sigmoid(-beta h), plus on the better and minus on the worse completion; over |o| for means."""
    batch = random_batch((2, 5), seed=1)
    for name in ("dpo", "dpo-mean"):
        row = algorithm(name)
        h = log_ratio(batch, 1, row) - log_ratio(batch, 0, row)
        size = row.kl_coef / (1 + math.exp(row.kl_coef * h))
        over = (2, 5) if name == "dpo-mean" else (1, 1)
        terms, gradient = loss_of(batch, row, ranked_pairs([(1, 0)], ties="drop"))
        expected = [-size / over[0]] * 2 + [size / over[1]] * 5
        assert terms.coefficients.tolist() == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(terms.coefficients, -gradient, rtol=0.0, atol=0.0)
    terms, _ = loss_of(batch, algorithm("ipo"), ranked_pairs([(1, 0)], ties="drop"))
    slope = 2 * (log_ratio(batch, 1, algorithm("ipo")) - log_ratio(batch, 0, algorithm("ipo")) - 5.0)
    assert terms.coefficients.tolist() == pytest.approx([slope] * 2 + [-slope] * 5, rel=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_the_unified_gradient_is_that_of_the_native_loss_on_separate_rows(name: str) -> None:
    """Sum of coefficient * grad log pi through a model equals autograd of the native loss."""
    row, generator = algorithm(name), torch.Generator().manual_seed(0)
    table = torch.randn(6, 4, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(6, 4, 7, generator=generator, dtype=torch.float64), -1)
    actions = [torch.randint(7, (n,), generator=generator) for n in (2, 4, 1, 3, 4, 2)]

    def logprobs(logits: Tensor) -> list[Tensor]:
        """Row by row, as a model with a row for each completion would have them."""
        return [torch.log_softmax(own, -1)[range(len(a)), a] for own, a in zip(logits, actions, strict=True)]

    now, ref = logprobs(table), logprobs(reference)
    native, wins = torch.zeros((), dtype=torch.float64), [(0, 1), (3, 2), (4, 5)]
    for high, low in wins:
        per_token = row.aggregation == "completion_mean"
        ratios = [(now[i] - ref[i]).mean() if per_token else (now[i] - ref[i]).sum() for i in (high, low)]
        h, beta = ratios[0] - ratios[1], row.kl_coef
        if row.surrogate == "squared":
            native = native + (h - 1 / (2 * beta)) ** 2 / 3
        else:
            right, wrong = torch.nn.functional.logsigmoid(beta * h), torch.nn.functional.logsigmoid(-beta * h)
            native = native - ((1 - row.label_smoothing) * right + row.label_smoothing * wrong) / 3
    (expected,) = torch.autograd.grad(native, table, retain_graph=True)

    lengths = [len(a) for a in actions]
    terms = policy_loss(
        torch.cat(now).detach(),
        algorithm=row,
        completion_index=index_of(lengths),
        completion_lengths=torch.tensor(lengths),
        num_completions=6,
        num_tokens=sum(lengths),
        ref_logprobs=torch.cat(ref),
        pairs=ranked_pairs([(0, 1), (1, 0), (0, 1)], ties="drop"),
    )
    (found,) = torch.autograd.grad(-(terms.coefficients * torch.cat(now)).sum(), table)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_ipo_of_two_actions_ends_where_it_must(beta: float) -> None:
    """pi(better) = sigmoid(1 / (2 beta)), from a uniform reference, by gradient descent."""
    logits, row = torch.zeros(2, dtype=torch.float64, requires_grad=True), algorithm("ipo", kl_coef=beta)
    for _ in range(400):
        terms = policy_loss(
            torch.log_softmax(logits, 0),
            algorithm=row,
            completion_index=torch.tensor([0, 1]),
            completion_lengths=torch.tensor([1, 1]),
            num_completions=2,
            num_tokens=2,
            ref_logprobs=torch.full((2,), -math.log(2), dtype=torch.float64),
            pairs=ranked_pairs([(0, 1)], ties="drop"),
        )
        (gradient,) = torch.autograd.grad(terms.loss, logits)
        with torch.no_grad():
            logits -= 0.1 * gradient
    assert torch.softmax(logits, 0)[0].item() == pytest.approx(1 / (1 + math.exp(-1 / (2 * beta))), abs=1e-10)


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_cdpo_is_at_rest_where_the_preference_has_the_chance_it_is_given(epsilon: float) -> None:
    beta, objective = 0.5, PairObjective(kind="logistic", beta=0.5, label_smoothing=epsilon)
    rest = math.log((1 - epsilon) / epsilon) / beta
    slopes = []
    for h in (rest - 0.1, rest, rest + 0.1):
        d = torch.tensor([h], dtype=torch.float64, requires_grad=True)
        pair_losses(d, torch.ones(1, dtype=torch.float64), objective).sum().backward()  # type: ignore[no-untyped-call]
        assert d.grad is not None
        slopes.append(d.grad.item())
    assert slopes[0] < 0 < slopes[2] and slopes[1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", ["logistic", "squared"])
def test_a_tie_pulls_its_two_completions_together(kind: Any) -> None:
    d = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    losses = pair_losses(d, torch.full_like(d, 0.5), PairObjective(kind=kind, beta=0.7))
    (slope,) = torch.autograd.grad(losses.sum(), d)
    assert slope[0] < 0 and slope[1] == 0 and slope[2] > 0
    assert losses[0] == losses[2]


def test_a_ranking_of_four_with_a_tie_has_six_pairs_of_which_five_are_strict() -> None:
    d_over_g_over_a_like_b = (2, 2, 0, 1)  # of A, B, D, G
    both, strict = (ranked_pairs([d_over_g_over_a_like_b], ties=ties) for ties in ("half", "drop"))  # type: ignore[arg-type]
    assert (both.labels == 1).sum() == strict.labels.numel() == 5 and both.labels.numel() == 6
    assert both.weights.tolist() == pytest.approx([1 / 6] * 6)
    assert strict.weights.tolist() == pytest.approx([1 / 5] * 5)
    found = set(zip(strict.better.tolist(), strict.worse.tolist(), strict=True))
    assert found == {(2, 3), (2, 0), (2, 1), (3, 0), (3, 1)}


def test_a_group_counts_once_however_many_pairs_it_has() -> None:
    pairs = ranked_pairs([(0, 1), (0, 1, 2, 3)], ties="drop")
    assert pairs.weights.tolist() == pytest.approx([1 / 2] + [1 / 12] * 6)
    assert min(pairs.better.tolist()[1:] + pairs.worse.tolist()[1:]) == 2


def test_a_group_that_is_all_ties_has_nothing_to_say_when_ties_are_dropped() -> None:
    assert ranked_pairs([(1, 1)], ties="half").labels.tolist() == [0.5]
    with pytest.raises(ValueError, match=r"group 1 with ranks \[1, 1\] has no pair"):
        ranked_pairs([(0, 1), (1, 1)], ties="drop")


@pytest.mark.parametrize("name", PRESETS)
def test_any_split_between_groups_and_any_order_gives_the_same_loss_and_gradient(name: str) -> None:
    row, batch, pairs = algorithm(name), random_batch(LENGTHS, seed=5), ranked_pairs(RANKS, ties="half")
    whole, gradient = loss_of(batch, row, pairs)
    policy, arguments = flat(batch.policy).requires_grad_(True), arguments_of(batch, pairs)
    order = list(range(sum(LENGTHS)))
    random.Random(0).shuffle(order)
    reports = []
    for members in ((0, 1), (2, 3, 4, 5)):
        kept = torch.tensor([t for t in order if int(arguments["completion_index"][t]) in members])
        part = {name: arguments[name][kept] for name in ("completion_index", "ref_logprobs")}
        terms = policy_loss(policy[kept], algorithm=row, **{**arguments, **part})
        terms.loss.backward()  # type: ignore[no-untyped-call]
        reports.append(terms)
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad, gradient, rtol=1e-12, atol=1e-14)
    split, together = add_loss_terms(reports), add_loss_terms([whole])
    assert split.keys() == together.keys()
    for metric, (total, count) in together.items():
        assert split[metric] == (pytest.approx(total, abs=1e-12), count), metric


def test_a_pair_that_is_cut_is_refused() -> None:
    batch, pairs = random_batch((2, 3)), ranked_pairs([(0, 1)], ties="drop")
    arguments = arguments_of(batch, pairs)
    for kept, message in ((slice(0, 2), "0 and 1 are a pair"), (slice(0, 3), "completion 1 has 3 tokens but 1")):
        part = {name: arguments[name][kept] for name in ("completion_index", "ref_logprobs")}
        with pytest.raises(ValueError, match=message):
            policy_loss(flat(batch.policy)[kept], algorithm=algorithm("dpo"), **{**arguments, **part})


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(PRESETS, 2)))
def test_every_two_presets_of_preferences_differ(first: str, second: str) -> None:
    batch, pairs = random_batch(LENGTHS, seed=7), ranked_pairs(RANKS, ties="drop")
    (terms, gradient), (other_terms, other) = (loss_of(batch, algorithm(name), pairs) for name in (first, second))
    assert abs(terms.loss.item() - other_terms.loss.item()) > 1e-4
    assert (gradient - other).norm() > 1e-3 * gradient.norm()


def test_means_and_sums_are_the_same_for_completions_of_one_token_and_only_for_those() -> None:
    for lengths, equal in (((1, 1), True), ((1, 2), False)):
        batch, pairs = random_batch(lengths, seed=4), ranked_pairs([(0, 1)], ties="drop")
        rows = [algorithm("dpo", aggregation=kind) for kind in ("completion_sum", "completion_mean")]
        (_, by_sum), (_, by_mean) = (loss_of(batch, row, pairs) for row in rows)
        assert torch.allclose(by_sum, by_mean, rtol=1e-12, atol=0.0) == equal


def test_metrics_worked_by_hand() -> None:
    batch = RaggedBatch(
        policy=[[-1.0, -1.0], [-3.0], [-2.0]],
        ref=[[-2.0, -2.0], [-2.0], [-4.0]],
        anchor=[],
        sampler=[],
        advantages=[],
    )
    terms, _ = loss_of(batch, algorithm("dpo", kl_coef=0.5), ranked_pairs([(0, 1, 0)], ties="half"))
    found = add_loss_terms([terms])
    # Log-ratios 2, -1, 2: both strict pairs are right, each with a margin of 0.5 * 3; the tie is in no metric.
    assert found["preference_accuracy"] == (2.0, 2.0)
    assert found["margin"] == (pytest.approx(3.0), 2.0)
    assert found["chosen_reward"] == (pytest.approx(2.0), 2.0)
    assert found["rejected_reward"] == (pytest.approx(-1.0), 2.0)
    assert found["chosen_logprob"] == (pytest.approx(-4.0), 2.0)
    assert found["rejected_logprob"] == (pytest.approx(-6.0), 2.0)
    assert "ref_kl" not in found and found["nll"] == (pytest.approx(7.0), 4.0)
    x = [1.0, 1.0, -1.0, 2.0]
    assert found["forward_kl"][0] == pytest.approx(sum(math.exp(v) - 1 - v for v in x))


@pytest.mark.parametrize(
    ("name", "cells", "message"),
    [
        ("dpo", {"kl_coef": 0.0}, "kl_coef=0.0: it is the beta"),
        ("dpo", {"surrogate": "clipped"}, "surrogate='clipped' has no meaning .*'logistic' or 'squared'"),
        ("dpo", {"baseline": "group_mean"}, "baseline='group_mean' has no meaning"),
        ("dpo", {"aggregation": "token_mean"}, "use 'completion_sum' or 'completion_mean'"),
        ("dpo", {"mismatch_cap": 2.0}, "mismatch_cap=2.0 has no meaning"),
        ("dpo", {"label_smoothing": 0.5}, "label_smoothing=0.5: must be below 0.5"),
        ("dpo", {"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ("grpo", {"surrogate": "logistic"}, "surrogate='logistic' is about pairs, but source='policy'"),
        ("sft", {"label_smoothing": 0.1}, "label_smoothing=0.1 is about pairs, but source='demonstrations'"),
    ],
)
def test_cells_that_mean_nothing_are_refused(name: str, cells: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm(name, **cells)


def test_what_is_missing_is_named() -> None:
    batch = random_batch((2, 3))
    arguments = arguments_of(batch, ranked_pairs([(0, 1)], ties="drop"))
    for missing in ("pairs", "ref_logprobs"):
        with pytest.raises(ValueError, match=f"'dpo' .* needs {missing}"):
            policy_loss(flat(batch.policy), algorithm=algorithm("dpo"), **{**arguments, missing: None})
