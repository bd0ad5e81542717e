"""Steps of Outscore, a JSON line each: python benchmarks/outscore_side.py MODEL WORKLOAD STEPS [PRECISION].

Then one line with the limit: the matrix products of such a step alone (`limit`).
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from device import now, paths_taken, peak_bytes
from gpu_workloads import GPU_WORKLOADS, workload_of
from limit import step_limit
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import AutoTokenizer
from workloads import Workload

from outscore.config import Recipe, parse_recipe
from outscore.model.policy import Policy
from outscore.records import SampledGroup, SampleRequest, SamplingParams
from outscore.rewards import Rewards
from outscore.rollout import Sampler, completions, engine
from outscore.rollout.completions import Draft, take, take_several
from outscore.tasks import make_task
from outscore.train.build import build_stage
from outscore.train.setup import prepare
from outscore.train.step import update


class ForcedSampler:
    """The engine, with every completion ended at its own length by the end token, and nowhere else."""

    def __init__(self, sampler: Sampler, policy: Policy, lengths: Sequence[int], group_size: int) -> None:
        self.sampler, self.policy = sampler, policy
        self.lengths, self.group_size = lengths, group_size

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams, **options: Any) -> list[SampledGroup]:
        with self._forced():
            return self.sampler.sample(requests, params, **options)

    @contextmanager
    def _forced(self) -> Iterator[None]:
        stops, end = self.policy.stop_token_ids, min(self.policy.stop_token_ids)

        def several(every: Sequence[Draft], ids: npt.NDArray[Any], logprobs: npt.NDArray[Any], *unused: object) -> None:
            for draft, own_ids, own_logprobs in zip(every, ids.T.tolist(), logprobs.T.tolist(), strict=True):
                if draft.finish is None:
                    left = self.lengths[draft.request * self.group_size + draft.sample] - len(draft.token_ids)
                    draft.token_ids += own_ids[:left]
                    draft.logprobs += own_logprobs[:left]
                    if left <= len(own_ids):
                        draft.token_ids[-1], draft.finish = end, "stop"

        def one(draft: Draft, token_id: int, logprob: float, *unused: object) -> None:
            several([draft], np.array([[token_id]]), np.array([[logprob]]))

        self.policy.stop_token_ids = frozenset()
        completions.take, engine.take_several = one, several
        try:
            yield
        finally:
            self.policy.stop_token_ids = stops
            completions.take, engine.take_several = take, take_several


class OptimizerClock:
    """Seconds spent in steps of any optimizer."""

    def __init__(self) -> None:
        self.seconds = self._started = 0.0
        register_optimizer_step_pre_hook(self._begin)
        register_optimizer_step_post_hook(self._end)

    def _begin(self, *args: Any) -> None:
        self._started = now()

    def _end(self, *args: Any) -> None:
        self.seconds += now() - self._started


def recipe_of(model: str, work: Workload, steps: int, precision: str) -> Recipe:
    """A run of such steps."""
    rows = {} if work.max_rows is None else {"max_rows": work.max_rows}
    budget = {} if work.token_budget is None else {"token_budget": work.token_budget}
    return parse_recipe(
        {
            "model": {"source": str(Path(model).resolve()), "precision": precision},
            "task": {"kind": "python", "name": "benchmark"},
            "prompt": {"template": "none"},
            "rewards": [{"kind": "python", "name": "table"}],
            "evaluation": {"problems": 0},
            "stages": [
                {
                    "algorithm": "grpo",
                    "steps": steps,
                    "prompts_per_step": work.num_prompts,
                    "group_size": work.group_size,
                    "sampling": {"max_new_tokens": work.longest, **rows},
                    **budget,
                    "optimizer": {"lr": 1e-6, "warmup_steps": 0},
                    "cells": {"kl_coef": 0.0},
                }
            ],
        }
    )


def steps_of(
    model: str, work: Workload, steps: int, precision: str = "auto", *, with_limit: bool = True
) -> Iterator[dict[str, Any]]:
    """Take the steps; what each took, and the limit."""
    prompts = work.prompts(AutoTokenizer.from_pretrained(model))
    recipe = recipe_of(model, work, steps, precision)

    def table(completions: Sequence[str], **columns: Any) -> list[float]:
        return work.rewards()

    task = make_task("data", rows=[{"question": text, "answer": ""} for text in prompts])
    workshop = prepare(recipe, task=task, rewards=Rewards([table]))
    stage = build_stage(recipe, 0, workshop)
    sampler = ForcedSampler(stage.source.sampler, workshop.policy, work.lengths(), work.group_size)
    source = dataclasses.replace(stage.source, sampler=sampler)
    clock = OptimizerClock()
    for step in range(1, steps + 1):
        clock.seconds = 0.0
        started, computed = now(), time.process_time()
        collected = source.collect(step)
        collected_at = now()
        if work.kind == "step":
            update(stage.learner, collected.batch, stage.plan)
        ended = now()
        distinct, tokens = collected.metrics["distinct_share"]
        sampled = collected.seconds["sample"]
        line = {
            "seconds": ended - started if work.kind == "step" else sampled,
            "cpu_seconds": time.process_time() - computed,
            "sample": sampled,
            "score": collected.seconds["score"],
            "backward": ended - collected_at - clock.seconds,
            "optimizer": clock.seconds,
            "tokens": tokens,
            "distinct": distinct / tokens,
            "peak_bytes": peak_bytes(),
            "threads": torch.get_num_threads(),
            "precision": workshop.facts["precision"],
        }
        if workshop.policy.device.type == "cuda":
            line["paths"] = paths_taken(workshop.facts, stage.source.sampler)
        yield line
    if with_limit:
        yield {"limit": step_limit(workshop.policy, work, recipe.stages[0].sampling.max_rows)}


if __name__ == "__main__":
    directory, name, number, *more = sys.argv[1:]
    for printed in steps_of(directory, workload_of(name), int(number), *more, with_limit=name not in GPU_WORKLOADS):
        print(json.dumps(printed), flush=True)
