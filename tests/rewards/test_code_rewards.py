"""Programs scored by unit tests and by their output, honest ones and those that cheat."""

import os

import pytest
from rewards.building import group, scores

from outscore.records import ScoringFailure
from outscore.rewards import RewardError, Rewards, make_reward
from outscore.rewards.assertions import Case, parse_tests
from outscore.rewards.code_rewards import program_of, same_output
from outscore.rewards.sandbox import IsolationError, Ran, Sandbox

TESTS = "assert double(2) == 4\nassert double(-1) == -2\nassert double('ab') == 'abab'\nassert double([1]) == [1, 1]"
GOOD = "def double(x):\n    return 2 * x"


@pytest.fixture(scope="module", autouse=True)
def _isolation():
    box = Sandbox(workers=1)
    try:
        box.check()
    except IsolationError as error:
        pytest.skip(str(error))
    finally:
        box.close()


def fenced(source):
    return f"Here it is:\n```python\n{source}\n```\n"


def passed_by(*sources, tests=TESTS, **options):
    spec = {"name": "code_tests", "seconds": 1, **options}
    return scores(spec, *map(fenced, sources), columns={"tests": tests}, answer=None)


def test_the_score_is_the_share_of_tests_passed():
    half = "def double(x):\n    return 2 * int(x)"  # fails for text and for lists
    assert passed_by(GOOD, half, "def double(x):\n    return 7") == [1.0, 0.5, 0.0]
    assert passed_by(GOOD, half, partial_credit=False) == [1.0, 0.0]


def test_what_is_no_program_gets_nothing():
    assert passed_by("def double(x: return", "", "1/0", "double = 3") == [0.0] * 4
    spec = {"name": "code_tests", "seconds": 1}
    assert scores(spec, "no code", GOOD, "```python\n" + GOOD, columns={"tests": TESTS}) == [0.0] * 3
    assert scores({**spec, "form": "text"}, GOOD, columns={"tests": TESTS}) == [1.0]


def test_values_of_every_plain_type_come_back():
    """Literals that tests have, against programs that are right and wrong."""
    for literal in ("b'ab'", "2+1j", str(3**20), "{1, 2}", "{'a': (1, None)}"):
        right, wrong = f"def f(x):\n    return {literal}", "def f(x):\n    return 7"
        assert passed_by(right, wrong, tests=f"assert f(2) == {literal}") == [1.0, 0.0]


def test_a_number_of_thousands_of_digits_does_not_take_the_tests_after_it():
    power = "def f(x):\n    return 10**x"
    assert passed_by(power, tests="assert f(5000) == 7\nassert f(1) == 10") == [0.5]


def test_patched_builtins_do_not_bring_an_answer_near():
    liar = "abs = lambda x: 0\nround = max = min = lambda *_: 0\ndef f(x):\n    return None"
    near = "assert abs(f([1.0, 2.0]) - 2.0/3.0) < 1e-6\nassert abs(0.33 - f(1.33)) < 1e-6\nassert abs(f(1)) < 1e-6"
    assert passed_by(liar, "def f(x):\n    return 2 / 3", tests=near) == [0.0, pytest.approx(1 / 3)]


def test_without_tests_it_does_not_apply():
    assert scores("code_tests", fenced(GOOD), columns={"tests": None}) == [None]


@pytest.mark.parametrize("policy", ["stop", "exclude", 0.0])
def test_a_column_that_is_missing_is_named_and_stops_under_any_policy(policy):
    with pytest.raises(ValueError, match="asks for the column 'tests', which the data do not have"):
        Rewards(["code_tests"], on_failure=policy).score([group(fenced(GOOD), fenced(GOOD))], step=1)


