"""Token weights by hand: completions of 2 and 8 tokens."""

from functools import partial

import pytest
import torch
from oracles.ragged import index_of

from outscore.objectives.aggregation import token_weights

LENGTHS = torch.tensor([2, 8])
INDEX = index_of([2, 8])


@pytest.mark.parametrize(
    ("aggregation", "short", "long"),
    [
        ("completion_mean", 1 / 4, 1 / 16),  # the long answer's tokens count 4 times less
        ("token_mean", 1 / 10, 1 / 10),
        ("constant", 1 / 32, 1 / 32),
    ],
)
def test_weights_of_a_short_and_a_long_completion(aggregation: str, short: float, long: float) -> None:
    weights = token_weights(
        INDEX,
        LENGTHS,
        aggregation=aggregation,  # type: ignore[arg-type]
        num_completions=2,
        num_tokens=10,
        constant=16,
        dtype=torch.float64,
    )
    assert weights.tolist() == [short] * 2 + [long] * 8


def test_each_prompt_counts_the_same_whatever_its_group_writes() -> None:
    # Groups (2, 8) and (5): a token of the first counts 1 / (2 * 10), one of the second 1 / (2 * 5). Of the third
    # completion two tokens are in this micro-batch, and of a third group, which is not here, none is.
    index = torch.tensor([0, 0, 1, 2, 2])
    weigh = partial(token_weights, aggregation="prompt_mean", num_completions=4, num_tokens=22, dtype=torch.float64)
    groups = torch.tensor([0, 0, 1, 2])
    weights = weigh(index, torch.tensor([2, 8, 5, 7]), completion_group=groups, num_groups=2)
    assert weights.tolist() == pytest.approx([1 / 20] * 3 + [1 / 10] * 2, abs=1e-15)
    with pytest.raises(ValueError, match="'prompt_mean' needs completion_group and num_groups"):
        weigh(index, torch.tensor([2, 8, 5, 7]))


def test_all_aggregations_are_proportional_when_lengths_are_equal() -> None:
    index = index_of([3, 3, 3])
    weights = [
        token_weights(
            index,
            torch.tensor([3, 3, 3]),
            aggregation=aggregation,
            num_completions=3,
            num_tokens=9,
            constant=5,
            dtype=torch.float64,
        )
        for aggregation in ("completion_mean", "token_mean", "constant")
    ]
    assert torch.allclose(weights[0], weights[1], rtol=1e-15, atol=0.0)
    assert torch.allclose(weights[0] * 3 / 5, weights[2], rtol=1e-15, atol=0.0)


def test_denominators_are_those_handed_in_not_those_of_the_micro_batch() -> None:
    weights = token_weights(
        torch.tensor([1]), LENGTHS, aggregation="completion_mean", num_completions=100, num_tokens=900
    )
    assert weights.tolist() == pytest.approx([1 / 800], rel=1e-6)


def test_impossible_denominators_are_refused() -> None:
    with pytest.raises(ValueError, match="num_completions=0"):
        token_weights(INDEX, LENGTHS, aggregation="token_mean", num_completions=0, num_tokens=10)
    for constant in (None, 0):
        with pytest.raises(ValueError, match="aggregation_constant"):
            token_weights(INDEX, LENGTHS, aggregation="constant", num_completions=2, num_tokens=10, constant=constant)
