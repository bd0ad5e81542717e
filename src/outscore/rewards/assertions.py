"""Unit tests taken apart: what a program has to evaluate, and what it should give, which the program never sees.

A test `assert f(2) == 4` becomes the expression `f(2)`, evaluated in the sandbox, and a comparison with 4 made outside
of it. Test code is data here: nothing of it runs in this process.
"""

import ast
import builtins
import math
import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_COMPARED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "is": operator.is_,
    "is not": operator.is_not,
    "in": lambda value, wanted: value in wanted,
    "not in": lambda value, wanted: value not in wanted,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MIRRORED = {"==": "==", "!=": "!=", "is": "is", "is not": "is not", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_EXACT = ("==", "is", "in")
"""Relations that only a value passes which whoever gives it has to know."""
_MEASURES = ("len", "sum", "min", "max", "int", "float", "round")
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
"""Without powers, which a few characters make larger than any memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One thing a program is asked.

    >>> Case(call="f(2)", relation="==", expected=4).holds(4)
    True
    """

    call: str
    """The expression to evaluate in the program's namespace."""
    relation: str
    """`==`, `!=`, `is`, `is not`, `in`, `not in`, `<`, `<=`, `>`, `>=`, `near`, or `truth`."""
    expected: Any
    """The right side; for `near` (value, greatest distance), for `truth` whether the value should be true."""

    def holds(self, value: Any) -> bool:
        """Whether a value of plain types passes."""
        wanted = self.expected
        try:
            if self.relation == "near":
                return bool(math.fabs(value - wanted[0]) <= wanted[1])
            if self.relation == "truth":
                return bool(value) is wanted
            return bool(_RELATIONS[self.relation](value, wanted))
        except (TypeError, OverflowError):  # values that cannot be compared are not what was asked for
            return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """The tests of one problem.

    >>> Suite(setup="import math\\n", cases=(Case(call="f(2)", relation="==", expected=4),))
    """

    setup: str
    """Source that runs after the program and before the cases."""
    cases: tuple[Case, ...]
    """What is asked, in order; never empty."""


def parse_tests(tests: str, entry_point: str | None = None) -> Suite:
    """Take test code apart.

    Understood are `assert EXPRESSION == LITERAL` and other comparisons, either way round; `assert abs(EXPRESSION -
    LITERAL) < LITERAL`; and `assert f(...)` or `assert not f(...)` for a function of the program's own; all at the top
    or in a `def check(candidate):`, whose candidate is `entry_point` or what `check` is called with. A literal may be
    arithmetic with numbers, as 2 / 3. Other statements are set-up.

    Raises:
        ValueError: for an assertion that can only be judged inside of the program, where it could be tampered with, and
            for code without an assertion.
    """
    setup: list[str] = []
    cases: list[Case] = []
    statements = list(_statements(tests, entry_point))
    helpers = {each.name for each in statements if isinstance(each, ast.FunctionDef)}
    for statement in statements:
        if isinstance(statement, ast.Assert):
            cases.append(_case(statement.test, helpers))
        elif any(isinstance(node, ast.Assert) for node in ast.walk(statement)):
            raise ValueError(
                f"tests: an assertion inside of other code cannot be judged: {ast.unparse(statement)[:200]!r}"
            )
        else:
            setup.append(ast.unparse(statement))
    if not cases:
        raise ValueError(f"tests: there is no assertion in {tests[:200]!r}")
    return Suite(setup="".join(f"{line}\n" for line in setup), cases=tuple(cases))


def _statements(tests: str, entry_point: str | None) -> Iterator[ast.stmt]:
    try:
        body = ast.parse(tests).body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(f"tests: not Python: {error}: {tests[:200]!r}") from error
    calls = [call.args for each in body if (call := _call_of_check(each)) is not None]
    for statement in body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "check" and len(statement.args.args) == 1:
            name = entry_point or (ast.unparse(calls[0][0]) if calls and calls[0] else None)
            if name is None:
                raise ValueError(
                    "tests: check(candidate) needs the function's name: a column `entry_point`, or check(NAME)"
                )
            yield from ast.parse(f"{statement.args.args[0].arg} = {name}").body
            yield from statement.body
        elif _call_of_check(statement) is None:
            yield statement


def _call_of_check(statement: ast.stmt) -> ast.Call | None:
    value = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "check":
        return value
    return None


def _case(test: ast.expr, helpers: Collection[str]) -> Case:
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], _COMPARED):
        found = _comparison(test.left, test.ops[0], test.comparators[0], helpers)
        if found is not None and not _decides(ast.parse(found.call, mode="eval").body, found.expected, helpers):
            return found
    negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    inner = test.operand if isinstance(test, ast.UnaryOp) and negated else test
    if isinstance(inner, ast.Call) and not _decides(inner, True, helpers):
        return Case(call=ast.unparse(inner), relation="truth", expected=not negated)
    raise ValueError(
        f"tests: 'assert {ast.unparse(test)}' can only be judged inside of the program, which could tamper with it; "
        "write it as a comparison with a literal: assert f(2) == 4"
    )


