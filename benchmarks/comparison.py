"""Tables of what benchmarks found, in Markdown: python benchmarks/comparison.py [FILE …] shows what is kept.

A cell is the median of all steps, with the fastest and the slowest where there are several. Limits are bounds, so the
fastest of all rounds counts; the optimizer has none: its time hangs on memory that a step just touched.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_workloads import asked_of, workload_of
from kept import HERE, Record, read
from rounds import CLASSES
from workloads import Workload

NAMES = {"trl": "TRL", "trl, continuous batching": "TRL, continuous batching", "outscore": "Outscore"}
"""Side -> what a table calls it."""
PHASES = {
    "seconds": "whole step, s",
    "sample": "sampling, s",
    "score": "scoring, s",
    "backward": "log-probs and backward, s",
    "optimizer": "optimizer, s",
}
"""What a step's line calls a phase -> what the table does."""
RATES = {"sample": "sampled tokens/s", "backward": "trained tokens/s"}
Steps = Sequence[Mapping[str, Any]]


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """The median, and the least and the largest of several.

    >>> spread([3.0]), spread([1.0, 2.0, 4.0])
    ('3', '2 (1–4)')
    """
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}–{max(values):{form}})"


def fastest(limits: Sequence[Mapping[str, float]], kind: str) -> dict[str, float]:
    """Phase -> seconds that no implementation can beat, by all timings of it; a step's are those of its phases."""
    keys = ("sample",) if kind == "sampling" else ("sample", "backward")
    found = {key: min(limit[key] for limit in limits) for key in keys if limits}
    return found | ({"seconds": sum(found.values())} if kind == "step" and found else {})


def table(workload: str, record: Record, failed: Mapping[str, str] | None = None) -> str:
    """What is in a record, and what failed in this call."""
    work = workload_of(workload)
    sides = {side: flat for side in NAMES if (flat := [step for own in record["rounds"].get(side, []) for step in own])}
    lines = [*_head(work, record, sides), *_rows(work, record, sides)] if sides else []
    below = [f"Asked for: {asked}."] if (asked := asked_of(workload)) else []
    below += [*_below(record, sides), *(f"{NAMES[side]} failed: {why}." for side, why in (failed or {}).items())]
    return "\n".join([*lines, "", "  \n".join(below)]).strip()


def _head(work: Workload, record: Record, sides: Mapping[str, Steps]) -> list[str]:
    """Warning and first lines of a table."""
    lines = []
    used = {side: " and ".join(sorted({step["precision"] for step in steps})) for side, steps in sides.items()}
    if len({CLASSES.get(precision, precision) for precision in used.values()}) > 1:
        said = ", ".join(f"{NAMES[side]} computes in {precision}" for side, precision in used.items())
        lines += [f"**The precision classes differ: {said}.**", ""]
    cells = [f"{work.name}: {work.num_prompts} prompts of {work.prompt_tokens} tokens × {work.group_size}, "]
    spanned = f"{work.shortest} to {work.longest}" if work.shortest < work.longest else f"{work.longest}"
    cells[0] += f"{spanned} new"
    for side, steps in sides.items():
        cells.append(f"{NAMES[side]} ({used[side]}, rounds: {len(record['rounds'][side])}, steps: {len(steps)})")
    cells += [f"times {NAMES[side]}" for side in _peers(sides)]
    lines.append(_line([*cells, "limit", "reached"]))
    return [*lines, "|---" * (len(cells) + 2) + "|"]


def _peers(sides: Mapping[str, Steps]) -> list[str]:
    """Those that Outscore is compared with, if it was run."""
    return [side for side in sides if side != "outscore" and "outscore" in sides]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rows(work: Workload, record: Record, sides: Mapping[str, Steps]) -> list[str]:
    limits = fastest(record["limits"], work.kind)
    phases = PHASES if work.kind == "step" else {"sample": PHASES["sample"]}
    lines = [
        _row(label, {side: [step[key] for step in steps] for side, steps in sides.items()}, limit=limits.get(key))
        for key, label in phases.items()
    ]
    for key, label in RATES.items():
        if key in phases:
            rates = {side: [step["tokens"] / step[key] for step in steps] for side, steps in sides.items()}
            lines.append(_row(label, rates, ",.0f", more_is_better=True))
    peaks = {side: [step["peak_bytes"] / 1e9 for step in steps if step["peak_bytes"]] for side, steps in sides.items()}
    lines.append(_row("peak memory, GB", {side: [max(own)] if own else [] for side, own in peaks.items()}, ".2f"))
    return lines


def _row(
    label: str,
    values: Mapping[str, Sequence[float]],
    form: str = ".3g",
    *,
    more_is_better: bool = False,
    limit: float | None = None,
) -> str:
    """Each side's values, how many times Outscore has the better of each peer, the limit and its share reached."""
    middles = {side: statistics.median(own) if own else 0.0 for side, own in values.items()}
    own, cells = middles.get("outscore", 0.0), [spread(each, form) if each else "" for each in values.values()]
    for side in _peers(values):
        over, under = (own, middles[side]) if more_is_better else (middles[side], own)
        cells.append(f"{over / under:.2f}" if over and under else "")
    cells += ["", ""] if limit is None else [f"{limit:.3g}", f"{limit / own:.0%}" if own else ""]
    return _line([label, *cells])


def _below(record: Record, sides: Mapping[str, Steps]) -> list[str]:
    """What a reader must know of the figures."""
    key = record["key"]
    said = ", ".join(f"{name} {key[name]}" for name in ("cores", "threads", "torch", "transformers", "trl"))
    lines = [f"On: {key['device']}, {said}, Outscore's commit {record['commit']}."]
    if "trial" in record:
        tried = {name: "failed" if seconds is None else f"{seconds:.3g}" for name, seconds in record["trial"].items()}
        seconds = ", ".join(f"{name} {each}" for name, each in tried.items())
        lines.append(f"TRL's precisions, seconds of a smaller step: {seconds}.")
    if counted := [limit for limit in record["limits"] if "bandwidth" in limit]:
        bandwidth, peak = (max(limit[name] for limit in counted) / 1e12 for name in ("bandwidth", "peak"))
        lines.append(f"Limits: all that must be read at {bandwidth:.2f} TB/s, and multiplied at {peak:.0f} TFLOP/s.")
    paths = [step["paths"] for step in sides.get("outscore", []) if "paths" in step]
    recorded = {(path["attention"], path["graphs_refused"]): path["graphs_recorded"] for path in paths}
    for (attention, refused), number in recorded.items():
        lines.append(f"Outscore: {attention}; {refused or f'decoding steps recorded as CUDA graphs: {number}'}.")
    return lines


def main() -> None:
    """Print the tables of files, or of all that are kept here."""
    for file in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(HERE.glob("results-*.json")):
        for record in read(file) or []:
            print(table(file.stem.removeprefix("results-"), record) + "\n")


if __name__ == "__main__":
    main()
