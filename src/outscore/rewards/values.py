"""What a reward may say of a completion: a number, None, or steps; and how that is read from whatever it returned.

What is read can be written as JSON, and read again from that: so it gets from a worker process to the trainer, which
takes a worker's word for nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outscore.records import StepScore


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """What stands in the place of a value where the reward itself says that it failed on this completion alone.

    >>> Failed(reason="failed with TimeoutError: no answer")
    """

    reason: str
    """What happened."""


Value = float | tuple[StepScore, ...] | Failed | None
"""What a reward says of one completion; None where it does not apply."""


class WrongShape(Exception):
    """A result that the contract of rewards does not allow; the text says what was returned."""


def values_of(output: Any, lengths: Sequence[int]) -> list[Value]:
    """A result as one value for each completion, NaN and infinities among them; numpy arrays and tensors are fine, and
    an exception in the place of a value is a failure of that completion.

    Args:
        output: what the function returned, or `unwritten` did.
        lengths: the tokens of each completion.

    Raises:
        WrongShape: if it is not one value for each completion, or one of them is no value.
    """
    count = len(lengths)
    output = output.tolist() if hasattr(output, "tolist") else output
    if isinstance(output, str | bytes | Mapping) or not isinstance(output, Iterable):
        raise WrongShape(f"returned {_kind(output)}; a list of {count} floats or None is due, one a completion")
    values = list(output)
    if len(values) != count:
        given, batch = _counted(len(values), "value"), _counted(count, "completion")
        raise WrongShape(f"returned {given} for a batch of {batch}, and must return one for each")
    return [_value(value, length) for value, length in zip(values, lengths, strict=True)]


def written(values: Sequence[Value]) -> list[Any]:
    """Values as JSON knows them.

    >>> written([1.0, None, (StepScore(end=3, reward=0.5),), Failed(reason="no answer")])
    [1.0, None, [[3, 0.5]], {'failed': 'no answer'}]
    """
    return [_written(value) for value in values]


def unwritten(output: Any) -> Any:
    """What `written` gave, for `values_of`; whatever else it is stays so."""
    if not isinstance(output, list):
        return output
    return [
        Failed(reason=str(each["failed"])) if isinstance(each, dict) and "failed" in each else each for each in output
    ]


def whole(value: Value) -> float | None:
    """The reward of a completion, if it has one: steps add up to it."""
    if isinstance(value, Failed):
        return None
    if not isinstance(value, tuple):
        return value
    rewards = [step.reward for step in value]
    total = sum(rewards)
    return math.fsum(rewards) if math.isfinite(total) else total  # fsum refuses what has no finite sum


def _written(value: Value) -> Any:
    if isinstance(value, Failed):
        return {"failed": value.reason}
    return [[step.end, step.reward] for step in value] if isinstance(value, tuple) else value


def _value(value: Any, num_tokens: int) -> Value:
    if value is None or isinstance(value, Failed):
        return value
    if isinstance(value, Exception):
        return Failed(reason=f"failed with {type(value).__name__}: {str(value)[:1000]}")
    if hasattr(value, "tolist"):
        value = value.tolist()
        # An array of one number is that number.
        value = value[0] if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], list) else value
    if not isinstance(value, list | tuple):
        return _number(value)
    steps = tuple(_step(step) for step in value)
    ends = [step.end for step in steps]
    if not steps or ends != sorted(set(ends)) or ends[0] < 0 or ends[-1] >= num_tokens:
        raise WrongShape(
            f"returned steps that end at tokens {ends[:8]}; at least one is due, in rising order, from 0 to "
            f"{num_tokens - 1}"
        )
    return steps


def _step(step: Any) -> StepScore:
    if not isinstance(step, list | tuple) or len(step) != 2:
        raise WrongShape(f"returned {_kind(step)} as a step; a step is (index of its last token, reward)")
    end, reward = step
    if not _number(end).is_integer():
        raise WrongShape(f"returned a step that ends at token {end!r}; an index is due")
    return StepScore(end=int(end), reward=_number(reward))


def _number(value: Any) -> float:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float):
        raise WrongShape(f"returned {_kind(value)} among its values; each is a float or None")
    return float(value)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"