def _decides(call: ast.expr, expected: Any, helpers: Collection[str]) -> bool:
    """Whether the expression itself says if the answer is right, so that whoever evaluates it can say so.

    A comparison in it does; and where a truth value is expected, anything but a call of the program's own function,
    which is neither built in (and can be patched) nor a helper of the tests (which may compare).
    """
    if any(isinstance(node, ast.Compare | ast.BoolOp | ast.Not) for node in ast.walk(call)):
        return True
    return isinstance(expected, bool) and not _is_own_value(call, helpers)


def _comparison(left: ast.expr, relation: ast.cmpop, right: ast.expr, helpers: Collection[str]) -> Case | None:
    """The comparison of an expression with a literal, on whichever side that stands; None where there is none, or
    where the program, which evaluates the expression, could pass without the answer."""
    symbol = ast.unparse(ast.Compare(ast.Name("a"), [relation], [ast.Name("b")]))[2:-2]
    known, expected = _literal(right)
    asked = left
    if not known:
        known, expected = _literal(left)
        asked, symbol = right, _MIRRORED.get(symbol, "")
    if not known or not symbol:
        return None
    inside, centre = _distance(asked)
    if inside is not None and (symbol in ("<", "<=") or (symbol == "==" and expected == 0)):
        asked, symbol, expected = inside, "near", (centre, expected)
    # A difference that should be 0 tells the program what is wanted, which could give an object with such differences.
    knows = symbol in _EXACT and (bool(expected) or not any(isinstance(each, ast.BinOp) for each in ast.walk(asked)))
    if not knows and not (symbol == "near" and centre) and not _is_own_value(asked, helpers):
        return None
    return Case(call=ast.unparse(asked), relation=symbol, expected=expected)


def _is_own_value(node: ast.expr, helpers: Collection[str]) -> bool:
    """Whether it is what a function of the program's own gives, or its length or such; and not, say, a difference from
    what it should give."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    if node.func.id in _MEASURES and len(node.args) == 1 and node.func.id not in helpers:
        return _is_own_value(node.args[0], helpers)
    return not _is_known(node.func.id, helpers)


def _is_known(name: str, helpers: Collection[str]) -> bool:
    """Whether a function is a helper of the tests (which may compare) or built in (and can be patched)."""
    return name in helpers or hasattr(builtins, name)


def _distance(node: ast.expr) -> tuple[ast.expr | None, Any]:
    """(expression, number) of abs(expression - number), either way round; (expression, 0) of abs(expression); (None, 0)
    of anything else."""
    is_abs = isinstance(node, ast.Call) and ast.unparse(node.func) in ("abs", "math.fabs") and len(node.args) == 1
    if not isinstance(node, ast.Call) or not is_abs:
        return None, 0
    inside = node.args[0]
    if isinstance(inside, ast.BinOp) and isinstance(inside.op, ast.Sub):
        for expression, number in ((inside.left, inside.right), (inside.right, inside.left)):
            known, value = _literal(number)
            if known and isinstance(value, int | float):
                return expression, value
    return inside, 0


def _literal(node: ast.expr) -> tuple[bool, Any]:
    """Whether it is a literal of plain types, or arithmetic with numbers; and its value."""
    try:
        value = _number(node) if isinstance(node, ast.BinOp) else ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, ArithmeticError):
        return False, None
    return value is not ..., value


def _number(node: ast.expr) -> Any:
    """The value of arithmetic with numbers; ValueError for anything else."""
    if not isinstance(node, ast.BinOp):
        value = ast.literal_eval(node)
    elif type(node.op) in _ARITHMETIC:
        value = _ARITHMETIC[type(node.op)](_number(node.left), _number(node.right))
    else:
        raise ValueError(f"no arithmetic with numbers: {ast.unparse(node)}")
    if not isinstance(value, int | float | complex):
        raise ValueError(f"no number: {ast.unparse(node)}")
    return value


def joined(tests: str | Sequence[str]) -> str:
    """Test code given as one text or as a list of them."""
    return tests if isinstance(tests, str) else "\n".join(tests)
