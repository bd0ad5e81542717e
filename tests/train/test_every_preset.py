"""Every row of the table trains: one run, a stage for each, whose groups keep the coefficient of every token."""

import math
from pathlib import Path

import pytest

from outscore.algorithms.rows import ALGORITHMS
from outscore.report.rows import read_parquet
from outscore.report.run import RunDirectory
from outscore.train.run import run_recipe

PRESETS = sorted((name for name, row in ALGORITHMS.items() if row.source == "policy"), key="distillation".__eq__)
"""The distilled one last: its teacher is an earlier stage."""


def steps(completion_ids):
    """A reward for each token, which no two completions share: odd tokens are good."""
    return [[(t, float(token % 2) + t / 100) for t, token in enumerate(ids)] for ids in completion_ids]


def long(completion_ids):
    return [float(len(ids)) for ids in completion_ids]


def _stage(algorithm: str, **more: object) -> dict[str, object]:
    return {
        **{"algorithm": algorithm, "steps": 1, "prompts_per_step": 2, "group_size": 3, "epochs": 2, "minibatches": 2},
        **{"sampling": {"max_new_tokens": 6}, "optimizer": {"lr": 1e-3, "warmup_steps": 0}},
        **more,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    path: Path = tmp_path_factory.mktemp("runs") / "all"
    process = _stage("grpo", name="process", cells={"supervision": "process"})
    recipe = {
        "model": {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"},
        "task": {"kind": "arithmetic", "num_train": 8, "num_eval": 4, "num_demonstrations": 4},
        "stages": [
            *(_stage(name, **({"teacher": "grpo"} if name == "distillation" else {})) for name in PRESETS),
            process,
        ],
        "evaluation": {"problems": 0},
        "scoring": {"isolate": False},
    }
    run_recipe(recipe, path, rewards=[steps, {"name": long, "weight": 0.5}])
    return RunDirectory.open(path)


@pytest.mark.parametrize("name", [*PRESETS, "process"])
def test_a_step_of_it_updates_and_leaves_its_coefficients(finished: RunDirectory, name: str) -> None:
    [line] = finished.metrics(name)
    assert math.isfinite(line["loss"])
    assert line["grad_norm"] > 0.0
    [file] = [item for item in finished.group_files() if item.stage == name]
    rows = [row for row in read_parquet(file.path) if row.advantage is not None]
    assert all(row.coefficients is not None and len(row.coefficients) == len(row.token_ids) for row in rows)
    assert all(row.step_ends == tuple(range(len(row.token_ids))) for row in rows)
    assert any(value for row in rows for value in row.coefficients or ())
