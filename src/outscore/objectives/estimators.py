"""Numbers about an evaluation: pass@k, maj@k, and how sure one may be of a mean.

Per problem, from n sampled answers; averaging over problems is `mean_interval` or `bootstrap_interval`.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist, fmean

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A value with a confidence interval.

    >>> wilson_interval(8, 10)
    Estimate(value=0.8, low=0.4901624715..., high=0.9433178485...)
    """

    value: float
    """The point estimate."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


def pass_at_k(*, num_samples: int, num_correct: int, k: int) -> float:
    """The chance that k of the n samples, drawn without replacement, hold a correct one: 1 - C(n - c, k) / C(n, k).

    Unbiased for the chance that k fresh samples do (Chen et al., arXiv 2107.03374). Raises ValueError unless
    0 <= num_correct <= num_samples and 1 <= k <= num_samples.
    """
    _check_k(num_samples, k)
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct={num_correct}: must be between 0 and num_samples={num_samples}")
    return float(1 - Fraction(math.comb(num_samples - num_correct, k), math.comb(num_samples, k)))


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], *, k: int) -> float:
    """The chance that the most frequent answer among k of the n samples, drawn without replacement, is correct: exact.

    An answer that is None (nothing could be extracted) is drawn but casts no vote; when nobody votes, the majority is
    wrong. Ties are broken evenly at random: t tied answers of which s are correct count s / t. Answers are compared by
    ==, so bring them to one form first ("0.50" and "1/2" are rivals). Raises ValueError when k is not in 1..n, the
    lengths differ, an answer is correct at one place and wrong at another, or None is correct.
    """
    _check_k(len(answers), k)
    if len(answers) != len(correct):
        raise ValueError(f"{len(answers)} answers but {len(correct)} flags of correctness")
    verdict: dict[Hashable, bool] = {None: False}
    for answer, flag in zip(answers, correct, strict=True):
        if verdict.setdefault(answer, bool(flag)) != bool(flag):
            raise ValueError(f"answer {answer!r} is marked correct at one place and wrong at another")
    votes = Counter(answer for answer in answers if answer is not None)
    num_silent = len(answers) - votes.total()
    if k == len(answers):
        return _share_of_plurality(votes, verdict)
    right = [count for answer, count in votes.items() if verdict[answer]]
    wrong = [count for answer, count in votes.items() if not verdict[answer]]
    expected = sum(
        (
            Fraction(num_right, num_right + num_wrong) * ways
            for num_right, num_wrong, ways in _ties(right, wrong, num_silent, k)
        ),
        start=Fraction(0),
    )
    return float(expected / math.comb(len(answers), k))


def _share_of_plurality(votes: Counter[Hashable], verdict: dict[Hashable, bool]) -> float:
    """The share of correct ones among the most frequent answers of one sample."""
    if not votes:
        return 0.0
    top = max(votes.values())
    tied = [verdict[answer] for answer, count in votes.items() if count == top]
    return sum(tied) / len(tied)


def _ties(right: list[int], wrong: list[int], num_silent: int, k: int) -> Iterator[tuple[int, int, int]]:
    """(correct answers on top, wrong answers on top, how many subsets of size k look so), for each number of votes of
    the top.

    `right` and `wrong` hold how often each correct and each wrong answer was given. For a top of m votes the subsets
    are counted answer by answer: state (samples used, correct on top, wrong on top) -> number of ways.
    """
    for top in range(1, k + 1):
        states: dict[tuple[int, int, int], int] = {(0, 0, 0): 1}
        for count, is_right in [*((c, True) for c in right), *((c, False) for c in wrong)]:
            grown: Counter[tuple[int, int, int]] = Counter()
            for (used, num_right, num_wrong), ways in states.items():
                for drawn in range(min(count, top, k - used) + 1):
                    on_top = int(drawn == top)
                    state = (used + drawn, num_right + on_top * is_right, num_wrong + on_top * (not is_right))
                    grown[state] += ways * math.comb(count, drawn)
            states = grown
        for (used, num_right, num_wrong), ways in states.items():
            if num_right + num_wrong and k - used <= num_silent:
                yield num_right, num_wrong, ways * math.comb(num_silent, k - used)


def wilson_interval(num_successes: int, num_trials: int, *, confidence: float = 0.95) -> Estimate:
    """A proportion with Wilson's score interval, which stays within [0, 1] and is honest near its ends.

    For yes-or-no outcomes, one per problem, as greedy accuracy. Raises ValueError for counts or a confidence out of
    range.
    """
    if not 0 <= num_successes <= num_trials or num_trials < 1:
        raise ValueError(
            f"num_successes={num_successes}, num_trials={num_trials}: need 0 <= successes <= trials, trials >= 1"
        )
    z = _normal_quantile(confidence)
    share = num_successes / num_trials
    shrink = 1.0 + z * z / num_trials
    centre = (share + z * z / (2 * num_trials)) / shrink
    half_width = z / shrink * math.sqrt(share * (1.0 - share) / num_trials + z * z / (4 * num_trials * num_trials))
    # At the ends centre and half width are equal but for rounding.
    low = 0.0 if num_successes == 0 else centre - half_width
    high = 1.0 if num_successes == num_trials else centre + half_width
    return Estimate(value=share, low=low, high=high)


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95, bounds: tuple[float, float] = (0.0, 1.0)
) -> Estimate:
    """The mean over problems with the interval of Agresti and Coull (1998), for values between these bounds.

    For values with one number a problem, as pass@k and maj@k. It is the normal interval after z²/2 problems at each
    bound have been added to the n there are; the value is the plain mean. So it keeps a width where all values are
    equal, as of 20 problems that are all solved, and for values of 0 and 1 it holds Wilson's interval. Raises
    ValueError without values.
    """
    mean = _checked_mean(values)
    low, high = bounds
    z = _normal_quantile(confidence)
    total = len(values) + z * z
    centre = (math.fsum(values) + z * z / 2 * (low + high)) / total
    squares = math.fsum((value - centre) ** 2 for value in values)
    squares += z * z / 2 * ((low - centre) ** 2 + (high - centre) ** 2)
    half_width = z * math.sqrt(squares) / total
    return Estimate(value=mean, low=max(low, centre - half_width), high=min(high, centre + half_width))


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """The mean over problems with a percentile bootstrap interval: problems are drawn again with replacement.

    The same values and seed give the same interval. Raises ValueError without values or with fewer than 100 resamples.
    """
    mean = _checked_mean(values)
    _normal_quantile(confidence)
    if num_resamples < 100:
        raise ValueError(f"num_resamples={num_resamples}: at least 100 are needed for percentiles")
    sample = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    means = torch.empty(num_resamples, dtype=torch.float64)
    block = max(1, 1_000_000 // len(values))  # bounds the memory to some megabytes
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn = torch.randint(len(values), (size, len(values)), generator=generator)
        means[start : start + size] = sample[drawn].mean(dim=1)
    tail = (1.0 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1.0 - tail], dtype=torch.float64)).tolist()
    return Estimate(value=mean, low=low, high=high)


def _checked_mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("no values: an estimate needs at least one problem")
    return fmean(values)


def _check_k(num_samples: int, k: int) -> None:
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k}: must be between 1 and the number of samples, {num_samples}")


def _normal_quantile(confidence: float) -> float:
    """z such that a standard normal lies within ±z with this probability; ValueError outside (0, 1)."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence}: must be between 0 and 1, as 0.95")
    return NormalDist().inv_cdf((1.0 + confidence) / 2)
