"""One call of a reward function, in whichever process: completions in, a `Reply` out, or `CallFailed` with a reason."""

import inspect
import os
import sysconfig
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from outscore.rewards.background import submit
from outscore.rewards.contract import Item, Log, MissingColumn, Reward, TrainerState
from outscore.rewards.single import prepared
from outscore.rewards.values import Value, WrongShape, values_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a call gave.

    >>> Reply(values=(1.0, None), columns={"seen": [True, False]}, metrics=[("length", 3.0)])
    """

    values: Sequence[Value]
    """For each completion its reward, whole or in steps, NaN and infinities among them, or why it failed; None where it
    does not apply."""
    columns: Mapping[str, Sequence[Any]]
    """What it logged with `log_extra`."""
    metrics: Sequence[tuple[str, float]]
    """What it logged with `log_metric`."""
    seconds_lost: float = 0.0
    """Seconds of the tries that failed before."""


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
    lost, failed = 0.0, 0
    while True:
        try:
            return replace(finish(), seconds_lost=lost)
        except CallFailed as failure:
            lost = failure.seconds = lost + failure.seconds
            if failure.wrong_shape or failed == retries:
                raise
        time.sleep(pause(failed))
        lost += pause(failed)
        failed += 1
        finish = again


def pause(failed: int) -> float:
    """Seconds to wait before a call is made again that has failed `failed` + 1 times."""
    return min(0.1 * 2.0**failed, 5.0)


def _begin(reward: Reward, items: Sequence[Item], state: TrainerState) -> Finish:
    log = Log(len(items))
    call = prepared(reward, items, state, log)
    if reward.is_async:
        waiting = submit(call())
        return lambda: reply_of(waiting.result, log, items)

    def output() -> Any:
        found = call()
        return submit(found).result() if inspect.isawaitable(found) else found

    return lambda: reply_of(output, log, items)


def reply_of(output: Callable[[], Any], log: Log, items: Sequence[Item]) -> Reply:
    """The reply of a call for these completions, whose result `output` waits for.

    Raises:
        CallFailed: for whatever the function raises, `sys.exit` included, and for a result that is not one value each.
        MissingColumn: as the function does; no completion is to blame for it.
    """
    try:
        values = values_of(output(), [len(item.token_ids) for item in items])
    except MissingColumn:
        raise
    except WrongShape as error:
        raise CallFailed(str(error), wrong_shape=True) from error
    except (Exception, SystemExit) as error:
        raise CallFailed(describe(error)) from error
    return Reply(values=values, columns=log.columns, metrics=log.metrics)


def describe(error: BaseException) -> str:
    """What an exception says, in a sentence about who raised it, and where in code that is the user's."""
    if isinstance(error, SystemExit):
        return f"called sys.exit({error.code!r})"
    return f"raised {type(error).__name__}: {str(error)[:1000]}{place_of(error)}"


_INSTALLED = tuple(
    str(place) + os.sep
    for place in (Path(__file__).parents[1], *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
)
"""Where code lies that is not the user's."""


def place_of(error: BaseException) -> str:
    """` at FILE:LINE`, the last line of the user's own code that the exception came through; empty where it came
    through none."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(file, line) for file, line in frames if not file.startswith(("<", *_INSTALLED))]
    return f" at {Path(own[-1][0]).name}:{own[-1][1]}" if own else ""
