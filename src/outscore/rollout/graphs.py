"""A step that is called again and again, recorded once on a GPU and replayed from then on.

To launch the kernels of a small step one by one takes the host longer than the GPU takes to run them. A CUDA graph is
the same sequence of kernels on the same memory, launched in one go. What is recorded must therefore be static: nothing
in it may look at a number, wait for the device, or depend on anything of the host's that changes.
"""

import logging
from collections.abc import Callable
from contextlib import suppress

import torch

Step = Callable[[], None]

logger = logging.getLogger(__name__)


class Graphs:
    """Records steps on a CUDA device, one after the other: they share memory, so only the latest may be replayed.

    Whoever cannot record goes on without: `refused` then says why, once in the log too.
    """

    def __init__(self) -> None:
        self.refused: str | None = None
        """Why nothing is recorded any more; None while all goes well."""
        self.num_recorded = 0
        """Steps recorded so far."""
        if torch.__version__ < "2.12":  # there a recording that fails leaves the allocator unusable
            self.refused = f"CUDA graphs need PyTorch 2.12, and this is {torch.__version__}"
        self._latest: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None

    def record(self, step: Step) -> Step | None:
        """What does the same as the step from now on, or None. The step is not run by this, and must have been before:
        kernels are loaded, and memory that stays is taken, by the first call."""
        if self.refused is not None:
            return None
        try:
            graph = self._capture(step)
        except RuntimeError as error:
            self.refused = f"a decoding step cannot be recorded as a CUDA graph: {error}"
            logger.warning("%s; decoding goes on kernel by kernel, with the same results", self.refused)
            return None
        self.num_recorded += 1
        self._latest = graph
        return graph.replay

    def release(self) -> None:
        """Give the memory of the latest recording back; it is not to be replayed any more."""
        self._latest = None

    def _capture(self, step: Step) -> torch.cuda.CUDAGraph:
        # Not by `torch.cuda.graph`, which empties the allocator's cache each time. Other threads may use the device.
        self._stream = self._stream or torch.cuda.Stream()
        graph, now = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(
                pool=None if self._latest is None else self._latest.pool(), capture_error_mode="thread_local"
            )
            try:
                step()
            except BaseException:
                with suppress(RuntimeError):  # which only says that it was not to be
                    graph.capture_end()
                raise
            graph.capture_end()
        now.wait_stream(self._stream)
        return graph


class Repeated:
    """A static step: runs as it is the first time, is recorded the second, and replayed from then on, if it can be."""

    def __init__(self, step: Step, graphs: Graphs | None) -> None:
        self._step = step
        self._graphs = graphs
        self._replay: Step | None = None
        self._has_run = False

    def __call__(self) -> None:
        """Take the step once more."""
        if self._replay is None and self._has_run and self._graphs is not None:
            self._replay = self._graphs.record(self._step)
            self._graphs = None  # it works, or it does not
        self._has_run = True
        (self._replay or self._step)()
