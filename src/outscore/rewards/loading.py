"""From what a recipe or a script says to a `Reward`: built-in names, files, modules, functions."""

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from outscore.inputs import checked_options, expected, from_here, nearest
from outscore.records import PYTHON
from outscore.rewards.builtin import BUILTIN_REWARDS
from outscore.rewards.call import place_of
from outscore.rewards.contract import Reward, RewardFunction
from outscore.rewards.shaping import SHAPING_KEYS, shaping_of
from outscore.settings import OnFailure, ScoringLimits, ScoringSettings

_KEYS = ("name", "weight", "label", "where", "batched", "isolate", "limits", "on_failure", *SHAPING_KEYS)

Limits = TypeVar("Limits", bound=ScoringLimits)
"""Limits of one reward, or the settings of all."""


def make_reward(spec: str | Mapping[str, Any] | RewardFunction | Reward, *, folder: Path | None = None) -> Reward:
    """Build a reward from what a recipe or a script says.

    Args:
        spec: a built-in name; `file.py:function` or `module:function`; a function; a mapping with one of these as
            `name`, and `weight` (default 1), `label` (what columns call it; default its own name), `where` (the
            problems it is for), how it is shaped
            (`outscore.rewards.shaping`), `batched`, `isolate`, `limits`, `on_failure` (see `Reward`) and the reward's
            options; or a `Reward`, which is returned as it is.
        folder: what `file.py` paths are relative to; the working directory if not given.

    Raises:
        ValueError: naming key, value and what would be right.

    >>> make_reward({"name": "format_tags", "weight": 0.5, "strict_single_line": True})
    """
    if isinstance(spec, Reward):
        return spec
    given: Mapping[str, Any] = spec if isinstance(spec, Mapping) else {"name": spec}
    source = given.get("name")
    if given.get("kind") == PYTHON:
        raise ValueError(
            f"reward {source!r} was given from Python as a function, which no file can name: give it again with "
            "rewards=…"
        )
    if source is None:
        raise ValueError(f"rewards: {dict(given)!r} has no `name`; name a built-in reward or file.py:function")
    options = {key: value for key, value in given.items() if key not in _KEYS}
    place = (folder or Path()).absolute()
    if isinstance(source, str):
        reward = replace(_named(source, options, folder or Path()), origin=(dict(given), place))
    elif callable(source):
        reward = _own(source, _name_of(source), options)
    else:
        raise ValueError(f"rewards: {source!r} is neither a reward's name nor a function")
    weight, label = given.get("weight", 1.0), given.get("label", reward.name)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(f"reward {reward.name!r}: weight = {weight!r} must be a finite number")
    if not isinstance(label, str) or not label:
        raise ValueError(f"reward {reward.name!r}: label = {label!r} must be text")
    reward = replace(reward, weight=float(weight), name=label, shaping=shaping_of(label, given, reward.full))
    return replace(reward, **_service(reward, given))


