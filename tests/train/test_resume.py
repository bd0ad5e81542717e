"""A run killed at any moment and resumed leaves the files of a run that was never stopped, byte for byte."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """\
name: micro
seed: 3
model: {source: tiny, tiny: {hidden_size: 32, num_layers: 2, num_heads: 4}, precision: fp32}
task: {kind: arithmetic, num_train: 20, num_eval: 6, num_demonstrations: 16}
rewards: [reward.py:digits]
stages:
  - {algorithm: sft, steps: 5, batch_size: 8, optimizer: {lr: 5.0e-3}}
  - algorithm: grpo
    steps: 9
    prompts_per_step: 4
    group_size: 4
    minibatches: 2
    epochs: 2
    refills: 1
    refresh_reference_every: 3
    sampling: {max_new_tokens: 12, max_rows: 16}
    optimizer: {lr: 1.0e-3, warmup_steps: 2, schedule: cosine}
    cells: {kl_coef: 0.05}
evaluation: {problems: 6, every: 4, samples: 4}
checkpoints: {every: 2, keep: 2}
"""
REWARD = """\
def digits(completions, **columns):
    return [sum(c.isdigit() for c in text) / 12 for text in completions]
"""
CLOCK = ("timing.jsonl", "events.log")
"""The only files that may differ: they hold the time of day."""


def outscore(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "outscore.cli", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def contents(run: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(run)): file.read_bytes()
        for file in sorted(run.rglob("*"))
        if file.is_file() and file.name not in CLOCK
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    (path / "micro.yaml").write_text(RECIPE)
    (path / "reward.py").write_text(REWARD)
    process = outscore(path, "train", "micro.yaml", "--run", "whole")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return path


def test_the_uninterrupted_run_really_trains_across_epochs_updates_and_refreshes(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    grpo = [line for line in lines if line["stage"] == "grpo"]
    assert len(grpo) == 9 and grpo[-1]["policy_version"] == 5 + 9 * 4
    assert any(line["grad_norm"] > 0 for line in grpo) and any(line["ref_kl"] > 0 for line in grpo)
    # 20 problems at 4 a step: the second epoch begins at step 6.
    assert 9 * 4 > 20


@pytest.mark.parametrize("seed", [0, 1])
def test_sigkill_at_random_moments_changes_nothing(folder: Path, seed: int) -> None:
    generator = random.Random(seed)
    run = folder / f"killed-{seed}"
    process = outscore(folder, "train", "micro.yaml", "--run", run.name)
    for _ in range(3):
        while process.poll() is None and not (run / "run.json").exists():
            time.sleep(0.05)
        time.sleep(generator.uniform(0.0, 3.0))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        process = outscore(folder, "resume", run.name)
        time.sleep(generator.uniform(0.0, 8.0))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    whole, resumed = contents(folder / "whole"), contents(run)
    assert sorted(resumed) == sorted(whole)
    different = [name for name in whole if resumed[name] != whole[name]]
    assert not different


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(folder: Path) -> None:
    run = folder / "damaged"
    subprocess.run(["cp", "-r", "whole", run.name], cwd=folder, check=True)
    newest = sorted((run / "checkpoints" / "grpo").iterdir())[-1]
    weights = bytearray((newest / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (newest / "model.safetensors").write_bytes(weights)
    process = outscore(folder, "resume", run.name)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    assert f"{newest.name} of stage grpo is not used" in (run / "events.log").read_text()
    assert contents(run) == contents(folder / "whole")


def test_sigint_finishes_the_step_saves_and_says_how_to_go_on(folder: Path) -> None:
    run = folder / "stopped"
    process = outscore(folder, "train", "micro.yaml", "--run", run.name)
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    assert f"outscore resume {run.name}" in (run / "events.log").read_text()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (run / "checkpoints" / last["stage"] / f"step-{last['step']:06d}" / "trainer.json").exists()
    process = outscore(folder, "resume", run.name)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert (run / "metrics.jsonl").read_bytes() == (folder / "whole" / "metrics.jsonl").read_bytes()
