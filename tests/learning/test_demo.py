"""The demo learns, on every seed: long, so `make test-learning` runs it."""

from pathlib import Path

import pytest

from outscore import load_recipe, run_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "demo.yaml"


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_lifts_held_out_accuracy_by_30_points_to_85_percent(seed: int, tmp_path: Path) -> None:
    result = run_recipe(load_recipe(RECIPE, [f"seed={seed}", f"task.seed={seed}"]), tmp_path / "run")
    before, after = (
        next(found.metrics["pass@1"] for found in result.evaluations if found.label == label)
        for label in ("after sft", "after grpo")
    )
    assert after >= 0.85
    assert after - before >= 0.30
