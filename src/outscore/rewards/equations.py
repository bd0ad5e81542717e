"""Arithmetic that a text states: every `a op b = c` in it, and whether it is true. No gold answer is needed.

Text in, facts out; nothing is evaluated but numbers, + - * / ^ and brackets, in exact arithmetic.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, takewhile

from outscore.rewards.answers import parse_number

_MOST_TOKENS = 100  # of one side; longer ones are not judged
_MOST_BITS = 4096  # of a power

_TOKEN = re.compile(
    r"(?P<other>==|=>|<=|>=|!=)|(?P<equals>[=≈])|(?P<op>\*\*|[-+*/^()%])"
    r"|(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9])|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<space>[ \t$]+)|(?P<word>[^\W\d_]+)|(?P<rest>.|\n)"
)
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/"})
_LATEX = (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"), ("\\approx", "≈"), ("\\%", "%"))
_TIMES = re.compile(r"(?<=[0-9)])([ \t]*)[xX]([ \t]*)(?=[0-9(])")
_ARTICLES = frozenset({"a", "A", "I"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Equation:
    """An equation as it stands in a text.

    >>> Equation(text="7+8=16", holds=False)
    """

    text: str
    """Both sides, without blanks."""
    holds: bool
    """Whether it is true; with decimals or ≈, to the last digit written."""


@dataclass(frozen=True, slots=True)
class _Side:
    text: str
    value: Fraction | None  # None where it divides by zero
    is_number: bool
    decimals: int


def equations(text: str) -> list[Equation]:
    """The different equations between numbers that a text states, in order.

    In `a=b=c` each neighbour is held against the next. A side with a letter in it (`x+3=5`, `2y=4`) is algebra and not
    judged; neither is an equation without an operator. Where a side is a decimal number the other may be off by half of
    its last digit (`10/3=3.33` holds), with `≈` also where it is a whole number. A percent sign divides by 100; a
    division by zero never holds.

    >>> equations("7+8=15, so 15+1=17")
    [Equation(text='7+8=15', holds=True), Equation(text='15+1=17', holds=False)]
    """
    found: dict[str, Equation] = {}
    for tokens in _runs(_plain(text)):
        sides, signs = _sides(tokens)
        for (left, right), sign in zip(pairwise(sides), signs, strict=True):
            equation = _equation(left, right, sign)
            if equation is not None:
                found.setdefault(equation.text, equation)
    return list(found.values())


def last_result(text: str) -> Fraction | None:
    """The right side of the last equation whose right side is a number, whether it holds or not; None without one.

    >>> last_result("325-28=297, and 297-20=277 eggs from 20 hens")
    Fraction(277, 1)
    """
    result = None
    for tokens in _runs(_plain(text)):
        sides, _ = _sides(tokens)
        for side in sides[1:]:
            number = None if side is None else _number_of(side)
            result = result if number is None else number
    return result


Tokens = list[tuple[str, str]]
"""(kind, text) of each token."""


def _plain(text: str) -> str:
    for mark, sign in _LATEX:
        text = text.replace(mark, sign)
    return _TIMES.sub(r"\1*\2", text.translate(_SIGNS))


def _runs(text: str) -> Iterator[Tokens]:
    """Stretches of arithmetic, with a `break` at an end where what stands there belongs to the expression."""
    run: Tokens = []
    before: list[tuple[str, str]] = []
    for match in _TOKEN.finditer(text):
        token = (str(match.lastgroup), match[0])
        if token[0] in ("equals", "op", "number", "space"):
            if token[0] == "number" and _last_kind(run) == "number":  # 7+8=15 4+3=7: two numbers are two expressions
                yield from _closed(before, run, None)
                run, before = [], []
            run.append(token)
            continue
        yield from _closed(before, run, token)
        run, before = [], [token]
    yield from _closed(before, run, None)


def _last_kind(run: Tokens) -> str:
    return next((kind for kind, _ in reversed(run) if kind != "space"), "")


def _closed(before: Tokens, run: Tokens, after: tuple[str, str] | None) -> Iterator[Tokens]:
    if not any(kind == "equals" for kind, _ in run):
        return
    opened = bool(before) and _belongs(before[0], attached=run[0][0] != "space", leading=True)
    closed = after is not None and _belongs(after, attached=run[-1][0] != "space", leading=False)
    yield [*([("break", "")] if opened else []), *run, *([("break", "")] if closed else [])]


def _belongs(token: tuple[str, str], *, attached: bool, leading: bool) -> bool:
    """Whether a word or sign next to an expression is part of it: a variable, a function, a comparison."""
    kind, text = token
    if kind == "word":
        return (leading and attached) or (len(text) == 1 and (attached or text not in _ARTICLES))
    return kind == "other" or text in ("<>_\\}|~" if leading else "<>_\\{|~")


def _sides(tokens: Tokens) -> tuple[list[_Side | None], list[str]]:
    """The sides of a chain, None for those that are not numbers and operators, and the signs between them."""
    parts: list[Tokens] = [[]]
    signs = []
    for token in tokens:
        if token[0] == "equals":
            signs.append(token[1])
            parts.append([])
        else:
            parts[-1].append(token)
    _drop_outer_brackets(parts)
    return [_side(part) for part in parts], signs


def _drop_outer_brackets(parts: list[Tokens]) -> None:
    """Leave out brackets that stand around the whole chain, `(3+4=7)`, and one that opens a remark, `3+4=7 (so 8)`."""
    first, last = parts[0], parts[-1]
    if len(last) > 1 and last[-1][1] == "(" and last[-2][0] == "space":
        del last[-1]
    leading = sum(1 for _ in takewhile(lambda token: token[1] == "(", first))
    del first[: min(leading, max(0, _num_open(first)))]
    closing = sum(1 for _ in takewhile(lambda token: token[1] == ")", reversed(last)))
    del last[len(last) - min(closing, max(0, -_num_open(last))) :]


def _num_open(tokens: Tokens) -> int:
    return sum({"(": 1, ")": -1}.get(text, 0) for _, text in tokens)


def _side(tokens: Tokens) -> _Side | None:
    inner = [(kind, text) for kind, text in tokens if kind != "space"]
    if not inner or len(inner) > _MOST_TOKENS or ("break", "") in inner or _spaced_sign(tokens):
        return None
    reader = _Reader([text for _, text in inner])
    try:
        value: Fraction | None = reader.whole()
    except ZeroDivisionError:
        value = None
    except _NotArithmeticError:
        return None
    written = "".join(text for _, text in inner)
    is_number = bool(re.fullmatch(r"[-+]?[0-9.,]+", written))
    return _Side(written, value, is_number, len(written.partition(".")[2]) if is_number else 0)


def _spaced_sign(tokens: Tokens) -> bool:
    """Whether the side begins with a sign that stands apart from its number: then something came before it."""
    bare = tokens[1:] if tokens[0][0] == "space" else tokens
    return len(bare) > 1 and bare[0][1] in ("+", "-") and bare[1][0] == "space"


def _number_of(side: _Side) -> Fraction | None:
    return side.value if side.is_number else None


def _equation(left: _Side | None, right: _Side | None, sign: str) -> Equation | None:
    if left is None or right is None or (left.is_number and right.is_number):
        return None
    text = f"{left.text}{sign}{right.text}"
    if left.value is None or right.value is None:
        return Equation(text=text, holds=False)
    decimals = max(left.decimals, right.decimals)
    written = (left.is_number or right.is_number) and (decimals > 0 or sign == "≈")
    allowed = Fraction(1, 2 * 10**decimals) if written else Fraction(0)
    return Equation(text=text, holds=abs(left.value - right.value) <= allowed)


class _NotArithmeticError(Exception):
    """The tokens are no expression."""


class _Reader:
    """Reads an expression by recursive descent; what it cannot read raises _NotArithmeticError."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = [*tokens, ""]
        self._place = 0

    def whole(self) -> Fraction:
        """The value of all tokens."""
        value = self._sum()
        if self._tokens[self._place]:
            raise _NotArithmeticError
        return value

    def _take(self, *wanted: str) -> str:
        token = self._tokens[self._place]
        if token not in wanted:
            return ""
        self._place += 1
        return token

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._take("+", "-"):
            term = self._product()
            value = value + term if sign == "+" else value - term
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while sign := self._take("*", "/"):
            factor = self._signed()
            value = value * factor if sign == "*" else value / factor
        return value

    def _signed(self) -> Fraction:
        sign = self._take("+", "-")
        if sign:
            return -self._signed() if sign == "-" else self._signed()
        base = self._atom()
        return _power(base, self._signed()) if self._take("^", "**") else base

    def _atom(self) -> Fraction:
        if self._take("("):
            value = self._sum()
            if not self._take(")"):
                raise _NotArithmeticError
        else:
            number = parse_number(self._tokens[self._place])
            if number is None or not self._tokens[self._place][-1].isdigit():
                raise _NotArithmeticError
            self._place += 1
            value = number
        return value / 100 if self._take("%") else value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator != 1 or abs(exponent) * bits > _MOST_BITS:
        raise _NotArithmeticError  # no rational number, or one too long to be looked at
    return Fraction(base ** int(exponent))
