"""A worker process as its supervisor sees it: calls go out, and each answer has a deadline."""

import contextlib
import json
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from outscore.rewards.worker import HEADER

START_SECONDS = 120.0
"""How long a worker may take to import the reward: sympy or torch, on a busy machine."""
MOST_BYTES = 64 * 2**20
"""The longest answer: what `log_extra` keeps goes with it."""
OUTPUT_BYTES = 2000
"""How much of the end of what a reward prints is kept."""
_CHUNK = 1 << 16
_GLANCE_SECONDS = 0.2  # how often it is looked at while it is waited for


class WorkerFault(Exception):
    """A worker that did not answer: `reason` is what happened to it, None if its time was up."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason or "its time was up")
        self.reason = reason


class CannotLoad(Exception):
    """The worker runs, and cannot load the reward."""


class WorkerProcess:
    """A fresh Python process that has loaded a reward. `send` calls, take an `answer` each, and `end` it after any
    fault.

    What the reward prints is read and dropped, but for its end: a flood neither blocks the worker nor fills memory.

    Args:
        parcel: the reward as `outscore.rewards.travel` packs it.
        memory_bytes: the worker's limit of memory.

    Raises:
        CannotLoad: if the reward cannot be loaded there.
        WorkerFault: if the process ends or hangs before it is ready.
    """

    def __init__(self, parcel: bytes, *, memory_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        path = [place for place in sys.path if isinstance(place, str)]
        program = (
            f"import sys; sys.path[:] = {path!r}\n"
            f"from outscore.rewards.worker import main; main({theirs.fileno()}, {os.getpid()})"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the trainer, which finishes its step
            )
        assert self._process.stdout is not None
        self._channel, self._output = ours, self._process.stdout
        self._printed = b""
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self._selector = selectors.DefaultSelector()
        for stream in (ours, self._output):
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ)
        self._memory_bytes, self._next_glance = memory_bytes, 0.0
        setup = {"parcel": parcel, "memory_bytes": memory_bytes}
        try:
            self.send(pickle.dumps(setup))
            answer = json.loads(self.answer(START_SECONDS))
            if "failed" in answer:
                raise CannotLoad(answer["failed"])
        except BaseException:
            self.end()
            raise

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def printed(self) -> str:
        """The end of what it has printed."""
        return self._printed.decode("utf-8", "replace").strip()

    def send(self, message: bytes) -> None:
        """Send a message, as far as there is room; `answer` goes on with it."""
        self._unsent = memoryview(HEADER.pack(len(message)) + message)

    def answer(self, seconds: float) -> bytes:
        """Wait for the next answer.

        Raises:
            WorkerFault: if the process ends, or has not answered after so many seconds. It is then of no further use.
        """
        deadline = time.monotonic() + seconds
        while (answer := self._next()) is None:
            self._go_on_sending()
            left = deadline - time.monotonic()
            if left <= 0:
                raise WorkerFault(None)
            self._glance()
            for key, _ in self._selector.select(min(left, _GLANCE_SECONDS)):
                if key.fileobj is self._output:
                    self._drain()
                else:
                    self._receive()
        return answer

    def kill(self) -> None:
        """Kill the process and what it started; whoever waits for an answer gets a WorkerFault."""
        # Its number is its group's, and nobody else's as long as one of them lives or it has not been waited for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the process and what it started, and free what it held here."""
        self.kill()
        self._process.wait()
        self._selector.close()
        self._channel.close()
        self._output.close()

    def _glance(self) -> None:
        """Now and then see what memory the process shares. WorkerFault if it is more than its limit."""
        if time.monotonic() < self._next_glance:
            return
        self._next_glance = time.monotonic() + _GLANCE_SECONDS
        if (held := shared_bytes(self.pid)) > self._memory_bytes:
            raise WorkerFault(f"shares {held / 2**30:.1f} GiB of memory")

    def _go_on_sending(self) -> None:
        """Send what fits, and be woken when there is room for more."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._channel.send(self._unsent[:_CHUNK]) :]
        except BlockingIOError:
            pass
        except OSError:
            raise WorkerFault(self._how_it_ended()) from None
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if self._selector.get_key(self._channel).events != wanted:
            self._selector.modify(self._channel, wanted)

    def _receive(self) -> None:
        """Take what has arrived."""
        try:
            part = self._channel.recv(_CHUNK)
        except BlockingIOError:  # woken because there is room to send
            return
        except OSError:
            part = b""
        if not part:
            raise WorkerFault(self._how_it_ended())
        self._received += part

    def _next(self) -> bytes | None:
        """The next whole answer among what has arrived."""
        if len(self._received) < HEADER.size:
            return None
        (size,) = HEADER.unpack_from(self._received)
        if size > MOST_BYTES:
            raise WorkerFault(f"logged more than {MOST_BYTES // 2**20} MiB")
        end = HEADER.size + size
        if len(self._received) < end:
            return None
        answer = bytes(self._received[HEADER.size : end])
        del self._received[:end]
        return answer

    def _drain(self) -> None:
        part: Any = self._output.read(_CHUNK)
        if part:
            self._printed = (self._printed + part)[-OUTPUT_BYTES:]
        elif part == b"":  # the reward has closed its output
            self._selector.unregister(self._output)

    def _how_it_ended(self) -> str:
        """What became of a process that no longer answers."""
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "closed the connection of its worker process"
        for _ in range(OUTPUT_BYTES):  # a child that it left may still print
            if self._output not in self._selector.get_map() or not self._selector.select(0):
                break
            self._drain()
        if code >= 0:
            return f"ended its worker process with exit code {code}"
        names = {each.value: each.name for each in signal.Signals}
        return f"ended its worker process by {names.get(-code, f'signal {-code}')}"


def shared_bytes(pid: int) -> int:
    """Memory that a process holds and could share with others, which no limit of its own counts; 0 where that cannot be
    told (only Linux does)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    shared = status.partition("RssShmem:")[2].split()
    return int(shared[0]) * 1024 if shared else 0
