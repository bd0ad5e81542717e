"""A process reward model that nobody labelled a step for chooses better among samples than votes do."""

from pathlib import Path

import pytest

from outscore import load_recipe, run_recipe
from outscore.train.search import search_target

RECIPE = Path(__file__).parents[2] / "recipes" / "prm.yaml"


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1])
def test_best_of_n_by_it_beats_one_sample_and_the_majority(seed: int, tmp_path: Path) -> None:
    result = run_recipe(load_recipe(RECIPE, [f"seed={seed}", f"task.seed={seed}"]), tmp_path / "run")
    found = result.evaluations[-1].metrics
    assert found["label_accuracy"] >= 0.75
    assert found["calibration_error"] <= 0.1
    rows = search_target(
        str(result.path),
        reward_model=result.path / "checkpoints" / "process-reward-model",
        methods=["majority", "best-of-n", "weighted", "beam"],
        budgets=[1, 8],
    )
    accuracy = {(row.method, row.budget): row.accuracy.value for row in rows}
    assert accuracy["best-of-n", 8] >= accuracy["best-of-n", 1] + 0.1
    assert accuracy["best-of-n", 8] >= accuracy["majority", 8]
    assert accuracy["beam", 8] >= accuracy["beam", 1] + 0.1
