"""The pretraining mix of PPO-ptx: its gradient is that of text, added; where it is off, nothing is different."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from train.building import batch_of, learner_of, plan_of, tiny_policy
from train.stopping import CLOCK, Stops

from outscore.config import parse_recipe
from outscore.report import RunDirectory
from outscore.stages import PolicySettings
from outscore.train.demonstrations import demonstration_batch
from outscore.train.materials import text_groups
from outscore.train.ptx import add_texts, step_texts
from outscore.train.run import resume, run_recipe
from outscore.train.setup import prepare
from outscore.train.step import Batch, accumulate, update

MODEL = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
STAGE: dict[str, Any] = {
    **{"steps": 3, "prompts_per_step": 4, "group_size": 2, "minibatches": 2, "sampling": {"max_new_tokens": 6}},
    **{"optimizer": {"lr": 5e-3, "warmup_steps": 0}, "cells": {"kl_coef": 0.01}},
}
PPO = {**STAGE, "algorithm": "ppo", "critic": {"warmup_steps": 1}}
GRPO = {**STAGE, "algorithm": "grpo"}
RECIPE: dict[str, Any] = {
    "seed": 3,
    "model": MODEL,
    "task": {"kind": "toy_assistant", "domains": ["requests"], "num_eval": 3, "num_train": 20, "num_texts": 30},
    "evaluation": {"problems": 2, "samples": 1},
    "checkpoints": {"every": 1, "keep": 4},
    "scoring": {"isolate": False},
}
PTX = {"coef": 0.5, "batch_size": 3, "piece": 12}
TEXTS = ["12+34=46 9-8=1", "7", "5-5=0 and", "88-9=79 8+8=16"]


def letters(completions: list[str]) -> list[float]:
    return [sum(c.isalpha() for c in text) / 6 for text in completions]


def lines(recipe: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    run = RunDirectory.open(run_recipe({**RECIPE, **recipe}, folder, rewards=[letters]).path)
    return list(run.metrics(run.stages[-1].name))


def files(run: Path) -> dict[str, bytes]:
    found = [file for file in sorted(run.rglob("*")) if file.is_file() and file.name not in (*CLOCK, "config.yaml")]
    return {str(file.relative_to(run)): file.read_bytes() for file in found}


def samples_and_texts(policy: Any) -> Batch:
    pieces = text_groups([text.replace(" and", "") for text in TEXTS], policy, 6)
    samples = batch_of(policy, [[1.0, -1.0, 0.5], [0.3, -0.9]], [[3, 9, 1], [7, 2]])
    return replace(samples, texts=(demonstration_batch(pieces),))


def gradient(policy: Any, *, coef: float, token_budget: int = 10_000) -> Tensor:
    learner, batch, plan = learner_of(policy), samples_and_texts(policy), plan_of(token_budget=token_budget)
    policy.model.zero_grad()
    accumulate(learner, batch, batch.groups, plan, {"advantages": batch.advantages})
    if coef:
        add_texts(learner, batch, 0, coef=coef, token_budget=token_budget)
    return torch.cat([p.grad.flatten() for p in learner.masters.parameters.values()])


def test_the_gradient_is_that_of_the_samples_plus_coef_times_that_of_a_plain_model_s_loss_on_text() -> None:
    policy = tiny_policy(dtype=torch.float64)
    found, alone = gradient(policy, coef=0.7), gradient(policy, coef=0.0)
    theirs = copy.deepcopy(policy.model)
    theirs.set_attn_implementation("eager")  # its own, not ours
    theirs.zero_grad()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for group in samples_and_texts(policy).texts[0].groups:
        ids = torch.tensor([[*group.prompt_ids, *group.completions[0].token_ids]])
        total = total - theirs(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum()
        count += ids.numel() - 1
    (0.7 * total / count).backward()
    of_text = torch.cat([p.grad.flatten() for p in theirs.parameters()])
    assert (found - alone - of_text).norm() <= 1e-6 * of_text.norm()  # norms of Llama compute in fp32
    assert of_text.norm() > 0.1 * alone.norm() > 0


@pytest.mark.parametrize("token_budget", [40, 11, 1])
def test_micro_batches_change_no_gradient(token_budget: int) -> None:
    whole = gradient(tiny_policy(dtype=torch.float64), coef=2.0)
    parts = gradient(tiny_policy(dtype=torch.float64), coef=2.0, token_budget=token_budget)
    assert (whole - parts).norm() <= 1e-6 * whole.norm()


def test_the_loss_of_an_update_has_a_summand_for_text_and_tells_its_mean() -> None:
    policy = tiny_policy()
    batch = samples_and_texts(policy)
    found = update(learner_of(policy), batch, plan_of(beside=partial(add_texts, coef=0.7, token_budget=30)))
    nll, count = found["ptx_nll"]
    assert count == sum(len(each.completions[0].token_ids) for each in batch.texts[0].groups)
    assert found["loss/ptx"] == (pytest.approx(0.7 * nll / count), 1.0)
    assert found["loss"][0] == pytest.approx(found["loss/policy"][0] + found["loss/ptx"][0], abs=1e-6)
    assert found["nll"][1] == 22  # of the samples alone


def test_samples_without_signal_leave_the_text_to_learn_from() -> None:
    policy = tiny_policy()
    batch = replace(batch_of(policy, [[0.0, 0.0]], [[3, 4]]), texts=samples_and_texts(policy).texts)
    found = update(learner_of(policy), batch, plan_of(beside=partial(add_texts, coef=1.0, token_budget=500)))
    assert found["loss"] == found["loss/ptx"] and found["grad_norm"][0] > 0


@pytest.mark.parametrize("stage", [PPO, GRPO], ids=["ppo", "grpo"])
def test_a_coefficient_of_zero_leaves_a_run_as_it_is_without(tmp_path: Path, stage: dict[str, Any]) -> None:
    recipe, short = {"evaluation": {"problems": 0}, "checkpoints": {"every": 9}}, {**stage, "steps": 2}
    lines({**recipe, "stages": [short]}, tmp_path / "without")
    lines({**recipe, "stages": [{**short, "ptx": {**PTX, "coef": 0.0}}]}, tmp_path / "zero")
    found = lines({**recipe, "stages": [{**short, "ptx": PTX}]}, tmp_path / "with")
    without, zero, other = (files(tmp_path / name) for name in ("without", "zero", "with"))
    assert zero == without
    weights = f"checkpoints/{stage['algorithm']}/step-000002/model.safetensors"
    assert other[weights] != without[weights]
    assert all("ptx_nll" in line for line in found[stage is PPO :])  # in its first step only the critic learns


def test_a_run_with_texts_resumes_exactly(tmp_path: Path) -> None:
    recipe = {**RECIPE, "evaluation": {"problems": 0}, "stages": [{**PPO, "ptx": PTX}]}
    run_recipe(recipe, tmp_path / "whole", rewards=[letters])
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "run", rewards=[letters], console=Stops("ppo", 2))
    assert resume(tmp_path / "run", rewards=[letters]).finished
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_each_update_has_its_own_texts_and_each_is_read_once_in_an_epoch() -> None:
    policy = tiny_policy()
    settings = PolicySettings(**{**STAGE, "algorithm": "grpo", "epochs": 2, "ptx": {"coef": 1.0, "batch_size": 3}})
    pieces = text_groups([f"{n}" for n in range(24)], policy, 9)
    texts = step_texts(settings, pieces, seed=5, stage=1)
    assert texts is not None
    steps = [texts(step) for step in (1, 2)]
    assert [[len(part.groups) for part in step] for step in steps] == [[3, 3, 3, 3]] * 2
    read = [group.completions[0].text for step in steps for part in step for group in part.groups]
    assert sorted(read) == sorted(piece.completion.text for piece in pieces)  # 2 steps of 2 x 2 updates of 3
    assert texts(2) == steps[1]
    other = step_texts(settings, pieces, seed=6, stage=1)
    assert other is not None and other(2) != steps[1]


def test_texts_may_be_another_task_s_and_held_out_ones_are_evaluated(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(f"{n} sheep" for n in range(40)))
    own = {"kind": "text", "path": str(tmp_path / "corpus.txt"), "split": "line", "eval_fraction": 0.1}
    plain = {"kind": "arithmetic", "num_train": 8, "num_eval": 3}
    optimizer = {"lr": 3e-2, "warmup_steps": 0}
    stage = {**GRPO, "steps": 4, "optimizer": optimizer, "ptx": {**PTX, "coef": 4.0, "task": own, "batch_size": 8}}
    recipe = {**RECIPE, "task": plain, "rewards": ["last_number"], "stages": [stage]}
    workshop = prepare(parse_recipe(recipe))
    assert all("sheep" in piece.completion.text for piece in workshop.materials[0].texts)
    assert workshop.eval_texts and "<unk>" not in workshop.materials[0].texts[0].completion.text
    before, after = (each.metrics["text_logprob"] for each in run_recipe(recipe, tmp_path / "run").evaluations)
    assert after > before + 0.3


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({**GRPO, "ptx": {"coef": -1.0}}, r"`stages.grpo.ptx.coef` = -1.0: .*greater than or equal to 0"),
        ({**GRPO, "ptx": {}}, r"key `stages.grpo.ptx.coef` is missing"),
        ({**GRPO, "ptx": {"coef": 1.0, "batchsize": 3}}, r"unknown key `stages.grpo.ptx.batchsize`.*`batch_size`"),
        ({**GRPO, "ptx": {"coef": 1.0, "task": {"path": "x"}}}, r"task: `kind` is missing"),
        ({"algorithm": "sft", "steps": 1, "ptx": PTX}, r"key `stages.sft.ptx` has no effect on supervised"),
    ],
)
def test_what_cannot_be_mixed_in_is_refused_when_the_recipe_is_read(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe({**RECIPE, "rewards": ["last_number"], "stages": [stage]})


def test_a_task_without_texts_is_refused_before_any_work() -> None:
    task = {"kind": "arithmetic", "num_train": 8, "num_eval": 3}
    recipe = {**RECIPE, "task": task, "rewards": ["last_number"], "stages": [{**GRPO, "name": "rl", "ptx": PTX}]}
    with pytest.raises(ValueError, match=r"stage `rl`: ptx needs plain text, and task arithmetic has none"):
        prepare(parse_recipe(recipe))
