"""Runs of two short stages, ways to stop them, and what they leave."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import rich.console

from outscore.records import StepReport
from outscore.report import Console

CLOCK = ("timing.jsonl", "events.log")
"""The only files that may differ: they hold the time of day."""


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
