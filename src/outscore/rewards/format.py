"""Rewards for the form of a completion: tags and JSON."""

import importlib
import importlib.util
import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from outscore.rewards.answers import fenced_block, tag_content
from outscore.rewards.contract import Reward, completion_text
from outscore.rewards.kinds import check_number, text_reward


def format_tags(
    *,
    reward: float = 0.5,
    strict_single_line: bool = False,
    tags: Sequence[str] = ("reasoning", "answer"),
    line_breaks: bool = True,
    soft: bool = False,
) -> Reward:
    """`reward` if the whole completion has the tagged format, else 0.

    The pattern is `^<reasoning>\\n.*?\\n</reasoning>\\n<answer>\\n.*?\\n</answer>\\n$`, for any tags. As printed
    in its source `.` matches no line break, so that only bodies of one line score: that is `strict_single_line`;
    otherwise bodies may have lines. Without `line_breaks`, white space around tags and bodies is free
    (`<think>..</think><answer>..</answer>`). With `soft` a completion gets the share of `reward` that
    `share_of_tags` finds, so that a first closed tag already pays.
    """
    if not tags or len(set(tags)) < len(tags) or any(not re.fullmatch(r"[\w-]+", tag) for tag in tags):
        raise ValueError(
            f"reward 'format_tags': tags = {list(tags)!r} must be different names, such as [think, answer]"
        )
    if soft:
        return text_reward("format_tags", lambda text: reward * share_of_tags(text, tags), full=max(reward, 0.0))
    if line_breaks:
        pattern = "^" + "".join(rf"<{tag}>\n.*?\n</{tag}>\n" for tag in tags) + "$"
    else:
        pattern = "^" + "".join(rf"\s*<{tag}>.*?</{tag}>" for tag in tags) + r"\s*$"
    matches = re.compile(pattern, 0 if strict_single_line else re.DOTALL).match
    return text_reward("format_tags", lambda text: reward if matches(text) else 0.0, full=max(reward, 0.0))


def share_of_tags(text: str, tags: Sequence[str]) -> float:
    """Which share of the opening and closing tags stand exactly once and in order: of those that stand once, as many
    as are in the longest run that is in order.

    >>> share_of_tags("<think>1</think> 2", ["think", "answer"])
    0.5
    """
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    places = [text.find(mark) for mark in marks if text.count(mark) == 1]
    tails: list[int] = []  # tails[n]: the earliest end of an increasing run of n + 1 places
    for place in places:
        position = bisect_left(tails, place)
        tails[position : position + 1] = [place]
    return len(tails) / len(marks)


def json_format(*, schema: Mapping[str, Any] | str | None = None, parsed: float = 0.0) -> Reward:
    """1 if the completion is JSON, and such as the JSON schema asks for if there is one; else 0.

    The JSON is what stands in the last ``` block, else in the last <answer> tag, else the whole completion. NaN and
    infinities are no JSON.

    Args:
        schema: a JSON schema (extra `outscore[json]`), or the name of the data column that holds each problem's; a
            row without one asks for JSON only. References to other documents are not followed.
        parsed: what JSON gets that is not such as the schema asks for, from 0 to 1.
    """
    check_number("json_format", "parsed", parsed, most=1.0)
    if schema is not None:
        _require_jsonschema()
    if isinstance(schema, Mapping):
        _validator(json.dumps(schema))  # a schema that is none is found now
    score = partial(_json_rewards, schema=schema, parsed=parsed)
    return Reward(name="json_format", function=score, full=1.0, extract=_json_text)


def _json_rewards(completions: Sequence[Any], schema: Any, parsed: float, **columns: Any) -> list[float]:
    if isinstance(schema, str):
        if schema not in columns:
            raise ValueError(
                f"reward 'json_format': schema = {schema!r} is no column of the data; there are {[*columns]}"
            )
        schemas = columns[schema]
    else:
        schemas = [schema] * len(completions)
    return [_json_score(completion_text(c), s, parsed) for c, s in zip(completions, schemas, strict=True)]


def _json_score(text: str, schema: Any, parsed: float) -> float:
    try:
        value = json.loads(_json_text(text), parse_constant=_refuse)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply to be read
        return 0.0
    if schema is None:
        return 1.0
    validator = _validator(schema if isinstance(schema, str) else json.dumps(schema))
    try:
        return 1.0 if validator.is_valid(value) else parsed
    except RecursionError:  # a schema that refers to itself, on JSON nested as deeply as can be read
        return parsed


def _json_text(text: str) -> str:
    for found in (fenced_block(text), tag_content(text)):
        if found is not None:
            return found
    return text


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    """A validator for a schema written as JSON. ValueError if it is none."""
    jsonschema = importlib.import_module("jsonschema")
    referencing = importlib.import_module("referencing")
    read = json.loads(schema)
    kind = jsonschema.validators.validator_for(read, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(read)
    except jsonschema.SchemaError as error:
        raise ValueError(f"reward 'json_format': schema is no JSON schema: {error.message}") from error
    return kind(read, registry=referencing.Registry())  # an empty registry: nothing is fetched


def _require_jsonschema() -> None:
    if importlib.util.find_spec("jsonschema") is None:
        raise ImportError("the reward 'json_format' needs jsonschema for a schema: pip install 'outscore[json]'")
