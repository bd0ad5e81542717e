"""Taking the answer out of a text: the last number, what stands between tags, what stands in \\boxed{}.

All of it is text in, text out, and total: no input raises and none is evaluated.
"""

import re
from fractions import Fraction
from typing import Literal

AnswerForm = Literal["auto", "tag", "boxed", "last_number", "text"]
"""Where an answer stands: `auto` is the last <answer> tag, else the last \\boxed{}, else the last number."""

# A minus is a sign only where it cannot be an operator: not straight after a digit, a letter or a closing bracket.
_SIGN = r"(?<![0-9A-Za-z)\]}])[+-]"
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(rf"(?:{_SIGN})?(?:{_DIGITS}(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?")
_FRACTION = re.compile(r"([+-]?[0-9]+)\s*/\s*([0-9]+)")
_MAX_NUMBER_LENGTH = 1000  # longer runs of digits are no answer, and Python refuses to convert beyond 4,300


def _plain(text: str) -> str:
    """Typographic minus signs as ASCII ones; everything else unchanged."""
    return text.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")


def last_number(text: str) -> str | None:
    """The last number of a text, without thousands commas and without a plus sign; None where there is none.

    A minus counts as a sign unless it stands straight after a digit, a letter or a closing bracket, where it is an
    operator or a hyphen. Only ASCII digits count.

    >>> last_number("5-9=-4"), last_number("It costs $1,234.50."), last_number("none")
    ('-4', '1234.50', None)
    """
    numbers: list[str] = _NUMBER.findall(_plain(text))
    return numbers[-1].replace(",", "").removeprefix("+") if numbers else None


def parse_number(text: str | None) -> Fraction | None:
    """The exact value of a text that is one number or one fraction of integers, with at most `$`, `%` or `.` around it.

    A percent sign is dropped, not applied: "5%" is 5. None where the text is anything else.

    >>> parse_number(" 1,234.50 "), parse_number("-3/4"), parse_number("3 apples")
    (Fraction(2469, 2), Fraction(-3, 4), None)
    """
    if text is None or len(text) > _MAX_NUMBER_LENGTH:
        return None
    bare = _plain(text).strip().strip("$").rstrip(".%").strip()
    fraction = _FRACTION.fullmatch(bare)
    if fraction:
        numerator, denominator = int(fraction[1]), int(fraction[2])
        return Fraction(numerator, denominator) if denominator else None
    return Fraction(bare.replace(",", "")) if _NUMBER.fullmatch(bare) else None


def tag_content(text: str, tag: str = "answer") -> str | None:
    """What stands in the last `<tag>...</tag>` pair, stripped of white space; None where no pair is closed.

    >>> tag_content("<answer>\\n82\\n</answer>\\n")
    '82'
    """
    closing = text.rfind(f"</{tag}>")
    opening = text.rfind(f"<{tag}>", 0, closing) if closing >= 0 else -1
    return text[opening + len(tag) + 2 : closing].strip() if opening >= 0 else None


def boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{...}`, braces balanced; None where there is none or it is not closed.

    >>> boxed(r"so \\boxed{\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place].strip()
    return None


def extract_answer(text: str, form: AnswerForm = "auto") -> str | None:
    """The answer in the place that `form` names, or None where it is not there.

    >>> extract_answer("thus 5\\n<answer>7</answer>"), extract_answer("it is 12.")
    ('7', '12')
    """
    if form == "tag":
        return tag_content(text)
    if form == "boxed":
        return boxed(text)
    if form == "last_number":
        return last_number(text)
    if form == "text":
        return text.strip() or None
    found = tag_content(text)
    found = boxed(text) if found is None else found
    return last_number(text) if found is None else found


_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
_THOUGHT = ("think", "reasoning")


def fenced_block(text: str) -> str | None:
    """What stands in the last ``` block that is closed, its line ends kept; None where there is none.

    >>> fenced_block("so:\\n```python\\nx = 1\\n```\\n")
    'x = 1\\n'
    """
    blocks: list[str] = _FENCE.findall(text)
    return blocks[-1] if blocks else None


def chain_of_thought(text: str) -> str:
    """The reasoning of a completion: what stands in its <think> or <reasoning> tag.

    A tag that is never closed holds all that follows it, and one that is only closed (its opening may be part of the
    prompt) all before it. Without such a tag it is the text before the last <answer> tag or \\boxed{}, else all of it.

    >>> chain_of_thought("<think>7+8=15</think> 15"), chain_of_thought("7+8=15</think> 15")
    ('7+8=15', '7+8=15')
    """
    for tag in _THOUGHT:
        opening, closing = text.find(f"<{tag}>"), text.rfind(f"</{tag}>")
        start = opening + len(tag) + 2 if opening >= 0 else 0
        if closing >= start:
            return text[start:closing]
        if opening >= 0:
            return text[start:]
    for mark in ("<answer>", "\\boxed{"):
        if mark in text:
            return text[: text.rfind(mark)]
    return text
