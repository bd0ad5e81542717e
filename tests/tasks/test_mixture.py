"""Several tasks as one, and rewards that are for one part of it."""

import pytest

from outscore.tasks import RankingTask, make_task
from outscore.tasks.base import CorpusTask

PARTS = [
    {
        "domain": "short",
        "kind": "arithmetic",
        "num_train": 3,
        "num_eval": 2,
        "num_demonstrations": 1,
        "num_preferences": 1,
    },
    {"domain": "long", "kind": "arithmetic", "digits": 3, "num_train": 4, "num_eval": 3, "num_demonstrations": 2},
]


def test_the_parts_stand_together_and_each_problem_knows_its_own() -> None:
    task = make_task("mixture", parts=PARTS)
    problems = task.train_problems()
    assert [each.columns["domain"] for each in problems] == ["short"] * 3 + ["long"] * 4
    assert [each.population for each in problems] == ["short"] * 3 + ["long"] * 4
    assert len({each.id for each in problems}) == 7 and problems[0].id.startswith("short/arithmetic/")
    own = make_task(**{key: value for key, value in PARTS[1].items() if key != "domain"})
    assert [each.question for each in problems[3:]] == [each.question for each in own.train_problems()]
    assert [each.problem.columns["domain"] for each in task.demonstrations()] == ["short", "long", "long"]
    assert isinstance(task, RankingTask) and [each.problem.population for each in task.train_rankings()] == ["short"]
    assert task.special_strings == own.special_strings


def test_held_out_problems_take_turns() -> None:
    domains = [each.columns["domain"] for each in make_task("mixture", parts=PARTS).eval_problems()]
    assert domains == ["short", "long", "short", "long", "long"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "has no task"),
        ([{"kind": "arithmetic"}], "part 1 is .* each needs a `domain`"),
        ([{"domain": "a"}], "part 1 is .* and a `kind`"),
        ([PARTS[0], {**PARTS[1], "domain": "short"}], "two parts have the domain 'short'"),
        ([{"domain": "a", "kind": "arithmetik"}], "arithmetic"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, said) -> None:
    with pytest.raises(ValueError, match=said):
        make_task("mixture", parts=parts)


def test_texts_of_the_parts_that_have_some(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree\n\nfour")
    text = {"domain": "text", "kind": "text", "path": str(tmp_path / "a.txt"), "eval_fraction": 0.25}
    task = make_task("mixture", parts=[PARTS[0], text])
    assert isinstance(task, CorpusTask)
    assert (task.train_texts(), task.eval_texts()) == (["one", "two", "three"], ["four"])
