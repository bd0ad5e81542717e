"""Preferences are learnt, and what they teach shows in the policy's own answers."""

from pathlib import Path

import pytest

from outscore import load_recipe, run_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "dpo.yaml"


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_tells_held_out_solutions_apart_and_answers_better(seed: int, tmp_path: Path) -> None:
    result = run_recipe(load_recipe(RECIPE, [f"seed={seed}", f"task.seed={seed}"]), tmp_path / "run")
    before, after = (
        next(found.metrics for found in result.evaluations if found.label == label)
        for label in ("after sft", "after dpo")
    )
    assert after["preference_accuracy"] >= 0.95
    assert after["likelihood_accuracy"] >= before["likelihood_accuracy"]
    assert after["pass@1"] - before["pass@1"] >= 0.05
