"""PPO improves held-out answers, and its critic comes to know a little of what they will be worth."""

from pathlib import Path

import pytest

from outscore import load_recipe, run_recipe
from outscore.report import RunDirectory

RECIPE = Path(__file__).parents[2] / "recipes" / "ppo.yaml"


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1])
def test_ppo_lifts_held_out_accuracy_and_its_critic_explains_returns(seed: int, tmp_path: Path) -> None:
    result = run_recipe(load_recipe(RECIPE, [f"seed={seed}", f"task.seed={seed}"]), tmp_path / "run")
    before, after = (
        next(found.metrics["pass@1"] for found in result.evaluations if found.label == label)
        for label in ("after sft", "after ppo")
    )
    assert after - before >= 0.08
    lines = RunDirectory.open(result.path).metrics("ppo")
    explained = [line["explained_variance"] for line in lines]
    # Of a short sum few states tell how it will end: a little is all that can be known.
    assert sum(explained[-10:]) / 10 >= 0.03 > sum(explained[:4]) / 4
    losses = [line["value_loss"] for line in lines]
    assert sum(losses[-10:]) / 10 <= 0.75 * sum(losses[:4]) / 4
