"""Tasks by name, with errors that name the nearest."""

import pytest

from outscore.tasks import ArithmeticTask, make_task


def test_a_task_is_made_with_its_options():
    task = make_task("arithmetic", num_train=7, num_eval=2, num_demonstrations=0)
    assert isinstance(task, ArithmeticTask)
    assert len(task.train_problems()) == 7


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        ("arithmtic", {}, r"kind = 'arithmtic' is no task; did you mean `arithmetic`\?"),
        ("arithmetic", {"num_trian": 3}, r"no option 'num_trian' \(value 3\); did you mean `num_train`\?"),
        ("data", {"pth": "x"}, r"no option 'pth' \(value 'x'\); did you mean `path`\?"),
        ("arithmetic", {"num_train": "abc"}, r"task 'arithmetic': num_train = 'abc' must be a valid integer"),
        ("arithmetic", {"operations": 5}, r"task 'arithmetic': operations = 5 must be a list: one item after each `-`"),
        ("data", {"path": "x", "eval_fraction": "half"}, r"task 'data': eval_fraction = 'half' must be a valid number"),
        ("reasoning_gym", {}, r"task 'reasoning_gym' needs the option 'dataset'"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest(kind, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_task(kind, **options)
