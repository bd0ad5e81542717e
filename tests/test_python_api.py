"""The same from Python, and the pieces alone."""

import runpy
from pathlib import Path
from statistics import mean

import pytest

import outscore

EXAMPLES = Path(__file__).parents[1] / "examples"

MODEL = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
STAGE = {
    "algorithm": "grpo",
    "steps": 2,
    "prompts_per_step": 2,
    "group_size": 4,
    "sampling": {"max_new_tokens": 4},
    "cells": {"kl_coef": 0.0},
}
ROWS = [{"question": f"{a}+1=", "answer": str(a + 1), "level": a} for a in range(30)]


def test_rows_and_functions_make_a_run_that_resumes(tmp_path: Path) -> None:
    seen = []

    def shorter(completions, answer, level, **columns):
        seen.extend(level)
        return [-len(text) / 4 for text in completions]

    recipe = {"model": MODEL, "stages": [STAGE], "evaluation": {"samples": 1}}
    result = outscore.run_recipe(recipe, tmp_path / "run", task=ROWS, rewards=[shorter])
    assert result.finished and result.checkpoint is not None
    assert set(seen) <= set(range(30)) and seen
    with pytest.raises(ValueError, match="task=…"):
        outscore.resume(tmp_path / "run")
    assert outscore.resume(tmp_path / "run", task=ROWS, rewards=[shorter]).finished


def test_the_pieces_make_a_loop_of_ones_own_that_learns() -> None:
    curve = runpy.run_path(str(EXAMPLES / "own_loop.py"))["train"]()
    first, last = mean(curve[:10]), mean(curve[-10:])
    assert first < 0.2 and last > first + 0.3
