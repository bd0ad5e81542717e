"""A reward model ranks held-out solutions, and as a reward it tells right answers from wrong ones."""

from pathlib import Path

import pytest

from outscore import load_recipe, make_task, run_recipe
from outscore.rewards.model_based import ModelScorer
from outscore.rewards.reward_model import newest_checkpoint

RECIPE = Path(__file__).parents[2] / "recipes" / "reward-model.yaml"


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1])
def test_a_reward_model_ranks_held_out_solutions(seed: int, tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE, [f"seed={seed}", f"task.seed={seed}"])
    result = run_recipe(recipe, tmp_path / "run")
    found = result.evaluations[-1].metrics
    assert found["preference_accuracy"] >= 0.8
    assert found["calibration_error"] <= 0.25

    scorer = ModelScorer(newest_checkpoint(result.path / "checkpoints" / "reward-model"))
    rankings = make_task(**recipe.task).eval_rankings()
    questions = [ranking.problem.question for ranking in rankings]
    sides = [
        scorer(prompts=questions, rendered_prompts=questions, completions=[r.responses[side] for r in rankings])
        for side in (0, 1)
    ]
    right = sum(better > worse for better, worse in zip(*sides, strict=True)) / len(rankings)
    assert right == pytest.approx(found["preference_accuracy"], abs=0.01)
