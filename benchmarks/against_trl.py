"""TRL and Outscore in turn on the same work: python benchmarks/against_trl.py MODEL [--workload short] [--rounds 3].

Each round runs each side once in a process of its own, which side first changing from round to round; the first step of
a process warms up and does not count. The medians are over all other steps. Prints a table and writes all the figures
as JSON.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from workloads import WORKLOADS

HERE = Path(__file__).parent


def run_side(side: str, *arguments: str) -> list[dict[str, Any]]:
    """The steps of one process, without the first."""
    command = [sys.executable, str(HERE / f"{side}_side.py"), *arguments]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    steps = [json.loads(line) for line in out.splitlines() if line.startswith('{"seconds"')]
    return steps[1:]


def median(steps: list[dict[str, Any]], key: str) -> float:
    return statistics.median(step[key] for step in steps)


def main() -> None:
    """Run the rounds, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a local model directory, such as models/smollm2-135m")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="short")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default: 3)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a process, the first not counted (3)")
    parser.add_argument("--trl-dtype", choices=("fp32", "bf16", "bf16-autocast"), default="fp32")
    parser.add_argument("--out", type=Path, help="where the figures go (default: benchmarks/results-WORKLOAD.json)")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {"trl": [], "outscore": []}
    for number in range(options.rounds):
        for side in ("trl", "outscore") if number % 2 == 0 else ("outscore", "trl"):
            extra = [options.trl_dtype] if side == "trl" else []
            steps = run_side(side, options.model, options.workload, str(options.steps), *extra)
            found[side] += steps
            took = ", ".join(f"{step['seconds']:.1f}" for step in steps)
            print(f"round {number + 1} of {options.rounds}: {side} took {took} s a step", flush=True)
    trl, own = found["trl"], found["outscore"]
    print(f"\n| {options.workload} | TRL ({options.trl_dtype}) | Outscore | times |\n|---|---|---|---|")
    for key, label in (("seconds", "whole step, s"), ("sample", "sampling, s"), ("update", "update, s")):
        one, other = median(trl, key), median(own, key)
        print(f"| {label} | {one:.2f} | {other:.2f} | {one / other:.2f} |")
    one, other = (max(step["peak_bytes"] for step in steps) / 1e9 for steps in (trl, own))
    print(f"| peak memory, GB | {one:.2f} | {other:.2f} | {one / other:.2f} |")
    print(f"\ndistinct beginnings among sampled tokens: {median(own, 'distinct'):.0%}")
    machine = {"processor": platform.processor(), "python": platform.python_version(), "system": platform.platform()}
    record = {"workload": options.workload, "trl_dtype": options.trl_dtype, "machine": machine, "steps": found}
    out = options.out or HERE / f"results-{options.workload}.json"
    out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
