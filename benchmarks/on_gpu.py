"""TRL, TRL with continuous batching and Outscore in turn on a GPU: python benchmarks/on_gpu.py [--models qwen-0.5b …].

`make bench DEVICE=cuda`. The workloads of a CPU at sizes for a GPU, a step of 64 prompts × 16 completions of 512
tokens, and decoding 64 rows alone, on models of the Qwen 2.5 architecture with random weights; then the demo's step.
Rounds and what is kept are those of `against_trl`. Continuous batching cannot be told lengths: it runs where all are
equal, and no end token is drawn. Beside the figures stands the limit (`gpu_limits`): to read what must be read, at the
bandwidth that a copy reaches in this run, and to multiply what must be multiplied at the peak that is named. On a
machine without a GPU `--smoke` tries the same code at tiny sizes.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from against_trl import add_options
from comparison import NAMES, table
from gpu_limits import bandwidth, counted_limits
from gpu_workloads import LARGE, SIZES, SMALL, random_model, workload_of
from kept import HERE, Kept, key_of
from rounds import Run, run_side, run_trl, take_rounds
from transformers import AutoConfig
from workloads import Workload, demo_model

PRECISION = "bf16"
"""Outscore's."""


def sides_of(work: Workload, asked: list[str]) -> list[str]:
    """Who runs: continuous batching only where all completions are equally long."""
    return [side for side in asked if work.shortest == work.longest or side in ("trl", "outscore")]


def run_workload(name: str, options: argparse.Namespace, speed: float) -> str:
    """Take the rounds that are missing; the table of all of them. `speed`: bytes a second of the memory."""
    work = workload_of(name)
    if work.demo_model:
        model = demo_model(options.keep / "demo")
    else:
        size = next(size for size in SIZES if name.endswith(f"-{size}"))
        model = random_model(options.keep / size, size)
    settings = {"trl_dtype": options.trl_dtype, "precision": PRECISION, "steps": options.steps}
    kept = Kept(options.out / f"results-{name}.json", name, key_of(model=model, **settings), anew=options.anew)
    if kept.notice:
        print(kept.notice, flush=True)

    def trl(*more: str) -> dict[str, Any]:
        return run_trl(kept, model, options.trl_dtype, options.steps, *more)

    def outscore() -> dict[str, Any]:
        found = run_side("outscore", str(model), name, str(options.steps), PRECISION)
        if work.demo_model:
            return found  # it has timed its limit, as on a CPU
        return found | {"limits": [counted_limits(AutoConfig.from_pretrained(model), work, speed, options.peak * 1e12)]}

    runs: dict[str, Run] = {"trl": trl, "trl, continuous batching": lambda: trl("batching"), "outscore": outscore}
    failed = take_rounds(kept, {side: runs[side] for side in sides_of(work, options.sides)}, options.rounds)
    return table(name, kept.record, failed)


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=["qwen-0.5b", "qwen-1.5b"])
    parser.add_argument("--workloads", nargs="+", choices=[*LARGE, "demo"], help="what is measured (all)")
    parser.add_argument("--sides", nargs="+", choices=list(NAMES), help="who runs (on a GPU all of them)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each side runs, rounds before included (2)")
    parser.add_argument("--peak", type=float, default=790.0, help="TFLOP/s that the GPU reaches in bf16 (790, an H200)")
    parser.add_argument("--keep", type=Path, default=HERE.parent / "models", help="where the models are kept (models/)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on any device: does everything run?")
    add_options(parser)
    options = parser.parse_args()
    if options.smoke:
        options.models, options.workloads = ["smoke"], options.workloads or list(SMALL)
    if options.sides is None:  # continuous batching takes half of the memory there is, which a machine shares
        options.sides = list(NAMES) if torch.cuda.is_available() else ["trl", "outscore"]
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed = bandwidth(device, 1 << (20 if options.smoke else 32))
    kinds = options.workloads or [*LARGE, "demo"]
    names = [f"{kind}-{model}" for model in options.models for kind in kinds if kind != "demo"]
    for name in [*names, *(["demo"] if "demo" in kinds else [])]:
        print(f"\n{run_workload(name, options, speed)}\n", flush=True)


if __name__ == "__main__":
    main()
