"""Small programming problems for a small model: a chain of operations in words, to be written as a Python function.

A problem is `add 3, square, at most 7`; its demonstration is

    ```python
    def f(x):
        return min((x+3)**2,7)
    ```

and its column `tests` has one assertion for each of `INPUTS`. Nothing but running the program says whether it is right:
a text that looks different may compute the same.
"""

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

from outscore.records import Demonstration, Problem

INPUTS = (-7, 0, 4, 13)
"""What the function is tried on."""

OPERATIONS: Mapping[str, tuple[str, Sequence[int]]] = MappingProxyType(
    {
        "add {n}": ("{x}+{n}", range(1, 10)),
        "subtract {n}": ("{x}-{n}", range(1, 10)),
        "times {n}": ("{x}*{n}", range(2, 10)),
        "square": ("{x}**2", (0,)),
        "halve": ("{x}//2", (0,)),
        "remainder {n}": ("{x}%{n}", range(2, 10)),
        "at least {n}": ("max({x},{n})", range(1, 10)),
        "at most {n}": ("min({x},{n})", range(1, 10)),
    }
)
"""Words -> the expression over what came before, and the numbers it is asked with."""

RESPONSE = "```python\ndef f(x):\n    return {expression}\n```\n"


def expression(steps: Sequence[tuple[str, int]]) -> str:
    """The expression of a chain: each step around the one before, in brackets unless that is x or a call.

    >>> expression([("add {n}", 3), ("square", 0), ("at most {n}", 7)])
    'min((x+3)**2,7)'
    """
    inner, is_whole = "x", True
    for words, number in steps:
        template = OPERATIONS[words][0]
        calls = template.startswith(("max", "min"))
        inner = template.format(x=inner if is_whole or calls else f"({inner})", n=number)
        is_whole = calls
    return inner


def result(steps: Sequence[tuple[str, int]], value: int) -> int:
    """What the chain makes of a number, worked without Python's own expression."""
    for words, n in steps:
        value = {
            "add {n}": lambda v, n: v + n,
            "subtract {n}": lambda v, n: v - n,
            "times {n}": lambda v, n: v * n,
            "square": lambda v, n: v * v,
            "halve": lambda v, n: v // 2,
            "remainder {n}": lambda v, n: v % n,
            "at least {n}": lambda v, n: max(v, n),
            "at most {n}": lambda v, n: min(v, n),
        }[words](value, n)
    return value


class ProgramsTask:
    """Distinct chains of `steps` operations, drawn once from `seed`, in three sets that share none."""

    name = "programs"
    special_strings: ClassVar[tuple[str, ...]] = (
        *("```python\ndef f(x):\n    return ", "\n```\n", "**2", "//2", "max(", "min(", ", "),
        *("add ", "subtract ", "times ", "square", "halve", "remainder ", "at least ", "at most "),
    )
    """Strings that deserve a token each: the frame of the answer, and the words of a problem."""
    characters: ClassVar[str] = "0123456789x+-*%(),"
    """Every other character that problems and demonstrations use."""

    def __init__(
        self,
        *,
        num_train: int = 2000,
        num_eval: int = 200,
        num_demonstrations: int = 200,
        steps: int = 3,
        seed: int = 0,
    ) -> None:
        if not 1 <= steps <= 6:
            raise ValueError(f"task programs: steps={steps!r} must be from 1 to 6")
        if num_train < 1 or num_eval < 1 or num_demonstrations < 0:
            raise ValueError(
                f"task programs: num_train={num_train!r} and num_eval={num_eval!r} must be 1 or more, "
                f"num_demonstrations={num_demonstrations!r} 0 or more"
            )
        wanted = num_train + num_eval + num_demonstrations
        available = sum(len(numbers) for _, numbers in OPERATIONS.values()) ** steps
        if wanted > available // 2:
            raise ValueError(f"task programs: {wanted:,} problems are too many of the {available:,} with steps={steps}")
        drawn = _draw(wanted, steps, seed)
        self._eval = [_problem(each) for each in drawn[:num_eval]]
        shown = drawn[num_eval : num_eval + num_demonstrations]
        self._demonstrations = [
            Demonstration(problem=_problem(each), response=RESPONSE.format(expression=expression(each)))
            for each in shown
        ]
        self._train = [_problem(each) for each in drawn[num_eval + num_demonstrations :]]

    def train_problems(self) -> Sequence[Problem]:
        """Problems to train on."""
        return self._train

    def eval_problems(self) -> Sequence[Problem]:
        """Problems that are in neither of the other two sets."""
        return self._eval

    def demonstrations(self) -> Sequence[Demonstration]:
        """Programs to imitate."""
        return self._demonstrations


Chain = tuple[tuple[str, int], ...]
"""(words, number) of each step; the number is 0 where the words have none."""


def _draw(wanted: int, steps: int, seed: int) -> list[Chain]:
    generator = random.Random(f"outscore programs {seed}")
    drawn: dict[Chain, None] = {}
    while len(drawn) < wanted:
        words = [generator.choice(tuple(OPERATIONS)) for _ in range(steps)]
        drawn[tuple((each, generator.choice(OPERATIONS[each][1])) for each in words)] = None
    return list(drawn)


def _problem(chain: Chain) -> Problem:
    question = ", ".join(words.format(n=number) for words, number in chain)
    tests = [f"assert f({value}) == {result(chain, value)}" for value in INPUTS]
    return Problem(id=f"programs/{question}", question=question, answer=None, columns={"tests": "\n".join(tests)})
