"""Runs whose reward does everything wrong: they finish, and what was healthy is as if nothing had happened."""

import json
import os
import re
import time
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from rewards.faults import HARMLESS, REASONS, SECONDS, SOURCE, value
from train.building import prompt_of, tiny_policy

from outscore.algorithms.rows import algorithm
from outscore.report.rows import CompletionRow, read_parquet
from outscore.rewards import RewardError, Rewards
from outscore.rollout import ScriptedSampler
from outscore.stages import PolicySettings
from outscore.train.run import run_recipe
from outscore.train.sources import RolloutSource

pytestmark = pytest.mark.skipif(os.name != "posix", reason="worker processes need Linux or macOS")

GROUPS, SAMPLES = 13, 8
KINDS = (*REASONS, *HARMLESS)
"""One each among 104 completions: about 1 % of each kind."""
RECIPE: dict[str, Any] = {
    "seed": 3,
    "model": {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"},
    "task": {"kind": "arithmetic", "num_train": 20, "num_eval": 2, "num_demonstrations": 8},
    "on_reward_failure": "exclude",
    "scoring": {"seconds": SECONDS, "batch_seconds": 1.5 * SECONDS, "memory_gb": 1},
    "stages": [
        {
            **{"algorithm": "grpo", "steps": 1, "prompts_per_step": GROUPS, "group_size": SAMPLES},
            **{"sampling": {"max_new_tokens": 8}, "cells": {"kl_coef": 0.0}},
        }
    ],
    "evaluation": {"problems": 0},
}


def groups_of(run: Path) -> dict[int, list[CompletionRow]]:
    groups: dict[int, list[CompletionRow]] = {}
    for row in read_parquet(run / "groups" / "grpo" / "step-000001.parquet"):
        groups.setdefault(row.slot, []).append(row)
    return groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run without faults, and a table that gives one completion of its first groups each fault."""
    path = tmp_path_factory.mktemp("faults")
    (path / "faulty.py").write_text(SOURCE)
    run_recipe({**RECIPE, "rewards": [f"{path}/faulty.py:faulty"]}, path / "healthy")
    rows = [row for group in groups_of(path / "healthy").values() for row in group]
    keys = [f"{row.question}|{row.response}" for row in rows]
    alone = [key for key in keys if keys.count(key) == 1]
    # Two faults in the first group and in the fourth, one in others, and groups without any.
    chosen = [*alone[:2], *alone[SAMPLES + 2 :: SAMPLES // 2]][: len(KINDS)]
    assert len(set(chosen)) == len(KINDS)
    (path / "table.json").write_text(json.dumps(dict(zip(chosen, KINDS, strict=True))))
    return path


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "one-by-one"])
def test_a_run_with_every_fault_finishes_and_the_healthy_completions_are_untouched(folder: Path, batched: bool) -> None:
    faults = json.loads((folder / "table.json").read_text())
    reward = {"name": f"{folder}/faulty.py:faulty", "batched": batched}
    run = folder / f"batched-{batched}"
    begun = time.monotonic()
    assert run_recipe({**RECIPE, "rewards": [reward]}, run).finished
    took = time.monotonic() - begun
    healthy, groups = groups_of(folder / "healthy"), groups_of(run)
    untouched = 0
    for slot, rows in groups.items():
        kinds = [faults.get(f"{row.question}|{row.response}") for row in rows]
        is_failure = [kind in REASONS for kind in kinds]
        assert [row.token_ids for row in rows] == [row.token_ids for row in healthy[slot]]
        assert [row.failure for row in rows] == [f"faulty: {REASONS[k]}" if k in REASONS else None for k in kinds]
        rewards = [None if failed else value(row.response) for row, failed in zip(rows, is_failure, strict=True)]
        assert [row.reward for row in rows] == rewards
        if not any(is_failure):
            assert rows == healthy[slot]
            untouched += 1
            continue
        others = [reward for reward in rewards if reward is not None]
        # The group computed without those that failed, as the row of GRPO says.
        expected = [(each - fmean(others)) / (pstdev(others) + algorithm("grpo").advantage_eps) for each in others]
        assert [row.advantage for row in rows if row.reward is not None] == pytest.approx(expected, abs=1e-9)
        assert all(row.advantage is None for row in rows if row.reward is None)
    assert 0 < untouched < GROUPS
    [line] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert line["scoring_failures"] == line["scoring_failures/faulty"] == len(REASONS) / (GROUPS * SAMPLES)
    events = (run / "events.log").read_text()
    assert f"step 1: reward 'faulty' failed on {len(REASONS)} of {GROUPS * SAMPLES} completions" in events
    assert "its worker is replaced" in events
    [lost] = [float(each) for each in re.findall(r"; ([0-9.]+) s lost", events)]
    num_hanging = sum(kind in faults.values() for kind in ("loop", "sleep", "endless_output", "signal"))
    # What is reported is at least what those that hang take, and no more than two workers had in that time.
    assert num_hanging * SECONDS * 0.9 <= lost <= 2 * took


def test_under_stop_the_run_ends_with_the_completion_s_name(folder: Path) -> None:
    reward = {"name": f"{folder}/faulty.py:faulty", "on_failure": "stop", "batched": False}
    with pytest.raises(RewardError, match="reward 'faulty' "):
        run_recipe({**RECIPE, "rewards": [reward]}, folder / "stopped")


def test_a_completion_is_scored_while_others_are_still_being_sampled(tmp_path: Path) -> None:
    """The sampler of this test ends only when the first completion has been scored."""
    (tmp_path / "early.py").write_text(
        "import pathlib\n"
        "def early(completions, answer, trainer_state):\n"
        "    pathlib.Path(__file__).with_name(f'step-{trainer_state.global_step}-{completions[0]}').touch()\n"
        "    return [float(len(completions))]\n"
    )
    policy = tiny_policy()

    class Waits(ScriptedSampler):
        def sample(self, requests, params, *, seed, step, on_finished=None):
            def finished(request, sample, completion):
                on_finished(request, sample, completion)
                end = time.monotonic() + 120
                while not (tmp_path / f"step-{step}-{completion.completion.text}").exists():
                    assert time.monotonic() < end, "it was not scored while the others were sampled"
                    time.sleep(0.01)

            return super().sample(requests, params, seed=seed, step=step, on_finished=finished)

    rewards = Rewards([{"name": "early.py:early", "batched": False}], folder=tmp_path, scoring={})
    source = RolloutSource(
        prompts=[prompt_of(policy, f"{n}+{n}=", str(2 * n), n) for n in range(2)],
        sampler=Waits(lambda prompt, sample: str(sample), policy.tokenizer),
        rewards=rewards,
        settings=PolicySettings(steps=5, prompts_per_step=2, group_size=3, sampling={"max_new_tokens": 4}),
        algorithm=algorithm("grpo", kl_coef=0.0),
        seed=0,
        stage=0,
    )
    collected = source.collect(2)
    rewards.close()
    assert collected.metrics["reward"] == (6.0, 6.0)
