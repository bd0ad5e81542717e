"""Reward functions that score one completion at a time, in the contract of `verifiers` and its rubrics.

Such a function names `completion`, and not `completions`. It is called once for each completion, by keyword, with
whatever it names of `prompt`, `completion`, `answer`, `state`, `task`, `info` and the columns of the data (one value
each), and returns a number, or None where it does not apply. With **kwargs it gets all of them.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from outscore.rewards.contract import (
    Item,
    Log,
    Reward,
    TrainerState,
    call_arguments,
    check_signature,
    parameters_of,
)

DEFAULT_TASK = "default"
"""What `task` is where the data have no such column."""


def scores_one(reward: Reward) -> bool:
    """Whether the function scores a single completion."""
    try:
        parameters = parameters_of(reward.function)
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False
    return "completion" in parameters and "completions" not in parameters


def prepared(reward: Reward, items: Sequence[Item], state: TrainerState, log: Log) -> Callable[[], Any]:
    """The call of a reward for these completions; what it returns is one value each, or is to be awaited for them.

    Raises:
        ValueError: if the signature asks for something there is not, naming what there is.
    """
    if not scores_one(reward):
        return partial(reward.function, **call_arguments(reward, items, state, log))
    arguments = [single_arguments(reward, item) for item in items]
    call: Callable[..., Any] = _awaited if reward.is_async else _called
    return partial(call, reward.function, arguments)


def single_arguments(reward: Reward, item: Item) -> dict[str, Any]:
    """The keyword arguments for one completion. ValueError where there is not what the function names."""
    given = {
        "prompt": item.prompt_argument(),
        "completion": item.completion_argument(),
        "answer": item.columns.get("answer"),
        "task": item.columns.get("task", DEFAULT_TASK),
        "info": item.columns.get("info") or {},
    }
    arguments: dict[str, Any] = {**item.columns, **given, "state": dict(given), **reward.options}
    parameters = parameters_of(reward.function)
    check_signature(reward, parameters, arguments)
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def _called(function: Callable[..., Any], arguments: Sequence[Mapping[str, Any]]) -> Any:
    values = [function(**each) for each in arguments]
    return _all_of(values) if any(map(inspect.isawaitable, values)) else values


async def _awaited(function: Callable[..., Any], arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
    return await _all_of([function(**each) for each in arguments])


async def _all_of(values: Sequence[Any]) -> list[Any]:
    return list(await asyncio.gather(*values))
