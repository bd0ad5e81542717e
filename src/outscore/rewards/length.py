"""Rewards for the length of a completion, in tokens."""

from collections.abc import Sequence
from typing import Any

from outscore.rewards.contract import Reward


def overlong_penalty(num_tokens: int, *, limit: int, buffer: int) -> float:
    """DAPO's soft overlong punishment as a cost: 0 up to limit - buffer tokens, then in a line up to 1 at the limit.

    arXiv 2503.14476, eq. 13, with the sign of a cost; DAPO has a limit of 20480 tokens and a buffer of 4096. The stop
    token counts. A stage's `overlong_buffer` charges it with the stage's `max_new_tokens` as the limit.
    """
    return min(max(num_tokens - (limit - buffer), 0) / buffer, 1.0)


def soft_overlong(*, max_length: int, cache: int) -> Reward:
    """DAPO's soft overlong punishment as a reward, from -1 to 0: less `overlong_penalty`, with the paper's names of
    limit and buffer.

    A stage that samples has it as a setting, too (`overlong_buffer`): give one of the two.
    """
    if not 0 < cache <= max_length:
        raise ValueError(
            f"reward 'soft_overlong': cache = {cache!r} must be above 0 and at most max_length = {max_length!r}"
        )

    def score(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [0.0 - overlong_penalty(len(ids), limit=max_length, buffer=cache) for ids in completion_ids]

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
