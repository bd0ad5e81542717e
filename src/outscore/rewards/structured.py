"""Answers that are more than one number or word: a letter of several, a set, a list."""

import re
from fractions import Fraction
from functools import partial

from outscore.rewards.answers import AnswerForm, boxed, extract_answer, parse_number, tag_content
from outscore.rewards.contract import Reward
from outscore.rewards.kinds import answer_reward, check_number, known_form

_BRACKETS = {"{": "}", "[": "]", "(": ")"}
_SEPARATOR = re.compile(r"\s*(?:[,;\n]|\band\b)\s*")


def multiple_choice(*, letters: str = "ABCDE") -> Reward:
    """1 if the letter chosen is the gold one, which is a letter alone or with a bracket or a point, as `(B)`.

    The choice is what `chosen_letter` reads. Several letters are no choice.
    """
    known = letters.upper()
    if len(set(known)) < max(2, len(known)) or not known.isalpha():
        raise ValueError(f"reward 'multiple_choice': letters = {letters!r} must be different letters, such as ABCD")
    extract = partial(chosen_letter, letters=known)

    def check(text: str, gold: str) -> float | None:
        right = _lone_letter(gold, known)
        return None if right is None else float(extract(text) == right)

    return answer_reward("multiple_choice", check, extract)


def chosen_letter(text: str, letters: str = "ABCDE") -> str | None:
    """The letter a text chooses, in upper case, or None.

    The last <answer> tag or \\boxed{} says it, alone (`B`, `(b)`, `B.`) or before the choice's words (`B) Paris`);
    without either, the last `answer is B` or `answer: B` does, or the whole text in the ways of a tag.

    >>> chosen_letter("A is wrong. The answer is (B)."), chosen_letter("<answer>C) blue</answer>")
    ('B', 'C')
    """
    place = tag_content(text)
    place = boxed(text) if place is None else place
    if place is None:
        either = f"{letters}{letters.lower()}"  # in brackets; without them `a` is a word
        pattern = rf"[Aa]nswer(?:\s+is)?\s*:?\s*\**(?:\(([{either}])\)|([{letters}])\b)(?!\s*(?:or|and)\b)"
        stated = re.findall(pattern, text)
        if stated:
            return "".join(stated[-1]).upper()
        place = text
    return _lone_letter(place, letters)


def _lone_letter(text: str, letters: str) -> str | None:
    found = re.fullmatch(
        rf"\s*(?:\(?([{letters}])[).:]?|\(?([{letters}])[).:]\s.*)\s*", text, re.IGNORECASE | re.DOTALL
    )
    return str(found[1] or found[2]).upper() if found else None


def answer_set(*, form: str = "auto", partial_credit: bool = False, tolerance: float = 0.0) -> Reward:
    """1 if the answer has the items of the gold answer in any order, repeats aside; `items` says what items are.

    With `partial_credit` it is F1 = 2 |A ∩ B| / (|A| + |B|), in [0, 1]. Numbers are equal within
    tolerance * max(1, |gold|), other items as text without regard to case.
    """
    check_number("answer_set", "tolerance", tolerance)
    extract = partial(_items_text, form=known_form("answer_set", form))

    def check(text: str, gold: str) -> float:
        found, wanted = items(extract(text) or ""), items(gold)
        found, wanted = _distinct(found, tolerance), _distinct(wanted, tolerance)
        shared = sum(any(_same(a, b, tolerance) for a in found) for b in wanted)
        score = 2 * shared / (len(found) + len(wanted)) if found or wanted else 1.0
        return score if partial_credit else float(shared == len(wanted) == len(found))

    return answer_reward("answer_set", check, extract)


def answer_list(*, form: str = "auto", partial_credit: bool = False, tolerance: float = 0.0) -> Reward:
    """1 if the answer has the items of the gold answer in the same order.

    With `partial_credit` it is the share of places with the right item, of the longer list's places, in [0, 1]. Items
    are equal as in `answer_set`.
    """
    check_number("answer_list", "tolerance", tolerance)
    extract = partial(_items_text, form=known_form("answer_list", form))

    def check(text: str, gold: str) -> float:
        found, wanted = items(extract(text) or ""), items(gold)
        right = sum(_same(a, b, tolerance) for a, b in zip(found, wanted, strict=False))
        score = right / max(len(found), len(wanted)) if found or wanted else 1.0
        return score if partial_credit else float(score == 1.0)

    return answer_reward("answer_list", check, extract)


def items(text: str) -> list[str]:
    """The items of a set or list as text: separated by commas, semicolons, line ends or `and`, one pair of brackets
    around them and quotes around each left out. A comma always separates: 1,234 are two items.

    >>> items("{2, 3 and 'blue'}")
    ['2', '3', 'blue']
    """
    bare = text.strip()
    if bare and _BRACKETS.get(bare[0]) == bare[-1]:
        bare = bare[1:-1]
    parts = (part.strip().strip("\"'").strip() for part in _SEPARATOR.split(bare))
    return [part for part in parts if part]


def _items_text(text: str, form: AnswerForm) -> str | None:
    """Without a tag or a box `auto` takes the whole completion: a list is no last number."""
    if form != "auto":
        return extract_answer(text, form)
    found = tag_content(text)
    found = boxed(text) if found is None else found
    return text.strip() if found is None else found.replace("\\{", "{").replace("\\}", "}")


def _distinct(found: list[str], tolerance: float) -> list[str]:
    kept: list[str] = []
    for item in found:
        if not any(_same(item, other, tolerance) for other in kept):
            kept.append(item)
    return kept


def _same(found: str, wanted: str, tolerance: float) -> bool:
    value, right = parse_number(found), parse_number(wanted)
    if value is None or right is None:
        return found.casefold() == wanted.casefold()
    return abs(value - right) <= Fraction(tolerance) * max(Fraction(1), abs(right))
