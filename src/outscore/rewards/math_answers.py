"""math-verify as a reward that works in any thread and cannot hang.

Its own time limits use a signal that only a main thread may set, and some inputs hang with them anyhow. Here it runs
in a process of its own with its limits off; the guard is on this side: no answer in time, and the process is ended.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outscore.rewards.answers import tag_content
from outscore.rewards.contract import completion_text

_START_SECONDS = 120.0  # importing sympy on a busy machine
_WORKER = Path(__file__).with_name("math_worker.py")


def require_math_verify() -> None:
    """ImportError naming the extra if math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError("the reward 'math_verify' needs math-verify: pip install 'outscore[math]'")


def math_rewards(
    completions: Sequence[Any],
    answer: Sequence[str | None],
    log_metric: Callable[[str, float], None],
    seconds: float,
    **_: Any,
) -> list[float | None]:
    """1 or 0 for each completion, None where the gold answer is missing or cannot be parsed."""
    rewards: list[float | None] = []
    for completion, gold in zip(completions, answer, strict=True):
        verdict = None if gold is None else _VERIFIER.verify(gold, answer_part(completion_text(completion)), seconds)
        log_metric("math_verify/gave_up", float(verdict == "gave_up"))
        rewards.append(None if verdict in (None, "no_gold") else float(verdict == "equal"))
    return rewards


def answer_part(text: str) -> str:
    """What math-verify is to look at: what is inside the last <answer> tag, since it takes the tag for mathematics."""
    inside = tag_content(text)
    return text if inside is None else inside


class Verifier:
    """A worker process that answers `equal`, `different` or `no_gold`, and is replaced when it does not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def verify(self, gold: str, text: str, seconds: float) -> str:
        """Compare; `gave_up` if it takes longer than `seconds` or ends the worker (memory).

        Raises:
            RuntimeError: if the worker cannot be started.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._process is not None and self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps([gold, text]) + "\n")
                self._process.stdin.flush()
                answer = self._lines.get(timeout=seconds)
            except (queue.Empty, BrokenPipeError):
                answer = None
            if answer is None:
                self._end()
                return "gave_up"
            return str(json.loads(answer))

    def close(self) -> None:
        """End the worker; the next question starts another."""
        with self._lock:
            self._end()

    def _start(self) -> None:
        self._end()
        self._lines = queue.SimpleQueue()
        self._process = subprocess.Popen(
            # -P: the worker's own folder stays off its path, where modules of this package would hide others.
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=os.name == "posix",  # Ctrl-C is for the trainer, which finishes its step
        )
        threading.Thread(target=_pump, args=(self._process, self._lines), daemon=True).start()
        try:
            ready = self._lines.get(timeout=_START_SECONDS)
        except queue.Empty:
            ready = None
        if ready is None:
            self._end()
            raise RuntimeError("the math-verify worker does not start: try `python -c 'import math_verify'`")

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what was still buffered has nobody to read it
            self._process.stdin.close()
        self._process = None


def _pump(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str | None]") -> None:
    """Hand the worker's lines on, and None when it has ended."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)


_VERIFIER = Verifier()
atexit.register(_VERIFIER.close)
