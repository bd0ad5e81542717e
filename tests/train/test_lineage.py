"""Which weights a stage begins with, and a task and rewards of its own: pipelines are stages put together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from train.stopping import BOUNDARY, Stops, contents

from outscore.config import parse_recipe
from outscore.report import RunDirectory
from outscore.report.rows import read_parquet
from outscore.tasks import make_task
from outscore.tasks.base import question_text
from outscore.train.checkpoint import trained_weights
from outscore.train.run import resume, run_recipe
from outscore.train.setup import load_policy, prepare

SFT = {"algorithm": "sft", "steps": 2, "batch_size": 4, "optimizer": {"lr": 5e-3}}
GRPO = {
    **{"algorithm": "grpo", "steps": 2, "prompts_per_step": 2, "group_size": 4, "cells": {"kl_coef": 0.0}},
    **{"sampling": {"max_new_tokens": 6}, "optimizer": {"lr": 1e-3}},
}
PIPELINE: dict[str, Any] = {
    **BOUNDARY,
    "rewards": ["last_number"],
    "stages": [
        {**SFT, "name": "cold"},
        {**GRPO, "name": "zero", "start": "base", "rewards": ["format_tags", "tag_answer"]},
        {**SFT, "name": "again", "start": "cold", "task": {**BOUNDARY["task"], "seed": 9}},
    ],
    "evaluation": {"problems": 4, "samples": 1},
}


def weights_of(run: RunDirectory, stage: str) -> dict[str, torch.Tensor]:
    return dict(trained_weights([item.path for item in run.checkpoints() if item.stage == stage][-1]))


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def still(stage: dict[str, Any]) -> dict[str, Any]:
    """The stage with a rate so small that its weights are those it began with."""
    return {**stage, "optimizer": {"lr": 1e-30}}


def test_a_stage_begins_with_the_weights_it_names(tmp_path: Path) -> None:
    cold, zero, again = PIPELINE["stages"]
    recipe = {**PIPELINE, "stages": [cold, still(zero), still(again)]}
    run = RunDirectory.open(run_recipe(recipe, tmp_path / "run").path)
    policy, _ = load_policy(parse_recipe(recipe).model, [make_task(**each["task"]) for each in (recipe, again)], 3)
    base = {name: weight.detach() for name, weight in policy.model.named_parameters()}
    assert distance(weights_of(run, "cold"), base) > 1e-3
    assert distance(weights_of(run, "zero"), base) < 1e-9
    assert distance(weights_of(run, "again"), weights_of(run, "cold")) < 1e-9


@pytest.mark.parametrize(
    ("stage", "step"), [("zero", 0), ("zero", 1), ("again", 0), ("again", 1)], ids=lambda value: str(value)
)
def test_a_pipeline_resumes_exactly(tmp_path: Path, stage: str, step: int) -> None:
    run_recipe(PIPELINE, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(PIPELINE, tmp_path / "run", console=Stops(stage, step))
    assert resume(tmp_path / "run").finished
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize("kept", [{"lora": {"rank": 2}}, {"precision": "bf16"}], ids=["lora", "bf16"])
def test_adapters_and_masters_begin_again_too(tmp_path: Path, kept: dict[str, Any]) -> None:
    base, _ = load_policy(parse_recipe(PIPELINE).model, make_task(**BOUNDARY["task"]), seed=3)
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    model = {"source": str(tmp_path / "base"), "precision": "fp32", **kept}
    cold, zero, again = PIPELINE["stages"]
    recipe = {**PIPELINE, "model": model, "stages": [cold, zero, still({**again, "task": None})]}
    run = RunDirectory.open(run_recipe(recipe, tmp_path / "whole").path)
    assert distance(weights_of(run, "again"), weights_of(run, "cold")) < 1e-9
    assert distance(weights_of(run, "zero"), weights_of(run, "cold")) > 1e-4
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "run", console=Stops("zero", 1))
    assert resume(tmp_path / "run").finished
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_stage_of_its_own_rewards_is_scored_by_them_and_evaluated_by_the_run(tmp_path: Path) -> None:
    run = RunDirectory.open(run_recipe(PIPELINE, tmp_path / "run").path)
    [row, *_] = read_parquet(run.groups_path("zero", 1))
    assert set(row.parts) == {"format_tags", "tag_answer"}
    assert {found.label for found in run.evaluations()} == {"before cold", "after cold", "after zero", "after again"}


def test_a_task_of_its_own_trains_on_nothing_that_is_held_out() -> None:
    workshop = prepare(parse_recipe(PIPELINE))
    held_out = {question_text(prompt.problem) for prompt in workshop.eval_prompts}
    own = workshop.materials[2].demonstrations
    first = workshop.materials[0].demonstrations
    assert {question_text(g.prompt.problem) for g in own} != {question_text(g.prompt.problem) for g in first}
    assert not held_out & {question_text(group.prompt.problem) for group in own}
    assert workshop.materials[1].train_prompts and not workshop.materials[1].demonstrations


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{**SFT, "start": "cold"}], r"stage `sft`: start = 'cold' is no earlier stage"),
        ([{**SFT, "name": "cold"}, {**GRPO, "start": "clod"}], r"'clod' is no earlier stage; did you mean `cold`"),
        ([{**SFT, "start": "grpo"}, GRPO], r"start = 'grpo' is no earlier stage, and a cycle has no end"),
        ([{**SFT, "start": "sft"}], r"start = 'sft' is no earlier stage, and a cycle"),
        ([{**SFT, "name": "base"}], r"'base' cannot be a stage's name"),
        ([{**SFT, "task": {"num_train": 3}}], r"task: `kind` is missing"),
    ],
)
def test_what_cannot_begin_is_refused_before_any_work(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe({**PIPELINE, "stages": stages})


def test_rewards_of_the_stages_that_sample_are_enough() -> None:
    recipe = parse_recipe({**PIPELINE, "rewards": [], "stages": [{**GRPO, "rewards": ["tag_answer"]}]})
    assert recipe.stages[0].rewards == ("tag_answer",)
    with pytest.raises(ValueError, match="rewards: at least one is needed"):
        parse_recipe({**PIPELINE, "rewards": [], "stages": [GRPO]})
