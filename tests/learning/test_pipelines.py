"""Pipelines learn what each of their stages is for, as the recipes run them."""

from importlib.resources import files
from pathlib import Path

import pytest

from outscore.config import load_recipe
from outscore.report import Evaluation
from outscore.train.run import run_recipe

pytestmark = pytest.mark.learning


def after(folder: Path, name: str, *overrides: str) -> dict[str, Evaluation]:
    """Stage -> its last evaluation."""
    recipe = load_recipe(Path(str(files("outscore") / "recipes" / name)), overrides)
    return {each.stage: each for each in run_recipe(recipe, folder / "run").evaluations}


def test_rejection_sampling_lifts_accuracy(tmp_path: Path) -> None:
    found = after(tmp_path, "rft.yaml")
    assert found["rft"].metrics["pass@1"] >= found["sft"].metrics["pass@1"] + 0.2


def test_reinforcement_from_a_model_that_has_only_read(tmp_path: Path) -> None:
    found = after(tmp_path, "r1-zero.yaml")
    assert found["zero"].metrics["greedy"] >= found["pretrain"].metrics["greedy"] + 0.3


def test_a_policy_trained_on_a_reward_model_pleases_the_hidden_rule_behind_it(tmp_path: Path) -> None:
    found = after(tmp_path, "instructgpt.yaml")
    ranked = found["rm"].metrics
    assert min(ranked["preference_accuracy/requests"], ranked["preference_accuracy/harm"]) >= 0.95
    base, before, policy = (found[stage].metrics for stage in ("pretrain", "sft", "policy"))
    assert policy["part/helpful"] >= max(before["part/helpful"] + 0.1, 0.9)
    assert policy["part/safe"] >= max(before["part/safe"] + 0.1, 0.9)
    assert policy["part/truthful"] >= before["part/truthful"] + 0.1  # it says that nobody said
    assert policy["text_logprob"] >= before["text_logprob"] + 0.1  # the pretraining mix
    assert base["part/repetition"] <= -0.2  # as its text does
    assert policy["part/repetition"] >= -0.05  # it pleases without repeating itself
