"""pass@k, maj@k and intervals against enumeration of everything that can happen."""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.untimed import UNTIMED

from outscore.objectives.estimators import bootstrap_interval, maj_at_k, pass_at_k, wilson_interval


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("chance", [0.1, 0.5, 0.83])
def test_pass_at_k_is_unbiased_over_all_outcomes_of_five_samples(k: int, chance: float) -> None:
    expected = sum(
        math.prod(chance if right else 1 - chance for right in outcome)
        * pass_at_k(num_samples=5, num_correct=sum(outcome), k=k)
        for outcome in itertools.product([0, 1], repeat=5)
    )
    assert expected == pytest.approx(1 - (1 - chance) ** k, abs=1e-12)


@pytest.mark.parametrize("num_correct", range(7))
@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(num_correct: int, k: int) -> None:
    samples = [index < num_correct for index in range(6)]
    subsets = list(itertools.combinations(samples, k))
    share = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(num_samples=6, num_correct=num_correct, k=k) == pytest.approx(share, abs=1e-12)


def _plurality(votes: Sequence[Hashable | None], right: frozenset[Hashable]) -> float:
    """The share of correct ones among the most frequent answers that are not None."""
    counts = Counter(vote for vote in votes if vote is not None)
    tied = [answer for answer, count in counts.items() if count == max(counts.values())]
    return sum(answer in right for answer in tied) / len(tied) if tied else 0.0


@UNTIMED
@given(
    answers=st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=8),
    right=st.frozensets(st.sampled_from(["a", "b", "c"]), max_size=2),
    data=st.data(),
)
def test_maj_at_k_is_the_average_over_all_subsets(
    answers: list[str | None], right: frozenset[str], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(answers)))
    subsets = list(itertools.combinations(answers, k))
    expected = sum(_plurality(subset, right) for subset in subsets) / len(subsets)
    assert maj_at_k(answers, [answer in right for answer in answers], k=k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 4])
def test_maj_at_k_of_five_samples_is_unbiased_for_the_majority_of_k_fresh_ones(k: int) -> None:
    chances = {"7": 0.45, "8": 0.35, None: 0.2}

    def average(num_samples: int, value: object) -> float:
        return sum(
            math.prod(chances[answer] for answer in outcome) * value(outcome)  # type: ignore[operator]
            for outcome in itertools.product(chances, repeat=num_samples)
        )

    estimated = average(5, lambda outcome: maj_at_k(outcome, [answer == "7" for answer in outcome], k=k))
    assert estimated == pytest.approx(average(k, lambda outcome: _plurality(outcome, frozenset({"7"}))), abs=1e-12)


def test_sharpening_towards_a_correct_mode_raises_the_majority_and_lowers_pass_at_k() -> None:
    """Correct mode 0.4 sharpened by squaring; a rarer correct answer's pass@k falls with its share."""
    flat = {"right": 0.4, "wrong": 0.35, "other": 0.25}
    total = sum(chance**2 for chance in flat.values())
    sharp = {answer: chance**2 / total for answer, chance in flat.items()}

    def majority(chances: dict[str, float]) -> float:
        return sum(
            math.prod(chances[answer] for answer in outcome)
            * maj_at_k(outcome, [answer == "right" for answer in outcome], k=7)
            for outcome in itertools.product(chances, repeat=7)
        )

    def pass_rate(chances: dict[str, float], correct: str) -> float:
        return sum(
            math.comb(7, hits)
            * chances[correct] ** hits
            * (1 - chances[correct]) ** (7 - hits)
            * pass_at_k(num_samples=7, num_correct=hits, k=4)
            for hits in range(8)
        )

    assert majority(sharp) > majority(flat)
    assert pass_rate(sharp, "other") < pass_rate(flat, "other")


@pytest.mark.parametrize(("num_successes", "num_trials"), [(0, 7), (1, 7), (8, 10), (50, 200), (200, 200)])
def test_wilson_ends_are_where_the_score_test_just_rejects(num_successes: int, num_trials: int) -> None:
    """|share - p| = z sqrt(p (1 - p) / n) at each end that is not at 0 or 1."""
    z = 1.959963984540054
    estimate = wilson_interval(num_successes, num_trials)
    for end in (estimate.low, estimate.high):
        if 0.0 < end < 1.0:
            deviation = abs(num_successes / num_trials - end)
            assert deviation == pytest.approx(z * math.sqrt(end * (1 - end) / num_trials), abs=1e-12)


def test_wilson_covers_about_as_often_as_it_says() -> None:
    num_trials, hits = 40, []
    intervals = [wilson_interval(count, num_trials) for count in range(num_trials + 1)]
    for chance in [step / 50 for step in range(1, 50)]:
        hits.append(
            sum(
                math.comb(num_trials, count) * chance**count * (1 - chance) ** (num_trials - count)
                for count in range(num_trials + 1)
                if intervals[count].low <= chance <= intervals[count].high
            )
        )
    assert sum(hits) / len(hits) == pytest.approx(0.95, abs=0.01)


def test_bootstrap_percentiles_against_all_resamples_of_four_values() -> None:
    values = [0.0, 0.1, 0.4, 1.0]
    means = sorted(sum(resample) / 4 for resample in itertools.product(values, repeat=4))
    estimate = bootstrap_interval(values, confidence=0.8, num_resamples=200_000)
    assert estimate.low == pytest.approx(means[round(0.1 * len(means))], abs=0.026)
    assert estimate.high == pytest.approx(means[round(0.9 * len(means))], abs=0.026)
