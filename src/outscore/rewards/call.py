"""One call of a reward function, in whichever process: completions in, a `Reply` out, or `CallFailed` with a reason."""

import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from outscore.rewards.background import submit
from outscore.rewards.contract import Item, Log, Reward, TrainerState, call_arguments


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a call gave.

    >>> Reply(values=(1.0, None), columns={"seen": [True, False]}, metrics=[("length", 3.0)])
    """

    values: Sequence[float | None]
    """For each completion its reward, NaN and infinities among them; None where the reward does not apply."""
    columns: Mapping[str, Sequence[Any]]
    """What it logged with `log_extra`."""
    metrics: Sequence[tuple[str, float]]
    """What it logged with `log_metric`."""


class CallFailed(Exception):
    """A call that gave no rewards.

    Args:
        reason: what happened, in a sentence that says the same when it happens again.
        wrong_shape: the function ended well and returned what it may not.
        seconds: how long the call took.
    """

    def __init__(self, reason: str, *, wrong_shape: bool = False, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wrong_shape = wrong_shape
        self.seconds = seconds


Finish = Callable[[], Reply]
"""Waits for a call that has begun, or makes it; raises CallFailed."""


class InProcess:
    """Runs a reward in this process. Asynchronous ones share an event loop that lives as long as the process.

    Args:
        reward: the reward.
        retries: how often a call that failed is made again.
    """

    def __init__(self, reward: Reward, retries: int = 0) -> None:
        self._reward = reward
        self._retries = retries

    @property
    def overlaps(self) -> bool:
        """Whether a call goes on by itself once it has begun."""
        return self._reward.is_async

    def begin(self, items: Sequence[Item], state: TrainerState) -> Finish:
        """Begin a call; a synchronous function runs when the result is asked for."""
        finish = _timed(_begin(self._reward, items, state))
        again: Finish = partial(self._again, items, state)
        return partial(_retried, finish, again, self._retries) if self._retries else finish

    def _again(self, items: Sequence[Item], state: TrainerState) -> Reply:
        return _timed(_begin(self._reward, items, state))()

    def start(self) -> None:
        """Nothing needs to be started."""

    def close(self) -> None:
        """Nothing is held."""


def _timed(finish: Finish) -> Finish:
    """The same, with the seconds of a failure taken from when it begins or is waited for."""

    def timed() -> Reply:
        begun = time.perf_counter()
        try:
            return finish()
        except CallFailed as failure:
            failure.seconds = time.perf_counter() - begun
            raise

    return timed


def _retried(finish: Finish, again: Finish, retries: int) -> Reply:
    for failed in range(retries):
        try:
            return finish()
        except CallFailed as failure:
            if failure.wrong_shape:
                raise
        time.sleep(pause(failed))
        finish = again
    return finish()


def pause(failed: int) -> float:
    """Seconds to wait before a call is made again that has failed `failed` + 1 times."""
    return min(0.1 * 2.0**failed, 5.0)


def _begin(reward: Reward, items: Sequence[Item], state: TrainerState) -> Finish:
    log = Log(len(items))
    arguments = call_arguments(reward, items, state, log)
    if reward.is_async:
        waiting = submit(reward.function(**arguments))
        return lambda: reply_of(waiting.result, log, len(items))

    def output() -> Any:
        found = reward.function(**arguments)
        return submit(found).result() if inspect.isawaitable(found) else found

    return lambda: reply_of(output, log, len(items))


def reply_of(output: Callable[[], Any], log: Log, count: int) -> Reply:
    """The reply of a call whose result `output` waits for.

    Raises:
        CallFailed: for whatever the function raises, `sys.exit` included, and for a result that is not `count` numbers.
    """
    try:
        values = numbers(output(), count)
    except CallFailed:
        raise
    except (Exception, SystemExit) as error:
        raise CallFailed(describe(error)) from error
    return Reply(values=values, columns=log.columns, metrics=log.metrics)


def numbers(output: Any, count: int) -> list[float | None]:
    """The result as floats and None; numpy arrays and tensors are fine."""
    output = output.tolist() if hasattr(output, "tolist") else output
    if isinstance(output, str | bytes | Mapping) or not isinstance(output, Iterable):
        raise CallFailed(
            f"returned {_kind(output)}; a list of {count} floats or None is due, one a completion", wrong_shape=True
        )
    values = list(output)
    if len(values) != count:
        reason = f"returned {len(values)} values for {count} completions; exactly one each is due"
        raise CallFailed(reason, wrong_shape=True)
    return [None if value is None else _number(value) for value in values]


def _number(value: Any) -> float:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float):
        raise CallFailed(f"returned {_kind(value)} among its values; each is a float or None", wrong_shape=True)
    return float(value)


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def describe(error: BaseException) -> str:
    """What an exception says, in a sentence about who raised it."""
    if isinstance(error, SystemExit):
        return f"called sys.exit({error.code!r})"
    return f"raised {type(error).__name__}: {str(error)[:1000]}"
