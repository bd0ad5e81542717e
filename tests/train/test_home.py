"""A run's relative paths mean what they meant where it was started, from wherever it is resumed or evaluated."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from train.stopping import BOUNDARY, contents
from train.test_provenance import REWARD, stopped, write_problems

from outscore.inputs import from_here
from outscore.report import RunDirectory
from outscore.report.run import FACTS
from outscore.tasks import make_task
from outscore.train.home import located
from outscore.train.inspect import evaluate_target, target_recipe
from outscore.train.run import resume, run_recipe

RECIPE: dict[str, Any] = {
    **BOUNDARY,
    "task": {"kind": "data", "path": "data.jsonl", "demonstration": "response", "eval_fraction": 0.2},
    "rewards": ["reward.py:digits"],
    "stages": [{**BOUNDARY["stages"][1], "steps": 2}],
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with data and a reward, and a run of it that was stopped; the working directory is above it and has
    other data and another reward of the same names."""
    folder = tmp_path / "project"
    for place in (folder, tmp_path):
        place.mkdir(exist_ok=True)
        write_problems(place / "data.jsonl")
        (place / "reward.py").write_text(REWARD.format(6))
    monkeypatch.chdir(folder)
    run_recipe(RECIPE, "runs/whole")
    stopped(RECIPE, Path("runs/run"), step=1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text("no data\n")
    (tmp_path / "reward.py").write_text("no reward\n")
    return folder


def test_a_run_is_resumed_and_evaluated_from_anywhere(project: Path, tmp_path: Path) -> None:
    run = Path("project/runs/run")
    assert RunDirectory.open(run).config()[FACTS]["working_directory"] == "../.."
    assert resume(run).finished
    assert Path.cwd() == tmp_path
    assert contents(run) == contents(Path("project/runs/whole"))
    assert "never stopped" not in (run / "events.log").read_text()
    found, _ = evaluate_target(str(run))
    assert found.metrics["greedy"] == RunDirectory.open(run).evaluations()[-1].metrics["greedy"]
    write_problems(tmp_path / "test.jsonl")
    settings = target_recipe(str(run), overrides=["task.path=test.jsonl"])
    assert settings.task["path"] == "test.jsonl" and settings.rewards == (f"{project}/reward.py:digits",)


def test_a_project_can_be_moved(project: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "new"
    moved.parent.mkdir()
    shutil.move(project, moved)
    assert resume(moved / "runs" / "run").finished
    assert contents(moved / "runs" / "run") == contents(moved / "runs" / "whole")


def test_only_what_leads_somewhere_from_home_is_taken_for_a_path(tmp_path: Path) -> None:
    for name in ("arithmetic", "mine", "sft", "policy", "tiny", "chat"):
        (tmp_path / name).mkdir()
    (tmp_path / "r.py").touch()
    config = {
        "model": {"source": "tiny"},
        "prompt": {"template": "chat"},
        "task": {"kind": "mixture", "parts": {"a": {"kind": "arithmetic"}, "b": {"kind": "data", "path": "mine"}}},
        "rewards": ["r.py:f", "absent.py:f", {"name": "r.py:g"}, {"name": "reward_model", "path": ["mine", "hub/id"]}],
        "stages": [
            {"name": "", "algorithm": "sft", "start": "base", "teacher": ""},
            {"name": "p", "algorithm": "ppo", "start": "sft", "teacher": "mine", "critic": {"start": "policy"}},
        ],
    }
    mine = str(tmp_path / "mine")
    assert located(config, tmp_path) == {
        **config,
        "task": {"kind": "mixture", "parts": {"a": {"kind": "arithmetic"}, "b": {"kind": "data", "path": mine}}},
        "rewards": [
            *(f"{tmp_path}/r.py:f", "absent.py:f", {"name": f"{tmp_path}/r.py:g"}),
            {"name": "reward_model", "path": [mine, "hub/id"]},
        ],
        "stages": [config["stages"][0], {**config["stages"][1], "teacher": mine}],
    }


def test_a_missing_file_is_said_to_be_missing_from_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"data\.jsonl: no such file.* \(the working directory is {tmp_path}\)"):
        make_task("data", path="data.jsonl")
    assert from_here(tmp_path / "x") == ""
