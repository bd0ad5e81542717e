"""Choosing tokens: filters against plain Python, cells of the inverse CDF against exact sums, corners of rounding."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from outscore.records import SamplingParams
from outscore.rollout.sampling import check_params, choose

HIGHEST = 1 - 2**-53


def params(**kwargs) -> SamplingParams:
    return SamplingParams(max_new_tokens=1, **kwargs)


def choose_each(logits: torch.Tensor, draws: torch.Tensor, wanted: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """One draw from each row."""
    return choose(logits, draws, torch.arange(len(logits)), wanted)


def naive_distribution(logits: list[float], wanted: SamplingParams) -> list[float]:
    """Temperature, top-k, top-p, min-p, renormalise: one token at a time, in double precision."""
    tempered = [logit / wanted.temperature for logit in logits]
    peak = max(tempered)
    weights = [math.exp(logit - peak) for logit in tempered]
    if wanted.top_k:
        kth = sorted(weights, reverse=True)[min(wanted.top_k, len(weights)) - 1]
        weights = [weight if weight >= kth else 0.0 for weight in weights]
    if wanted.top_p < 1:
        reached, least = 0.0, 0.0
        for weight in sorted(weights, reverse=True):
            reached, least = reached + weight, weight
            if reached >= wanted.top_p * math.fsum(weights):
                break
        weights = [weight if weight >= least else 0.0 for weight in weights]
    weights = [weight if weight >= wanted.min_p * max(weights) else 0.0 for weight in weights]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


FILTERS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.9},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 0.01},
    {"top_p": 0.999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 0.6, "top_k": 3, "top_p": 0.95, "min_p": 0.3},
]


@pytest.mark.parametrize("vocab", [7, 256, 300, 1000])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_and_log_probs_equal_plain_python(vocab, filters):
    wanted = params(**filters)
    rows, num_draws = 3, 40
    logits = torch.randn(rows, vocab) * 3
    draws = torch.rand(rows * num_draws, dtype=torch.float64)
    ids, logprobs = choose(logits, draws, torch.arange(rows).repeat_interleave(num_draws), wanted)
    for row in range(rows):
        distribution = naive_distribution(logits[row].tolist(), wanted)
        ends = np.cumsum(distribution)
        for place in range(row * num_draws, (row + 1) * num_draws):
            token, draw = int(ids[place]), float(draws[place])
            assert logprobs[place] == pytest.approx(math.log(distribution[token]), abs=2e-6)
            # The draw lies in the token's own cell of the CDF, up to fp32 rounding of the weights.
            assert ends[token] - distribution[token] - 1e-6 <= draw <= ends[token] + 1e-6


def test_cells_have_the_exact_width_of_their_probability():
    """Weights that are powers of two leave no rounding: every boundary is exact, on either side."""
    weights = [Fraction(1, 2), Fraction(1, 8), Fraction(0), Fraction(1, 8), Fraction(1, 4)]
    logits = torch.tensor([[float(w) for w in weights]]).log()
    start = Fraction(0)
    for token, weight in enumerate(weights):
        if weight:
            inside = torch.tensor([float(start), float(start + weight) - 2**-53], dtype=torch.float64)
            ids, logprobs = choose_each(logits.expand(2, -1), inside, params())
            assert ids.tolist() == [token, token]
            assert logprobs.tolist() == pytest.approx([math.log(weight)] * 2, abs=1e-7)
        start += weight


@pytest.mark.parametrize("vocab", [1, 2, 255, 256, 257, 49_152])
def test_an_impossible_token_is_never_returned(vocab):
    """Only one token is possible, wherever it stands, for the lowest and the highest draw there is."""
    draws = torch.tensor([0.0, 0.5, HIGHEST], dtype=torch.float64)
    for place in {0, vocab // 2, vocab - 1}:
        logits = torch.full((3, vocab), -torch.inf)
        logits[:, place] = -3.0
        for wanted in (params(), params(temperature=0.3), params(top_k=5, top_p=0.9, min_p=0.1)):
            ids, logprobs = choose_each(logits, draws, wanted)
            assert ids.tolist() == [place] * 3
            assert logprobs.tolist() == [0.0] * 3


def test_the_highest_draw_finds_the_last_possible_token_under_rounding():
    logits = torch.randn(200, 5000)
    logits[:, 4000:] = -torch.inf
    logits[:, 3999] = -15.0  # possible, but lost in the rounding of the sums before it
    ids, logprobs = choose_each(logits, torch.full((200,), HIGHEST, dtype=torch.float64), params())
    assert (ids < 4000).all() and torch.isfinite(logprobs).all()


def test_frequencies_follow_the_softmax():
    """Chi-square at 19 degrees of freedom: mean 19, deviation 6.2."""
    logits, count = torch.randn(20), 40_000
    draws = torch.rand(count, dtype=torch.float64)
    ids, _ = choose_each(logits.expand(count, -1), draws, params(temperature=0.8))
    expected = (logits.double() / 0.8).softmax(-1) * count
    observed = torch.bincount(ids, minlength=20)
    assert float(((observed - expected) ** 2 / expected).sum()) < 19 + 5 * 6.2


def test_frequencies_follow_the_softmax_over_a_large_vocabulary():
    """Even draws hit every cell in proportion: block sums must not lose or shift mass. 49,152 ids in 192 blocks."""
    logits, count = torch.randn(49_152) * 2, 4096
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids, _ = choose_each(logits.expand(count, -1), draws, params())
    ends = logits.double().softmax(-1).cumsum(0)
    assert ids.tolist() == sorted(ids.tolist())
    assert (draws <= ends[ids] + 1e-6).all() and (draws >= ends[ids] - logits.double().softmax(-1)[ids] - 1e-6).all()


def test_greedy_takes_the_lowest_id_among_equals_with_log_prob_zero():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [-torch.inf, 0.0, -1.0, 0.0]])
    ids, logprobs = choose_each(logits, torch.full((3,), 0.99, dtype=torch.float64), params(temperature=0.0, top_p=0.5))
    assert ids.tolist() == [1, 0, 1]
    assert logprobs.tolist() == [0.0, 0.0, 0.0]


def test_equal_tokens_stay_or_go_together():
    """top_k=1 between two equals keeps both: renumbering the vocabulary cannot change the distribution."""
    logits = torch.tensor([[2.0, 0.0, 2.0]])
    for draw, token in ((0.25, 0), (0.75, 2)):
        ids, logprobs = choose_each(logits, torch.tensor([draw], dtype=torch.float64), params(top_k=1))
        assert ids.tolist() == [token]
        assert logprobs.tolist() == pytest.approx([math.log(0.5)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_give_nan_and_leave_other_rows_alone(bad, temperature):
    logits = torch.randn(2, 600)
    draws = torch.tensor([0.3, 0.3], dtype=torch.float64)
    expected, _ = choose_each(logits[1:], draws[1:], params(temperature=temperature))
    logits[0, 300] = bad
    ids, logprobs = choose_each(logits, draws, params(temperature=temperature))
    assert math.isnan(logprobs[0]) and not math.isnan(logprobs[1])
    assert ids[1] == expected[0] and 0 <= ids[0] < 600


def test_the_logits_are_left_as_they_were():
    logits = torch.randn(4, 300)
    before = logits.clone()
    choose_each(logits, torch.rand(4, dtype=torch.float64), params(temperature=0.5, top_k=10, top_p=0.9, min_p=0.01))
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.5}, "min_p"),
    ],
)
def test_impossible_parameters_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=f"^{message}: "):
        check_params(SamplingParams(**{"max_new_tokens": 4, **change}))
