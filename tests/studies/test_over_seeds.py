"""Studies that repeat a run over seeds: what was done before an interruption is not done again."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from outscore.cli import app
from outscore.config import dump_recipe, parse_recipe
from outscore.studies import over_seeds

GRPO = {"algorithm": "grpo", "steps": 2, "prompts_per_step": 2, "group_size": 2, "sampling": {"max_new_tokens": 4}}


def recipe(seed: int, steps: int = 2) -> dict[str, Any]:
    return {
        "seed": seed,
        "model": {"source": "tiny", "tiny": {"hidden_size": 32, "num_layers": 1}, "precision": "fp32"},
        "task": {"kind": "arithmetic", "num_train": 50, "num_eval": 5, "seed": seed},
        "rewards": ["answer_exact"],
        "stages": [GRPO | {"steps": steps}],
        "evaluation": {"problems": 2, "samples": 2},
    }


def silent(part: str, done: int, total: int) -> None:
    pass


def interrupted(part: str, done: int, total: int) -> None:
    if done == 1:
        raise KeyboardInterrupt


def contents(folder: Path) -> dict[str, bytes]:
    """All that a run found, but for what depends on the clock."""
    timed = ("timing.jsonl", "events.log", "run.json")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in timed]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_study_goes_on_where_it_was_stopped_and_finds_the_same(tmp_path: Path) -> None:
    whole = over_seeds.evaluated(recipe, 2, silent, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        over_seeds.evaluated(recipe, 2, interrupted, tmp_path / "parts")
    first = tmp_path / "parts" / "0"
    written = {path: path.stat().st_mtime_ns for path in (first / "groups").rglob("*.parquet")}
    assert written and not (tmp_path / "parts" / "1").exists()
    assert over_seeds.evaluated(recipe, 2, silent, tmp_path / "parts") == whole
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_a_run_of_another_recipe_is_refused_and_left(tmp_path: Path) -> None:
    over_seeds.completed(recipe(0), tmp_path / "0")
    before = contents(tmp_path / "0")
    with pytest.raises(ValueError, match="another recipe: remove it"):
        over_seeds.completed(recipe(0, steps=3), tmp_path / "0")
    assert contents(tmp_path / "0") == before
    again = over_seeds.completed(parse_recipe(dump_recipe(parse_recipe(recipe(0)))), tmp_path / "0")
    assert again.path == tmp_path / "0" and contents(tmp_path / "0") == before


def test_the_command_says_where_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(made: object, path: Path) -> None:
        path.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(over_seeds, "completed", stopped)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["reproduce", "every-row"])
    assert result.exit_code == 130
    assert "reproduced/every-row-runs holds what is done, and the same command goes on" in result.output
    assert not (tmp_path / "reproduced" / "every-row").exists()
