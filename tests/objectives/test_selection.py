"""Choosing among samples: hand-worked cases, enumeration of draws, and the identities between the choices."""

import itertools
from statistics import fmean

import pytest

from outscore.objectives.estimators import maj_at_k
from outscore.objectives.selection import best_is_right, mean_over_blocks, vote_is_right

ANSWERS = ["4", "5", "4", None, "6", "5"]
RIGHT = [False, True, False, False, False, True]


def test_the_best_of_n_is_the_one_of_the_highest_score() -> None:
    assert best_is_right([0.1, 0.9, 0.3], [True, False, True]) == 0.0
    assert best_is_right([0.9, 0.9, 0.3], [True, False, True]) == 0.5
    assert best_is_right([-5.0], [True]) == 1.0


def test_votes_add_up_by_answer() -> None:
    assert vote_is_right(ANSWERS, RIGHT) == 0.5  # 4 and 5 have two votes each
    assert vote_is_right(ANSWERS, RIGHT, [0.9, 0.2, 0.1, 5.0, 0.95, 0.3]) == 0.0  # 4: 1.0, 5: 0.5, 6: 0.95
    assert vote_is_right(ANSWERS, RIGHT, [0.1, 0.6, 0.1, 5.0, 0.95, 0.5]) == 1.0  # 4: 0.2, 5: 1.1, 6: 0.95
    assert vote_is_right([None, None], [False, False]) == 0.0


def test_equal_weights_are_the_majority() -> None:
    for answers in itertools.product(["a", "b", None], repeat=4):
        right = [answer == "a" for answer in answers]
        majority = maj_at_k(answers, right, k=4)
        assert vote_is_right(answers, right) == vote_is_right(answers, right, [0.3] * 4) == majority


def test_one_sample_is_what_it_is_by_every_choice() -> None:
    for right in (True, False):
        assert best_is_right([0.4], [right]) == vote_is_right(["x"], [right], [0.4]) == float(right)


def test_blocks_are_disjoint_and_in_order() -> None:
    seen = []
    assert mean_over_blocks(7, 3, lambda block: float(seen.append(list(block)) or 1.0)) == 1.0
    assert seen == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="size=8: must be between 1 and num_samples=7"):
        mean_over_blocks(7, 8, lambda block: 0.0)


def test_the_mean_over_blocks_is_unbiased_for_fresh_samples() -> None:
    """All 3^4 draws of four samples from three (score, answer, chance) kinds, in blocks of two, against all pairs."""
    kinds = {(0.2, "a", True): 0.5, (0.8, "b", False): 0.3, (0.9, "a", True): 0.2}

    def best(samples) -> float:
        return best_is_right([s for s, _, _ in samples], [r for _, _, r in samples])

    def chance(samples) -> float:
        result = 1.0
        for each in samples:
            result *= kinds[each]
        return result

    expected = sum(chance(two) * best(two) for two in itertools.product(kinds, repeat=2))
    found = sum(
        chance(four) * mean_over_blocks(4, 2, lambda block, four=four: best([four[i] for i in block]))
        for four in itertools.product(kinds, repeat=4)
    )
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("weights", [[-0.1, 1.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_log_odds_are_no_weights(weights) -> None:
    with pytest.raises(ValueError, match="must be a finite number of at least 0"):
        vote_is_right(["a", "b"], [True, False], weights)


def test_lists_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values for 1 samples"):
        best_is_right([1.0, 2.0], [True])
    with pytest.raises(ValueError, match="0 values for 0"):
        vote_is_right([], [])


def test_more_samples_help_where_right_answers_are_likelier_than_any_wrong_one() -> None:
    """Self-consistency by enumeration: chance of right .4, of two wrong answers .3 each."""
    kinds = {("r", True): 0.4, ("x", False): 0.3, ("y", False): 0.3}
    accuracy = []
    for size in (1, 3, 5):
        total = 0.0
        for drawn in itertools.product(kinds, repeat=size):
            weight = 1.0
            for each in drawn:
                weight *= kinds[each]
            total += weight * vote_is_right([a for a, _ in drawn], [r for _, r in drawn])
        accuracy.append(total)
    assert accuracy == sorted(accuracy) and accuracy[0] == pytest.approx(0.4) and accuracy[2] > 0.43
    assert fmean(accuracy) > 0.4
