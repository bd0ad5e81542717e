"""A run killed at any moment and resumed leaves the files of a run that was never stopped, byte for byte."""

import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rich.console

import outscore.train.run
import outscore.train.setup
from outscore.config import ModelSettings
from outscore.records import StepReport
from outscore.report import Console, RunDirectory
from outscore.tasks import make_task
from outscore.train.checkpoint import read_progress
from outscore.train.run import resume, run_recipe
from outscore.train.setup import load_policy

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
CLOCK = ("timing.jsonl", "events.log")
"""The only files that may differ: they hold the time of day."""


def cli(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return start(folder, "-m", "outscore.cli", *arguments, output=subprocess.DEVNULL)


def start(folder: Path, *arguments: str, output: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=output,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def contents(run: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(run)): file.read_bytes()
        for file in sorted(run.rglob("*"))
        if file.is_file() and file.name not in CLOCK
    }


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


BOUNDARY: dict[str, Any] = {
    "seed": 3,
    "model": {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"},
    "task": {"kind": "arithmetic", "num_train": 20, "num_eval": 4, "num_demonstrations": 8},
    "rewards": ["tag_answer"],
    "scoring": {"isolate": False},  # a worker would import this file, and torch with it
    "stages": [
        {"algorithm": "sft", "steps": 3, "batch_size": 4, "optimizer": {"lr": 5e-3}},
        {
            **{"algorithm": "grpo", "steps": 3, "prompts_per_step": 2, "group_size": 4, "cells": {"kl_coef": 0.05}},
            **{"sampling": {"max_new_tokens": 6}, "optimizer": {"lr": 1e-3}},
        },
    ],
    "evaluation": {"problems": 4, "samples": 1},
    "checkpoints": {"every": 2},
}
"""Two stages; the second has a reference, which is the policy that the first one left."""


def digits(completions: list[str], **columns: Any) -> list[float]:
    return [sum(c.isdigit() for c in text) / 6 for text in completions]


class Stops(Console):
    """A screen at which somebody presses Ctrl-C twice when a stage begins, or when a step of it is done."""

    def __init__(self, stage: str, step: int) -> None:
        super().__init__(rich_console=rich.console.Console(file=io.StringIO()))
        self._at, self._now = (stage, step), ""

    def stage_started(self, name: str, *arguments: Any, **named: Any) -> None:
        super().stage_started(name, *arguments, **named)
        self._now = name
        self._stop_at(0)

    def step(self, report: StepReport, *arguments: Any, **named: Any) -> None:
        super().step(report, *arguments, **named)
        self._stop_at(report.step)

    def _stop_at(self, step: int) -> None:
        if (self._now, step) == self._at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kept", [{"lora": {"rank": 2}}, {"precision": "bf16"}], ids=["lora", "bf16"])
def test_a_stage_begun_again_builds_on_what_the_stage_before_learnt(tmp_path: Path, kept: dict[str, Any]) -> None:
    """What the checkpoint's model file does not hold: adapters' masters, and the fp32 masters of a bf16 model."""
    base, _ = load_policy(ModelSettings(**BOUNDARY["model"]), make_task(**BOUNDARY["task"]), seed=3)
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    recipe = {**BOUNDARY, "model": {"source": str(tmp_path / "base"), "precision": "fp32", **kept}}
    run_recipe(recipe, tmp_path / "whole", rewards=[digits])
    assert any(line["grad_norm"] > 0 for line in RunDirectory.open(tmp_path / "whole").metrics("grpo"))
    for stopped_at, resumed_from in ((0, ("sft", 3)), (3, ("grpo", 2))):
        run = tmp_path / f"stopped-{stopped_at}"
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, run, rewards=[digits], console=Stops("grpo", stopped_at))
        newest = RunDirectory.open(run).checkpoints()[-1]
        assert (newest.stage, newest.step) == resumed_from
        assert resume(run, rewards=[digits]).finished
        assert contents(run) == contents(tmp_path / "whole")


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run_recipe(BOUNDARY, tmp_path / "run")
    saved = RunDirectory.open(tmp_path / "run").checkpoints()
    for item in saved:
        (item.path / "model.safetensors").write_bytes(b"")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=r"no sound checkpoint left.*step-000003/model\.safetensors is damaged"):
        resume(tmp_path / "run")
    assert contents(tmp_path / "run") == before
    for item in saved:
        shutil.rmtree(item.path)
    assert resume(tmp_path / "run").finished  # begun anew, as the message says


def test_a_signal_after_the_last_question_of_a_step_still_saves_it(tmp_path: Path) -> None:
    """The interrupt comes with the answer to the question that ends the loop, whichever question that is."""
    for answers in range(1, 4):
        run = tmp_path / f"run-{answers}"
        asked = itertools.count()

        def late(interrupt: object, answers: int = answers, asked: Iterator[int] = asked) -> bool:
            return next(asked) >= answers

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outscore.train.run._Interrupt, "__call__", late)
            assert not run_recipe(BOUNDARY, run).finished
        last = RunDirectory.open(run).metrics()[-1]
        newest = RunDirectory.open(run).checkpoints()[-1]
        assert (newest.stage, newest.step) == (last["stage"], last["step"])


LIMITED = """\
import resource, sys

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from outscore.cli import main

main()
"""
"""The command on a disk that takes files up to a size."""


def test_no_space_while_saving_is_named_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the command works, too
    run_recipe(BOUNDARY, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(BOUNDARY, tmp_path / "run", console=Stops("grpo", 3))
    saved = contents(tmp_path / "run" / "checkpoints")
    size = len(saved["grpo/step-000002/trainer.safetensors"])
    process = start(tmp_path, "-c", LIMITED, str(size - 1), "resume", "run")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors.decode()
    refusal = "could not write run/checkpoints/grpo/step-000003: File too large; what was there before is unchanged"
    assert refusal in errors.decode() and b"Traceback" not in errors
    assert contents(tmp_path / "run" / "checkpoints") == saved
    assert not list(tmp_path.rglob(".tmp-*"))
    assert resume(tmp_path / "run").finished
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_gradient_that_is_not_finite_stops_with_its_alarm_and_the_run_goes_on_when_corrected(tmp_path: Path) -> None:
    stages = [{**BOUNDARY["stages"][0], "optimizer": {"lr": 1e10}}]
    with pytest.raises(ValueError, match=r"stage sft, step 2: grad_norm is \w+\. Lower the learning rate") as caught:
        run_recipe({**BOUNDARY, "stages": stages}, tmp_path / "run")
    assert f"`outscore resume {tmp_path / 'run'}`" in str(caught.value)
    assert "alarm: grad_norm is " in (tmp_path / "run" / "events.log").read_text()
    assert [line["step"] for line in RunDirectory.open(tmp_path / "run").metrics()] == [1]
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "lr: 10000000000.0" in config
    (tmp_path / "run" / "config.yaml").write_text(config.replace("lr: 10000000000.0", "lr: 0.001"))
    assert resume(tmp_path / "run").finished


def test_a_resume_keeps_the_layout_the_run_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_recipe(BOUNDARY, tmp_path / "run", console=Stops("grpo", 0))
    kept = RunDirectory.open(tmp_path / "run").config()["found"]
    assert kept["layout"] == "group_rows" and kept["environment"]["outscore"] == outscore.__version__
    monkeypatch.setattr(outscore.train.setup, "probe_layout", None)  # not to be asked again
    assert resume(tmp_path / "run").finished
