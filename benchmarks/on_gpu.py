"""TRL, TRL with continuous batching and Outscore in turn on a GPU: python benchmarks/on_gpu.py [--models qwen-0.5b …].

`make bench DEVICE=cuda`. A step of 64 prompts × 16 completions of 512 tokens, and decoding 64 rows alone, on models of
the Qwen 2.5 architecture with random weights, all in bf16. Each side runs in a process of its own, which first changing
from round to round; the first step of a process warms up and does not count. Beside Outscore's figures stands the limit
(`gpu_limits`): for decoding the time to read what must be read, at the bandwidth that a copy reaches in this run; for
training the share of the peak that is named. On a machine without a GPU `--smoke` tries the same code at tiny sizes.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from against_trl import median, run_side
from gpu_limits import bandwidth, decoding_bytes, update_flops
from gpu_workloads import GPU_WORKLOADS, SIZES, random_model
from transformers import AutoConfig

HERE = Path(__file__).parent
SIDES = {
    "trl": ("trl", "bf16"),
    "trl, continuous batching": ("trl", "bf16", "batching"),
    "outscore": ("outscore", "bf16"),
}
"""What a side is called -> its script and what that is given."""
ASKED = {"step": "10 times TRL with `generate`, and 45 % of the peak on the 1.5B", "decoding": "60 % of the bandwidth"}


def run_workload(kind: str, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Take the rounds that are missing; the figures of all of them."""
    name = f"{kind}-{model}"
    file = options.out / f"results-{name}.json"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    record: dict[str, Any] = {
        "workload": name,
        "kind": kind,
        "model": model,
        "machine": {"device": machine, "torch": torch.__version__},
        "rounds": 0,
        "steps": {side: [] for side in SIDES},
        "failed": {},
    }
    if file.is_file() and not options.anew:
        there = json.loads(file.read_text())
        if there["machine"] == record["machine"]:
            record = there
    directory = str(random_model(options.keep / model, model))
    record["bandwidth"] = bandwidth(device, options.bandwidth_bytes)
    for number in range(record["rounds"], options.rounds):
        for side in options.sides if number % 2 == 0 else reversed(options.sides):
            script, *given = SIDES[side]
            try:
                found = run_side(script, directory, name, str(options.steps), *given)
            except subprocess.CalledProcessError as error:  # it has said why itself; the others go on
                record["failed"][side] = f"round {number + 1}: exit status {error.returncode}"
                continue
            record["steps"][side] += found["steps"]
            print(f"{name}, round {number + 1} of {options.rounds}: {side} done", flush=True)
        record["rounds"] = number + 1
        file.write_text(json.dumps(record, indent=1))
    return record


def table(record: dict[str, Any], directory: Path, peak: float) -> str:
    """What was found, in Markdown."""
    work = GPU_WORKLOADS[record["workload"]]
    sides = [side for side in SIDES if record["steps"][side]]
    config = AutoConfig.from_pretrained(directory / record["model"])
    own = record["steps"]["outscore"]
    tokens = work.num_completions * work.longest
    title = f"{record['model']}: {work.num_prompts} prompts of {work.prompt_tokens} × {work.group_size}, {work.longest}"
    lines = [f"| {title} new | " + " | ".join(sides) + " |", "|---" * (len(sides) + 1) + "|"]

    def row(label: str, figures: list[str]) -> None:
        lines.append(f"| {label} | " + " | ".join(figures) + " |")

    keys = {"sample": "sampling, s"}
    if work.kind == "step":
        keys = {
            "seconds": "whole step, s",
            **keys,
            "backward": "log-probs and backward, s",
            "optimizer": "optimizer, s",
        }
    for key, label in keys.items():
        row(label, [f"{median(record['steps'][side], key):.3g}" for side in sides])
    row("sampled tokens/s", [f"{tokens / median(record['steps'][side], 'sample'):,.0f}" for side in sides])
    row("peak memory, GB", [f"{max(step['peak_bytes'] for step in record['steps'][side]) / 1e9:.1f}" for side in sides])
    if own:
        whole = median(own, "seconds")
        row(
            "Outscore is so many times as fast",
            [f"{median(record['steps'][side], 'seconds') / whole:.2f}" for side in sides],
        )
        if work.kind == "sampling":
            limit = decoding_bytes(config, work) / record["bandwidth"]
            lines.append(f"\nOf the bandwidth ({record['bandwidth'] / 1e12:.2f} TB/s): {limit / whole:.0%}")
        else:
            reached = update_flops(config, work) / median(own, "backward") / 1e12
            lines.append(f"\nTraining: {reached:.0f} TFLOP/s, {reached / peak:.0%} of {peak:g}")
    lines += [f"\n{side} failed: {why}" for side, why in record["failed"].items()]
    lines.append(f"\nAsked for: {ASKED[record['kind']]}.")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=["qwen-0.5b", "qwen-1.5b"])
    parser.add_argument("--kinds", nargs="+", choices=list(ASKED), default=list(ASKED))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), help="who runs (on a GPU all of them)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each side runs, rounds before included (2)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a process, the first not counted (3)")
    parser.add_argument("--peak", type=float, default=790.0, help="TFLOP/s that the GPU reaches in bf16 (790, an H200)")
    parser.add_argument("--bandwidth-bytes", type=int, default=1 << 32, help="size of the copy that times the memory")
    parser.add_argument("--out", type=Path, default=HERE, help="where the figures go (default: benchmarks/)")
    parser.add_argument("--keep", type=Path, default=HERE.parent / "models", help="where the models are kept (models/)")
    parser.add_argument("--anew", action="store_true", help="forget what was measured before")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on any device: does everything run?")
    options = parser.parse_args()
    if options.smoke:
        options.models, options.bandwidth_bytes = ["smoke"], 1 << 20
    if options.sides is None:  # continuous batching takes half of the memory there is, which a machine shares
        options.sides = list(SIDES) if torch.cuda.is_available() else ["trl", "outscore"]
    options.out.mkdir(parents=True, exist_ok=True)
    found = [run_workload(kind, model, options) for model in options.models for kind in options.kinds]
    print("\n" + "\n\n".join(table(record, options.keep, options.peak) for record in found))


if __name__ == "__main__":
    main()
