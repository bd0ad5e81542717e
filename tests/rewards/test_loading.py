"""Rewards from names, files, modules and functions, and what is said when they are not there."""

from functools import partial

import pytest
from rewards.building import group

from outscore.rewards import Reward, Rewards, make_reward

OWN = """
from dataclasses import dataclass
from beside import FACTOR

def short(completions, bonus=0.0, **kwargs):
    return [bonus - FACTOR * len(text) for text in completions]

@dataclass
class Scaled:
    scale: float = 1.0
    def __call__(self, completions):
        return [self.scale] * len(completions)

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "my_reward.py").write_text(OWN)
    (tmp_path / "beside.py").write_text("FACTOR = 2")
    (tmp_path / "broken.py").write_text("import json\njson.loads('{')")
    return tmp_path


def value(reward):
    [scored] = Rewards([reward]).score([group("abc")], step=1).groups
    return scored.scores[0].reward


def test_a_function_of_a_file_with_options_weight_and_what_lies_beside_it(folder):
    reward = make_reward({"name": "my_reward.py:short", "weight": 0.5, "bonus": 10.0}, folder=folder)
    assert (reward.name, reward.weight) == ("short", 0.5)
    assert value(reward) == 0.5 * (10 - 2 * 3)


def test_a_path_may_be_absolute_or_relative_to_the_working_directory(folder, monkeypatch):
    assert value(make_reward(f"{folder}/my_reward.py:short")) == -6.0
    monkeypatch.chdir(folder)
    assert value(make_reward("my_reward.py:short")) == -6.0


def test_a_class_is_instantiated_with_the_options(folder):
    assert value(make_reward({"name": "my_reward.py:Scaled", "scale": 3}, folder=folder)) == 3.0


def test_a_function_of_a_module():
    assert make_reward("statistics:fmean").name == "fmean"


def test_functions_objects_and_partials_have_names():
    def mine(completions, scale):
        return [scale] * len(completions)

    class Judge:
        def __call__(self, completions):
            return [1.0]

    assert make_reward(mine).name == "mine"
    assert make_reward(Judge()).name == "Judge"
    assert make_reward(partial(mine, scale=2.0)).name == "mine"
    assert make_reward(lambda completions: [1.0]).name == "lambda"
    assert value(make_reward(partial(mine, scale=2.0))) == 2.0
    assert value({"name": mine, "scale": 4.0, "label": "other", "weight": 2}) == 8.0


def test_a_reward_record_is_taken_as_it_is():
    reward = Reward(name="r", function=len)
    assert make_reward(reward) is reward


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("fromat_tags", r"no reward 'fromat_tags'; did you mean `format_tags`\?"),
        ("my_reward.py", r"'my_reward.py' is a file; name the function in it too, as in 'my_reward.py:my_reward'"),
        ("my_rewrad.py:short", r"no file '.*my_rewrad.py'; did you mean `my_reward.py`\?"),
        ("nowhere/my_reward.py:short", r"no file '.*nowhere"),
        ("my_reward.py:shrot", r"my_reward.py has no function 'shrot'; did you mean `short`\?"),
        ("my_reward.py:number", r"has no function 'number'"),
        ("broken.py:f", r"broken.py' cannot be imported: JSONDecodeError: .* at broken\.py:\d+"),
        ("no_such_module:f", r"module 'no_such_module' cannot be imported: ModuleNotFoundError"),
        (
            {"name": "format_tags", "wieght": 1},
            r"'format_tags' has no option 'wieght' \(value 1\); did you mean `weight`\?",
        ),
        (
            {"name": "my_reward.py:short", "bonsu": 1},
            r"'short' has no option 'bonsu' \(value 1\); did you mean `bonus`\?",
        ),
        ({"name": "format_tags", "weight": "high"}, r"weight = 'high' must be a finite number"),
        ({"name": "format_tags", "weight": True}, r"weight = True must be a finite number"),
        ({"name": "format_tags", "weight": float("nan")}, r"weight = nan must be a finite number"),
        ({"name": "format_tags", "label": 3}, r"label = 3 must be text"),
        ({"weight": 1.0}, r"has no `name`"),
        ({"name": 3}, r"3 is neither a reward's name nor a function"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest(spec, complaint, folder):
    with pytest.raises(ValueError, match=complaint):
        make_reward(spec, folder=folder)
