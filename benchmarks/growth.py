"""How a step grows: python benchmarks/growth.py [--points group prompt …] [--draw].

A small Llama with random weights; one shape at a time is varied: the size of a group, the length of the prompt and of
the completions, the vocabulary. TRL and Outscore take the same steps in a process of each (`workloads`). Time is the
CPU time of a step, which with one thread (OMP_NUM_THREADS=1) is what it takes on a machine that does nothing else;
memory is the peak resident set of a point, which Linux sets back, above what the process held before its first model.

Then the law of attention: multiply-adds of the tree against those of a dense mask over the same row, counted exactly,
and the time of the tree's forward and backward pass, over groups of G completions as long as their prompt, L; the
exponents of G and L are fitted by least squares in logarithms. Writes JSON, which a later call adds to, prints tables,
and with --draw writes figures to docs/figures (extra `plots`).
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from memory import Peaks
from transformers import LlamaConfig, LlamaForCausalLM
from workloads import Workload

HERE = Path(__file__).parent
BASE = Workload(name="growth", num_prompts=2, group_size=8, prompt_tokens=64, shortest=32, longest=32)
VOCAB = 1024
POINTS: Mapping[str, Sequence[int]] = {
    "group": (2, 4, 8, 16, 32, 64),
    "prompt": (32, 128, 512, 2048),
    "completion": (16, 64, 256),
    "vocab": (1024, 8192, 32768),
}
"""What is varied, and over what; the rest is `BASE`."""
LABELS = {
    "group": "completions of a prompt",
    "prompt": "prompt tokens",
    "completion": "completion tokens",
    "vocab": "vocabulary",
}
HEADS, DIM = 4, 32


def workload(axis: str, value: int) -> Workload:
    """The shapes of a point."""
    if axis == "group":
        return replace(BASE, group_size=value)
    if axis == "prompt":
        return replace(BASE, prompt_tokens=value)
    return replace(BASE, shortest=value, longest=value) if axis == "completion" else BASE


def make_model(vocab: int, folder: Path) -> Path:
    """A small model with so many logits."""
    from outscore.model.tiny import character_tokenizer

    directory = folder / f"vocab-{vocab}"
    if not directory.is_dir():
        tokenizer = character_tokenizer("abcdefghijklmnopqrstuvwxyz", [])
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocab,
            hidden_size=HEADS * DIM,
            intermediate_size=3 * HEADS * DIM,
            num_hidden_layers=4,
            num_attention_heads=HEADS,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory


def run_side(side: str, axis: str, folder: Path) -> None:
    """The points of an axis in this process, a JSON line each."""
    take = taker(side)
    peaks = Peaks(resident())
    for value in (POINTS[axis][0], *POINTS[axis]):  # the first one twice: libraries load code at their first step
        model, work = str(make_model(value if axis == "vocab" else VOCAB, folder)), workload(axis, value)
        peaks.mark("before")
        peaks.bytes.clear()
        last = take(model, work)[-1]
        peaks.mark("point")
        found = {key: last[key] for key in ("cpu_seconds", "seconds")} | {"peak": peaks.bytes["point"]}
        print(json.dumps({"axis": axis, "value": value, "side": side, **found}), flush=True)


def taker(side: str) -> Callable[[str, Workload], list[dict[str, Any]]]:
    """What takes two steps of a side; its libraries are imported before anything is measured."""
    if side == "outscore":
        from outscore_side import steps_of

        return lambda model, work: list(steps_of(model, work, 2, "fp32", with_limit=False))
    from trl_side import take_steps

    def take(model: str, work: Workload) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        take_steps(model, work, 2, "fp32", lines.append)
        return lines

    return take


def resident() -> int:
    from outscore.train.memory import resident_bytes

    return resident_bytes()


def law(groups: Sequence[int], lengths: Sequence[int]) -> list[dict[str, float]]:
    """What attention over a group costs, counted and timed."""
    from outscore.model.attention import TreeAttention
    from outscore.model.forest import Segment

    points = []
    for length in lengths:
        for size in groups:
            children = [Segment(start=length * (1 + i), length=length, parent=0) for i in range(size)]
            tree = TreeAttention([Segment(start=0, length=length, parent=-1), *children])
            states = [torch.randn(1, HEADS, tree.num_tokens, DIM, requires_grad=True) for _ in range(3)]

            def once(tree: TreeAttention = tree, states: Sequence[torch.Tensor] = states) -> float:
                started = time.process_time()
                out = tree.attend(None, *states, scaling=DIM**-0.5, sliding_window=None, softcap=None)
                out.sum().backward()
                return time.process_time() - started

            once()
            points.append(
                {
                    "group": size,
                    "length": length,
                    "tree": 2 * DIM * HEADS * tree.num_pairs,
                    "dense": 2 * DIM * HEADS * tree.num_tokens**2,
                    "seconds": min(once() for _ in range(3)),
                }
            )
    return points


def exponents(points: Sequence[Mapping[str, float]], key: str) -> tuple[float, float]:
    """x and y of key ≈ c · G^x · L^y, by least squares in logarithms."""
    rows = torch.tensor([[1.0, math.log(p["group"]), math.log(p["length"])] for p in points], dtype=torch.float64)
    values = torch.tensor([[math.log(p[key])] for p in points], dtype=torch.float64)
    found = torch.linalg.lstsq(rows, values).solution[:, 0].tolist()
    return found[1], found[2]


def table(axis: str, points: Sequence[Mapping[str, Any]]) -> str:
    """The points of an axis beside each other, in Markdown."""
    lines = [f"| {LABELS[axis]} | TRL, s | Outscore, s | times | TRL, MB | Outscore, MB | times |", "|---" * 7 + "|"]
    for value in POINTS[axis]:
        sides = {p["side"]: p for p in points if p["axis"] == axis and p["value"] == value}
        if len(sides) == 2:
            cells = [f"{value:,}"]
            for key, unit, digits in (("cpu_seconds", 1.0, 2), ("peak", 1e6, 0)):
                one, other = (sides[side][key] / unit for side in ("trl", "outscore"))
                cells += [f"{one:,.{digits}f}", f"{other:,.{digits}f}", f"{one / other:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(points: Sequence[Mapping[str, Any]], fitted: Sequence[Mapping[str, float]]) -> None:
    """Figures for docs/, both axes logarithmic."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    folder = HERE.parent / "docs" / "figures"
    style = {"svg.hashsalt": "outscore", "font.size": 9.0, "axes.grid": True, "grid.alpha": 0.3}
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(14, 6), layout="constrained")
        for row, (key, label, unit) in enumerate(
            (("cpu_seconds", "CPU seconds a step", 1.0), ("peak", "peak, MB", 1e6))
        ):
            for column, axis in enumerate(POINTS):
                axes = canvas.add_subplot(2, len(POINTS), 1 + row * len(POINTS) + column)
                axes.set(xscale="log", yscale="log", xlabel=LABELS[axis], ylabel=label)
                for side in ("trl", "outscore"):
                    own = sorted((p["value"], p[key] / unit) for p in points if (p["axis"], p["side"]) == (axis, side))
                    axes.plot(*zip(*own, strict=True), marker="o", label={"trl": "TRL"}.get(side, "Outscore"))
                axes.set_xticks(POINTS[axis], [f"{value:,}" for value in POINTS[axis]])
                axes.minorticks_off()
                axes.legend()
        canvas.savefig(folder / "growth.png", dpi=110)
        canvas = Canvas(figsize=(9, 3.4), layout="constrained")
        for place, (key, other, label) in enumerate(
            (("tree", "dense", "multiply-adds"), ("seconds", "", "CPU seconds"))
        ):
            axes = canvas.add_subplot(1, 2, 1 + place)
            axes.set(xscale="log", yscale="log", xlabel="completions of a prompt, G", ylabel=label)
            for number, length in enumerate(sorted({p["length"] for p in fitted})):
                own = [p for p in fitted if p["length"] == length]
                axes.plot([p["group"] for p in own], [p[key] for p in own], color=f"C{number}", label=f"L = {length:g}")
                if other:
                    axes.plot([p["group"] for p in own], [p[other] for p in own], color=f"C{number}", linestyle=":")
            sizes = sorted({int(p["group"]) for p in fitted})
            axes.set_xticks(sizes, list(map(str, sizes)))
            axes.minorticks_off()
            axes.legend(title="tree (dotted: dense)" if other else "tree, forward and backward")
        canvas.savefig(folder / "growth-attention.png", dpi=110)