def _service(reward: Reward, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of how a reward runs: the fields of `Reward` that it sets."""
    found: dict[str, Any] = {}
    for key in ("batched", "isolate"):
        if key in given:
            found[key] = given[key]
            if not isinstance(given[key], bool):
                raise ValueError(f"reward {reward.name!r}: {key} = {given[key]!r} must be true or false")
    if "where" in given:
        found["where"] = given["where"]
        if not isinstance(given["where"], Mapping) or not given["where"]:
            raise ValueError(
                f"reward {reward.name!r}: where = {given['where']!r} must map a data column to its value, such as "
                "{domain: reasoning}"
            )
    where = f"reward {reward.name!r}: "
    if "limits" in given:
        kept = read_settings(given["limits"], where=f"{where}limits", kind=ScoringLimits)
        found["limits"] = {**reward.limits, **kept.model_dump(exclude_unset=True)}
    if "on_failure" in given:
        found["on_failure"] = read_policy(given["on_failure"], where=f"{where}on_failure")
    return found


def read_policy(value: Any, *, where: str) -> OnFailure:
    """What a failure means; ValueError beginning with `where` if that is no known word and no number."""
    try:
        policy: OnFailure = TypeAdapter(OnFailure).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{where} = {value!r} {expected(error.errors()[0])}") from None
    return policy


def read_settings(given: Any, *, where: str, kind: type[Limits] = ScoringSettings) -> Limits:  # type: ignore[assignment]  # a default for the variable
    """Settings of scoring from what a script or a reward says; ValueError beginning with `where`, naming the key."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        detail = error.errors()[0]
        if not detail["loc"]:
            raise ValueError(f"{where} = {given!r} must be a mapping such as {{seconds: 5}}") from None
        key = detail["loc"][0]
        unknown = detail["type"] == "extra_forbidden"
        said = f"is not known{nearest(key, kind.model_fields)}" if unknown else expected(detail)
        raise ValueError(f"{where}.{key} = {detail['input']!r} {said}") from None


def _named(source: str, options: Mapping[str, Any], folder: Path) -> Reward:
    if source in BUILTIN_REWARDS:
        checked = _checked(source, BUILTIN_REWARDS[source], options)
        for key, parameter in inspect.signature(BUILTIN_REWARDS[source]).parameters.items():
            if parameter.default is parameter.empty and key not in checked:
                raise ValueError(f"reward {source!r} needs the option {key!r}")
        made = BUILTIN_REWARDS[source](**checked)
        # Rules that are known to be quick and safe stay in this process, where they cost nothing.
        return made if made.isolate is not None else replace(made, isolate=False)
    module, name = load_place(source, folder)
    if not name:
        raise ValueError(f"rewards: {source!r} is a file; name the function in it too, as in '{source}:my_reward'")
    return _own(getattr(module, name), name, options)


def load_place(source: str, folder: Path) -> tuple[ModuleType, str]:
    """The module of `file.py:function`, `module:function` or `file.py`, and the function's name, "" where none is
    given.

    Raises:
        ValueError: if there is no such file, module or function in it, or it cannot be imported.
    """
    place, colon, name = source.rpartition(":")
    if not colon and not source.endswith(".py"):
        raise ValueError(
            f"rewards: there is no reward {source!r}{nearest(source, sorted(BUILTIN_REWARDS))} "
            "(your own: file.py:function or module:function)"
        )
    if not colon:
        return _load_file(folder / source), ""
    module = _load_file(folder / place) if place.endswith(".py") else _load_module(place, folder)
    if not callable(getattr(module, name, None)):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"rewards: {place} has no function {name!r}{nearest(name, known)}")
    return module, name


def source_file(reward: Reward) -> tuple[str, Path] | None:
    """The file that a reward of the user's was read from, by the name the recipe has for it; None for one that is built
    in or was given as an object."""
    if reward.origin is None:
        return None
    given, folder = reward.origin
    place, colon, _ = str(given["name"]).rpartition(":")
    file = folder / place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    return (place, Path(file)) if colon and file else None


def _own(target: Callable[..., Any], name: str, options: Mapping[str, Any]) -> Reward:
    """A reward of the user's. A class is instantiated with the options, and the object is called."""
    checked = _checked(name, target, options) if options else {}
    if inspect.isclass(target):
        instance: Any = target(**checked)
        return Reward(name=name, function=instance)
    return Reward(name=name, function=target, options=checked)


def _checked(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options must be named in the signature: **kwargs would swallow a mistyped `weight`."""
    return checked_options(function, options, where=f"reward {name!r}", also_known=_KEYS)


def _name_of(function: Callable[..., Any]) -> str:
    inner = getattr(function, "func", function)  # functools.partial
    return str(getattr(inner, "__name__", type(inner).__name__)).strip("<>")


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        folder = path.parent
        present = sorted(each.name for each in folder.glob("*.py")) if folder.is_dir() else []
        raise ValueError(f"rewards: there is no file {str(path)!r}{nearest(path.name, present)}{from_here(path)}")
    path = path.resolve()
    name = f"outscore_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _make_importable(path.parent)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"rewards: {str(path)!r} cannot be imported: {_said(error)}") from error
    return module


def _load_module(name: str, folder: Path) -> ModuleType:
    _make_importable(folder.resolve())
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"rewards: the module {name!r} cannot be imported: {_said(error)}") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}{place_of(error)}"


def _make_importable(folder: Path) -> None:
    """Let a reward import what lies beside it. At the end of the path, so that it hides nothing."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
