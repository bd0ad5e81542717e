"""Whole runs of PPO: resumed exactly with critic and coefficient, from a reward model, checked."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.stopping import CLOCK

from outscore.config import parse_recipe
from outscore.model.heads import reward_model_from
from outscore.report import RunDirectory
from outscore.train.check import check_recipe
from outscore.train.checkpoint import policy_checkpoints, read_progress
from outscore.train.plan import stage_memory
from outscore.train.run import resume, run_recipe
from outscore.train.setup import prepare

MODEL = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
PPO = {
    "algorithm": "ppo",
    "steps": 4,
    "prompts_per_step": 4,
    "group_size": 2,
    "epochs": 2,
    "minibatches": 2,
    "sampling": {"max_new_tokens": 6},
    "truncated_score": -1.0,
    "optimizer": {"lr": 5e-3, "warmup_steps": 0, "schedule": "linear"},
    "critic": {"warmup_steps": 1},
    "cells": {"kl_adapt_to": 0.01, "kl_horizon": 20},
}
SCORER = {"name": "scorer", "algorithm": "reward-model", "steps": 1, "batch_size": 2}
RECIPE: dict[str, Any] = {
    "model": MODEL,
    "task": {"kind": "arithmetic", "num_train": 8, "num_eval": 3, "num_preferences": 4},
    "rewards": ["last_number"],
    "evaluation": {"problems": 0},
    "checkpoints": {"every": 1, "keep": 4},
    "scoring": {"isolate": False},
}


def digits(completions: list[str]) -> list[float]:
    return [sum(c.isdigit() for c in text) / 6 for text in completions]


def contents(run: Path) -> dict[str, bytes]:
    files = [file for file in sorted(run.rglob("*")) if file.is_file() and file.name not in CLOCK]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_resumes_exactly_with_its_critic_and_its_coefficient(tmp_path: Path, precision: str) -> None:
    recipe = {**RECIPE, "model": {**MODEL, "precision": precision}, "stages": [PPO]}
    whole = RunDirectory.open(run_recipe(recipe, tmp_path / "whole", rewards=[digits]).path)
    lines = whole.metrics("ppo")
    # The first step is the critic's alone; three steps of 2 x 2 updates of the policy follow.
    assert "loss" not in lines[0] and [line["policy_version"] for line in lines] == [0, 4, 8, 12]
    assert all(line["value_loss"] > 0 and "explained_variance" in line for line in lines)
    assert [read_progress(item.path)[0].critic_updates for item in whole.checkpoints()] == [4, 8, 12, 16]
    # Ziegler et al.: the relative error, at most 0.2 either way, times 8 completions of a horizon of 20.
    coef = 0.05
    for line in lines:
        assert line["kl_coef"] == pytest.approx(coef, rel=1e-12)
        coef *= 1 + min(max(line["completion_kl"] / 0.01 - 1, -0.2), 0.2) * 8 / 20
    assert len({line["kl_coef"] for line in lines}) == 4
    for kept in (1, 2):
        stopped = tmp_path / f"stopped-{kept}"
        shutil.copytree(whole.path, stopped)
        for step in range(kept + 1, 5):
            shutil.rmtree(RunDirectory.open(stopped).checkpoint_path("ppo", step))
        resume(stopped, rewards=[digits])
        assert contents(stopped) == contents(whole.path)


def test_a_critic_begins_as_an_earlier_stages_and_the_policy_is_what_is_found(tmp_path: Path) -> None:
    first = {**PPO, "steps": 1, "critic": {"start": "scorer", "lr": 1e-30}, "epochs": 1, "minibatches": 1}
    second = {**first, "name": "again", "critic": {"start": "ppo", "lr": 1e-30}}
    path = run_recipe({**RECIPE, "stages": [SCORER, first, second]}, tmp_path / "run", rewards=[digits]).path
    run = RunDirectory.open(path)
    scorer = load_file(run.checkpoint_path("scorer", 1) / "model.safetensors")
    critics = [load_file(run.checkpoint_path(stage, 1) / "critic" / "model.safetensors") for stage in ("ppo", "again")]
    for critic in critics:
        assert critic.keys() == scorer.keys() and all(torch.equal(critic[name], scorer[name]) for name in scorer)
    assert scorer["score.weight"].abs().max() > 0
    assert [item.stage for item in policy_checkpoints(run)] == ["ppo", "again"]


@pytest.mark.parametrize("critic", [{"start": "scorer"}, {"trunk": "shared"}], ids=["own", "shared"])
def test_check_tries_a_critic_and_a_group_of_one(critic: dict[str, str]) -> None:
    stage = {**PPO, "group_size": 1, "critic": critic}
    findings = {found.what: found for found in check_recipe(parse_recipe({**RECIPE, "stages": [SCORER, stage]}))}
    assert findings["rewards"].status == "ok" and findings["memory"].status == "ok"


def test_memory_has_the_critic_with_its_moments_beside_the_policy() -> None:
    recipe = parse_recipe({**RECIPE, "stages": [PPO]})
    workshop = prepare(recipe)
    counted = stage_memory(recipe, 0, workshop)
    trained = sum(p.numel() for p in reward_model_from(workshop.policy, seed=0, end_token_id=None).model.parameters())
    assert all(parts["critic"] == 12 * trained for parts in counted.phases.values() if "critic" in parts)
    # Itself and two moments in fp32; its gradient is there when the policy's is not.
    assert counted.phases["critic ends"]["gradients"] == 4 * trained
