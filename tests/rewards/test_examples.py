"""A reward file is tested with the examples that stand in it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from outscore.cli import app
from outscore.config import parse_recipe
from outscore.rewards.examples import try_examples
from outscore.settings import ScoringSettings
from outscore.train.check import check_recipe, check_reward_file

GOOD = """
def concise(completions, answer, limit=10, **columns):
    return [None if gold is None else float(gold in text and len(text) <= limit)
            for text, gold in zip(completions, answer)]

def shouts(completions, level):
    return [text.count("!") * float(factor) for text, factor in zip(completions, level)]

class Longer:
    def __init__(self, than=3):
        self.than = than
    def __call__(self, completions):
        return [float(len(text) > self.than) for text in completions]

EXAMPLES = [
    {"answer": "277", "completion": "277", "concise": 1.0, "Longer": 0},
    {"answer": "277", "completion": "It is surely 277.", "concise": 0.0},
    {"answer": "277", "completion": "It is surely 277.", "concise": 1.0, "options": {"limit": 30}},
    {"completion": "277", "concise": None},
    {"completion": "no!!", "level": 0.1, "shouts": 0.2},
]
"""


def written(tmp_path: Path, source: str) -> str:
    (tmp_path / "mine.py").write_text(source)
    return str(tmp_path / "mine.py")


def test_every_function_is_tried_on_the_examples_that_name_it(tmp_path: Path) -> None:
    tried = try_examples(written(tmp_path, GOOD))
    assert tried is not None and all(each.ok for each in tried)
    assert [(each.place.rpartition(":")[2], each.number) for each in tried] == [
        *(("Longer", 1), ("concise", 1), ("concise", 2), ("concise", 3), ("concise", 4), ("shouts", 5)),
    ]


def test_one_function_of_a_file_is_tried_alone(tmp_path: Path) -> None:
    tried = try_examples(written(tmp_path, GOOD) + ":shouts")
    assert tried is not None and [(each.wanted, each.found) for each in tried] == [(0.2, pytest.approx(0.2))]


def test_what_is_not_as_the_example_says_is_told(tmp_path: Path) -> None:
    source = GOOD.replace('"concise": 0.0', '"concise": 1.0').replace('"level": 0.1, ', '"level": "x", ')
    wrong = [str(each) for each in try_examples(written(tmp_path, source)) or () if not each.ok]
    place = tmp_path / "mine.py"
    assert wrong[0] == f"example 2 of {place}:concise gave 0.0, and should give 1.0"
    assert "example 5" in wrong[1] and "raised ValueError: could not convert string to float" in wrong[1]


def test_a_value_where_none_is_due_is_wrong(tmp_path: Path) -> None:
    source = GOOD.replace('"shouts": 0.2', '"shouts": None')
    assert [each.number for each in try_examples(written(tmp_path, source)) or () if not each.ok] == [5]


@pytest.mark.skipif(os.name != "posix", reason="worker processes need Linux or macOS")
def test_examples_are_scored_where_a_run_would_score_them(tmp_path: Path) -> None:
    source = "def hangs(completions):\n    while True: pass\nEXAMPLES = [{'completion': 'x', 'hangs': 1.0}]\n"
    tried = try_examples(written(tmp_path, source), scoring=ScoringSettings(seconds=1.0))
    assert tried is not None and tried[0].failure == "took longer than 1 s"


@pytest.mark.parametrize(
    ("examples", "complaint"),
    [
        ("'text'", "EXAMPLES must be a list of rows"),
        ("[]", "EXAMPLES must be a list of rows"),
        ("[{'answer': '1', 'short': 1.0}]", "example 1 must be a row with a text under 'completion'"),
        (
            "[{'completion': 'x', 'shrot': 1.0}]",
            r"example 1 names no function .*did you mean `short`",
        ),
        ("[{'completion': 'x', 'short': 'good'}]", "example 1: short = 'good' must be a number, or None"),
    ],
)
def test_a_wrong_list_is_named(tmp_path: Path, examples: str, complaint: str) -> None:
    path = written(tmp_path, f"def short(completions): return [0.0]\nEXAMPLES = {examples}\n")
    with pytest.raises(ValueError, match=complaint):
        try_examples(path)


def test_a_reward_that_asks_for_tokens_gets_them_or_says_so(tmp_path: Path) -> None:
    source = "def count(completion_ids): return [len(ids) for ids in completion_ids]\n"
    given = source + "EXAMPLES = [{'completion': 'x', 'completion_ids': [1, 2], 'count': 2}]\n"
    assert [each.ok for each in try_examples(written(tmp_path, given)) or ()] == [True]
    with pytest.raises(ValueError, match="asks for the tokens: give `completion_ids` in example 1"):
        try_examples(written(tmp_path, source + "EXAMPLES = [{'completion': 'x', 'count': 2}]\n"))


RECIPE: dict[str, Any] = {
    "model": {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"},
    "task": {"kind": "arithmetic", "num_train": 4, "num_eval": 2},
    "stages": [{"algorithm": "grpo", "steps": 1, "group_size": 2, "sampling": {"max_new_tokens": 2}}],
    "scoring": {"isolate": False},
}


def test_check_tries_the_examples_of_the_rewards_of_a_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    findings = check_recipe(parse_recipe({**RECIPE, "rewards": [{"name": f"{path}:concise", "limit": 3}]}))
    [found] = [each for each in findings if each.what == "examples"]
    assert (found.status, found.detail) == ("ok", f"{path}:concise gives what its 4 examples say")


def test_the_command_tries_a_file_and_fails_where_an_example_does(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    good = CliRunner().invoke(app, ["check", path, "--json"])
    assert good.exit_code == 0, good.output
    assert [each["status"] for each in json.loads(good.output)] == ["ok"] * 3
    Path(path).write_text(GOOD.replace('"concise": 0.0', '"concise": 0.25'))
    bad = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["check", path])
    assert bad.exit_code == 1 and "example 2 of" in bad.output and "and should give 0.25" in bad.output
    Path(path).write_text("def f(completions): ...\n")
    none = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["check", path])
    assert none.exit_code == 1 and "has no list EXAMPLES to try" in none.output
    refused = CliRunner().invoke(app, ["check", path, "seed=1"])
    assert refused.exit_code == 1 and "has no settings to change: 'seed=1'" in refused.output
    with pytest.raises(ValueError, match="has no list EXAMPLES"):
        check_reward_file(path)
