"""What people said about completions: pairs, rankings written as `D > G > A = B`, ratings, and labels of steps."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from outscore.inputs import nearest
from outscore.records import LabelledSolution, Problem, Ranking, Rating
from outscore.tasks.readers import Row

_PIECE = r"\s*(?:(?P<mark>[>=])|(?P<label>{known}[^\s>=]+))"


def parse_ranking(text: str, labels: Sequence[str]) -> tuple[int, ...]:
    """The rank of each label, from best to worst: `>` is better than, `=` as good as.

    Ranks count up from 0 and have no gaps; equal labels share one. Every label stands once, and may have spaces in it.
    ValueError marks the position where a text is wrong.

    >>> parse_ranking("D > G > A = B", ["A", "B", "D", "G"])
    (2, 2, 0, 1)
    """
    # The longest first, so that of `A` and `A better` the second is read whole.
    longest_first = sorted(filter(None, labels), key=len, reverse=True)
    known = [rf"{re.escape(label)}(?=\s|[>=]|$)|" for label in longest_first]
    piece = re.compile(_PIECE.format(known="".join(known)))
    ranks: dict[str, int] = {}
    rank, place, wants_label = 0, 0, True
    while text[place:].strip():
        match = piece.match(text, place)
        assert match is not None  # whatever is no space, `>` or `=` is part of a label
        label, mark = match["label"], match["mark"]
        start = match.start("label" if label else "mark")
        if wants_label != bool(label):
            wanted = "a label" if wants_label else "`>` or `=`"
            raise _at(text, start, f"{wanted} should stand here, not {label or mark!r}")
        if label and label not in labels:
            raise _at(text, start, f"{label!r} is no completion{nearest(label, labels)}")
        if label and label in ranks:
            raise _at(text, start, f"{label!r} stands here a second time")
        if label:
            ranks[label] = rank
        elif mark == ">":
            rank += 1
        wants_label = not label
        place = match.end()
    if wants_label:
        raise _at(text, len(text), "a label should stand here")
    if missing := [label for label in labels if label not in ranks]:
        raise _at(text, len(text), f"{missing[0]!r} is missing")
    return tuple(ranks[label] for label in labels)


def _at(text: str, place: int, what: str) -> ValueError:
    return ValueError(f"{what}\n    {text}\n    {' ' * place}^")


def pair_of(row: Row, problem: Problem, chosen: str, rejected: str) -> Ranking:
    """A ranking of two; ValueError where both sides are the same."""
    if chosen == rejected:
        raise ValueError(f"{row.where}: both sides of the pair are the same, so neither is better: {chosen[:80]!r}")
    return Ranking(problem=problem, responses=(chosen, rejected), ranks=(0, 1))


def ranking_of(row: Row, problem: Problem, completions: str, ranking: str) -> Ranking:
    """A ranking of the row's column `completions`: a mapping of label to text, or a list, labelled A, B, C … in order.

    The column `ranking` is text for `parse_ranking`, or a list with a rank for each completion, the best lowest.
    """
    given, order = row.values.get(completions), row.values.get(ranking)
    said = list(given.values()) if isinstance(given, Mapping) else list(given) if isinstance(given, list) else []
    labels = [str(key) for key in given] if isinstance(given, Mapping) else list(map(_letter, range(len(said))))
    if len(said) < 2:
        raise ValueError(
            f"{row.where}: {completions!r} must hold at least two texts, or lists of messages, by label or as a list"
        )
    places = [f"{row.where}: completion {label} of {completions!r}" for label in labels]
    texts = [_last_said(place, value)[1] for place, value in zip(places, said, strict=True)]
    if isinstance(order, str):
        try:
            ranks = parse_ranking(order, labels)
        except ValueError as error:
            raise ValueError(f"{row.where}: {ranking!r} cannot be read: {error}") from None
    elif isinstance(order, list) and len(order) == len(texts) and all(map(_is_number, order)):
        found = sorted(set(order))
        ranks = tuple(found.index(each) for each in order)
    else:
        raise ValueError(
            f"{row.where}: {ranking!r} must be text such as 'B > A = C', or a list of {len(texts)} ranks, not {order!r}"
        )
    for i, j in combinations(range(len(texts)), 2):
        if texts[i] == texts[j] and ranks[i] != ranks[j]:
            raise ValueError(
                f"{row.where}: completions {labels[i]} and {labels[j]} are the same text, but ranked differently"
            )
    return Ranking(problem=problem, responses=tuple(texts), ranks=ranks)


def rating_of(row: Row, problem: Problem, response: str, rating: str) -> Rating:
    """A response with the reward it should have, 1 or 0 where it is called good or not; ValueError where that is
    neither a truth value nor a number."""
    value = row.values.get(rating)
    _, text = reply(row, response)
    if not isinstance(value, bool) and not _is_number(value):
        raise ValueError(f"{row.where}: {rating!r} must be a number, or true or false, not {value!r}")
    assert isinstance(value, int | float)
    return Rating(problem=problem, response=text, reward=float(value))


def labelled_of(row: Row, problem: Problem, steps: str, labels: str) -> LabelledSolution:
    """A solution with a label for each step: truth values, PRM800K's -1, 0 and 1 (0 says neither right nor wrong), or,
    where any of them is no whole number, estimates of the chance that it is right (Math-Shepherd)."""
    texts, values = row.values.get(steps), row.values.get(labels)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{row.where}: {steps!r} must be a list of texts, one for each step")
    if not isinstance(values, list) or len(values) != len(texts):
        count = len(values) if isinstance(values, list) else f"{values!r}, no list of"
        raise ValueError(f"{row.where}: {len(texts)} steps in {steps!r}, but {count} labels in {labels!r}")
    estimates = any(isinstance(value, float) for value in values)
    for index, value in enumerate(values):
        known = value in (-1, 0, 1) or (estimates and _is_number(value) and 0 <= value <= 1)
        if not known or (estimates and value == -1):
            due = "a number from 0 to 1" if estimates else "true, false, -1, 0 or 1"
            raise ValueError(f"{row.where}: {labels!r}[{index}] = {value!r} must be {due}")
    if estimates or all(isinstance(value, bool) for value in values):
        chances: list[float | None] = [float(value) for value in values]
    else:
        chances = [float(value) if isinstance(value, bool) else {1: 1.0, 0: None, -1: 0.0}[value] for value in values]
    return LabelledSolution(problem=problem, steps=tuple(texts), labels=tuple(chances))


def reply(row: Row, column: str) -> tuple[list[Any], str]:
    """What precedes the last assistant message of a column, and its text; for plain text, nothing and the text."""
    return _last_said(f"{row.where}: {column!r}", row.values.get(column))


def _last_said(what: str, value: Any) -> tuple[list[Any], str]:
    if isinstance(value, str):
        return [], value
    last = value[-1] if isinstance(value, list) and value else None
    if not isinstance(last, dict) or last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        raise ValueError(f"{what} must be text, or messages that end with one of the assistant, not {value!r}")
    assert isinstance(value, list)
    return value[:-1], last["content"]


def implicit_prompt(row: Row, chosen: str, rejected: str) -> tuple[Any, str, str]:
    """The prompt that two texts or conversations begin with, and what follows it in each.

    Of conversations, all messages but the last, which must agree. Of texts, what is common, up to and without the last
    space in it (as Hugging Face's preference format has it): the words that differ stay whole.
    """
    before, better = reply(row, chosen)
    other, worse = reply(row, rejected)
    if before != other:
        raise ValueError(
            f"{row.where}: {chosen!r} and {rejected!r} must be the same conversation but for its last turn"
        )
    if before:
        return before, better, worse
    common = next(
        (i for i, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), min(len(better), len(worse))
    )
    cut = max(better.rfind(" ", 0, common), better.rfind("\n", 0, common))
    if cut < 1:
        raise ValueError(
            f"{row.where}: {chosen!r} and {rejected!r} have no beginning in common to be the prompt; "
            "give the prompt in a column of its own (question)"
        )
    return better[:cut], better[cut:], worse[cut:]


def _letter(index: int) -> str:
    """A, B, … Z, AA, AB, …"""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
