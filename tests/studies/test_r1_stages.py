"""The study of R1's stages, on made-up evaluations: what is collected, and which claims hold."""

import math
from importlib.resources import files
from pathlib import Path

import pytest

from outscore.config import load_recipe
from outscore.report import Evaluation
from outscore.studies.over_seeds import interval, with_seed
from outscore.studies.r1_stages import MEASURES, claims, collected

RECIPE = load_recipe(Path(str(files("outscore") / "recipes" / "r1.yaml")))
POLICIES = ("pretrain", "zero", "dev1", "dev2", "dev3", "scenarios", "r1")


def evaluation(stage: str, value: float) -> Evaluation:
    metrics = {f"part/{name}": value for name in MEASURES}
    return Evaluation(
        label=f"after {stage}", stage=stage, step=1, policy_version=1, num_problems=4, samples=1, metrics=metrics
    )


def test_each_stage_that_trains_the_policy_has_a_row_with_every_seed() -> None:
    runs = [[evaluation(stage, seed + n / 10) for n, stage in enumerate(POLICIES)] for seed in range(2)]
    table = collected(RECIPE, runs)
    assert tuple(table) == POLICIES
    assert table["dev1"]["safe"] == [0.2, 1.2]


def test_a_claim_holds_where_the_means_are_in_its_order() -> None:
    rising = {stage: {name: [n / 10.0, n / 10.0] for name in MEASURES} for n, stage in enumerate(POLICIES)}
    # All rises from stage to stage: so all holds but that the cold start lowers reasoning.
    assert [claim.holds for claim in claims(rising)] == [True, True, False, True, True, True, True, True]
    flat = {stage: {name: [0.5, 0.5] for name in MEASURES} for stage in POLICIES}
    assert not any(claim.holds for claim in claims(flat))


def test_the_interval_is_student_s() -> None:
    assert interval([0.1, 0.2, 0.3]) == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert interval([0.5]) == math.inf


def test_a_seed_is_that_of_the_run_and_of_every_task() -> None:
    other = with_seed(RECIPE, 7)
    tasks = [other.task, *(stage.task for stage in other.stages if stage.task)]
    assert other.seed == 7 and all(task["seed"] == 7 for task in tasks) and len(tasks) > 5
    assert [stage.label for stage in other.stages] == [stage.label for stage in RECIPE.stages]
