"""A resume notices what a run was made from: other weights are refused, other data and reward files are reported."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from train.stopping import BOUNDARY, Stops, contents

from outscore.config import ModelSettings
from outscore.report import RunDirectory
from outscore.tasks import make_task
from outscore.train.provenance import digest_of
from outscore.train.run import resume, run_recipe
from outscore.train.setup import load_policy

REWARD = """\
def digits(completions, **columns):
    return [sum(c.isdigit() for c in text) / {} for text in completions]
"""


def write_problems(path: Path, *, wrong: Collection[str] = ()) -> None:
    """Even sums, some of which are given as 7."""
    rows = [{"question": f"{a}+{a}=", "answer": str(2 * a), "response": str(2 * a)} for a in range(40)]
    altered = [{**row, "answer": "7"} if row["question"] in wrong else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in altered))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run of one's own data and reward, of two stages."""
    monkeypatch.chdir(tmp_path)
    write_problems(tmp_path / "data.jsonl")
    (tmp_path / "reward.py").write_text(REWARD.format(6))
    task = {"kind": "data", "path": "data.jsonl", "demonstration": "response", "eval_fraction": 0.2}
    return {**BOUNDARY, "task": task, "rewards": ["reward.py:digits"]}


def stopped(recipe: dict[str, Any], path: Path, stage: str = "grpo", step: int = 3) -> Path:
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, path, console=Stops(stage, step))
    return path


def reported(run: Path) -> list[str]:
    """What the resume logged of differences."""
    assert resume(run).finished
    lines = (run / "events.log").read_text().splitlines()
    return [line.split("  ", 1)[1].partition(":")[0] for line in lines if "never stopped" in line]


def test_a_resume_of_what_has_not_changed_reports_nothing_and_is_exact(tmp_path: Path, recipe: dict[str, Any]) -> None:
    run_recipe(recipe, tmp_path / "whole")
    assert reported(stopped(recipe, tmp_path / "run")) == []
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_other_data_are_reported_by_what_reads_them(tmp_path: Path, recipe: dict[str, Any]) -> None:
    task = make_task(**recipe["task"])
    questions = {str(problem.question) for problem in (task.train_problems()[0], task.eval_problems()[0])}
    run = stopped(recipe, tmp_path / "run")
    write_problems(tmp_path / "data.jsonl", wrong=questions)
    what = ["the data of stage `sft` are", "the data of stage `grpo` are", "the held-out problems are"]
    assert reported(run) == [f"{each} not those that the run began with" for each in what]


def test_another_reward_file_is_reported(tmp_path: Path, recipe: dict[str, Any]) -> None:
    run = stopped(recipe, tmp_path / "run")
    (tmp_path / "reward.py").write_text(REWARD.format(7))
    assert reported(run) == ["the reward file reward.py has changed since the run began"]


@pytest.mark.parametrize(
    ("changes", "stops_at"),
    [
        ({"lora": {"rank": 2}}, ("grpo", 3)),  # a checkpoint has the adapters alone
        ({}, ("sft", 1)),  # no checkpoint yet
    ],
    ids=["lora", "before the first checkpoint"],
)
def test_other_weights_are_refused_where_the_recipe_s_are_read(
    tmp_path: Path, changes: dict[str, Any], stops_at: tuple[str, int]
) -> None:
    base, _ = load_policy(ModelSettings(**BOUNDARY["model"]), make_task(**BOUNDARY["task"]), seed=3)
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    recipe = {**BOUNDARY, "model": {"source": str(tmp_path / "base"), "precision": "fp32", **changes}}
    run = stopped(recipe, tmp_path / "run", *stops_at)
    file = tmp_path / "base" / "model.safetensors"
    kept = file.read_bytes()
    halved = {name: weight / 2 for name, weight in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(halved, file, metadata={"format": "pt"})
    saved = contents(run / "checkpoints")
    with pytest.raises(ValueError, match=r"model\.source = .*base': its weights are not those the run began with"):
        resume(run)
    assert contents(run / "checkpoints") == saved
    file.write_bytes(kept)
    assert resume(run).finished


def test_a_full_checkpoint_needs_the_first_weights_no_more(tmp_path: Path) -> None:
    base, _ = load_policy(ModelSettings(**BOUNDARY["model"]), make_task(**BOUNDARY["task"]), seed=3)
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    run = stopped({**BOUNDARY, "model": {"source": str(tmp_path / "base"), "precision": "fp32"}}, tmp_path / "run")
    (tmp_path / "base" / "model.safetensors").unlink()
    began_with = RunDirectory.open(run).weights_sha256
    assert resume(run).finished
    assert RunDirectory.open(run).weights_sha256 == began_with


@dataclass(frozen=True)
class Record:
    name: str
    held: Any


def test_a_digest_is_that_of_values_and_not_of_objects() -> None:
    same = [{"a": 1, "b": (2.5, None)}, {"x", "y"}, np.array([1, 2]), date(2026, 1, 1), b"\x00", {(1, 2): 3}]
    assert digest_of([Record("r", each) for each in same]) == digest_of([Record("r", each) for each in same])
    assert digest_of([object()]) == digest_of([object()])  # their texts hold addresses
    others: list[Any] = [{"a": 1, "b": (2.5, 0)}, {"x", "z"}, np.array([1, 3]), date(2026, 1, 2), b"\x01"]
    for value, other in zip(same, others, strict=False):
        assert digest_of([Record("r", value)]) != digest_of([Record("r", other)])
