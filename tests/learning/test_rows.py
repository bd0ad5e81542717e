"""Every row of the table of algorithms improves what it should, on one recipe for those that need the same."""

from pathlib import Path
from typing import Any

import pytest

from outscore import load_recipe, run_recipe
from outscore.algorithms.rows import ALGORITHMS
from outscore.config import dump_recipe, parse_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SAMPLED = [name for name, row in ALGORITHMS.items() if row.source == "policy" and not row.needs_teacher]
CRITIC = [name for name in SAMPLED if ALGORITHMS[name].baseline == "critic"]
PREFERENCES = ["dpo-mean", "cdpo", "ipo"]


def measures(recipe: str, stage: str, rows: dict[str, dict[str, Any]], path: Path) -> dict[str, dict[str, float]]:
    """What the recipe's evaluations find after SFT and after its stage by each row, all from the SFT checkpoint.

    `rows`: row -> what it changes in the stage.
    """
    data: dict[str, Any] = dump_recipe(load_recipe(RECIPES / f"{recipe}.yaml"))
    first, pattern = (
        next(each for each in data["stages"] if name in (each["name"], each["algorithm"])) for name in ("sft", stage)
    )
    data["stages"] = [
        first,
        *({**pattern, **changes, "name": row, "algorithm": row, "start": "sft"} for row, changes in rows.items()),
    ]
    found = run_recipe(parse_recipe(data), path).evaluations
    return {name: next(each.metrics for each in found if each.label == f"after {name}") for name in ("sft", *rows)}


@pytest.mark.learning
def test_every_row_without_a_critic_lifts_held_out_accuracy(tmp_path: Path) -> None:
    rows = {row: {} for row in SAMPLED if row not in CRITIC}
    found = measures("one-row", "policy", rows, tmp_path / "run")
    gained = {row: found[row]["pass@1"] - found["sft"]["pass@1"] for row in rows}
    assert min(gained.values()) >= 0.05, gained


@pytest.mark.learning
def test_every_row_with_a_critic_lifts_held_out_accuracy(tmp_path: Path) -> None:
    # A sum's 20 tokens are too few for the lengths that VAPO's 1 - 1 / (0.05 l) is meant for.
    own = {"vapo": {"cells": {"lambda_alpha": 1.0}}}
    rows = {row: own.get(row, {"cells": {}}) for row in CRITIC if row != "ppo"}
    found = measures("ppo", "ppo", rows, tmp_path / "run")
    gained = {row: found[row]["pass@1"] - found["sft"]["pass@1"] for row in rows}
    assert min(gained.values()) >= 0.05, gained


@pytest.mark.learning
def test_every_row_of_preferences_tells_them_apart(tmp_path: Path) -> None:
    found = measures("dpo", "dpo", {row: {"cells": {}} for row in PREFERENCES}, tmp_path / "run")
    for row in PREFERENCES:
        assert found[row]["preference_accuracy"] >= 0.9, (row, found[row])
        assert found[row]["likelihood_accuracy"] >= found["sft"]["likelihood_accuracy"] - 0.01, (row, found[row])


@pytest.mark.learning
@pytest.mark.parametrize(
    ("recipe", "before", "after"), [("process-grpo", "sft", "grpo"), ("iterative", "sft", "grpo-2")]
)
def test_grpo_is_paid_by_a_model_that_it_has_learnt(recipe: str, before: str, after: str, tmp_path: Path) -> None:
    found = run_recipe(load_recipe(RECIPES / f"{recipe}.yaml"), tmp_path / "run").evaluations
    low, high = (next(e.metrics["pass@1"] for e in found if e.label == f"after {stage}") for stage in (before, after))
    assert high - low >= 0.05, (low, high)
