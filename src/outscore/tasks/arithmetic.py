"""Addition and subtraction with the work of each column written out: the embedded task of `outscore demo`.

A problem is `47+38=`. Its demonstration, in tags for reasoning and answer, works the columns from the units up:

    <reasoning>
    7+8=15 4+3=7 7+1=8
    </reasoning>
    <answer>
    85
    </answer>

Every step is a true equation: an addition carries the tens of the column before, a subtraction that needs a loan takes
ten (`52-17=` is worked `12-7=5 5-1=4 4-1=3`), and what is carried or paid back is a step of its own. So two hundred
facts about two small numbers are all there is to know; a step of three numbers, as `4+3+1=8`, would need twice as many.
The answer's digits can be read off. Preferences set such a solution above others with a slip in them: one step gives a
wrong number, and everything after it follows from that. Sums are of two numbers with `digits` digits; differences never
fall below zero.
"""

import random
from collections.abc import Sequence
from itertools import islice
from typing import ClassVar

from outscore.records import Demonstration, Problem, Ranking

OPERATIONS = ("+", "-")
LARGEST = 19
"""The largest result of a step: 9+9, and 1 that was carried."""
ERRORS = (-10, -2, -1, 1, 2, 10)
"""By how much a slip is wrong: a little, or a ten that is forgotten or made up."""
RESPONSE = "<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>\n"


def columns(left: int, operation: str, right: int) -> str:
    """The worked columns of `left operation right`, units first, separated by spaces.

    >>> columns(47, "+", 38), columns(52, "-", 17)
    ('7+8=15 4+3=7 7+1=8', '12-7=5 5-1=4 4-1=3')
    """
    return work(left, operation, right)[0]


def work(left: int, operation: str, right: int, *, slip: tuple[int, int] | None = None) -> tuple[str, int]:
    """The worked columns and the answer that is read off them. The one place that sets the format.

    `slip` is (step, error): the result of that step, 0 for the first, is wrong by so much; what is carried on is the
    wrong number. ValueError where there is no such step, or a result would not be one that steps have.

    >>> work(47, "+", 38, slip=(1, -1))
    ('7+8=15 4+3=6 6+1=7', 75)
    """
    steps: list[str] = []

    def step(first: int, second: int) -> int:
        result = evaluate(first, operation, second)
        if slip is not None and slip[0] == len(steps):
            result += slip[1]
        if not 0 <= result <= LARGEST:
            raise ValueError(f"slip={slip!r} makes a step of {left}{operation}{right} {result}: not of 0 to {LARGEST}")
        steps.append(f"{first}{operation}{second}={result}")
        return result

    carried, answer = False, 0
    num_digits = len(str(left))
    for place in range(num_digits):
        upper, lower = left // 10**place % 10, right // 10**place % 10
        # A column whose upper digit is too small borrows ten from the next, which then pays one.
        borrows = operation == "-" and upper < lower + carried
        result = step(upper + 10 * borrows, lower)
        if carried:
            result = step(result, 1)
        carried = borrows or (operation == "+" and result >= 10)
        answer += 10**place * (result if place == num_digits - 1 else result % 10)
    if slip is not None and not 0 <= slip[0] < len(steps):
        raise ValueError(f"slip={slip!r}: {left}{operation}{right} has {len(steps)} steps")
    return " ".join(steps), answer


def evaluate(left: int, operation: str, right: int) -> int:
    """The answer."""
    return left + right if operation == "+" else left - right


