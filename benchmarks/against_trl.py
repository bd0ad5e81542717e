"""TRL and Outscore in turn on the same work: python benchmarks/against_trl.py MODEL [--workloads short …] [--rounds 3].

`make bench`. Without --workloads, all of the table in turn. Each round runs each side once (`rounds`); TRL computes in
the precision that a short timing finds fastest for it. Figures are written after every run of a side, as JSON, and a
later call with the same key goes on from them (`kept`; --anew forgets them). Beside Outscore's times stands the limit:
the matrix products of such a step alone, timed in the same process, and the share of it that is reached.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from comparison import table
from kept import HERE, Kept, key_of
from needed import missing
from rounds import CLASSES, run_side, run_trl, take_rounds
from workloads import WORKLOADS, demo_model


def run_workload(name: str, options: argparse.Namespace) -> str:
    """Take the rounds that are missing; the table of all of them."""
    own = WORKLOADS[name].demo_model
    model = demo_model(options.out / "demo-model") if own else Path(options.model)
    settings = {"trl_dtype": options.trl_dtype, "precision": options.precision, "steps": options.steps}
    kept = Kept(options.out / f"results-{name}.json", name, key_of(model=model, **settings), anew=options.anew)
    if kept.notice:
        print(kept.notice, flush=True)

    def trl() -> dict[str, Any]:
        return run_trl(kept, model, options.trl_dtype, options.steps)

    def outscore() -> dict[str, Any]:
        return run_side("outscore", str(model), name, str(options.steps), options.precision)

    failed = take_rounds(kept, {"trl": trl, "outscore": outscore}, options.rounds)
    return table(name, kept.record, failed)


def at_least_two(text: str) -> int:
    """A number of steps; the first does not count."""
    if int(text) < 2:
        raise argparse.ArgumentTypeError("at least 2, since the first does not count")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What both benchmarks can be told."""
    parser.add_argument("--steps", type=at_least_two, default=3, help="steps of a process, the first not counted (3)")
    parser.add_argument(
        "--trl-dtype", choices=("auto", *CLASSES), default="auto", help="TRL's precision (auto: its fastest)"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="where the figures go (default: benchmarks/)")
    parser.add_argument("--anew", action="store_true", help="forget what was measured before under the same key")


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a local model directory, such as models/smollm2-135m")
    standard = [name for name in WORKLOADS if not name.startswith("smoke")]
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=standard)
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs, rounds before included (3)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="Outscore's (auto)")
    add_options(parser)
    options = parser.parse_args()
    if lacking := missing(options.model, options.workloads):
        sys.exit(lacking)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.workloads:
        print(f"\n{run_workload(name, options)}\n", flush=True)


if __name__ == "__main__":
    main()