CHEATS = {
    "leaving with success": "import sys\nsys.exit(0)",
    "leaving without a word": "import os\nos._exit(0)",
    "leaving when called": "import os\ndef double(x):\n    os._exit(0)",
    "an answer equal to everything": (
        "class Anything:\n    def __eq__(self, other):\n        return True\n    __hash__ = object.__hash__\n"
        "def double(x):\n    return Anything()"
    ),
    "a number equal to everything": (
        "class Anything(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n"
        "def double(x):\n    return Anything(7)"
    ),
    "patched builtins": "import builtins\nbuiltins.isinstance = lambda *_: True\ndef double(x):\n    return None",
    "a patched harness": (
        "import sys\nfor frame in iter(lambda f=[sys._getframe()]: f.__setitem__(0, f[0].f_back) or f[0], None):\n"
        "    frame.f_globals['encoded'] = lambda value: True\ndef double(x):\n    return None"
    ),
    "forged results": (
        'import os\nfor n in range(4):\n    os.write(3, b\'{"index": %d, "value": true}\\n\' % n)\n'
        "def double(x):\n    return None"
    ),
    "raising": "def double(x):\n    raise AssertionError",
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheating_wins_nothing(name):
    assert passed_by(CHEATS[name]) == [0.0]


def test_expected_answers_are_nowhere_to_be_read():
    """A program that looks for the expected value in all it can reach: frames, objects, files, its own memory."""
    secret = "s3cr3t" + "9" * 5
    search = """
import gc, os, sys

def double(x):
    wanted = "s3cr3t" + "9" * 5
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_globals, frame.f_locals):
            if any(isinstance(v, str) and v != wanted and wanted in v for v in scope.values()):
                return wanted
        frame = frame.f_back
    for each in gc.get_objects():
        held = list(each.values()) if isinstance(each, dict) else each if isinstance(each, (list, tuple)) else []
        for value in held:
            if isinstance(value, (str, bytes)) and (wanted if isinstance(value, str) else wanted.encode()) in value:
                if value is not wanted:
                    return wanted
    for folder, _, files in os.walk("/tmp"):
        return wanted if files else None
"""
    assert secret not in search
    assert passed_by(search, tests=f"assert double(2) == {secret!r}") == [0.0]


def test_one_case_that_hangs_does_not_take_those_before_it():
    slow = "def double(x):\n    while x == -1:\n        pass\n    return 2 * x"
    assert passed_by(slow) == [0.25]


PARSED = {
    "assert f(2) == 4": ("f(2)", "==", 4),
    "assert 4 == f(2)": ("f(2)", "==", 4),
    "assert f(2) != -4": ("f(2)", "!=", -4),
    "assert f(2) is None": ("f(2)", "is", None),
    "assert f(2) is not None": ("f(2)", "is not", None),
    "assert f(2) in (1, 2)": ("f(2)", "in", (1, 2)),
    "assert sorted(f([2])) == [1, 2]": ("sorted(f([2]))", "==", [1, 2]),
    "assert abs(f(2) - 1.5) < 1e-3": ("f(2)", "near", (1.5, 0.001)),
    "assert f(2) >= 3, 'too small'": ("f(2)", ">=", 3),
    "assert 3 <= f(2)": ("f(2)", ">=", 3),
    "assert len(f(2)) < 3": ("len(f(2))", "<", 3),
    "assert abs(f([1.0, 2.0, 3.0]) - 2.0/3.0) < 1e-6": ("f([1.0, 2.0, 3.0])", "near", (2 / 3, 1e-6)),
    "assert abs(0.33 - f(1.33)) <= 1e-6": ("f(1.33)", "near", (0.33, 1e-6)),
    "assert math.fabs(f(2)) < 1e-6": ("f(2)", "near", (0, 1e-6)),
    "assert f(2) == b'ab'": ("f(2)", "==", b"ab"),
    "assert f(2) == 3 * 7 + 0.5": ("f(2)", "==", 21.5),
    "assert f(2) + f(3) == 9": ("f(2) + f(3)", "==", 9),
    "assert f(2)": ("f(2)", "truth", True),
    "assert not f(2)": ("f(2)", "truth", False),
}


@pytest.mark.parametrize("source", PARSED)
def test_assertions_are_taken_apart(source):
    [case] = parse_tests(source).cases
    assert (case.call, case.relation, case.expected) == PARSED[source]


@pytest.mark.parametrize(
    "source",
    [
        "assert all(f(n) == n for n in range(3))",
        "assert f(2) == g(2)",
        "assert True",
        "assert f(1) == 1 and f(2) == 2",
        "for n in (1, 2):\n    assert f(n) == n",
        "x = 1",
        "def",
        "assert (f(2) == 4) == True",
        "assert all(f(n) == n for n in range(3)) is True",
        "assert isinstance(f(2), int) == True",
        "assert f(2).isdigit() == True",
        "def same(a, b): return a == b\nassert same(f(2), 4)",
        "def same(a, b): return a == b\nassert same(f(2), 4) == True",
        "assert (not f(2)) == False",
        "assert abs(f(2) - g(2)) < 1e-6",
        "assert abs((f(2) - 4) - 0) < 1e-6",
        "assert f(2) - 4 == 0",
        "assert max(abs(a - b) for a, b in zip(f(2), [1, 2])) < 1e-6",
        "assert f(2) - 4 < 1e-6",
        "assert abs(f(2) - 4) != 1",
        "assert f(2) == ...",
        "assert f(2) == 9 ** 9 ** 9",
    ],
)
def test_tests_that_a_program_could_tamper_with_are_refused(source):
    with pytest.raises(ValueError, match=r"^tests: "):
        parse_tests(source)


def test_other_statements_are_set_up_and_check_is_opened():
    suite = parse_tests("import math\ndef check(candidate):\n    n = 2\n    assert candidate(n) == 4\ncheck(double)")
    assert suite.setup == "import math\ncandidate = double\nn = 2\n"
    assert suite.cases == (Case(call="candidate(n)", relation="==", expected=4),)
    opened = "def check(candidate):\n    assert candidate(2) == 4\n"
    assert passed_by(GOOD, tests=opened + "check(double)") == [1.0]
    columns = {"tests": opened, "entry_point": "double"}
    assert scores("code_tests", fenced(GOOD), columns=columns) == [1.0]
    with pytest.raises(ValueError, match="needs the function's name"):
        parse_tests(opened)


RELATIONS = [
    ("==", [1, 2], [1, 2], [1, 3]),
    ("==", (1, 2), (1, 2), [1, 2]),
    ("!=", 4, 5, 4),
    ("is", None, None, 0),
    ("is", True, True, 1),
    ("truth", True, [0], 0),
    ("truth", False, "", "no"),
    ("in", (1, 2), 2, 3),
    ("not in", (1, 2), 3, 2),
    ("<", 3, 2, 3),
    (">=", 3, 3, "a"),
    ("near", (1.5, 0.1), 1.59, 1.61),
    ("near", (1.5, 0.1), 1.4001, "1.5"),
]


@pytest.mark.parametrize(("relation", "expected", "right", "wrong"), RELATIONS)
def test_values_pass_or_not(relation, expected, right, wrong):
    case = Case(call="f()", relation=relation, expected=expected)
    assert case.holds(right) and not case.holds(wrong)


CASES = [{"input": "2\n", "output": "4\n"}, {"input": "5\n", "output": "10"}]


@pytest.mark.parametrize(
    "cases",
    [
        CASES,
        '[{"input": "2\\n", "output": "4"}, {"input": "5", "output": "10"}]',
        {"inputs": ["2", "5"], "outputs": ["4", "10"]},
    ],
)
def test_outputs_are_compared_for_each_input(cases):
    spec = {"name": "code_stdin", "seconds": 1}
    sources = ["print(2 * int(input()))", "print(4)", "print(2 * int(input()))\nraise SystemExit(1)", "x = 1"]
    assert scores(spec, *map(fenced, sources), columns={"cases": cases}) == [1.0, 0.5, 0.0, 0.0]
    assert scores(spec, "no program", columns={"cases": cases}) == [0.0]


def test_outputs_without_cases_do_not_apply_and_wrong_cases_are_named():
    assert scores("code_stdin", fenced("x"), columns={"cases": None}) == [None]
    with pytest.raises(ValueError, match="must be inputs and outputs, each a text"):
        Rewards(["code_stdin"]).score([group(fenced("x"), columns={"cases": [{"input": 1, "output": "2"}]})], step=1)


def test_blanks_at_line_ends_and_empty_lines_at_the_end_do_not_matter():
    assert same_output("1 \n2\n\n", "1\n2") and same_output("", "\n")
    assert not same_output("1\n\n2", "1\n2") and not same_output(" 1", "1") and not same_output("12", "1 2")


def test_the_program_is_in_the_last_closed_block():
    assert program_of("```\na\n```\nor\n```py\nb\n```") == "b\n"
    assert program_of("```\na") is None and program_of("```\n\n```") is None


def test_time_is_counted():
    spec = {"name": "code_tests", "seconds": 1}
    spin = fenced("while True:\n    pass")
    result = Rewards([spec]).score([group(fenced(GOOD), spin, columns={"tests": TESTS})], step=1)
    assert result.logged["code_tests/out_of_time"] == (1.0, 2.0)


@pytest.mark.parametrize("options", [{"seconds": 0}, {"memory_mb": 1}, {"form": "tag"}])
def test_impossible_options_are_named(options):
    with pytest.raises(ValueError, match="reward 'code_tests': "):
        make_reward({"name": "code_tests", **options})


def test_unsafe_runs_without_isolation():
    reveal = fenced(f"import os\ndef double(x):\n    return os.path.exists({os.path.abspath(__file__)!r})")
    columns = {"tests": "assert double(2) == True"}
    assert scores({"name": "code_tests", "unsafe": True}, reveal, columns=columns) == [1.0]
    assert scores("code_tests", reveal, columns=columns) == [0.0]


def test_a_program_that_the_system_killed_is_a_failure_and_no_zero(monkeypatch):
    def lost(self, programs):
        return [Ran(ended="lost", code=-9, stdout="") if "lost" in each.source else each for each in programs]

    monkeypatch.setattr(Sandbox, "run", lost)
    for spec, columns in (
        ({"name": "code_tests", "seconds": 1}, {"tests": TESTS}),
        ({"name": "code_stdin", "seconds": 1}, {"cases": [{"input": "1", "output": "1"}]}),
    ):
        rewards = Rewards([spec], on_failure="exclude")
        [scored] = rewards.score([group(fenced("lost"), "no program", columns=columns)], step=1).groups
        first, second = scored.scores
        assert isinstance(first, ScoringFailure) and "the system killed the program, twice" in first.reason
        assert second.reward == 0.0


def test_one_problem_with_tests_that_cannot_be_read_fails_its_own_completions_and_nothing_is_run_again(monkeypatch):
    ran, run = [], Sandbox.run
    monkeypatch.setattr(Sandbox, "run", lambda self, programs: ran.append(len(programs)) or run(self, programs))
    groups = [
        group(fenced(GOOD), columns={"tests": tests}, id=tests, slot=n) for n, tests in enumerate((TESTS, "assert"))
    ]
    good, bad = Rewards([{"name": "code_tests", "seconds": 1}], on_failure="exclude").score(groups, step=1).groups
    assert good.scores[0].reward == 1.0 and ran == [1]
    assert "failed with ValueError: tests: not Python" in bad.scores[0].reason
    with pytest.raises(RewardError, match=r"tests: not Python.*\(problem 'assert', completion 1 of 1\)"):
        Rewards([{"name": "code_tests", "seconds": 1}]).score(groups, step=1)


def test_what_an_assertion_without_a_comparison_asks_for_is_truth_as_in_python():
    assert passed_by(
        "def f(x):\n    return x", tests="assert f(1)\nassert not f(0)\nassert f([1])\nassert not f('')"
    ) == [1.0]
    assert passed_by("def f(x):\n    return x", tests="assert f(0)\nassert f(2)\nassert not f(2)\nassert f(None)") == [
        0.25
    ]
