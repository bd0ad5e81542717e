"""How a reward gets to another process, and whether the copy there would be the same reward.

What a recipe names is found there by the same name. A function of the script travels by cloudpickle: by import path if
its module can be imported, else by value. A copy knows nothing of what the original goes on to see and do, so a
function that holds something which can change (a list, a model, an object with state) stays where it is unless it is
told to go.
"""

import contextlib
import dis
import functools
import importlib.util
import re
import sys
import types
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any

import cloudpickle

from outscore.rewards.contract import Reward

_CONSTANTS = (
    *(type(None), bool, int, float, complex, str, bytes, range, Fraction, Decimal, PurePath, re.Pattern),
    *(type, types.ModuleType, types.BuiltinFunctionType, types.GenericAlias),
)


class CannotTravel(Exception):
    """The reward cannot be had in another process; the text says why."""


def parcel_of(reward: Reward) -> bytes:
    """What `make_reward` builds the reward from, as bytes for a worker.

    Raises:
        CannotTravel: if it is an object that cannot be pickled.
    """
    if reward.origin is not None:
        return _pickled(reward.origin, None)
    bare = Reward(name=reward.name, function=reward.function, options=reward.options)
    return _pickled((bare, Path()), _module_to_copy(reward.function))


def shared_state(function: Any) -> str | None:
    """What a function holds that can change, such as `seen (list)`: None where a copy would be the same function."""
    home = getattr(_unwrapped(function), "__module__", None)
    return next(_mutable(function, name="", home=home, seen=set()), None)


def _pickled(thing: Any, by_value: types.ModuleType | None) -> bytes:
    with contextlib.ExitStack() as after:
        if by_value is not None and by_value.__name__ not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(by_value)
            after.callback(cloudpickle.unregister_pickle_by_value, by_value)
        try:
            pickled: bytes = cloudpickle.dumps(thing)
        except Exception as error:  # pickling runs the code of whatever object it meets
            raise CannotTravel(f"{type(error).__name__}: {error}") from error
    return pickled


def _module_to_copy(function: Any) -> types.ModuleType | None:
    """The module a function is from, where a fresh process could not import it under its name."""
    function = _unwrapped(function)
    name = getattr(function, "__module__", None) or type(function).__module__
    module = sys.modules.get(name)
    if module is None or name == "__main__":  # cloudpickle copies what is in __main__ by itself
        return None
    try:
        found = importlib.util.find_spec(name.partition(".")[0])
    except (ValueError, ImportError):
        found = None
    place = getattr(module, "__file__", None)
    if found is None or (place is not None and not _is_below(place, found)):
        return module
    return None


def _is_below(place: str, found: Any) -> bool:
    """Whether a module's file is that of its top-level package, or in it."""
    folders = list(found.submodule_search_locations or ())
    return place == found.origin or any(Path(place).is_relative_to(folder) for folder in folders)


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _mutable(value: Any, *, name: str, home: str | None, seen: set[int]) -> Iterator[str]:
    """Names and types of what can change in a value and in the functions of the same module that it leads to."""
    if id(value) in seen or isinstance(value, _CONSTANTS):
        return
    seen.add(id(value))
    if isinstance(value, types.FunctionType):
        # What a function of another module holds is that module's own affair.
        for inner, held in _held(value) if value.__module__ == home else ():
            yield from _mutable(held, name=inner, home=home, seen=seen)
    elif isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _mutable(part, name="an argument of partial", home=home, seen=seen)
    elif isinstance(value, tuple | frozenset):
        for part in value:
            yield from _mutable(part, name=name, home=home, seen=seen)
    elif not _is_named_elsewhere(value, home):
        yield f"{name or 'itself'} ({type(value).__name__})"


def _is_named_elsewhere(value: Any, home: str | None) -> bool:
    """Whether it is a callable of another module's, found there by its name, such as one written in C."""
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not callable(value) or module == home or not isinstance(module, str) or not isinstance(name, str):
        return False
    return getattr(sys.modules.get(module), name, None) is value


def _held(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """What a function, or a function inside it, refers to: its closure, the globals it names, its defaults."""
    assert isinstance(function, types.FunctionType)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a cell that has not been filled yet
            yield name, cell.cell_contents
    for name in sorted(set(_names(function.__code__))):
        if name in function.__globals__:
            yield name, function.__globals__[name]
    for held in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield "a default", held


def _names(code: types.CodeType) -> Iterator[str]:
    """Names of globals that code, or code inside it, reads."""
    yield from (each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
