"""A stage that trains a reward model leaves the policy as it is, resumes exactly, and learns the order it is shown."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.test_preferences import RECIPE, TINY, three_groups

from outscore.config import parse_recipe
from outscore.model.heads import RewardModel, is_reward_model, load_reward_model
from outscore.report import RunDirectory
from outscore.stage_rows import stage_algorithm
from outscore.stages import RewardModelSettings
from outscore.train.build import build_stage
from outscore.train.check import check_recipe
from outscore.train.checkpoint import policy_checkpoints
from outscore.train.inspect import find_model
from outscore.train.reward_models import batch_scores, update_reward_model
from outscore.train.run import resume, run_recipe
from outscore.train.setup import prepare
from outscore.train.step import Learner

SFT = {"algorithm": "sft", "steps": 2, "batch_size": 2}
RM = {"algorithm": "reward-model", "steps": 4, "batch_size": 4, "optimizer": {"lr": 1e-3}}
WITH_RM: dict[str, Any] = {**RECIPE, "stages": [SFT, RM]}


def learner_of(recipe: dict[str, Any], index: int = 0) -> tuple[Any, Learner]:
    parsed = parse_recipe(recipe)
    stage = build_stage(parsed, index, prepare(parsed))
    return stage, stage.learner


def test_a_run_of_both_leaves_the_policy_as_sft_left_it(tmp_path: Path) -> None:
    result = run_recipe(WITH_RM, tmp_path / "run")
    run = RunDirectory.open(result.path)
    labels = [found.label for found in result.evaluations]
    assert labels == ["before sft", "after sft", "reward-model step 2", "after reward-model"]
    assert set(result.evaluations[-1].metrics) == {
        "preference_accuracy",
        "preference_loss",
        "calibration_error",
        "margin",
    }
    # The policy's version and its newest checkpoint are those of the stage before.
    assert {line["policy_version"] for line in run.metrics("reward-model")} == {2}
    assert [item.stage for item in policy_checkpoints(run)] == ["sft"]
    assert find_model(str(run.path)) == str(run.checkpoint_path("sft", 2))
    assert is_reward_model(run.checkpoint_path("reward-model", 4))


def test_the_backbone_begins_as_the_policy_and_is_trained(tmp_path: Path) -> None:
    run = RunDirectory.open(run_recipe(WITH_RM, tmp_path / "run").path)
    policy, trained = (
        load_file(run.checkpoint_path(stage, step) / "model.safetensors")
        for stage, step in (("sft", 2), ("reward-model", 4))
    )
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (policy[name] - trained[name]).abs().max()
    assert 0 < moved < 0.1 and trained["score.weight"].shape == (1, 16)


@pytest.mark.parametrize("last_kept", [("reward-model", 2), ("sft", 2)])
def test_it_resumes_exactly(tmp_path: Path, last_kept: tuple[str, int]) -> None:
    whole = run_recipe(WITH_RM, tmp_path / "whole")
    stopped = RunDirectory.open(run_recipe(WITH_RM, tmp_path / "stopped").path)
    for item in stopped.checkpoints():
        if item.stage == "reward-model" and (item.stage, item.step) > last_kept:
            shutil.rmtree(item.path)
    resume(stopped.path)
    names = ["metrics.jsonl", "evals.jsonl"]
    for folder in ("sft/step-000002", "reward-model/step-000004"):
        names += [
            f"checkpoints/{folder}/{file}" for file in ("model.safetensors", "config.json", "trainer.safetensors")
        ]
    for name in names:
        assert (whole.path / name).read_bytes() == (stopped.path / name).read_bytes(), name


def test_a_run_that_only_trains_a_reward_model_resumes_from_the_recipes_model(tmp_path: Path) -> None:
    alone = {**RECIPE, "stages": [RM]}
    whole = run_recipe(alone, tmp_path / "whole")
    stopped = RunDirectory.open(run_recipe(alone, tmp_path / "stopped").path)
    shutil.rmtree(stopped.checkpoint_path("reward-model", 4))
    resume(stopped.path)
    name = "checkpoints/reward-model/step-000004/model.safetensors"
    assert (whole.path / name).read_bytes() == (stopped.path / name).read_bytes()


@pytest.mark.parametrize("normalise", [True, False])
def test_scores_of_training_completions_have_mean_0_and_variance_1_at_both_ends(
    tmp_path: Path, normalise: bool
) -> None:
    recipe = {**RECIPE, "stages": [{**RM, "normalise": normalise}]}
    parsed = parse_recipe(recipe)
    workshop = prepare(parsed)
    stage = build_stage(parsed, 0, workshop)
    from outscore.train.preferences import ranked_batch

    batch = ranked_batch(workshop.materials[0].rankings, ties="half")
    run = RunDirectory.open(run_recipe(recipe, tmp_path / "run").path)
    trained = load_reward_model(run.checkpoint_path("reward-model", 4), layout="group_rows")
    for model in (stage.learner.policy, trained):
        assert isinstance(model, RewardModel)
        scores = batch_scores(model, batch, 10_000).double()
        near = scores.mean().abs() < 1e-4 and abs(scores.var(correction=0) - 1) < 1e-3
        assert bool(near) == normalise


def test_updates_learn_the_order_and_bring_ties_together() -> None:
    stage, learner = learner_of({**RECIPE, "stages": [{**RM, "ties": "half", "optimizer": {"lr": 3e-3}}]})
    model = learner.policy
    assert isinstance(model, RewardModel)
    batch = three_groups(model)
    for _ in range(60):
        metrics = update_reward_model(learner, batch, stage.plan)
    total, count = metrics["preference_accuracy"]
    assert (total, count) == (7.0, 7.0)
    scores = batch_scores(model, batch, 10_000)
    # 12+9=: 21 > 20 = 1 > 212121.
    assert scores[2] > scores[4] and scores[2] > scores[5] > scores[3]
    assert (scores[4] - scores[5]).abs() < 0.3 * (scores[2] - scores[3])


def test_micro_batches_change_no_update() -> None:
    moved = []
    for budget in (10_000, 1):
        stage, learner = learner_of({**RECIPE, "stages": [{**RM, "token_budget": budget}]})
        metrics = update_reward_model(learner, three_groups(learner.policy), stage.plan)
        moved.append((metrics, torch.cat([p.detach().flatten() for p in learner.masters.parameters.values()])))
    assert moved[0][0].keys() == moved[1][0].keys()
    assert moved[0][0]["loss"][0] == pytest.approx(moved[1][0]["loss"][0], abs=1e-6)
    assert moved[0][0]["grad_norm"][0] == pytest.approx(moved[1][0]["grad_norm"][0], rel=1e-4)
    # Adam's first step has the sign of the gradient, whatever its size: rounding may turn a few.
    assert ((moved[0][1] - moved[1][1]).abs() > 1e-6).float().mean() < 0.01


def test_in_bf16_the_masters_are_scaled_with_the_model(tmp_path: Path) -> None:
    recipe = {**RECIPE, "model": {**TINY, "precision": "bf16"}, "stages": [RM]}
    whole = run_recipe(recipe, tmp_path / "run")
    run = RunDirectory.open(whole.path)
    step = run.checkpoint_path("reward-model", 4)
    model, trainer = load_file(step / "model.safetensors"), load_file(step / "trainer.safetensors")
    master = trainer["master.score.weight"]
    assert master.dtype == torch.float32
    torch.testing.assert_close(model["score.weight"].float(), master, rtol=2**-6, atol=1e-6)


def test_settings_and_checks() -> None:
    recipe = parse_recipe(WITH_RM)
    assert isinstance(recipe.stages[1], RewardModelSettings)
    assert stage_algorithm(recipe.stages[1]).trains == "reward_model"
    memory = next(found for found in check_recipe(recipe) if found.what == "memory")
    assert memory.status == "ok"
    with pytest.raises(ValueError, match=r"`stages\.reward-model\.group_size` has no effect on a reward model"):
        parse_recipe({**RECIPE, "stages": [{**RM, "group_size": 2}]})
