"""Worst-domain GRPO: at equal samples the worse of two domains ends higher than under plain GRPO."""

from pathlib import Path
from typing import Any

import pytest

from outscore import run_recipe

ARITHMETIC = {"kind": "arithmetic", "num_eval": 100}
TASK = {
    "kind": "mixture",
    "parts": {
        "sums": {**ARITHMETIC, "operations": ["+"], "num_train": 4000, "num_demonstrations": 400},
        "differences": {**ARITHMETIC, "operations": ["-"], "num_train": 400, "num_demonstrations": 100},
    },
}
GRPO: dict[str, Any] = {
    "algorithm": "grpo",
    "start": "sft",
    "steps": 60,
    "prompts_per_step": 32,
    "group_size": 8,
    "token_budget": 16384,
    "sampling": {"max_new_tokens": 32, "max_rows": 512},
    "optimizer": {"lr": 3.0e-4, "schedule": "linear", "warmup_steps": 5, "betas": [0.9, 0.99]},
    "cells": {"kl_coef": 0.0},
}
ROBUST = {"weights": "robust", "step_size": 0.2, "draw": "equal"}
RECIPE: dict[str, Any] = {
    "model": {"source": "tiny"},
    "task": TASK,
    "rewards": [{"name": "format_tags", "weight": 0.4}, {"name": "tag_answer", "weight": 1.0}],
    "stages": [
        {
            "algorithm": "sft",
            "steps": 140,
            "batch_size": 32,
            "optimizer": {"lr": 2.0e-3, "schedule": "cosine", "warmup_steps": 10, "weight_decay": 0.1},
        },
        {**GRPO, "name": "plain"},
        {**GRPO, "name": "robust", "populations": ROBUST},
    ],
    "evaluation": {"problems": 200, "samples": 4},
}


@pytest.mark.learning
def test_the_worse_of_two_domains_ends_higher_than_under_plain_grpo(tmp_path: Path) -> None:
    result = run_recipe(RECIPE, tmp_path / "run")
    before, plain, robust = (
        next(found.metrics for found in result.evaluations if found.label == f"after {stage}")
        for stage in ("sft", "plain", "robust")
    )
    assert before["pass@1/differences"] < before["pass@1/sums"]
    assert robust["worst/pass@1"] >= plain["worst/pass@1"] + 0.05
    assert robust["worst/pass@1"] >= before["worst/pass@1"] + 0.05
