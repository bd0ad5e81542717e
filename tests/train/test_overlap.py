"""A completion is scored while the engine still samples others, in the loop of a run."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from outscore.rollout import GroupEngine, make_sampler
from outscore.train import build
from outscore.train.run import run_recipe

pytestmark = pytest.mark.skipif(os.name != "posix", reason="worker processes need Linux or macOS")

REWARD = """
import pathlib

def early(completions, completion_ids, trainer_state):
    name = "-".join(map(str, completion_ids[0]))
    pathlib.Path(__file__).with_name(f"step-{trainer_state.global_step}-{name}").touch()
    return [float(len(completion_ids[0]))]
"""
RECIPE: dict[str, Any] = {
    "model": {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"},
    "task": {"kind": "arithmetic", "num_train": 8, "num_eval": 2},
    "stages": [
        {
            **{"algorithm": "grpo", "steps": 2, "prompts_per_step": 3, "group_size": 4},
            **{"sampling": {"max_new_tokens": 24}, "cells": {"kl_coef": 0.0}},
        }
    ],
    "evaluation": {"problems": 0},
}


def test_the_engine_s_first_completion_is_scored_before_its_last_one_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is held up at its first completion until that one has been scored: with calls that begin when sampling
    has ended, this would wait for ever."""
    (tmp_path / "early.py").write_text(REWARD)
    waited: list[int] = []

    def held_up(policy: Any, max_rows: int) -> Any:
        engine = make_sampler(policy, max_rows)
        assert isinstance(engine, GroupEngine)
        sample = engine.sample

        def sampled(requests: Any, params: Any, *, seed: int, step: int, on_finished: Any = None) -> Any:
            finished: list[int] = []

            def first(request: int, index: int, completion: Any) -> None:
                on_finished(request, index, completion)
                finished.append(index)
                if len(finished) > 1:
                    return
                mark = tmp_path / f"step-{step}-{'-'.join(map(str, completion.completion.token_ids))}"
                end = time.monotonic() + 120
                while not mark.exists():
                    assert time.monotonic() < end, "it was not scored while the others were sampled"
                    time.sleep(0.01)
                waited.append(len(completion.completion.token_ids))

            groups = sample(requests, params, seed=seed, step=step, on_finished=first)
            assert len(finished) == 12
            return groups

        monkeypatch.setattr(engine, "sample", sampled)
        return engine

    monkeypatch.setattr(build, "make_sampler", held_up)
    reward = {"name": f"{tmp_path}/early.py:early", "batched": False}
    assert run_recipe({**RECIPE, "rewards": [reward]}, tmp_path / "run").finished
    # In both steps the others were still being sampled: the first to end was shorter than the limit.
    assert len(waited) == 2 and max(waited) < 24
