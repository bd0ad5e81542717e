"""How built-in rewards are made: from a score of one text, or from a check of one answer against the gold answer."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, get_args

from outscore.inputs import nearest
from outscore.rewards.answers import AnswerForm, extract_answer, parse_number
from outscore.rewards.contract import Reward, completion_text

Check = Callable[[str, str], float | None]
"""(completion, gold answer) -> how right it is, in [0, 1]; None where the gold answer cannot be judged by."""


def text_reward(
    name: str,
    score: Callable[[str], float | None],
    *,
    full: float | None = None,
    extract: Callable[[str], str | None] = extract_answer,
) -> Reward:
    """A reward that looks at the completion's text alone; None where the score says that it does not apply."""

    def function(completions: Sequence[Any], **_: Any) -> list[float | None]:
        return [score(completion_text(each)) for each in completions]

    return Reward(name=name, function=function, full=full, extract=extract)


def answer_reward(name: str, check: Check, extract: Callable[[str], str | None]) -> Reward:
    """A reward in [0, 1] that compares with the gold answer; None where there is none, or the check gives None."""

    def function(completions: Sequence[Any], answer: Sequence[str | None], **_: Any) -> list[float | None]:
        rewards: list[float | None] = []
        for completion, gold in zip(completions, answer, strict=True):
            verdict = None if gold is None else check(completion_text(completion), gold)
            rewards.append(None if verdict is None else float(verdict))
        return rewards

    return Reward(name=name, function=function, full=1.0, extract=extract)


def same_number(found: str | None, gold: str, tolerance: float) -> bool | None:
    """Whether |found - gold| <= tolerance * max(1, |gold|), exactly; None where the gold answer is no number."""
    right, value = parse_number(gold), parse_number(found)
    if right is None or value is None:
        return None if right is None else False
    return abs(value - right) <= Fraction(tolerance) * max(Fraction(1), abs(right))


def known_form(name: str, form: str) -> AnswerForm:
    """The form if it is one; ValueError names the reward and the nearest form."""
    forms: tuple[AnswerForm, ...] = get_args(AnswerForm)
    for known in forms:
        if known == form:
            return known
    raise ValueError(f"reward {name!r}: form = {form!r} is no place for an answer{nearest(form, forms)}")


def check_number(name: str, key: str, value: float, *, least: float = 0.0, most: float = math.inf) -> None:
    """ValueError unless the option is a number in [least, most]."""
    if math.isfinite(value) and least <= value <= most:
        return
    wanted = f"{least:g} or above" if most == math.inf else f"from {least:g} to {most:g}"
    raise ValueError(f"reward {name!r}: {key} = {value!r} must be {wanted}")
