"""Rewards that run the program a completion holds: against unit tests, and against inputs with their outputs.

Programs run in the sandbox; what they should give stays outside of it (docs/sandbox.md).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Literal

from outscore.rewards.answers import fenced_block
from outscore.rewards.assertions import Suite, joined, parse_tests
from outscore.rewards.contract import MissingColumn, Reward, RewardFunction, completion_text
from outscore.rewards.sandbox import Limits, Program, Ran, shared_sandbox

CodeForm = Literal["fence", "text"]
"""Where the program stands: in the last ``` block, or the completion is the program."""


def code_tests(
    *,
    tests: str = "tests",
    form: CodeForm = "fence",
    partial_credit: bool = True,
    seconds: float = 2.0,
    memory_mb: int = 256,
    unsafe: bool = False,
) -> Reward:
    """The share of the problem's unit tests that the completion's program passes, from 0 to 1.

    Args:
        tests: the data column with the tests, as `assert` statements in one text or a list of them; None where the
            reward does not apply. A column `entry_point` names the function for tests in a `def check(candidate)`.
        form: `fence` takes the program from the last ``` block, `text` takes the whole completion.
        partial_credit: without it only a program that passes all tests gets 1, any other 0.
        seconds: CPU time of a program; it ends after three times that by the clock.
        memory_mb: its memory, in MiB.
        unsafe: run it without isolation, where the system has none.
    """
    limits = _checked("code_tests", seconds, memory_mb, unsafe)
    return _code_reward("code_tests", _test_rewards, tests, form, partial_credit, limits, unsafe)


def code_stdin(
    *,
    cases: str = "cases",
    form: CodeForm = "fence",
    partial_credit: bool = True,
    seconds: float = 2.0,
    memory_mb: int = 256,
    unsafe: bool = False,
) -> Reward:
    """The share of the problem's inputs for which the completion's program prints the right output, from 0 to 1.

    An output is right if its lines are, blanks at their ends and empty lines at the end aside, and the program ends
    with status 0.

    Args:
        cases: the data column with a list of {"input": text, "output": text}, or {"inputs": [...], "outputs": [...]},
            or either as JSON text; None where the reward does not apply.
        form: as in `code_tests`, and so are the others.
        partial_credit: without it only a program that is right for all inputs gets 1.
        seconds: CPU time for each input.
        memory_mb: memory, in MiB.
        unsafe: run without isolation.
    """
    limits = _checked("code_stdin", seconds, memory_mb, unsafe)
    return _code_reward("code_stdin", _stdin_rewards, cases, form, partial_credit, limits, unsafe)


def program_of(text: str, form: CodeForm = "fence") -> str | None:
    """The program in a completion; None where there is none."""
    found = fenced_block(text) if form == "fence" else text
    return found if found and found.strip() else None


def same_output(found: str, wanted: str) -> bool:
    """Whether two outputs have the same lines, blanks at their ends and empty lines at the end aside.

    >>> same_output("1 \\n2\\n\\n", "1\\n2")
    True
    """
    return [line.rstrip() for line in found.rstrip().split("\n")] == [
        line.rstrip() for line in wanted.rstrip().split("\n")
    ]


def _code_reward(
    name: str,
    function: RewardFunction,
    column: str,
    form: CodeForm,
    partial_credit: bool,
    limits: Limits,
    unsafe: bool,
) -> Reward:
    options = {"column": column, "form": form, "partial_credit": partial_credit, "limits": limits, "unsafe": unsafe}
    return Reward(
        name=name,
        function=partial(function, **options),
        full=1.0,
        extract=partial(program_of, form=form),
        isolate=False,  # the sandbox has processes of its own
    )


def _test_rewards(
    completions: Sequence[Any],
    column: str,
    form: CodeForm,
    partial_credit: bool,
    limits: Limits,
    unsafe: bool,
    log_metric: Callable[[str, float], None],
    **columns: Any,
) -> list[float | Exception | None]:
    entry_points = columns.get("entry_point") or [None] * len(completions)
    suites = [
        None if tests is None else _suite(joined(tests), entry_point)
        for tests, entry_point in zip(_column("code_tests", column, columns), entry_points, strict=True)
    ]
    sources = [program_of(completion_text(each), form) for each in completions]
    programs = {
        k: Program(source=f"{source}\n{suite.setup}", calls=tuple(case.call for case in suite.cases))
        for k, (suite, source) in enumerate(zip(suites, sources, strict=True))
        if isinstance(suite, Suite) and source
    }
    ran = dict(zip(programs, shared_sandbox(limits, unsafe).run(list(programs.values())), strict=True))
    for each in ran.values():
        log_metric("code_tests/out_of_time", float(each.ended == "timeout"))

    def value(k: int) -> float | Exception | None:
        suite = suites[k]
        if not isinstance(suite, Suite):
            return suite
        if k not in ran:
            return 0.0
        if ran[k].ended == "lost":
            return _lost()
        said = ran[k].values
        return _credit([n in said and case.holds(said[n]) for n, case in enumerate(suite.cases)], partial_credit)

    return [value(k) for k in range(len(completions))]


def _stdin_rewards(
    completions: Sequence[Any],
    column: str,
    form: CodeForm,
    partial_credit: bool,
    limits: Limits,
    unsafe: bool,
    log_metric: Callable[[str, float], None],
    **columns: Any,
) -> list[float | Exception | None]:
    given = [None if cases is None else _pairs(cases) for cases in _column("code_stdin", column, columns)]
    sources = [program_of(completion_text(each), form) for each in completions]
    programs = {
        (k, n): Program(source=source, stdin=stdin)
        for k, (cases, source) in enumerate(zip(given, sources, strict=True))
        if isinstance(cases, list) and source
        for n, (stdin, _) in enumerate(cases)
    }
    ran = dict(zip(programs, shared_sandbox(limits, unsafe).run(list(programs.values())), strict=True))
    for each in ran.values():
        log_metric("code_stdin/out_of_time", float(each.ended == "timeout"))

    def value(k: int) -> float | Exception | None:
        cases = given[k]
        if not isinstance(cases, list):
            return cases
        if (k, 0) not in ran:
            return 0.0
        own = [(ran[k, n], wanted) for n, (_, wanted) in enumerate(cases)]
        if any(each.ended == "lost" for each, _ in own):
            return _lost()
        return _credit([_printed(each, wanted) for each, wanted in own], partial_credit)

    return [value(k) for k in range(len(completions))]


def _printed(ran: Ran, wanted: str) -> bool:
    return ran.ended == "exit" and ran.code == 0 and same_output(ran.stdout, wanted)


def _credit(passed: Sequence[bool], partial_credit: bool) -> float:
    return sum(passed) / len(passed) if partial_credit else float(all(passed))


def _lost() -> Exception:
    return MemoryError("the system killed the program, twice; is the machine out of memory?")


def _column(reward: str, name: str, columns: Mapping[str, Any]) -> Sequence[Any]:
    if name not in columns:
        raise MissingColumn(f"reward {reward!r} asks for the column {name!r}, which the data do not have")
    found: Sequence[Any] = columns[name]
    return found


@lru_cache(maxsize=1024)
def _suite(tests: str, entry_point: str | None) -> Suite | ValueError:
    """The tests, or what is wrong with them, which is a failure of the problem's completions and of no others."""
    try:
        return parse_tests(tests, entry_point)
    except ValueError as error:
        return error


def _pairs(cases: Any) -> list[tuple[str, str]] | ValueError:
    """(input, output) of each case, or what is wrong with them."""
    try:
        read = json.loads(cases) if isinstance(cases, str) else cases
        if isinstance(read, Mapping):
            read = [{"input": a, "output": b} for a, b in zip(read["inputs"], read["outputs"], strict=True)]
        pairs = [(each["input"], each["output"]) for each in read]
    except (ValueError, KeyError, TypeError):
        pairs = []
    if not pairs or any(not isinstance(text, str) for pair in pairs for text in pair):
        return ValueError(f"cases = {str(cases)[:200]!r} must be inputs and outputs, each a text")
    return pairs


def _checked(name: str, seconds: float, memory_mb: int, unsafe: bool) -> Limits:
    """The limits; refuses what cannot be, and a system that cannot isolate, before a run begins."""
    if seconds <= 0 or memory_mb < 64:
        raise ValueError(
            f"reward {name!r}: seconds = {seconds!r} must be above 0 and memory_mb = {memory_mb!r} 64 or more"
        )
    limits = Limits(seconds=seconds, memory_mb=memory_mb)
    shared_sandbox(limits, unsafe).check()
    return limits
