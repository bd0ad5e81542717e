"""From the parts of a group to the total of each completion, and to where in a completion its total was earned."""

import math
from collections.abc import Sequence

from outscore.records import StepScore
from outscore.rewards.values import whole


def group_totals(parts: Sequence[Sequence[float | None]], weights: Sequence[float]) -> list[float | None]:
    """Totals of one group: parts[completion][reward] weighted and summed over the rewards.

    total_i = Σ_k w_k r_ik, where a part that does not apply to completion i counts as the mean of that part over the
    group's completions it does apply to, and not at all if there are none. It then says nothing for or against the
    completion: counting it as 0 would punish it (as in TRL), and leaving it out while others have it would, too. None
    for a completion that no reward of nonzero weight applies to.

    >>> group_totals([[0.5, 1.0], [0.5, 0.0], [0.5, None]], [1.0, 1.0])
    [1.5, 0.5, 1.0]
    """
    neutral = [_mean([row[k] for row in parts]) for k in range(len(weights))]
    totals: list[float | None] = []
    for row in parts:
        applies = any(value is not None and weight for value, weight in zip(row, weights, strict=True))
        filled = (mean if value is None else value for value, mean in zip(row, neutral, strict=True))
        total = math.fsum(weight * value for weight, value in zip(weights, filled, strict=True))
        totals.append(total if applies else None)
    return totals


def as_earned(
    steps: Sequence[Sequence[StepScore]],
    values: Sequence[float | None],
    weights: Sequence[float],
    *,
    total: float,
    num_tokens: int,
) -> tuple[StepScore, ...]:
    """The total of a completion as it was earned, in order; () where no reward of nonzero weight has steps.

    A reward whose value is the sum of its steps is paid where they end. What else there is in the total is paid at the
    last token: rewards without steps, and those whose value shaping has changed.

    Args:
        steps: the steps that each reward gave; none where it gave no steps.
        values: the shaped value of each reward.
        weights: their weights.
        total: the total.
        num_tokens: the tokens of the completion.
    """
    counted = [each for each in zip(steps, values, weights, strict=True) if each[2]]
    if not any(own for own, _, _ in counted):
        return ()
    earned: dict[int, float] = {}
    paid: list[float] = []
    for own, value, weight in counted:
        if own and value is not None and value == whole(tuple(own)):
            paid.append(weight * value)
            for step in own:
                earned[step.end] = earned.get(step.end, 0.0) + weight * step.reward
    if len(paid) < len(counted):  # else there is nothing left, not even rounding
        earned[num_tokens - 1] = earned.get(num_tokens - 1, 0.0) + total - math.fsum(paid)
    return tuple(StepScore(end=end, reward=value) for end, value in sorted(earned.items()))


def _mean(values: Sequence[float | None]) -> float:
    present = [value for value in values if value is not None]
    # A mean of equal numbers must be that number: rounding would give a group of equal rewards a spread.
    if not present or min(present) == max(present):
        return present[0] if present else 0.0
    return math.fsum(present) / len(present)
