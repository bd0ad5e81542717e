"""What both sides ask of the machine: the time once all work is done, the most memory held, and what a GPU ran."""

import resource
import time
from collections.abc import Mapping
from typing import Any

import torch


def now() -> float:
    """Seconds by a clock that waits for the GPU, if there is one: what was asked of it before is then done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes() -> int:
    """The most memory held since the process began: of the GPU by tensors, if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def paths_taken(facts: Mapping[str, Any], sampler: Any) -> dict[str, Any]:
    """Which kernels a GPU really ran: what attended training rows, and whether decoding steps were recorded."""
    graphs = getattr(sampler, "graphs", None)  # the sampler of models that cannot take group rows has none
    return {
        "attention": facts.get("attention_probe", "attention of the model's own"),
        "graphs_refused": "no sampler that records CUDA graphs" if graphs is None else graphs.refused,
        "graphs_recorded": 0 if graphs is None else graphs.num_recorded,
    }
