"""The embedded task: every demonstration re-derived column by column, counts and sets by hand."""

import ast
import operator
import re

import pytest

from outscore.tasks import ArithmeticTask, Task
from outscore.tasks.arithmetic import columns

PRINTED = re.compile(r"^<reasoning>\n(.*?)\n</reasoning>\n<answer>\n(.*?)\n</answer>\n$")
"""The format as a source prints it: single lines only."""


def value(expression: str) -> int:
    """Sums and differences of integers, by walking the parse tree."""
    operations = {ast.Add: operator.add, ast.Sub: operator.sub}

    def walk(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            return operations[type(node.op)](walk(node.left), walk(node.right))
        assert isinstance(node, ast.Constant)
        return node.value

    return walk(ast.parse(expression, mode="eval").body)


@pytest.fixture(scope="module")
def task():
    return ArithmeticTask()


@pytest.fixture(scope="module", params=[2, 3])
def worked(request):
    return ArithmeticTask(digits=request.param, num_train=10, num_eval=10, num_demonstrations=1500, seed=1)


def test_the_defaults_are_what_the_demo_needs(task):
    assert isinstance(task, Task)
    questions = {problem.question for problem in task.train_problems()}
    assert len(questions) == len(task.train_problems()) == 5000
    assert len(task.eval_problems()) == 200
    assert len(task.demonstrations()) == 400
    assert all(re.fullmatch(r"[1-9]\d[+-][1-9]\d=", question) for question in questions)


def test_no_problem_is_in_two_sets(task):
    train = {problem.question for problem in task.train_problems()}
    held_out = {problem.question for problem in task.eval_problems()}
    shown = {demonstration.problem.question for demonstration in task.demonstrations()}
    assert len(train) + len(held_out) + len(shown) == len(train | held_out | shown) == 5600


def test_ids_are_unique_over_all_sets_and_name_the_problem(task):
    shown = [demonstration.problem for demonstration in task.demonstrations()]
    problems = [*task.train_problems(), *task.eval_problems(), *shown]
    assert len({problem.id for problem in problems}) == len(problems)
    assert all(problem.id == f"arithmetic/{problem.question[:-1]}" for problem in problems)


def test_every_answer_is_the_value_of_its_question(task):
    for problem in (*task.train_problems(), *task.eval_problems()):
        assert int(problem.answer) == value(problem.question.removesuffix("=")) >= 0


def test_every_demonstration_has_the_format_as_printed_and_the_right_answer(worked):
    for demonstration in worked.demonstrations():
        match = PRINTED.match(demonstration.response)
        assert match is not None
        assert match[2] == demonstration.problem.answer == str(value(demonstration.problem.question[:-1]))


def test_every_step_is_a_true_equation(worked):
    for demonstration in worked.demonstrations():
        for step in PRINTED.match(demonstration.response)[1].split(" "):
            left, right = step.split("=")
            assert value(left) == int(right)


def test_the_steps_work_the_digits_of_the_question_with_carry_or_loan_and_the_answer_reads_off_them(worked):
    for demonstration in worked.demonstrations():
        left, operation, right = re.fullmatch(r"(\d+)([+-])(\d+)=", demonstration.problem.question).groups()
        worked_steps = PRINTED.match(demonstration.response)[1].split(" ")
        steps = [re.fullmatch(r"(\d+)([+-])(\d)=(\d+)", each) for each in worked_steps]
        assert all(step is not None and step[2] == operation for step in steps)
        carry, digits = False, []
        for upper, lower in zip(reversed(left), reversed(right), strict=True):
            step = steps.pop(0)
            assert step[3] == lower
            if operation == "-":
                # Ten is borrowed only where the column needs it.
                borrows = int(upper) - int(lower) - carry < 0
                assert step[1] == (str(10 + int(upper)) if borrows else upper)
            else:
                assert step[1] == upper
            if carry:
                first, step = step, steps.pop(0)
                assert (step[1], step[3]) == (first[4], "1")
            carry = borrows if operation == "-" else int(step[4]) >= 10
            digits.append(int(step[4]))
        assert not steps
        assert not (operation == "-" and carry)
        # Units first; every digit but the top one is the last of its column's result.
        last = digits.pop()
        units = sum(digit % 10 * 10**place for place, digit in enumerate(digits))
        assert last * 10 ** len(digits) + units == int(demonstration.problem.answer)


def test_columns_worked_by_hand():
    assert columns(47, "+", 38) == "7+8=15 4+3=7 7+1=8"
    assert columns(95, "+", 17) == "5+7=12 9+1=10 10+1=11"
    assert columns(23, "+", 45) == "3+5=8 2+4=6"
    assert columns(52, "-", 17) == "12-7=5 5-1=4 4-1=3"
    assert columns(300, "-", 123) == "10-3=7 10-2=8 8-1=7 3-1=2 2-1=1"
    assert columns(500, "-", 499) == "10-9=1 10-9=1 1-1=0 5-4=1 1-1=0"


def test_all_text_consists_of_the_listed_characters_and_strings(worked):
    text = "".join(each.problem.question + each.response for each in worked.demonstrations())
    for string in worked.special_strings:
        assert string in text
        text = text.replace(string, "")
    assert set(text) <= set(worked.characters)


def test_a_two_digit_demonstration_is_short_where_listed_strings_are_one_token_each(task):
    lengths = []
    for demonstration in task.demonstrations():
        text = demonstration.response
        for string in task.special_strings:
            text = text.replace(string, "|")
        lengths.append(len(text))
    assert max(lengths) <= 28


def test_the_same_seed_gives_the_same_sets_and_another_seed_others():
    small = {"num_train": 50, "num_eval": 10, "num_demonstrations": 10}
    first, again, other = (ArithmeticTask(**small, seed=seed) for seed in (3, 3, 4))
    assert first.train_problems() == again.train_problems()
    assert first.eval_problems() == again.eval_problems()
    assert first.demonstrations() == again.demonstrations()
    assert first.train_problems() != other.train_problems()


@pytest.mark.parametrize(("operation", "count"), [("+", 8100), ("-", 4095)])
def test_all_distinct_two_digit_problems_can_be_had_and_no_more(operation, count):
    """90 * 90 sums; 90 * 91 / 2 differences that are not negative."""
    task = ArithmeticTask(num_train=count - 1, num_eval=1, num_demonstrations=0, operations=[operation])
    assert len({problem.question for problem in task.train_problems()}) == count - 1
    with pytest.raises(ValueError, match=f"{count + 1:,} distinct problems.*there are {count:,}; use digits=3"):
        ArithmeticTask(num_train=count, num_eval=1, num_demonstrations=0, operations=[operation])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"digits": 1}, "digits=1 must be 2 or 3"),
        ({"operations": ["*"]}, r"operations=\['\*'\] must be of"),
        ({"operations": []}, "operations="),
        ({"num_train": 0}, "num_train=0 must be at least 1"),
        ({"num_demonstrations": -1}, "num_demonstrations=-1 must be at least 0"),
    ],
)
def test_impossible_options_are_named(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        ArithmeticTask(**options)
