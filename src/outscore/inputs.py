"""What users write, read strictly: YAML without double keys, `key=value` overrides, options of the right type.

Every error is a ValueError that names the key, its value and what would be right.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

_WANTS_A_LIST = ("tuple_type", "list_type", "sequence_str", "frozen_set_type", "set_type")
"""What pydantic calls the error of a value that stands where a list should."""


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key stands once in a mapping; plain YAML silently takes the last of several."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping as it is written, before `<<` puts keys of another one in."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                where = f"on lines {lines[key.value]} and {line}" if lines[key.value] != line else f"on line {line}"
                raise ValueError(f"the key `{key.value}` stands twice in one mapping, {where}")
            lines[key.value] = line
        return node


def read_yaml(text: str, where: str) -> Any:
    """The data of a YAML text. ValueError beginning with `where`, with the line, for bad YAML or a key given twice."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Put `key=value` overrides into a recipe's data; returns the same data.

    Members of a list go by their position or the name that they have before any override: one that gives a stage
    another algorithm leaves it its name for the others.

    Raises:
        ValueError: if an override has no value, its value is no YAML, its path leads nowhere or an earlier one gave the
        same key.
    """
    names = list(_named_lists(data))
    given: dict[tuple[str | int, ...], str] = {}
    for override in overrides:
        place = _apply(data, override, names)
        if place in given:
            raise ValueError(f"override {override!r}: the key is given twice, as {given[place]!r} before; give it once")
        given[place] = override
    return data


def checked_options(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    where: str,
    also_known: Sequence[str] = (),
    open_ended: bool = False,
) -> dict[str, Any]:
    """The options with values of the types that the function's signature names, converted where YAML cannot say it.

    Only data are checked (None, truth values, numbers, text, lists, mappings): objects come from scripts. A type that
    pydantic cannot check is not checked.

    Args:
        function: what the options are for; a class stands for its constructor.
        options: key -> value.
        where: whose options they are; begins the message.
        also_known: keys to offer in the message besides the function's.
        open_ended: let options through that the signature does not name, for a function that checks them itself.

    Raises:
        ValueError: for an option the signature does not name, or a value of another type.

    >>> checked_options(lambda *, count: None, {"count": 3}, where="task 'mine'")
    {'count': 3}
    """
    parameters = _signature(function).parameters
    named = {key: each for key, each in parameters.items() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
    checked = {}
    for key, value in options.items():
        if key in named:
            checked[key] = _checked(named[key].annotation, value, where=f"{where}: {key}")
        elif open_ended:
            checked[key] = value
        else:
            raise ValueError(f"{where} has no option {key!r} (value {value!r}){nearest(key, [*also_known, *named])}")
    return checked


_WANTS_A_MAPPING = ("dict_type", "mapping_type", "model_type", "model_attributes_type")
"""The same where a mapping should."""
_MAPPINGS = {
    "task": "{{kind: {}}}",
    "stages": "{{algorithm: {}, steps: 100}}",
    "model": "{{source: {}}}",
    "lora": "{{rank: {}}}",
    "prompt": "{{template: {}}}",
    "optimizer": "{{lr: {}}}",
    "sampling": "{{max_new_tokens: {}}}",
    "evaluation": "{{problems: {}}}",
}
"""Key -> what somebody probably meant who gave one value in the place of its mapping."""


def expected(error: Mapping[str, Any]) -> str:
    """What one of pydantic's errors says would be right, in words for somebody who writes YAML."""
    value, message = error["input"], str(error["msg"]).removeprefix("Value error, ")
    is_sequence = error["type"] == "is_instance_of" and error.get("ctx", {}).get("class") == "Sequence"
    if is_sequence or error["type"] in _WANTS_A_LIST:
        if isinstance(value, str):
            return f"must be a list; give a list: [{value}]"
        return "must be a list: one item after each `-`, or [one, another]"
    if error["type"] in _WANTS_A_MAPPING:
        keys = [part for part in error["loc"] if isinstance(part, str)]
        if keys and keys[-1] in _MAPPINGS and isinstance(value, str):
            return f"must be a mapping, such as {_MAPPINGS[keys[-1]].format(value)}"
        return "must be a mapping of keys to values, such as {key: value}"
    return message.replace("Input should be", "must be").replace("Tuple should", "the list should")


def nearest(wrong: object, known: Iterable[str]) -> str:
    """`; did you mean X?` or the list of what exists, to end an error message with."""
    words = list(known)
    close = difflib.get_close_matches(str(wrong), words, n=3, cutoff=0.5)
    # Of words equally near by their order, one with the very same letters is what was meant: gpro is grpo, not gspo.
    close.sort(key=lambda word: sorted(word) != sorted(str(wrong)))
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known: {', '.join(words)}" if words else ""


def check_file_name(name: str, what: str) -> None:
    """ValueError, beginning with `what` it is, for a name that cannot be a file's everywhere, or leads elsewhere."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise ValueError(
            f"{what} {name!r} names files: use letters, digits, '.', '_', '+' and '-' only, a letter or digit first"
        )


def from_here(path: Path) -> str:
    """What a relative path is relative to, to end an error message with; nothing for an absolute one."""
    return "" if path.is_absolute() else f" (the working directory is {Path.cwd()})"


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # annotations that exist for type checkers only
        return inspect.signature(function)


def _checked(annotation: Any, value: Any, *, where: str) -> Any:
    if annotation is inspect.Parameter.empty or not isinstance(value, None | bool | int | float | str | list | dict):
        return value
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except (PydanticUserError, NameError):
        return value
    except ValidationError as error:
        wanted = dict.fromkeys(expected(each) for each in error.errors())  # one for each member of a union
        raise ValueError(f"{where} = {value!r} {' or '.join(wanted)}") from None


_NamedLists = list[tuple[list[Any], list[str]]]
"""Lists, and what their members were called when they were read."""


def _named_lists(data: Any) -> Iterator[tuple[list[Any], list[str]]]:
    """Every list within some data, with the names of its members."""
    if isinstance(data, list):
        yield data, _names(data)
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _named_lists(value)


def _names(items: list[Any]) -> list[str]:
    return [
        str(item.get("name") or item.get("algorithm") or "") if isinstance(item, dict) else str(item) for item in items
    ]


def _apply(data: dict[str, Any], override: str, names: _NamedLists) -> tuple[str | int, ...]:
    """Put one override in; returns where it went, positions in the place of names."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r} must look like key=value, for example stages.grpo.steps=100")
    parts = key.split(".")
    target: Any = data
    place: list[str | int] = []
    for depth, part in enumerate(parts):
        if isinstance(target, list):
            place.append(_list_index(target, part, key, names))
        elif isinstance(target, dict):
            place.append(part)
        else:
            raise ValueError(f"override {override!r}: {'.'.join(parts[:depth])} is a value, not a group of settings")
        if depth < len(parts) - 1:
            target = target.setdefault(part, {}) if isinstance(target, dict) else target[place[-1]]
            if target is None:
                raise ValueError(f"override {override!r}: {'.'.join(parts[: depth + 1])} holds no settings")
    value = read_yaml(text, where=f"override {override!r}") if text else ""
    target[place[-1]] = _number(value) if isinstance(value, str) else value
    return tuple(place)


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-5 as text; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _list_index(items: list[Any], part: str, key: str, named: _NamedLists) -> int:
    """The position of a member: by the name that it had at first, or has by now, or by its number."""
    first = next((names for each, names in named if each is items), [])
    for names in (first, _names(items)):
        if part in names:
            return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    known = first or _names(items)
    raise ValueError(f"override key {key!r}: {part!r} is neither a position nor a name{nearest(part, known)}")
