"""Rewards for the length of a completion, in tokens."""

from collections.abc import Sequence
from typing import Any

from outscore.rewards.contract import Reward


def soft_overlong(*, max_length: int, cache: int) -> Reward:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), from -1 to 0.

    0 up to max_length - cache tokens, then falling in a straight line, (max_length - cache - n) / cache, to -1 at
    max_length and beyond. The paper's numbers are 20,480 and 4,096.
    """
    if not 0 < cache <= max_length:
        raise ValueError(
            f"reward 'soft_overlong': cache = {cache!r} must be above 0 and at most max_length = {max_length!r}"
        )

    def score(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        over = (len(ids) - (max_length - cache) for ids in completion_ids)
        return [-min(max(each, 0) / cache, 1.0) + 0.0 for each in over]

    return Reward(name="soft_overlong", function=score, full=0.0)


def target_length(*, target: int, within: int) -> Reward:
    """1 for a completion of `target` tokens, falling in a straight line to 0 for one that is `within` tokens off."""
    if target < 0 or within < 1:
        raise ValueError(
            f"reward 'target_length': target = {target!r} must be 0 or above and within = {within!r} 1 or above"
        )

    def score(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [max(0.0, 1.0 - abs(len(ids) - target) / within) for ids in completion_ids]

    return Reward(name="target_length", function=score, full=1.0)
