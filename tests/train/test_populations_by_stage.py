"""Weights of populations where a stage learns from labels, has a critic or a teacher; stages that cannot have them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from train.building import learner_of, tiny_policy

from outscore.config import parse_recipe
from outscore.objectives.reward_models import label_loss, label_score_losses
from outscore.report import RunDirectory
from outscore.stage_parts import PlateauSettings
from outscore.train.loop import shrink
from outscore.train.populations import evaluation_column, population_notices
from outscore.train.run import resume, run_recipe
from outscore.train.setup import prepare

TINY = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
RECIPE: dict[str, Any] = {"model": TINY, "scoring": {"isolate": False}, "evaluation": {"problems": 4, "samples": 1}}
ARITHMETIC = {"kind": "arithmetic", "num_train": 12, "num_eval": 4, "num_demonstrations": 12}
OPTIMIZER = {"lr": 1e-3, "warmup_steps": 0}
SAMPLED = {"steps": 4, "prompts_per_step": 4, "sampling": {"max_new_tokens": 4}, "optimizer": OPTIMIZER}
PPO = {**SAMPLED, "algorithm": "ppo", "group_size": 1, "critic": {"warmup_steps": 1}}
DISTILLATION = {**SAMPLED, "algorithm": "distillation", "group_size": 2, "teacher": "sft"}
SFT = {"algorithm": "sft", "steps": 1, "batch_size": 4, "optimizer": OPTIMIZER}
LABELLED = {"steps": 4, "batch_size": 4, "optimizer": OPTIMIZER}
KINDS = ("process-reward-model", "outcome-reward-model", "ratings")


def digits(completions: list[str], **columns: object) -> list[float]:
    return [sum(c.isdigit() for c in text) / 4 for text in completions]


def labelled(kind: str, folder: Path, **populations: Any) -> dict[str, Any]:
    """A recipe of one stage on labels of two populations, of one of which there are twice as many."""
    train, held_out = folder / "train.jsonl", folder / "eval.jsonl"
    for file, first in ((train, 0), (held_out, 5)):
        rows: list[dict[str, Any]] = []
        for n in range(12):
            own = {"prompt": f"{n}+{first}=", "who": "a" if n % 3 else "b"}
            steps = {"completions": [str(n), "1"], "labels": [n % 2, 1 - n % 2]}
            rows.append({**own, **(steps if kind == KINDS[0] else {"response": str(n), "expected_reward": n / 12})})
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    squares = {"cells": {"surrogate": "squared_error"}} if kind == "ratings" else {}
    stage = {**LABELLED, **squares, "algorithm": KINDS[1] if kind == "ratings" else kind, "name": "labels"}
    stage |= {"populations": {"column": "who", **populations}} if populations else {}
    task = {"kind": "data", "path": str(train), "eval_path": str(held_out)}
    return {**RECIPE, "task": task, "stages": [stage], "evaluation": {"problems": 12}, "checkpoints": {"every": 2}}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_the_shares_are_a_plain_run_on_labels(kind: str, tmp_path: Path) -> None:
    plain = RunDirectory.open(run_recipe(labelled(kind, tmp_path), tmp_path / "plain").path)
    weighed = RunDirectory.open(run_recipe(labelled(kind, tmp_path, weights="shares"), tmp_path / "weighed").path)
    for before, after in zip(plain.metrics("labels"), weighed.metrics("labels"), strict=True):
        assert {"population_weight/a", "population_loss/b"} <= set(after)
        assert before == {key: value for key, value in after.items() if not key.startswith("population_")}
    saved = [run.checkpoint_path("labels", 4) / "model.safetensors" for run in (plain, weighed)]
    assert saved[0].read_bytes() == saved[1].read_bytes()
    found = weighed.evaluations()[-1].metrics
    assert found["label_loss"] == pytest.approx((2 * found["label_loss/a"] + found["label_loss/b"]) / 3)
    assert found["worst/label_loss"] == max(found["label_loss/a"], found["label_loss/b"])


def test_robust_weights_of_labels_climb_and_resume_exactly(tmp_path: Path) -> None:
    recipe = labelled("process-reward-model", tmp_path, step_size=0.5, draw="equal")
    whole = run_recipe(recipe, tmp_path / "whole").path
    first, *_, last = RunDirectory.open(whole).metrics("labels")
    assert first["population_weight/a"] != last["population_weight/a"]
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    shutil.rmtree(RunDirectory.open(stopped).checkpoint_path("labels", 4))
    resume(stopped)
    for file in ("metrics.jsonl", "evals.jsonl", "checkpoints/labels/step-000004/trainer.safetensors"):
        assert (whole / file).read_bytes() == (stopped / file).read_bytes(), file


@pytest.mark.parametrize("kind", ["cross_entropy", "squared_error"])
def test_factors_multiply_the_loss_of_their_labels(kind: Any) -> None:
    scores = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    labels, factors = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64), torch.tensor([2.0, 0.5, 0.0])
    whole = label_loss(scores, labels, kind, num_labels=3, factors=factors)
    each = [label_loss(scores[i : i + 1], labels[i : i + 1], kind, num_labels=3).loss for i in range(3)]
    assert whole.loss.item() == pytest.approx((2.0 * each[0] + 0.5 * each[1]).item())
    (gradient,) = torch.autograd.grad(whole.loss, scores)
    torch.testing.assert_close(whole.coefficients, -gradient)
    # Of a micro-batch with the last two of them: each loss at its own place, and its share of the batch.
    found = label_score_losses(scores[1:], torch.tensor([2, 1]), labels[[0, 2, 1]], kind)
    assert found[0].tolist() == pytest.approx([0.0, each[2].item(), each[1].item()])
    assert found[1].tolist() == pytest.approx([0.0, 1 / 3, 1 / 3])


def test_ppo_weighs_the_policys_loss_and_its_critic_learns_of_all_alike(tmp_path: Path) -> None:
    def first_steps(name: str, **weights: Any) -> tuple[list[Any], Path]:
        stage = {**PPO, "steps": 2, "populations": {"column": "operation", **weights}}
        recipe = {**RECIPE, "task": ARITHMETIC, "stages": [stage], "evaluation": {"problems": 0}}
        path = run_recipe(recipe, tmp_path / name, rewards=[digits]).path
        return RunDirectory.open(path).metrics("ppo"), path

    (alone, after), path = first_steps("a", weights={"+": 1.0, "-": 0.0})
    (_, other), other_path = first_steps("b", weights={"+": 0.0, "-": 1.0})
    assert "population_weight/+" not in alone  # the critic's own first step
    assert after["population_weight/+"] == 1.0 and isinstance(after["population_reward/-"], float)
    assert after["grad_norm"] != other["grad_norm"] and after["value_grad_norm"] == other["value_grad_norm"]
    saved = "checkpoints/ppo/step-000002/critic/model.safetensors"
    assert (path / saved).read_bytes() == (other_path / saved).read_bytes()


def test_a_teacher_alone_goes_with_weights_that_stay_and_rewards_with_robust_ones(tmp_path: Path) -> None:
    fixed = {**DISTILLATION, "steps": 1, "populations": {"column": "operation", "weights": "equal"}}
    path = run_recipe({**RECIPE, "task": ARITHMETIC, "stages": [SFT, fixed]}, tmp_path / "run").path
    assert RunDirectory.open(path).metrics("distillation")[0]["population_weight/+"] == pytest.approx(0.5)
    robust = {**DISTILLATION, "populations": {"column": "operation"}}
    with pytest.raises(ValueError, match=r"weights = 'robust' climbs by rewards .* and there are none"):
        parse_recipe({**RECIPE, "task": ARITHMETIC, "stages": [SFT, robust]})
    parse_recipe({**RECIPE, "task": ARITHMETIC, "stages": [SFT, robust], "rewards": ["last_number"]})


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"algorithm": "pretrain"}, "populations: plain text has none"),
        ({"algorithm": "rft"}, "populations: rft chooses its own demonstrations"),
        ({"algorithm": "outcome-reward-model", "sample": {}}, "populations: `sample` makes its own labels"),
        ({"algorithm": "process-reward-model", "sample": {}}, "populations: `sample` makes its own labels"),
    ],
)
def test_stages_that_cannot_weigh_populations_say_why(stage: dict[str, Any], message: str) -> None:
    recipe = {**RECIPE, "task": ARITHMETIC, "rewards": ["last_number"]}
    with pytest.raises(ValueError, match=message):
        parse_recipe({**recipe, "stages": [{**stage, "steps": 1, "populations": {"column": "operation"}}]})
    parse_recipe({**recipe, "stages": [{**stage, "steps": 1}]})


def test_evaluations_of_a_stage_with_a_task_of_its_own_are_split_by_its_own_column() -> None:
    rows = [{"prompt": f"{n}+1=", "chosen": "1", "rejected": "2", "who": "x" if n % 2 else "y"} for n in range(20)]
    dpo = {"algorithm": "dpo", "steps": 1, "batch_size": 4, "optimizer": OPTIMIZER}
    own = {**dpo, "task": {"kind": "data", "rows": rows, "eval_fraction": 0.5}, "populations": {"column": "who"}}
    shared = {**SFT, "populations": {"column": "operation"}}
    recipe = parse_recipe({**RECIPE, "task": ARITHMETIC, "stages": [shared, own], "rewards": ["last_number"]})
    assert evaluation_column(recipe.stages) == "operation"
    assert evaluation_column(recipe.stages, recipe.stages[1]) == "who"
    shop = prepare(recipe)
    assert {prompt.problem.population for prompt in shop.eval_prompts} <= {"+", "-"}
    assert {prompt.problem.population for prompt in shop.materials[1].held_out} <= {"x", "y"}
    assert not any("'x' is only" in notice or "'+' is only" in notice for notice in shop.notices)
    assert population_notices(recipe.stages[1], ["x", "x", "y", "y"], ["x", "x", "y", "y"]) == []


def test_accuracy_by_population_is_of_the_problems_that_its_reward_is_for(tmp_path: Path) -> None:
    own = {"kind": "arithmetic", "num_train": 4, "num_eval": 3, "num_demonstrations": 4}
    signs = {"sums": "+", "differences": "-"}
    parts = {name: {**own, "operations": [sign]} for name, sign in signs.items()} | {"more": {**own, "digits": 3}}
    rewards = [
        {"name": "format_tags", "weight": 0.1},
        {"name": "last_number", "where": {"domain": ["sums", "more"]}},
    ]
    recipe = {**RECIPE, "task": {"kind": "mixture", "parts": parts}, "stages": [SFT], "rewards": rewards}
    recipe["evaluation"] = {"problems": 9, "samples": 2, "max_new_tokens": 4}
    found = RunDirectory.open(run_recipe(recipe, tmp_path / "run").path).evaluations()[-1].metrics
    for metric in ("greedy", "pass@1"):
        assert found[metric] == pytest.approx((found[f"{metric}/sums"] + found[f"{metric}/more"]) / 2)
        assert f"{metric}/differences" not in found
    assert {"part/format_tags", "part/last_number"} <= set(found)


def test_a_plateau_makes_the_steps_of_a_critic_smaller_too() -> None:
    learner = learner_of(tiny_policy())
    learner.critic = learner_of(tiny_policy())
    shrink(learner, PlateauSettings(lr_factor=0.5), 2)
    assert (learner.lr_factor, learner.critic.lr_factor) == (0.25, 0.25)
