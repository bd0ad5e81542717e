"""reasoning_gym tasks: the data set's own problems, split without overlap."""

import sys

import pytest

from outscore.rewards import Rewards
from outscore.tasks import make_task, validate

reasoning_gym = pytest.importorskip("reasoning_gym")
SUMS = {"dataset": "chain_sum", "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}


@pytest.fixture(scope="module")
def task():
    return make_task("reasoning_gym", **SUMS, num_train=300, num_eval=50, seed=42)


def test_training_problems_are_the_data_set_s_without_the_held_out_ones(task):
    held_out = {problem.question for problem in task.eval_problems()}
    options = {key: value for key, value in SUMS.items() if key != "dataset"}
    source = reasoning_gym.create_dataset("chain_sum", seed=42, size=1000, **options)
    kept = [(each["question"], each["answer"]) for each in source if each["question"] not in held_out]
    assert [(problem.question, problem.answer) for problem in task.train_problems()] == kept[:300]


def test_evaluation_problems_are_distinct_and_none_is_trained_on(task):
    held_out = {problem.question for problem in task.eval_problems()}
    assert len(held_out) == 50
    assert held_out.isdisjoint(problem.question for problem in task.train_problems())


def test_ids_are_unique_and_stay_the_same(task):
    problems = [*task.train_problems(), *task.eval_problems()]
    again = make_task("reasoning_gym", **SUMS, num_train=300, num_eval=50, seed=42)
    assert len({problem.id for problem in problems}) == 350
    assert [problem.id for problem in problems] == [
        problem.id for problem in (*again.train_problems(), *again.eval_problems())
    ]


@pytest.mark.parametrize("rewards", [["gym"], ["last_number"], ["tag_answer", "format_tags"]])
def test_it_is_sound_under_its_own_scorer_and_under_rules(task, rewards):
    assert validate(task, Rewards(rewards), num_problems=4).complaints == ()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dataset": "chain_sumn"}, r"no data set 'chain_sumn'; did you mean `chain_sum`\?"),
        ({"dataset": "chain_sum", "min_term": 2}, r"no option 'min_term' \(value 2\); did you mean `min_terms`\?"),
        (
            {"dataset": "chain_sum", "min_terms": 9},
            r"'chain_sum' refuses the options \{'min_terms': 9\}: max_terms must be",
        ),
        ({"dataset": "chain_sum", "num_eval": 0}, r"num_eval=0 must be at least 1"),
        ({"dataset": "chain_sum", "size": 3}, r"size=3 is not for recipes; use num_train and num_eval"),
    ],
)
def test_impossible_options_are_named(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_task("reasoning_gym", **options)


def test_more_problems_than_there_are_is_an_error_that_says_how_many_there_are():
    """Sums of one term of one digit: ten questions."""
    options = {"dataset": "chain_sum", "min_terms": 1, "max_terms": 1, "min_digits": 1, "max_digits": 1}
    with pytest.raises(ValueError, match="gave 10 eval problems in 220 tries, num_eval=11 were asked for"):
        make_task("reasoning_gym", **options, num_eval=11)
    with pytest.raises(ValueError, match="gave 0 train problems in 40 tries, num_train=2 were asked for"):
        make_task("reasoning_gym", **options, num_eval=10, num_train=2)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ImportError, match=r"outscore\[gym\]"):
        make_task("reasoning_gym", dataset="chain_sum")
