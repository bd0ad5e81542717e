"""Where the steps of a solution end, in its text and among its tokens, and what it is worth by them."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Literal

Decode = Callable[[Sequence[int]], str]
"""Tokens -> their text, without special tokens."""
StepScores = Literal["min", "product", "last"]
"""How the chances of steps become one of a solution."""


def decoder(tokenizer: Any) -> Decode:
    """How a Hugging Face tokenizer reads tokens, special ones left out."""
    return lambda token_ids: str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


def split_steps(text: str, separators: Sequence[str]) -> tuple[str, ...]:
    """A text as its steps, which put together are the text: a step ends with the separators that follow it.

    What is blank between two separators, or after the last one, belongs to the step before; a blank beginning belongs
    to the first. Without a separator in it, a text is one step, also where it is empty.

    >>> split_steps("a=1\\n\\nb=2\\n", ["\\n"])
    ('a=1\\n\\n', 'b=2\\n')
    """
    pieces: list[str] = []
    rest = text
    while rest:
        ends = [rest.find(each) + len(each) for each in separators if each in rest]
        end = min(ends, default=len(rest))
        piece, rest = rest[:end], rest[end:]
        if pieces and (not piece.strip() or not pieces[-1].strip()):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return tuple(pieces) or ("",)


def join_steps(steps: Sequence[str], separators: Sequence[str]) -> tuple[str, ...]:
    """Steps as they stand in the solution: each but the last that ends with no separator is closed by the first of
    them."""
    if not separators:
        return tuple(steps)
    closed = [step if step.endswith(tuple(separators)) else step + separators[0] for step in steps[:-1]]
    return (*closed, steps[-1])


def step_ends(steps: Sequence[str], token_ids: Sequence[int], decode: Decode) -> tuple[int, ...]:
    """For each step the index of the token in which its text ends; the last step ends with the last token, the stop
    token where there is one.

    Two steps that end in the same token have the same index. `token_ids` are those of all steps together, and none of
    them is empty.
    """
    ends: list[int] = []
    length = 0
    for step in steps[:-1]:
        length += len(step)
        first = ends[-1] if ends else 0
        ends.append(
            bisect_left(range(len(token_ids) - 1), length, lo=first, key=lambda t: len(decode(token_ids[: t + 1])))
        )
    return (*ends, len(token_ids) - 1)


def solution_score(steps: Sequence[float], how: StepScores) -> float:
    """What a solution is worth by the chances that its steps are right: the smallest (Math-Shepherd, arXiv 2312.08935),
    their product (Lightman et al., arXiv 2305.20050), or the last one. Raises ValueError where there is no step."""
    if not steps:
        raise ValueError("a solution without steps has no score")
    if how == "product":
        return math.prod(steps)
    return min(steps) if how == "min" else steps[-1]
