"""Estimators by hand; unbiasedness is in oracles/test_objective_estimators_enumerated.py."""

import pytest

from outscore.objectives.estimators import bootstrap_interval, maj_at_k, mean_interval, pass_at_k, wilson_interval


@pytest.mark.parametrize(
    ("num_samples", "num_correct", "k", "expected"),
    [
        (10, 3, 1, 0.3),
        (4, 2, 2, 1 - 1 / 6),
        (8, 0, 8, 0.0),
        (8, 1, 8, 1.0),
        (8, 8, 1, 1.0),
        (5, 1, 2, 0.4),
        (200, 1, 100, 0.5),
    ],
)
def test_pass_at_k(num_samples: int, num_correct: int, k: int, expected: float) -> None:
    assert pass_at_k(num_samples=num_samples, num_correct=num_correct, k=k) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("arguments", [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses_impossible_counts(arguments: tuple[int, int, int]) -> None:
    num_samples, num_correct, k = arguments
    with pytest.raises(ValueError):
        pass_at_k(num_samples=num_samples, num_correct=num_correct, k=k)


def test_majority_of_all_answers() -> None:
    assert maj_at_k(["7", "7", "8"], [True, True, False], k=3) == 1.0
    assert maj_at_k(["7", "8", "8"], [True, False, False], k=3) == 0.0
    assert maj_at_k(["7", "8"], [True, False], k=2) == 0.5  # a tie counts its share
    assert maj_at_k(["7", "8", "9"], [True, False, False], k=3) == pytest.approx(1 / 3)
    assert maj_at_k(["7", "7.0", "8"], [True, True, False], k=3) == pytest.approx(2 / 3)  # rivals, both right


def test_silence_casts_no_vote() -> None:
    assert maj_at_k([None, None, None, "7"], [False, False, False, True], k=4) == 1.0
    assert maj_at_k([None, None], [False, False], k=2) == 0.0
    assert maj_at_k([None, None, "7"], [False, False, True], k=1) == pytest.approx(1 / 3)


def test_majority_of_one_is_the_accuracy() -> None:
    assert maj_at_k(["7", "8", "7", None], [True, False, True, False], k=1) == 0.5


def test_a_long_list_of_different_answers_is_feasible() -> None:
    answers = [str(n // 2) for n in range(64)]
    assert maj_at_k(answers, [answer == "0" for answer in answers], k=32) == pytest.approx(1 / 32)


@pytest.mark.parametrize(
    ("answers", "correct", "k", "message"),
    [
        (["7"], [True], 2, "k=2"),
        (["7"], [True, False], 1, "flags"),
        (["7", "7"], [True, False], 1, "correct at one place"),
        ([None], [True], 1, "None"),
    ],
)
def test_majority_refuses_what_makes_no_sense(
    answers: list[str | None], correct: list[bool], k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        maj_at_k(answers, correct, k=k)


def test_wilson_interval_by_published_numbers_and_at_the_ends() -> None:
    eight_of_ten = wilson_interval(8, 10)
    assert (eight_of_ten.value, eight_of_ten.low, eight_of_ten.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    none, every = wilson_interval(0, 20), wilson_interval(20, 20)
    assert none.low == 0.0 and none.high == pytest.approx(0.1611, abs=1e-4)
    assert every.high == 1.0 and every.low == pytest.approx(1 - 0.1611, abs=1e-4)
    for arguments in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError):
            wilson_interval(*arguments)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence=95)


def test_mean_interval_by_hand() -> None:
    # z² = 3.841459: 7.841459 problems, the centre (2 + 1.920729) / 7.841459 = 0.5,
    # squares 0.5 + 3.841459 * 0.25 = 1.460365, half width 1.959964 * sqrt(1.460365) / 7.841459 = 0.302052.
    estimate = mean_interval([0.0, 0.5, 0.5, 1.0])
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.5, 0.197948, 0.802052), abs=1e-5)
    # Agresti and Coull's interval of 0 in 10, as R's binom.agresti.coull has it: -0.0434 to 0.3209.
    none = mean_interval([0.0] * 10)
    assert (none.low, none.high) == (0.0, pytest.approx(0.3209, abs=1e-4))
    with pytest.raises(ValueError, match="at least one problem"):
        mean_interval([])


@pytest.mark.parametrize("num_right", range(21))
def test_mean_interval_of_yes_or_no_holds_wilsons(num_right: int) -> None:
    mean, wilson = mean_interval([1.0] * num_right + [0.0] * (20 - num_right)), wilson_interval(num_right, 20)
    assert mean.value == wilson.value
    assert mean.low <= wilson.low + 1e-12 and wilson.high <= mean.high + 1e-12
    assert mean.high - mean.low < 1.25 * (wilson.high - wilson.low)


@pytest.mark.parametrize("value", [0.0, 0.01, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 20, 200])
def test_mean_interval_keeps_a_width_where_all_values_are_equal(value: float, count: int) -> None:
    found = mean_interval([value] * count)
    assert found.low <= found.value <= found.high
    # No narrower than what the rule of three says of a share that was never seen to be missed.
    assert found.high - found.low >= min(3.0 / count, 0.6)


def test_bootstrap_interval_repeats_itself_and_agrees_with_the_normal_one() -> None:
    values = [0.0, 0.25, 0.5, 1.0, 1.0, 0.75, 0.0, 0.5] * 25
    first, normal = bootstrap_interval(values), mean_interval(values)
    assert first == bootstrap_interval(values)
    assert first.value == normal.value == 0.5
    assert (first.low, first.high) == pytest.approx((normal.low, normal.high), abs=5e-3)
    constant = bootstrap_interval([0.5, 0.5, 0.5])
    assert (constant.low, constant.high) == (0.5, 0.5)
    with pytest.raises(ValueError, match="num_resamples"):
        bootstrap_interval(values, num_resamples=1)
