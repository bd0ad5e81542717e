"""Tasks by the name a recipe gives them."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from outscore.inputs import checked_options, nearest
from outscore.records import PYTHON
from outscore.tasks.arithmetic import ArithmeticTask
from outscore.tasks.assistant import AssistantTask
from outscore.tasks.base import Task
from outscore.tasks.data import DataTask
from outscore.tasks.gym import GymTask
from outscore.tasks.mixture import MixtureTask
from outscore.tasks.opinions import GlobalOpinionTask
from outscore.tasks.programs import ProgramsTask
from outscore.tasks.synthetic_opinions import SyntheticOpinionTask
from outscore.tasks.text import TextTask


def mixture(*, parts: Mapping[str, Mapping[str, Any]]) -> MixtureTask:
    """Several tasks as one: name of each part -> its `kind` and options."""
    made: dict[str, Task] = {}
    for name, options in parts.items():
        if not isinstance(options, Mapping) or "kind" not in options:
            raise ValueError(f"task mixture: parts.{name} must name a task, such as {{kind: arithmetic}}")
        try:
            made[str(name)] = make_task(**options)
        except ValueError as error:
            raise ValueError(f"task mixture: parts.{name}: {error}") from None
    return MixtureTask(made)


TASKS: Mapping[str, Callable[..., Task]] = MappingProxyType(
    {
        "arithmetic": ArithmeticTask,
        "reasoning_gym": GymTask,
        "data": DataTask,
        "global_opinions": GlobalOpinionTask,
        "programs": ProgramsTask,
        "synthetic_opinions": SyntheticOpinionTask,
        "mixture": mixture,
        "text": TextTask,
        "toy_assistant": AssistantTask,
    }
)
"""Task kinds: add a file to `tasks/` and a line here."""


def make_task(kind: str, **options: Any) -> Task:
    """Build a task. ValueError for an unknown kind or option, naming the nearest one, for a value of a wrong type, and
    for what the task refuses.

    >>> make_task("arithmetic", num_train=5000, digits=2)
    """
    if kind == PYTHON:
        raise ValueError(
            f"task {options.get('name')!r} was given from Python as an object, which no file can name: give it again "
            "with task=…, or name another kind of task"
        )
    if kind not in TASKS:
        raise ValueError(f"kind = {kind!r} is no task{nearest(kind, sorted(TASKS))}")
    parameters = inspect.signature(TASKS[kind]).parameters
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    checked = checked_options(TASKS[kind], options, where=f"task {kind!r}", open_ended=open_ended)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY and key not in options:
            raise ValueError(f"task {kind!r} needs the option {key!r}")
    return TASKS[kind](**checked)
