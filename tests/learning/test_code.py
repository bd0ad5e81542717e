"""A small model learns to write programs that pass their tests, from running them."""

from pathlib import Path

import pytest

from outscore import load_recipe, run_recipe
from outscore.rewards.sandbox import IsolationError, Sandbox

RECIPE = Path(__file__).parents[2] / "recipes" / "code.yaml"


@pytest.mark.learning
def test_grpo_lifts_the_share_of_held_out_programs_that_pass_all_their_tests(tmp_path: Path) -> None:
    box = Sandbox()
    try:
        box.check()
    except IsolationError as error:
        pytest.skip(str(error))
    finally:
        box.close()
    result = run_recipe(load_recipe(RECIPE), tmp_path / "run")
    before, after = (
        next(found.metrics["pass@1"] for found in result.evaluations if found.label == label)
        for label in ("after sft", "after grpo")
    )
    assert after - before >= 0.05
