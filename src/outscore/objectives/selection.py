"""Using several samples of a question well: which answer is taken, and whether it is right.

Every choice comes as the chance that it is right: ties are broken evenly at random, so that a result is a number and
not a draw.
"""

import math
from collections.abc import Callable, Hashable, Sequence


def best_is_right(scores: Sequence[float], correct: Sequence[bool]) -> float:
    """The chance that the sample of the highest score is right: the share of right ones among those on top."""
    _check(scores, correct)
    top = max(scores)
    right = [flag for score, flag in zip(scores, correct, strict=True) if score == top]
    return sum(right) / len(right)


def vote_is_right(
    answers: Sequence[Hashable | None], correct: Sequence[bool], weights: Sequence[float] | None = None
) -> float:
    """The chance that the answer with the largest sum of weights is right (Math-Shepherd, arXiv 2312.08935, eq. 6, with
    a score for weight); without weights, with the most votes (self-consistency).

    An answer that is None has no vote; where nobody votes, nothing is right. An answer is right if a sample of it is.
    Raises ValueError for a weight that is not finite or below 0: the log-odds of a chance are no weight.
    """
    given = [1.0] * len(answers) if weights is None else list(weights)
    _check(answers, correct)
    _check(given, correct)
    if wrong := [weight for weight in given if not (math.isfinite(weight) and weight >= 0.0)]:
        raise ValueError(f"weight {wrong[0]!r} of a vote must be a finite number of at least 0")
    cast: dict[Hashable, list[float]] = {}
    right = set()
    for answer, flag, weight in zip(answers, correct, given, strict=True):
        if answer is not None:
            cast.setdefault(answer, []).append(weight)
            if flag:
                right.add(answer)
    sums = {answer: math.fsum(own) for answer, own in cast.items()}
    top = [answer for answer, total in sums.items() if total == max(sums.values())]
    return sum(answer in right for answer in top) / len(top) if top else 0.0


def mean_over_blocks(num_samples: int, size: int, chance: Callable[[Sequence[int]], float]) -> float:
    """The mean of `chance` over disjoint blocks of `size` samples, in order: what so many samples give, without bias.

    What is left over is not used. Raises ValueError unless 1 <= size <= num_samples.
    """
    if not 1 <= size <= num_samples:
        raise ValueError(f"size={size}: must be between 1 and num_samples={num_samples}")
    blocks = [range(first, first + size) for first in range(0, num_samples - size + 1, size)]
    return math.fsum(chance(block) for block in blocks) / len(blocks)


def _check(values: Sequence[object], correct: Sequence[bool]) -> None:
    if not correct or len(values) != len(correct):
        raise ValueError(f"{len(values)} values for {len(correct)} samples; there must be one for each, and one sample")
