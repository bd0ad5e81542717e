"""A mixture of tasks: each part a population, nothing trained on that another part holds out."""

import pytest

from outscore.records import Problem
from outscore.tasks import RankingTask, Task, make_task
from outscore.tasks.base import CorpusTask
from outscore.tasks.mixture import MixtureTask

PARTS = {
    "sums": {"kind": "arithmetic", "operations": ["+"], "num_train": 8, "num_eval": 2, "num_demonstrations": 3},
    "differences": {
        "kind": "arithmetic",
        "operations": ["-"],
        "num_train": 5,
        "num_eval": 4,
        "num_demonstrations": 2,
        "num_preferences": 6,
    },
}


def test_each_part_is_a_population_of_its_own_size() -> None:
    task = make_task("mixture", parts=PARTS)
    assert isinstance(task, Task) and isinstance(task, RankingTask)
    problems = task.train_problems()
    assert [problem.population for problem in problems] == ["sums"] * 8 + ["differences"] * 5
    assert [problem.columns["domain"] for problem in problems] == ["sums"] * 8 + ["differences"] * 5
    own = make_task(**PARTS["differences"])
    assert [each.question for each in problems[8:]] == [each.question for each in own.train_problems()]
    for problem in problems:
        assert ("+" in str(problem.question)) == (problem.population == "sums")
        assert problem.id.startswith(f"{problem.population}/arithmetic/")
    assert len({problem.id for problem in problems}) == len(problems)
    shown = [each.problem.population for each in task.demonstrations()]
    assert shown == ["sums"] * 3 + ["differences"] * 2
    assert [each.problem.population for each in task.train_rankings()] == ["differences"] * 6
    assert {each.problem.columns["domain"] for each in task.train_rankings()} == {"differences"}
    assert len(task.eval_rankings()) == 4
    assert task.characters == "".join(sorted("0123456789+-= "))
    assert "<answer>\n" in task.special_strings


def test_held_out_problems_take_turns_so_that_the_first_are_of_all_parts() -> None:
    task = make_task("mixture", parts=PARTS)
    names = [problem.population for problem in task.eval_problems()]
    assert names == ["sums", "differences", "sums", "differences", "differences", "differences"]


class Numbers:
    """Asks for numbers; some to train on and some held out."""

    def __init__(self, train: range, held_out: range) -> None:
        self.name = "numbers"
        self._train, self._held_out = train, held_out

    def problem(self, n: int) -> Problem:
        return Problem(id=f"numbers/{n}", question=str(n), answer=str(n), columns={})

    def train_problems(self) -> list[Problem]:
        return [self.problem(n) for n in self._train]

    def eval_problems(self) -> list[Problem]:
        return [self.problem(n) for n in self._held_out]

    def demonstrations(self) -> list[object]:
        return []


def test_what_one_part_holds_out_no_other_trains_on() -> None:
    task = MixtureTask({"low": Numbers(range(6), range(6, 8)), "high": Numbers(range(5, 12), range(0, 2))})
    assert [problem.question for problem in task.train_problems()] == [*"2345", *"589", "10", "11"]


def test_texts_of_the_parts_that_have_some_take_turns_and_none_is_held_out_and_trained_on(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree\n\nfour")
    (tmp_path / "b.txt").write_text("four\n\nfive\n\nsix\n\nseven")
    parts = {
        name: {"kind": "text", "path": str(tmp_path / f"{name}.txt"), "eval_fraction": 0.25} for name in ("a", "b")
    }
    task = make_task("mixture", parts={**parts, "sums": PARTS["sums"]})
    assert isinstance(task, CorpusTask)
    assert (task.train_texts(), task.eval_texts()) == (["one", "two", "three", "five", "six"], ["four", "seven"])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "parts has 0 tasks; a mixture has two or more"),
        ({"a": PARTS["sums"]}, "parts has 1 tasks; a mixture has two or more"),
        ({"a": PARTS["sums"], "b": {"num_train": 3}}, "parts.b must name a task"),
        ({"a": PARTS["sums"], "b": {"kind": "arithmetc"}}, "parts.b: kind = 'arithmetc' is no task"),
        ({"a": PARTS["sums"], "b": 5}, "must be a mapping of keys to values"),
    ],
)
def test_bad_parts_are_named(parts: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task("mixture", parts=parts)
