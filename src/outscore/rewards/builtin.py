"""The rewards that come with Outscore, each built from its options. docs/rewards.md has a table with examples.

Each builder returns a `Reward`: its function follows the contract of `outscore.rewards.contract`. Answer rewards are 1
for a right answer, 0 for a wrong one or none, and None where the problem has no gold answer they can judge by.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import Any, get_args

from outscore.inputs import nearest
from outscore.rewards.answers import AnswerForm, boxed, extract_answer, last_number, parse_number, tag_content
from outscore.rewards.contract import Reward, completion_text
from outscore.rewards.gym import gym_rewards
from outscore.rewards.math_answers import import_math_verify, math_rewards, require_math_verify

Check = Callable[[str, str], bool | None]
"""(completion, gold answer) -> whether it is right; None where the gold answer cannot be judged by."""


def format_tags(
    *,
    reward: float = 0.5,
    strict_single_line: bool = False,
    tags: Sequence[str] = ("reasoning", "answer"),
    line_breaks: bool = True,
) -> Reward:
    """`reward` if the whole completion has the tagged format, else 0 (spec A37).

    The pattern is `^<reasoning>\\n.*?\\n</reasoning>\\n<answer>\\n.*?\\n</answer>\\n$`, for any two tags. As printed
    in its source `.` matches no line break, so that only bodies of one line score: that is `strict_single_line`;
    otherwise bodies may have lines. Without `line_breaks`, white space around tags and bodies is free
    (`<think>..</think><answer>..</answer>`).
    """
    if len(tags) != 2:
        raise ValueError(f"reward 'format_tags': tags = {tags!r} must be two names, such as [think, answer]")
    first, second = map(re.escape, tags)
    if line_breaks:
        pattern = rf"^<{first}>\n.*?\n</{first}>\n<{second}>\n.*?\n</{second}>\n$"
    else:
        pattern = rf"^\s*<{first}>.*?</{first}>\s*<{second}>.*?</{second}>\s*$"
    matches = re.compile(pattern, 0 if strict_single_line else re.DOTALL).match

    def score(completions: Sequence[Any], **_: Any) -> list[float]:
        return [reward if matches(completion_text(each)) else 0.0 for each in completions]

    return Reward(name="format_tags", function=score, full=max(reward, 0.0))


def answer_exact(*, form: str = "auto", ignore_case: bool = False) -> Reward:
    """1 if the answer in the place `form` names is the gold answer as text, white space at its ends aside."""

    extract = partial(extract_answer, form=_known_form("answer_exact", form))

    def check(text: str, gold: str) -> bool:
        found = extract(text)
        return found is not None and _folded(found, ignore_case) == _folded(gold, ignore_case)

    return _answer_reward("answer_exact", check, extract)


def answer_numeric(*, form: str = "auto", tolerance: float = 1e-6) -> Reward:
    """1 if the answer in the place `form` names is the gold number: |a - gold| <= tolerance * max(1, |gold|).

    The answer is that place's number, or the last number in it where it holds more than a number. Arithmetic is exact.
    """
    _check_tolerance("answer_numeric", tolerance)
    extract = partial(extract_answer, form=_known_form("answer_numeric", form))

    def check(text: str, gold: str) -> bool | None:
        found = extract(text)
        return _same_number(found if parse_number(found) is not None else last_number(found or ""), gold, tolerance)

    return _answer_reward("answer_numeric", check, extract)


def last_number_reward(*, tolerance: float = 0.0) -> Reward:
    """1 if the last number of the completion is the gold number, whatever stands around it."""
    _check_tolerance("last_number", tolerance)
    return _answer_reward(
        "last_number", lambda text, gold: _same_number(last_number(text), gold, tolerance), last_number
    )


def tag_answer(*, tag: str = "answer") -> Reward:
    """1 if what stands in the last <answer> tag is the gold answer, as text or as a number (82 is 82.0)."""

    def check(text: str, gold: str) -> bool:
        found = tag_content(text, tag)
        return found is not None and (found == gold.strip() or bool(_same_number(found, gold, 0.0)))

    return _answer_reward("tag_answer", check, partial(tag_content, tag=tag))


def math_verify(*, seconds: float = 5.0) -> Reward:
    """1 if math-verify finds the completion's mathematical answer equal to the gold one (extra `outscore[math]`).

    It runs in worker processes, one completion at a time. One that takes longer than `seconds`, or too much memory, has
    not been found equal: it counts as 0 and as a failure of the reward. None where the gold answer cannot be parsed.
    """
    if seconds <= 0:
        raise ValueError(f"reward 'math_verify': seconds = {seconds!r} must be above 0")
    require_math_verify()

    def extract(text: str) -> str | None:
        found = boxed(text)
        return extract_answer(text) if found is None else found

    return Reward(
        name="math_verify",
        function=math_rewards,
        full=1.0,
        extract=extract,
        batched=False,
        isolate=True,
        limits={"seconds": seconds},
        prepare=import_math_verify,
        on_failure=0.0,
    )


def gym(*, form: str = "auto") -> Reward:
    """reasoning_gym's own score of the answer, in [0, 1], for problems of the task `reasoning_gym`; None for others.

    With `auto`, an answer outside any tag or box is the last number where the gold answer is one, else the whole
    completion.
    """
    place = _known_form("gym", form)
    extract = partial(extract_answer, form=place)
    return Reward(name="gym", function=partial(gym_rewards, form=place), full=1.0, extract=extract)


BUILTIN_REWARDS: Mapping[str, Callable[..., Reward]] = MappingProxyType(
    {
        "format_tags": format_tags,
        "answer_exact": answer_exact,
        "answer_numeric": answer_numeric,
        "last_number": last_number_reward,
        "tag_answer": tag_answer,
        "math_verify": math_verify,
        "gym": gym,
    }
)
"""Name in a recipe -> builder: add a function and a line here."""


def _answer_reward(name: str, check: Check, extract: Callable[[str], str | None]) -> Reward:
    def score(completions: Sequence[Any], answer: Sequence[str | None], **_: Any) -> list[float | None]:
        verdicts = [
            None if gold is None else check(completion_text(each), gold)
            for each, gold in zip(completions, answer, strict=True)
        ]
        return [None if verdict is None else float(verdict) for verdict in verdicts]

    return Reward(name=name, function=score, full=1.0, extract=extract)


def _same_number(found: str | None, gold: str, tolerance: float) -> bool | None:
    """None where the gold answer is no number."""
    right, value = parse_number(gold), parse_number(found)
    if right is None or value is None:
        return None if right is None else False
    return abs(value - right) <= Fraction(tolerance) * max(Fraction(1), abs(right))


def _folded(text: str, ignore_case: bool) -> str:
    return text.strip().casefold() if ignore_case else text.strip()


def _known_form(name: str, form: str) -> AnswerForm:
    forms: tuple[AnswerForm, ...] = get_args(AnswerForm)
    for known in forms:
        if known == form:
            return known
    raise ValueError(f"reward {name!r}: form = {form!r} is no place for an answer{nearest(form, forms)}")


def _check_tolerance(name: str, tolerance: float) -> None:
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"reward {name!r}: tolerance = {tolerance!r} must be 0 or above")
