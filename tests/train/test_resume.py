"""A run killed at any moment and resumed leaves the files of a run that was never stopped, byte for byte."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from train.stopping import contents, start

from outscore.report import RunDirectory
from outscore.train.checkpoint import read_progress
from outscore.train.run import resume

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
import pathlib, time

def digits(completions, **columns):
    time.sleep(0.02)  # long enough to be killed in
    while pathlib.Path("hold").exists():
        pathlib.Path("held").touch()
        time.sleep(0.01)
    return [sum(c.isdigit() for c in text) / 12 for text in completions]
"""
DRIVER = """\
import sys

import rich.console

import outscore


class Says(outscore.Console):
    def activity(self, what):
        print(what, flush=True)


console = Says(rich_console=rich.console.Console(quiet=True))
if sys.argv[1] == "train":
    outscore.run_recipe("micro.yaml", sys.argv[2], console=console)
else:
    outscore.resume(sys.argv[2], console=console)
"""
"""Trains or resumes, and says on a line of its own what the run begins to do."""


def cli(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return start(folder, "-m", "outscore.cli", *arguments, output=subprocess.DEVNULL)


@pytest.fixture
def folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's folder, as the working directory: the recipe names its reward file from there."""
    monkeypatch.chdir(project)
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    (path / "micro.yaml").write_text(RECIPE)
    (path / "reward.py").write_text(REWARD)
    (path / "driver.py").write_text(DRIVER)
    process = cli(path, "train", "micro.yaml", "--run", "whole")
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


PHASES = {
    "evaluating": "evaluating greedily 0/6",
    "saving": "saving",
    "sampling": "sampling 0/16",
    "scoring": "scoring",
    "updating": "updating",
}
"""Phase -> what the run says when it begins, in the order in which they come: the evaluation before the first stage, a
checkpoint of that stage, and a step of the second."""


def killed_in(run: Path, command: str, begins: str, *, occurrence: int, delay: float) -> str:
    """Kill a run `delay` seconds after it says this for the nth time; returns the phase in which it died."""
    process = start(run.parent, "driver.py", command, run.name)
    assert process.stdout is not None
    saying = (line.decode().strip() for line in process.stdout)
    list(itertools.islice((line for line in saying if line == begins), occurrence))
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    said = [begins, *saying]
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    return said[-1].split()[0]


def test_sigkill_in_every_phase_changes_nothing(folder: Path) -> None:
    generator = random.Random(0)
    run = folder / "killed"
    for phase, begins in PHASES.items():
        for delay in (generator.uniform(0.0, 0.02), 0.0, 0.0, 0.0):
            command = "resume" if (run / "run.json").exists() else "train"
            died_in = killed_in(run, command, begins, occurrence=1, delay=delay)
            half_saved = list(run.glob("checkpoints/*/.tmp-*"))
            if died_in == phase and (half_saved or phase != "saving"):
                break
        else:
            pytest.fail(f"no kill hit the run while it was {phase}")
    assert len((run / "metrics.jsonl").read_text().splitlines()) < 5 + 9  # there is something left to be got wrong
    assert resume(run).finished
    assert contents(run) == contents(folder / "whole")


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(folder: Path) -> None:
    run = folder / "damaged"
    shutil.copytree(folder / "whole", run)
    newest = sorted((run / "checkpoints" / "grpo").iterdir())[-1]
    weights = bytearray((newest / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (newest / "model.safetensors").write_bytes(weights)
    assert resume(run).finished
    assert f"{newest.name} of stage grpo is not used" in (run / "events.log").read_text()
    assert contents(run) == contents(folder / "whole")


def until(process: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    while not happened():
        assert process.poll() is None, "the run ended before that happened"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_first_signal_finishes_the_step_saves_and_says_how_to_go_on(folder: Path, number: signal.Signals) -> None:
    run = folder / f"stopped-by-{number.name}"
    process = cli(folder, "train", "micro.yaml", "--run", run.name)
    until(process, (run / "metrics.jsonl").exists)
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == 130
    assert f"outscore resume {run.name}" in (run / "events.log").read_text()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (run / "checkpoints" / last["stage"] / f"step-{last['step']:06d}" / "trainer.json").exists()
    assert resume(run).finished
    assert (run / "metrics.jsonl").read_bytes() == (folder / "whole" / "metrics.jsonl").read_bytes()


def test_the_second_signal_stops_at_once_and_the_last_checkpoint_is_kept(folder: Path) -> None:
    run = folder / "stopped-at-once"
    process = cli(folder, "train", "micro.yaml", "--run", run.name)
    until(process, lambda: any(run.glob("groups/grpo/step-000003.parquet")))
    (folder / "hold").touch()
    try:
        # Held in a reward, the step in hand cannot end.
        until(process, (folder / "held").exists)
        lines = (run / "metrics.jsonl").read_bytes()
        process.send_signal(signal.SIGINT)
        until(process, lambda: "once more stops at once" in (run / "events.log").read_text())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        (folder / "hold").unlink()
    assert process.returncode == 130 and b"stopped at once" in errors and b"Traceback" not in errors
    assert (run / "metrics.jsonl").read_bytes() == lines
    newest = RunDirectory.open(run).checkpoints()[-1]
    assert newest.stage == "grpo" and newest.step in (2, 4, 6, 8) and not read_progress(newest.path)[0].finished
    assert resume(run).finished
    assert contents(run) == contents(folder / "whole")
