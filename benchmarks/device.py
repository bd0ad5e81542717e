"""What both sides ask of the machine: the time once all work is done, and the most memory held."""

import resource
import time

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