class ArithmeticTask:
    """Distinct problems, drawn once from `seed`, in four sets that share none: train, eval, demonstrations and
    preferences.

    A preference is a right solution above `num_slips` others, each with a slip of its own; the others are equals. Where
    there are preferences there is also one for each eval problem. They change nothing about the other sets. `digits` is
    2 or 3, for both numbers; `operations` are of "+" and "-". ValueError where the options ask for more distinct
    problems than there are (8,100 sums and 4,095 differences of two-digit numbers).
    """

    name = "arithmetic"
    special_strings: ClassVar[tuple[str, ...]] = ("<reasoning>\n", "\n</reasoning>\n", "<answer>\n", "\n</answer>\n")
    """Strings that deserve a token each: the tags with their line ends."""
    characters: ClassVar[str] = "0123456789+-= "
    """Every other character that problems and demonstrations use."""

    def __init__(
        self,
        *,
        num_train: int = 5000,
        num_eval: int = 200,
        num_demonstrations: int = 400,
        num_preferences: int = 0,
        num_slips: int = 1,
        digits: int = 2,
        operations: Sequence[str] = OPERATIONS,
        seed: int = 0,
    ) -> None:
        if digits not in (2, 3):
            raise ValueError(f"task arithmetic: digits={digits!r} must be 2 or 3")
        if not operations or any(operation not in OPERATIONS for operation in operations):
            raise ValueError(f'task arithmetic: operations={list(operations)!r} must be of "+" and "-"')
        for key, count, least in (
            ("num_train", num_train, 1),
            ("num_eval", num_eval, 1),
            ("num_demonstrations", num_demonstrations, 0),
            ("num_preferences", num_preferences, 0),
            ("num_slips", num_slips, 1),
        ):
            if count < least:
                raise ValueError(f"task arithmetic: {key}={count!r} must be at least {least}")
        wanted = num_train + num_eval + num_demonstrations + num_preferences
        available = sum(_num_distinct(digits, operation) for operation in set(operations))
        if wanted > available:
            raise ValueError(
                f"task arithmetic: num_train={num_train}, num_eval={num_eval}, "
                f"num_demonstrations={num_demonstrations}, num_preferences={num_preferences}: "
                f"{wanted:,} distinct problems, and with digits={digits} and operations={list(operations)} there are "
                f"{available:,}; use digits=3 or fewer problems"
            )
        drawn = _draw(wanted, digits, sorted(set(operations)), seed)
        self._eval = [_problem(*each) for each in drawn[:num_eval]]
        self._demonstrations = [_demonstration(*each) for each in drawn[num_eval : num_eval + num_demonstrations]]
        rest = drawn[num_eval + num_demonstrations :]
        self._train = [_problem(*each) for each in rest[:num_train]]
        self._preferences = [_preference(*each, num_slips, seed) for each in rest[num_train:]]
        self._eval_preferences = [_preference(*each, 1, seed) for each in drawn[:num_eval] if num_preferences]

    def train_problems(self) -> Sequence[Problem]:
        """Problems to train on."""
        return self._train

    def eval_problems(self) -> Sequence[Problem]:
        """Problems that are in neither of the other two sets."""
        return self._eval

    def demonstrations(self) -> Sequence[Demonstration]:
        """Worked problems to imitate."""
        return self._demonstrations

    def train_rankings(self) -> Sequence[Ranking]:
        """A right solution above others with slips, for each problem."""
        return self._preferences

    def eval_rankings(self) -> Sequence[Ranking]:
        """A right solution above one with a slip, for each eval problem; empty without preferences to train on."""
        return self._eval_preferences


def _num_distinct(digits: int, operation: str) -> int:
    """How many problems there are: pairs of numbers for sums, pairs with left >= right for differences."""
    num_numbers: int = 9 * 10 ** (digits - 1)
    return num_numbers**2 if operation == "+" else num_numbers * (num_numbers + 1) // 2


def _draw(wanted: int, digits: int, operations: Sequence[str], seed: int) -> list[tuple[int, str, int]]:
    """`wanted` distinct problems in random order, operations equally likely until one runs out."""
    generator = random.Random(f"outscore arithmetic {seed}")
    low, high = 10 ** (digits - 1), 10**digits - 1
    left_over = {operation: _num_distinct(digits, operation) for operation in operations}
    drawn: dict[tuple[int, str, int], None] = {}
    while len(drawn) < wanted:
        operation = generator.choice([each for each, count in left_over.items() if count])
        left, right = generator.randint(low, high), generator.randint(low, high)
        if operation == "-" and left < right:
            left, right = right, left
        if (left, operation, right) not in drawn:
            drawn[left, operation, right] = None
            left_over[operation] -= 1
    return list(drawn)


def _problem(left: int, operation: str, right: int) -> Problem:
    expression = f"{left}{operation}{right}"
    return Problem(
        id=f"arithmetic/{expression}",
        question=f"{expression}=",
        answer=str(evaluate(left, operation, right)),
        columns={"operation": operation},
    )


def _demonstration(left: int, operation: str, right: int) -> Demonstration:
    return Demonstration(problem=_problem(left, operation, right), response=_solution(left, operation, right))


def _solution(left: int, operation: str, right: int, slip: tuple[int, int] | None = None) -> str:
    reasoning, answer = work(left, operation, right, slip=slip)
    return RESPONSE.format(reasoning=reasoning, answer=answer)


def _preference(left: int, operation: str, right: int, num_slips: int, seed: int) -> Ranking:
    """The right solution above others, each with a slip that changes the answer: step and wrong number drawn at random,
    no slip twice."""
    generator = random.Random(f"outscore slip {seed} {left}{operation}{right}")
    steps = range(len(columns(left, operation, right).split()))
    slips = [(step, error) for step in steps for error in ERRORS]
    generator.shuffle(slips)
    wrong = islice((slip for slip in slips if _misleads(left, operation, right, slip)), num_slips)
    solutions = [_solution(left, operation, right, slip) for slip in wrong]
    return Ranking(
        problem=_problem(left, operation, right),
        responses=(_solution(left, operation, right), *solutions),
        ranks=(0, *(1 for _ in solutions)),
    )


def _misleads(left: int, operation: str, right: int, slip: tuple[int, int]) -> bool:
    """Whether a slip is possible and leads to another answer."""
    try:
        return work(left, operation, right, slip=slip)[1] != evaluate(left, operation, right)
    except ValueError:
        return False
