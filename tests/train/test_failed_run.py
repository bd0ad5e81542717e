"""A run that an error ends: the message says where in the user's code, the record says why, and how to go on."""

import io
from pathlib import Path
from typing import Any

import pytest
import rich.console
from train.stopping import BOUNDARY

from outscore.report import Console, RunDirectory
from outscore.train.run import resume, run_recipe

REWARD = """\
def helper(columns):
    found = {"answer": 1}
    # a name that is not there
    return found["missing"]


def mine(completions, **columns):
    return [helper(columns) for _ in completions]
"""


@pytest.mark.parametrize("isolated", [True, False], ids=["in a worker", "in this process"])
def test_an_error_in_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated: bool) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r2.py").write_text(REWARD)
    recipe: dict[str, Any] = {**BOUNDARY, "rewards": ["r2.py:mine"], "scoring": {"isolate": isolated}}
    recipe["evaluation"] = {"problems": 0}
    screen = io.StringIO()
    with pytest.raises(ValueError, match=r"reward 'mine' raised KeyError: 'missing' at r2\.py:4 \("):
        run_recipe(recipe, "run", console=Console(rich_console=rich.console.Console(file=screen, width=200)))
    events = (tmp_path / "run" / "events.log").read_text()
    assert "error: RewardError: reward 'mine' raised KeyError: 'missing' at r2.py:4" in events
    # Where in this library it came through stands in the log, and nowhere that is read for pleasure.
    assert "Z  | Traceback (most recent call last):" in events and "Z  |   File " in events
    assert "Traceback" not in screen.getvalue()
    shown = RunDirectory.open(tmp_path / "run").events()
    assert shown[-2].partition("  ")[2].startswith("error: RewardError") and not any("  | " in line for line in shown)
    assert "go on with: outscore resume run" in events and "outscore resume run" in screen.getvalue()
    (tmp_path / "r2.py").write_text(REWARD.replace('"missing"', '"answer"'))
    assert resume("run").finished


def test_an_error_that_says_itself_how_to_go_on_is_not_repeated(tmp_path: Path) -> None:
    stages = [{**BOUNDARY["stages"][0], "optimizer": {"lr": 1e10}}]
    with pytest.raises(ValueError, match="outscore resume"):
        run_recipe({**BOUNDARY, "stages": stages}, tmp_path / "run")
    events = "\n".join(RunDirectory.open(tmp_path / "run").events())
    assert events.count("outscore resume") == 1 and "error: ValueError: stage sft, step 2" in events