def main() -> None:
    """Run what is asked for, print tables, write figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", nargs="*", choices=list(POINTS), default=list(POINTS), help="what is varied (all)")
    parser.add_argument("--groups", nargs="+", type=int, default=[2, 4, 8, 16, 32], help="of the law")
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 256, 512], help="of the law")
    parser.add_argument("--draw", action="store_true", help="write docs/figures/growth*.png")
    parser.add_argument("--out", type=Path, default=HERE / "results-growth.json")
    parser.add_argument("--only", nargs=3, metavar=("SIDE", "AXIS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        side, axis, folder = options.only
        run_side(side, axis, Path(folder))
        return
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {"points": [], "law": []}
    with tempfile.TemporaryDirectory() as temporary:
        for axis in options.points:
            record["points"] = [point for point in record["points"] if point["axis"] != axis]
            for side in ("trl", "outscore"):
                command = [sys.executable, __file__, "--only", side, axis, temporary]
                out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                found = [json.loads(line) for line in out.splitlines() if line.startswith('{"axis"')]
                record["points"] += found[1:]
                options.out.write_text(json.dumps(record, indent=1))
                print(f"{axis}: {side} done", flush=True)
    if options.groups and options.lengths:
        record["law"] = law(options.groups, options.lengths)
        record["exponents"] = {key: exponents(record["law"], key) for key in ("tree", "dense", "seconds")}
        options.out.write_text(json.dumps(record, indent=1))
    for axis in POINTS:
        print("\n" + table(axis, record["points"]))
    print("\n| attention over a group | ∝ G to the | ∝ L to the |\n|---|---|---|")
    for key, (of_group, of_length) in record["exponents"].items():
        print(f"| {key} | {of_group:.2f} | {of_length:.2f} |")
    if options.draw:
        draw(record["points"], record["law"])


if __name__ == "__main__":
    main()
