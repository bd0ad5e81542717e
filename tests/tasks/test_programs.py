"""The embedded programming problems: each demonstration is run, and meets tests that were worked without it."""

import pytest

from outscore.tasks import Task, make_task
from outscore.tasks.programs import INPUTS, OPERATIONS, ProgramsTask, expression, result


@pytest.fixture(scope="module", params=[1, 3])
def task(request):
    return ProgramsTask(
        num_train=10, num_eval=5, num_demonstrations=8 if request.param == 1 else 400, steps=request.param
    )


def test_it_is_a_task_with_disjoint_sets(task):
    assert isinstance(task, Task)
    sets = [{each.id for each in task.train_problems()}, {each.id for each in task.eval_problems()}]
    sets.append({each.problem.id for each in task.demonstrations()})
    assert sum(map(len, sets)) == len(set.union(*sets))


def test_every_demonstration_passes_its_tests(task):
    for shown in task.demonstrations():
        source = shown.response.removeprefix("```python\n").removesuffix("```\n")
        namespace = {}
        exec(source, namespace)  # a demonstration of ours, not what a model wrote
        exec(shown.problem.columns["tests"], namespace)
        assert shown.problem.columns["tests"].count("assert") == len(INPUTS)


WORKED = {
    (("add {n}", 3), ("square", 0), ("at most {n}", 7)): ("min((x+3)**2,7)", [7, 7, 7, 7]),
    (("halve", 0), ("times {n}", 2), ("subtract {n}", 9)): ("((x//2)*2)-9", [-17, -9, -5, 3]),
    (("remainder {n}", 5), ("at least {n}", 2), ("add {n}", 1)): ("max(x%5,2)+1", [4, 3, 5, 4]),
}


@pytest.mark.parametrize("chain", WORKED)
def test_chains_worked_by_hand(chain):
    written, values = WORKED[chain]
    assert expression(chain) == written
    assert [result(chain, value) for value in INPUTS] == values


def test_every_text_can_be_written_with_its_strings_and_characters(task):
    for shown in task.demonstrations():
        for text in (shown.problem.question, shown.response):
            for string in sorted(ProgramsTask.special_strings, key=len, reverse=True):
                text = text.replace(string, "")
            assert set(text) <= set(ProgramsTask.characters)


def test_the_same_seed_draws_the_same_problems_and_another_others():
    first, again, other = (make_task("programs", num_train=20, seed=seed).train_problems() for seed in (0, 0, 1))
    assert first == again != other
    assert len(OPERATIONS) == 8


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"steps": 0}, "steps=0 must be from 1 to 6"),
        ({"num_eval": 0}, "num_eval=0 must be 1 or more"),
        ({"steps": 1, "num_train": 60}, "are too many of the 54 with steps=1"),
    ],
)
def test_impossible_options_are_named(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_task("programs", **options)
