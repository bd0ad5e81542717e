"""Distillation: the coefficient of a token is what the teacher says of it less what the policy says; no reward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.ragged import flat, library_loss, random_batch
from train.building import batch_of, learner_of, plan_of, tiny_policy

from outscore.algorithms.rows import algorithm
from outscore.config import parse_recipe
from outscore.model.tiny import tiny_model
from outscore.report import RunDirectory
from outscore.report.rows import read_parquet
from outscore.train.run import run_recipe
from outscore.train.setup import check_before_loading
from outscore.train.step import batch_logprobs, update

TINY = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
DISTIL = {
    **{"algorithm": "distillation", "steps": 2, "prompts_per_step": 2, "group_size": 3, "teacher": "sft"},
    **{"sampling": {"max_new_tokens": 6}, "optimizer": {"lr": 1e-3, "warmup_steps": 0}, "start": "base"},
}
RECIPE: dict[str, Any] = {
    "model": TINY,
    "task": {"kind": "arithmetic", "num_train": 8, "num_eval": 4, "num_demonstrations": 8},
    "stages": [
        {"algorithm": "sft", "steps": 4, "batch_size": 4, "optimizer": {"lr": 1e-2, "warmup_steps": 0}},
        DISTIL,
    ],
    "evaluation": {"problems": 0},
}


def test_the_coefficient_is_log_teacher_less_log_policy() -> None:
    batch = random_batch((2, 5, 1), seed=4)
    terms, gradient = library_loss(batch, algorithm("distillation"), advantages=torch.zeros(8, dtype=torch.float64))
    policy, teacher = (flat(rows) for rows in (batch.policy, batch.ref))
    torch.testing.assert_close(terms.coefficients, (teacher - policy) / 8)
    torch.testing.assert_close(gradient, -terms.coefficients)


def test_its_expected_gradient_is_that_of_the_reverse_kl() -> None:
    """By enumeration of a categorical's draws, against autograd of KL(policy || teacher)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_(True)
    teacher = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    (exact,) = torch.autograd.grad((logits.softmax(0) * (logits.log_softmax(0) - teacher)).sum(), logits)
    expected = torch.zeros(5, dtype=torch.float64)
    for action, chance in enumerate(logits.softmax(0).tolist()):
        logprob = logits.log_softmax(0)[action]
        (slope,) = torch.autograd.grad(logprob, logits)
        expected -= chance * float(teacher[action] - logprob.detach()) * slope
    torch.testing.assert_close(expected, exact)


def test_an_update_asks_the_teacher_and_moves_towards_it() -> None:
    policy, teacher = tiny_policy(seed=0), tiny_policy(seed=1)
    learner, row = learner_of(policy), algorithm("distillation")
    learner.teacher = teacher
    batch = batch_of(policy, [[0.0, 0.0], [0.0]], [[4, 3], [5]])
    gap = batch_logprobs(teacher, batch, batch.groups, 10_000) - batch_logprobs(policy, batch, batch.groups, 10_000)
    coefficients = torch.zeros(12)
    before = [parameter.clone() for parameter in teacher.model.parameters()]
    metrics = update(learner, batch, plan_of(row), coefficients=coefficients)
    torch.testing.assert_close(coefficients, gap / 12, atol=1e-5, rtol=1e-4)
    assert metrics["loss/policy"][0] == 0.0
    x = -gap
    assert metrics["teacher_kl"] == (pytest.approx(float((torch.exp(-x) - 1 + x).sum()), rel=1e-4), 12)
    for _ in range(30):
        update(learner, batch, plan_of(row))
    after = batch_logprobs(teacher, batch, batch.groups, 10_000) - batch_logprobs(policy, batch, batch.groups, 10_000)
    assert after.square().mean() < 0.5 * gap.square().mean()
    assert all(map(torch.equal, before, teacher.model.parameters()))


def test_a_run_distils_an_earlier_stage_without_any_reward(tmp_path: Path) -> None:
    run = RunDirectory.open(run_recipe(RECIPE, tmp_path / "run").path)
    lines = run.metrics("distillation")
    assert all(line["teacher_kl"] > 0 and line["grad_norm"] > 0 for line in lines)
    [first, _] = [item for item in run.group_files() if item.stage == "distillation"]
    rows = read_parquet(first.path)
    assert all(row.reward == 0.0 and row.correct is None for row in rows)
    assert any(value for row in rows for value in row.coefficients or ())
    # The same from a directory: the samples and the coefficients of the first step are the same.
    given = {**DISTIL, "teacher": str(run.path / "checkpoints" / "sft")}
    other = RunDirectory.open(run_recipe({**RECIPE, "stages": [RECIPE["stages"][0], given]}, tmp_path / "given").path)
    assert run.metrics("distillation") == other.metrics("distillation")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({**DISTIL, "teacher": ""}, "at least one is needed"),
        ({**DISTIL, "teacher": "stf"}, "teacher = 'stf' is neither an earlier stage nor a model; did you mean `sft`"),
        ({**DISTIL, "teacher": "models/none"}, "stage `distillation`: teacher = 'models/none' is neither .* not exist"),
        ({**DISTIL, "algorithm": "grpo"}, "teacher = 'sft' has no effect, because kl_to is 'reference'"),
        ({**DISTIL, "cells": {"kl_coef": 0.0}}, "kl_coef=0.0 and kl_place='loss' leaves nothing to learn"),
    ],
)
def test_a_teacher_that_is_missing_or_idle_is_refused(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_before_loading(parse_recipe({**RECIPE, "stages": [RECIPE["stages"][0], stage]}))
    with pytest.raises(ValueError, match="kl_to = 'teacher' needs `teacher`"):
        check_before_loading(
            parse_recipe(
                {**RECIPE, "rewards": ["tag_answer"], "stages": [{**DISTIL, "teacher": "", "start": "previous"}]}
            )
        )


def test_a_teacher_that_cannot_be_loaded_names_stage_and_key(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    stages = [RECIPE["stages"][0], {**DISTIL, "teacher": str(tmp_path / "empty")}]
    with pytest.raises(ValueError, match=r"stage `distillation`: teacher = '.*empty': .*config\.json"):
        run_recipe({**RECIPE, "stages": stages}, tmp_path / "run")


def test_a_teacher_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("xyz", [], 0, hidden_size=8, num_layers=1, num_heads=1)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    stages = [RECIPE["stages"][0], {**DISTIL, "teacher": str(tmp_path / "other")}]
    with pytest.raises(ValueError, match="has another tokenizer than the policy"):
        run_recipe({**RECIPE, "stages": stages}, tmp_path / "run")
