"""What is kept of a benchmark, and when a later call may go on from it.

A file holds the records of a workload, each under the key of what was measured: machine, versions, sources, model and
settings. A call goes on from the record of its own key, and begins one where there is none, so that no figure stands
for what it is not of. `unknown` in a key is what nobody wrote down, and no call's own.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import outscore

HERE = Path(__file__).parent
UNKNOWN = "unknown"
MEASURING = ("device", "gpu_limits", "gpu_workloads", "limit", "outscore_side", "trl_side", "workloads")
"""The modules here that run in a side's process, or say what a figure is held against."""

Record = dict[str, Any]
"""`key`; `commit` (said, not compared); `rounds`: side -> a list of steps for each round; `limits`; `trial`: TRL's
precisions -> seconds."""


def processor() -> str:
    """The name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def key_of(*, model: Path, **settings: Any) -> dict[str, Any]:
    """What must be the same for figures to stand together; `settings` are the call's own, such as steps."""
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "trl")},
        "sources": digest_of_sources(),
        "model": hashlib.sha256((model / "config.json").read_bytes()).hexdigest(),
        **settings,
    }


def version(package: str) -> str:
    """Its release, or that it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def digest_of_sources() -> str:
    """Of every module of Outscore and of those here that measure. The commit alone would pass over what is not
    committed yet, and would change with every line of a document."""
    package = Path(outscore.__file__).parent
    digest = hashlib.sha256()
    for path in (*sorted(package.rglob("*.py")), *(HERE / f"{name}.py" for name in MEASURING)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def commit() -> str:
    """The commit of these files, with `-dirty` where they differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def read(file: Path) -> list[Record] | None:
    """The records in a file; None for a file of another kind."""
    found = json.loads(file.read_text())
    return found.get("measured") if isinstance(found, dict) else None


class Kept:
    """The records of a workload in a file, and the one that a call goes on from."""

    def __init__(self, file: Path, workload: str, key: Mapping[str, Any], *, anew: bool = False) -> None:
        """`anew` forgets what was measured under this key."""
        self.file, self.workload = file, workload
        there = read(file) if file.is_file() else []
        if there is None:
            sys.exit(f"{file} holds no records of `make bench`: move it away, or name another directory with --out")
        self.records = [record for record in there if not (anew and record["key"] == key)]
        own = [record for record in self.records if record["key"] == key]
        self.record: Record = own[0] if own else {"key": dict(key), "commit": commit(), "rounds": {}, "limits": []}
        """The one of this key, new if there was none; it is written by `save`."""
        if not own:
            self.records.append(self.record)
        self.notice = "" if own or not there else f"{file.name}: {_other(there[-1]['key'], key)}; begun anew"
        """Why figures that are there are not gone on from."""

    def save(self) -> None:
        """Write all records."""
        self.file.write_text(json.dumps({"workload": self.workload, "measured": self.records}, indent=1) + "\n")


def _other(there: Mapping[str, Any], key: Mapping[str, Any]) -> str:
    differing = [name for name in key if there.get(name, UNKNOWN) != key[name]]
    return f"what is there is of other {', '.join(differing)}" if differing else "what was there is forgotten"
