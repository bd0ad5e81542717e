"""A policy becomes as good as its teacher from its own samples, without a reward."""

from pathlib import Path

import pytest

from outscore import RunDirectory, load_recipe, run_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "distill.yaml"


@pytest.mark.learning
def test_distillation_closes_most_of_the_gap_to_the_teacher(tmp_path: Path) -> None:
    result = run_recipe(load_recipe(RECIPE), tmp_path / "run")
    after = {found.label: found.metrics["pass@1"] for found in result.evaluations}
    student, teacher, taught = (after[f"after {stage}"] for stage in ("sft", "grpo", "distillation"))
    assert teacher - student >= 0.1
    assert taught - student >= 0.7 * (teacher - student)
    lines = RunDirectory.open(result.path).metrics("distillation")
    assert lines[-1]["teacher_kl"] < 0.5 * lines[0]["teacher_kl"]
