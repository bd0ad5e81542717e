"""Perplexity as a reward, against Hugging Face's own forward of every text alone."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rewards.building import group
from rewards.models import saved_policy
from transformers import AutoModelForCausalLM, AutoTokenizer

from outscore.config import parse_recipe
from outscore.rewards import RewardError, Rewards, make_reward
from outscore.train.run import resume, run_recipe


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return saved_policy(tmp_path / "model")


def mean_logprob(directory: Path, before: str, text: str | Sequence[int]) -> float:
    """Token by token, each from a forward of its own."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if isinstance(text, str) else list(text)
    total = 0.0
    for place, token in enumerate(ids):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids[:place]])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
    return total / len(ids)


def scored(spec: dict[str, object], *texts: str, **problem: object) -> list[float]:
    rewards = Rewards([spec])
    result = rewards.score([group(*texts, **problem)], step=1)  # type: ignore[arg-type]
    return [score.parts["perplexity"] for score in result.groups[0].scores]  # type: ignore[union-attr]


def test_it_is_one_over_the_perplexity_of_the_completion_after_its_prompt(saved: Path) -> None:
    texts = ["2", "12+3", "999 9", "2"]
    found = scored({"name": "perplexity", "path": str(saved), "token_budget": 8}, *texts, question="1+1=")
    expected = [math.exp(mean_logprob(saved, "1+1=", text)) for text in texts]
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(0 < value < 1 for value in found)


def test_the_metric_is_the_mean_perplexity_and_an_empty_completion_is_worth_nothing(saved: Path) -> None:
    rewards = Rewards([{"name": "perplexity", "path": str(saved)}])
    result = rewards.score([group("2", "", "33", question="1+1=")], step=1)
    perplexities = [math.exp(-mean_logprob(saved, "1+1=", text)) for text in ("2", "33")]
    total, count = result.logged["perplexity"]
    assert (total, count) == (pytest.approx(sum(perplexities), rel=1e-4), 2)
    assert result.groups[0].scores[1].parts["perplexity"] == 0.0  # type: ignore[union-attr]


def test_a_question_of_no_tokens_is_read_after_an_end_of_text(saved: Path) -> None:
    found = scored({"name": "perplexity", "path": str(saved)}, "2", question="")
    assert found == pytest.approx([math.exp(mean_logprob(saved, "<|end|>", "2"))], rel=1e-4)


def recipe(saved: Path, **changes: object) -> dict[str, object]:
    return {
        "model": {"source": str(saved), "precision": "fp32"},
        "task": {"kind": "arithmetic", "num_train": 8, "num_eval": 2},
        "prompt": {"template": "{question}"},
        "rewards": ["perplexity", {"name": "last_number", "weight": 0.1}],
        "stages": [
            {
                **{"algorithm": "grpo", "steps": 2, "prompts_per_step": 2, "group_size": 3},
                **{"sampling": {"max_new_tokens": 4}, "cells": {"kl_coef": 0.0}, "optimizer": {"lr": 0.01}},
            }
        ],
        "evaluation": {"problems": 0},
        "checkpoints": {"every": 1},
        **changes,
    }


def test_in_a_run_it_asks_the_model_that_the_run_began_with(saved: Path, tmp_path: Path) -> None:
    from outscore.report.rows import read_parquet

    run = tmp_path / "run"
    assert run_recipe(parse_recipe(recipe(saved)), run).finished
    rows = list(read_parquet(run / "groups" / "grpo" / "step-000002.parquet"))
    expected = [math.exp(mean_logprob(saved, row.question, row.token_ids)) for row in rows]
    # The policy has moved since; what it is measured by has not.
    assert [row.parts["perplexity"] for row in rows] == pytest.approx(expected, rel=1e-4)


def test_it_asks_the_same_model_after_a_resume(saved: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_recipe(parse_recipe(recipe(saved)), whole)
    run_recipe(parse_recipe(recipe(saved)), cut)
    newest = sorted((cut / "checkpoints" / "grpo").iterdir())[-1]
    (newest / "model.safetensors").write_bytes(b"damaged")
    resume(cut)
    file = "groups/grpo/step-000002.parquet"
    assert (cut / file).read_bytes() == (whole / file).read_bytes()


def test_a_model_from_scratch_is_no_measure(tmp_path: Path) -> None:
    given = recipe(tmp_path, model={"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}})
    with pytest.raises(ValueError, match=r"'perplexity': this run builds its model from scratch .*give the `path`"):
        run_recipe(parse_recipe(given), tmp_path / "run")


def test_outside_of_a_run_it_needs_a_path() -> None:
    assert make_reward("perplexity").isolate is False
    with pytest.raises(RewardError, match="no run whose first model it could ask: give `path`"):
        scored({"name": "perplexity"}, "2")
