"""Sides in turn, each in a process of its own, and the precision that suits TRL best.

Which side is first changes from round to round; the first step of a process warms up and does not count.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kept import Kept

CLASSES = {"fp32": "fp32", "bf16": "bf16", "bf16-autocast": "bf16"}
"""What TRL computes in -> its precision class, which is the name of Outscore's."""

Run = Callable[[], dict[str, Any]]
"""Runs a side once: its steps and its limits."""


def run_side(script: str, *arguments: str) -> dict[str, Any]:
    """The steps of one process without the first, and the limit where the side says it."""
    command = [sys.executable, str(Path(__file__).parent / f"{script}_side.py"), *arguments]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = [json.loads(line) for line in out.splitlines() if line.startswith(('{"seconds"', '{"limit"'))]
    limits = [line["limit"] for line in lines if "limit" in line]
    return {"steps": [line for line in lines if "seconds" in line][1:], "limits": limits}


def run_trl(kept: Kept, model: Path, precision: str, steps: int, *more: str) -> dict[str, Any]:
    """TRL's steps of the record's workload, in the precision that is asked for, or for `auto` in its fastest."""
    if precision == "auto":
        trial = f"trial:{kept.workload}"
        precision = better_precision(kept, lambda tried: run_side("trl", str(model), trial, "2", tried))
    return run_side("trl", str(model), kept.workload, str(steps), precision, *more)


def better_precision(kept: Kept, run: Callable[[str], dict[str, Any]]) -> str:
    """The precision that is fastest for TRL, by a short timing of each; `run` takes a few steps in one. Times are kept
    in the record, None for a precision that fails; where all fail, the last `CalledProcessError` is raised."""
    if "trial" not in kept.record:
        trial: dict[str, float | None] = {}
        for precision in CLASSES:
            try:
                trial[precision] = min(step["seconds"] for step in run(precision)["steps"])
            except subprocess.CalledProcessError:  # it has said why itself
                trial[precision] = None
                if precision == list(CLASSES)[-1] and not any(trial.values()):
                    raise
        kept.record["trial"] = trial
        kept.save()
        print(f"{kept.workload}: TRL's precisions, seconds: {trial}", flush=True)
    taken = {precision: seconds for precision, seconds in kept.record["trial"].items() if seconds}
    return min(taken, key=taken.__getitem__)


def take_rounds(kept: Kept, sides: Mapping[str, Run], rounds: int) -> dict[str, str]:
    """Let each side run until it has that many rounds, those of earlier calls included; writes after each.

    Returns how a side failed, for those that did: they are left out from then on in this call, and only in this one.
    """
    failed: dict[str, str] = {}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(list(sides)):
            own = kept.record["rounds"].setdefault(side, [])
            if side in failed or len(own) > number:
                continue
            try:
                found = sides[side]()
            except subprocess.CalledProcessError as error:  # it has said why itself; the others go on
                failed[side] = f"round {number + 1}: exit status {error.returncode}"
                continue
            own.append(found["steps"])
            kept.record["limits"] += found["limits"]
            kept.save()
            took = ", ".join(f"{step['seconds']:.2f}" for step in found["steps"])
            print(f"{kept.workload}, round {number + 1} of {rounds}: {side} took {took} s a step", flush=True)
    return failed
