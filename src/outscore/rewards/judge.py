"""Calling one reward on the completions of a step, and finding out which completion is to blame when it fails.

This is the seam behind which rewards can run elsewhere: completions in, an `Outcome` out.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from outscore.records import StepScore
from outscore.rewards.background import submit
from outscore.rewards.contract import Item, Log, Reward, TrainerState, call_arguments

OnFailure = Literal["stop", "exclude"]
"""`stop` raises RewardError; `exclude` makes the completion a ScoringFailure and goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one reward said about the completions of a step.

    >>> Outcome(values=(1.0, None), faults={}, metrics=(("length", 3.0),), columns={"seen": (True, False)})
    """

    values: tuple[float | None, ...]
    """For each completion, the reward, or None where it does not apply or failed; of steps, their sum."""
    faults: Mapping[int, str]
    """Completion -> what went wrong."""
    metrics: tuple[tuple[str, float], ...]
    """What the function logged with `log_metric`."""
    columns: Mapping[str, tuple[Any, ...]]
    """What it logged with `log_extra`, one value for each completion."""
    steps: Mapping[int, tuple[StepScore, ...]] = field(default_factory=dict)
    """Completion -> the rewards of its steps, where the reward scores steps."""


Value = float | tuple[StepScore, ...] | None
"""What a reward says of one completion."""


class _WrongShapeError(Exception):
    """The result is not one number or None for each completion; the text says what it is."""


def judge(reward: Reward, items: Sequence[Item], state: TrainerState, on_failure: OnFailure) -> Outcome:
    """Score completions with one reward.

    When the call for the whole batch fails, each completion is tried alone to find the ones to blame. Under `exclude`
    those are left out and the rest are scored together once more, so that a reward that compares completions still
    sees a batch. What is not the fault of single completions stops the run under either policy.

    Raises:
        RewardError: for a failure that the policy does not tolerate.
        ValueError: if the function asks for a column that there is not.
    """
    call_arguments(reward, items, state, Log(len(items)))  # a signature that cannot be served is no completion's fault
    faults: dict[int, str] = {}
    kept = list(range(len(items)))
    try:
        values, log = _attempt(reward, items, state)
    except Exception as error:
        faults = _culprits(reward, items, state, first_only=on_failure == "stop")
        if on_failure == "stop" or isinstance(error, _WrongShapeError):
            index, reason = next(iter(faults.items()), (0, f"{_describe(error)}, but on no completion alone"))
            raise items[index].error(reward.name, reason) from error
        kept = [index for index in kept if index not in faults]
        values, log = _again(reward, [items[index] for index in kept], state)
    placed: list[float | None] = [None] * len(items)
    steps: dict[int, tuple[StepScore, ...]] = {}
    for index, said in zip(kept, values, strict=True):
        value = math.fsum(step.reward for step in said) if isinstance(said, tuple) else said
        if value is not None and not math.isfinite(value):
            reason = f"returned {value}"
            if on_failure == "stop":
                raise items[index].error(reward.name, reason)
            faults[index] = reason
            continue
        placed[index] = value
        if isinstance(said, tuple):
            steps[index] = said
    columns = {name: _spread(column, kept, len(items)) for name, column in log.columns.items()}
    return Outcome(values=tuple(placed), faults=faults, metrics=tuple(log.metrics), columns=columns, steps=steps)


def _again(reward: Reward, items: Sequence[Item], state: TrainerState) -> tuple[list[Value], Log]:
    if not items:
        return [], Log(0)
    try:
        return _attempt(reward, items, state)
    except Exception as error:
        reason = f"{_describe(error)}, but on no completion alone"
        raise items[0].error(reward.name, reason) from error


def _attempt(reward: Reward, items: Sequence[Item], state: TrainerState) -> tuple[list[Value], Log]:
    """One call and its numbers, NaN and infinities among them."""
    finish, log = _start(reward, items, state)
    return _values(finish(), items), log


def _start(reward: Reward, items: Sequence[Item], state: TrainerState) -> tuple[Callable[[], Any], Log]:
    """Begin a call; the function returned waits for its result. A synchronous reward runs only then."""
    log = Log(len(items))
    arguments = call_arguments(reward, items, state, log)
    if reward.is_async:
        return submit(reward.function(**arguments)).result, log

    def finish() -> Any:
        output = reward.function(**arguments)
        return submit(output).result() if inspect.isawaitable(output) else output

    return finish, log


def _culprits(reward: Reward, items: Sequence[Item], state: TrainerState, *, first_only: bool) -> dict[int, str]:
    """Which completions make the reward fail when scored alone, and how. Asynchronous rewards try all at once."""
    started = [_start(reward, [item], state)[0] for item in items]
    faults: dict[int, str] = {}
    for index, finish in enumerate(started):
        try:
            _values(finish(), [items[index]])
        except Exception as error:  # whatever the user's function raises is what is looked for
            faults[index] = _describe(error)
            if first_only:
                break
    return faults


def _values(output: Any, items: Sequence[Item]) -> list[Value]:
    """The result as floats, steps and None; numpy arrays and tensors are fine."""
    count = len(items)
    output = output.tolist() if hasattr(output, "tolist") else output
    if isinstance(output, str | bytes | Mapping) or not isinstance(output, Iterable):
        raise _WrongShapeError(f"returned {_kind(output)}; a list of {count} floats or None is due, one a completion")
    values = list(output)
    if len(values) != count:
        raise _WrongShapeError(f"returned {len(values)} values for {count} completions; exactly one each is due")
    return [_value(value, len(item.token_ids)) for value, item in zip(values, items, strict=True)]


def _value(value: Any, num_tokens: int) -> Value:
    if value is None:
        return None
    if hasattr(value, "tolist"):
        value = value.tolist()
        # An array of one number is that number.
        value = value[0] if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], list) else value
    if not isinstance(value, list | tuple):
        return _number(value)
    steps = tuple(_step(step) for step in value)
    ends = [step.end for step in steps]
    if not steps or ends != sorted(set(ends)) or ends[0] < 0 or ends[-1] >= num_tokens:
        raise _WrongShapeError(
            f"returned steps that end at tokens {ends[:8]}; at least one is due, in rising order, from 0 to "
            f"{num_tokens - 1}"
        )
    return steps


def _step(step: Any) -> StepScore:
    if not isinstance(step, list | tuple) or len(step) != 2:
        raise _WrongShapeError(f"returned {_kind(step)} as a step; a step is (index of its last token, reward)")
    end, reward = step
    if not float(_number(end)).is_integer():
        raise _WrongShapeError(f"returned a step that ends at token {end!r}; an index is due")
    return StepScore(end=int(end), reward=_number(reward))


def _number(value: Any) -> float:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float):
        raise _WrongShapeError(f"returned {_kind(value)} among its values; each is a float or None")
    return float(value)


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, _WrongShapeError) else f"raised {type(error).__name__}: {error}"


def _spread(values: Sequence[Any], places: Sequence[int], count: int) -> tuple[Any, ...]:
    spread: list[Any] = [None] * count
    for place, value in zip(places, values, strict=True):
        spread[place] = value
    return tuple(spread)
