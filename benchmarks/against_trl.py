"""TRL and Outscore in turn on the same work: python benchmarks/against_trl.py MODEL [--workloads short …] [--rounds 3].

Without --workloads, all of the table in turn. Each round runs each side once in a process of its own, which side first
changing from round to round; the first step of a process warms up and does not count. Medians are over all other steps.
Figures are written after every round, as JSON, and a later call goes on from them: rounds that are there are not run
again (--anew runs them). Beside Outscore's times stands the limit: the matrix products of such a step alone, timed in
the same process, and the share of it that is reached.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from workloads import ASKED, WORKLOADS, demo_model

HERE = Path(__file__).parent
PHASES = {
    "seconds": "whole step, s",
    "sample": "sampling, s",
    "score": "scoring, s",
    "backward": "log-probs and backward, s",
    "optimizer": "optimizer, s",
}
"""What a step's line calls a phase -> what the table does."""


def run_side(side: str, *arguments: str) -> dict[str, Any]:
    """The steps of one process without the first, and the limit where the side says it."""
    command = [sys.executable, str(HERE / f"{side}_side.py"), *arguments]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = [json.loads(line) for line in out.splitlines() if line.startswith(('{"seconds"', '{"limit"'))]
    limits = [line["limit"] for line in lines if "limit" in line]
    return {"steps": [line for line in lines if "seconds" in line][1:], "limits": limits}


def run_workload(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Take the rounds that are missing; the figures of all of them."""
    file = options.out / f"results-{name}.json"
    record: dict[str, Any] = {
        "workload": name,
        "trl_dtype": options.trl_dtype,
        "machine": {
            "processor": platform.processor(),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "rounds": 0,
        "steps": {"trl": [], "outscore": []},
        "limits": [],
    }
    if file.is_file() and not options.anew:
        there = json.loads(file.read_text())
        same = all(there.get(key) == record[key] for key in ("workload", "trl_dtype", "machine"))
        if same and "rounds" in there:
            record = there
    model = str(demo_model(options.out / "demo-model")) if WORKLOADS[name].demo_model else options.model
    for number in range(record["rounds"], options.rounds):
        found = {}
        for side in ("trl", "outscore") if number % 2 == 0 else ("outscore", "trl"):
            extra = options.trl_dtype if side == "trl" else options.precision
            found[side] = run_side(side, model, name, str(options.steps), extra)
            took = ", ".join(f"{step['seconds']:.2f}" for step in found[side]["steps"])
            print(f"{name}, round {number + 1} of {options.rounds}: {side} took {took} s a step", flush=True)
        for side, own in found.items():
            record["steps"][side] += own["steps"]
            record["limits"] += own["limits"]
        record["rounds"] = number + 1
        file.write_text(json.dumps(record, indent=1))
    return record


def median(lines: list[dict[str, Any]], key: str) -> float:
    return statistics.median(line[key] for line in lines)


def table(record: dict[str, Any]) -> str:
    """What was found of a workload, in Markdown."""
    trl, own, limits = record["steps"]["trl"], record["steps"]["outscore"], record["limits"]
    work = WORKLOADS[record["workload"]]
    precision = own[0].get("precision", "")
    lines = [
        f"| {work.name}: {work.num_prompts} prompts of {work.prompt_tokens} tokens × {work.group_size}, "
        f"{work.shortest} to {work.longest} new | TRL ({record['trl_dtype']}) | Outscore ({precision}) | times "
        "| limit | reached |",
        "|---|---|---|---|---|---|",
    ]
    for key, label in PHASES.items():
        if work.kind == "sampling" and key != "sample":
            continue
        one, other = median(trl, key), median(own, key)
        limit = median(limits, key) if limits and key in limits[0] else 0.0
        reached = f"{limit:.3g} | {limit / other:.0%}" if limit and other else " | "
        times = f"{one / other:.2f}" if other else ""
        lines.append(f"| {label} | {one:.3g} | {other:.3g} | {times} | {reached} |")
    for key, label in (("sample", "sampled tokens/s"), ("backward", "trained tokens/s")):
        rates = [[step["tokens"] / step[key] for step in steps if step[key] > 1e-4] for steps in (trl, own)]
        if all(rates):
            one, other = map(statistics.median, rates)
            lines.append(f"| {label} | {one:,.0f} | {other:,.0f} | {other / one:.2f} | | |")
    one, other = (max(step["peak_bytes"] for step in steps) / 1e9 for steps in (trl, own))
    lines.append(f"| peak memory, GB | {one:.2f} | {other:.2f} | {one / other:.2f} | | |")
    if work.name in ASKED:
        ratio = median(trl, "seconds") / median(own, "seconds")
        lines.append(f"| asked for: {ASKED[work.name]:g} times | | | {ratio:.2f} | | |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a local model directory, such as models/smollm2-135m")
    standard = [name for name in WORKLOADS if not name.startswith("smoke")]
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=standard)
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs, rounds before included (3)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a process, the first not counted (3)")
    parser.add_argument("--trl-dtype", choices=("fp32", "bf16", "bf16-autocast"), default="fp32")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="Outscore's (auto)")
    parser.add_argument("--out", type=Path, default=HERE, help="where the figures go (default: benchmarks/)")
    parser.add_argument("--anew", action="store_true", help="forget what was measured before")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tables = [table(run_workload(name, options)) for name in options.workloads]
    print("\n" + "\n\n".join(tables))


if __name__ == "__main__":
    main()
