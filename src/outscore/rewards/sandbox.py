"""Running programs that a model wrote, which are hostile until proved otherwise.

A `Sandbox` hands programs to wardens: processes of their own, started fresh, behind namespaces, an empty file system,
no capabilities, a system call filter and limits (`sandbox_walls`). A program gets its input and the expressions to
evaluate; what they should give stays here, so that nothing in the program's reach tells the answer, and nothing it does
to itself (patching ==, leaving early, writing results of its own) makes a wrong value right.
"""

import atexit
import contextlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

_WARDEN = Path(__file__).with_name("sandbox_warden.py")
_START_SECONDS = 60.0
_TRIES = 2  # for a program that was killed by the system, or its warden
_GRACE_SECONDS = 30.0  # beyond a program's own wall-clock limit, on a busy machine
_CONTAINERS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}

Ended = Literal["exit", "timeout", "output", "lost"]
"""How a program ended: by itself or a signal, at its limit of CPU time or the clock, at its limit of output; or it was
lost, twice, killed by a system that has no memory left, and nothing is known of it."""


class IsolationError(OSError):
    """This system does not let programs be isolated; the message says what was refused and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a program may use.

    >>> Limits(seconds=2, memory_mb=256)
    """

    seconds: float = 2.0
    """CPU time of a process, in whole seconds rounded up; the program ends after three times this by the clock."""
    memory_mb: int = 256
    """Address space of a process, in MiB; with `processes` of them a program can hold as many times this."""
    processes: int = 4
    """Processes and threads at once."""
    scratch_mb: int = 16
    """Size of /tmp, the only place that can be written to, and of any file, in MiB."""
    output_kb: int = 64
    """What it may write to its standard output, and as results, in KiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """Something to run.

    >>> Program(source="def double(x):\\n    return 2 * x", calls=("double(21)",))
    """

    source: str
    """Python source; it runs as `__main__`."""
    stdin: str = ""
    """What it reads from its standard input."""
    calls: tuple[str, ...] = ()
    """Expressions to evaluate in its namespace after it ran."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """What came of a program. All of it is the program's word: it may have written results itself.

    >>> Ran(ended="exit", code=0, stdout="", values={0: 42}, errors={})
    """

    ended: Ended
    """How it ended."""
    code: int
    """Its exit status; negative for the signal that killed it."""
    stdout: str
    """What it wrote to its standard output."""
    values: Mapping[int, Any] = field(default_factory=dict)
    """Call -> what it evaluated to, of plain types: None, numbers, text, bytes, lists, tuples, sets, dicts."""
    errors: Mapping[int, str] = field(default_factory=dict)
    """Call -> what it raised; -1 is what the program itself raised."""


class Sandbox:
    """Runs programs, several at once.

    Args:
        limits: what each program may use.
        unsafe: run programs without isolation, with nothing but limits: they can read and write whatever this user can.
        workers: how many programs run at once; by default as many as there are cores.

    Raises:
        IsolationError: from `run` and `check`, if the system cannot isolate and `unsafe` is not set.

    >>> Sandbox().run([Program(source="print(6 * 7)")])[0].stdout
    '42\\n'
    """

    def __init__(self, limits: Limits | None = None, *, unsafe: bool = False, workers: int | None = None) -> None:
        self.limits = limits or Limits()
        options = {
            "isolate": not unsafe,
            "seconds": self.limits.seconds,
            "wall_seconds": 3 * self.limits.seconds,
            "memory_bytes": self.limits.memory_mb * 2**20,
            "scratch_bytes": self.limits.scratch_mb * 2**20,
            "output_bytes": self.limits.output_kb * 2**10,
            "processes": self.limits.processes,
        }
        self._wardens: queue.SimpleQueue[_Warden] = queue.SimpleQueue()
        self._all = [_Warden(options) for _ in range(workers or num_cores())]
        for warden in self._all:
            self._wardens.put(warden)

    def check(self) -> None:
        """Start one warden; IsolationError if that cannot be."""
        warden = self._wardens.get()
        try:
            warden.start()
        finally:
            self._wardens.put(warden)

    def run(self, programs: Sequence[Program]) -> list[Ran]:
        """Run programs, each alone in a sandbox that was not used before; the results are in their order.

        Raises:
            IsolationError: if the system cannot isolate.
        """
        if len(programs) == 1:
            return [self._run(programs[0])]
        with ThreadPoolExecutor(len(self._all), thread_name_prefix="outscore-sandbox") as threads:
            return list(threads.map(self._run, programs))

    def close(self) -> None:
        """End the wardens; another run starts them again."""
        for warden in self._all:
            warden.end()

    def _run(self, program: Program) -> Ran:
        warden = self._wardens.get()
        try:
            for _ in range(_TRIES):
                answer = warden.ask(program)
                if answer is not None and answer["ended"] != "lost":
                    return _ran(answer, len(program.calls))
        finally:
            self._wardens.put(warden)
        return Ran(ended="lost", code=-signal.SIGKILL, stdout="")


@lru_cache(maxsize=8)
def shared_sandbox(limits: Limits, unsafe: bool) -> Sandbox:
    """The sandbox of this process with these limits: wardens are started once, however many rewards use them."""
    sandbox = Sandbox(limits, unsafe=unsafe)
    atexit.register(sandbox.close)
    return sandbox


def num_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Warden:
    """One warden process, started when it is needed and replaced when it is lost."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.end()
        self._process = subprocess.Popen(
            # -s -S: no packages; -P: this package's folder stays off the path. Nothing of the environment is passed on;
            # the hash seed makes the order of a set the same in every program.
            [sys.executable, "-s", "-S", "-P", str(_WARDEN), json.dumps(self._options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C is for the trainer, which finishes its step
        )
        said = self._read(_START_SECONDS)
        if said is None or "refused" in said:
            self.end()
            why = "its process does not start" if said is None else said["refused"]
            raise IsolationError(
                f"model-written code cannot be isolated on this system ({why}). It needs Linux with user namespaces; "
                "in a container allow them (or run it privileged), on Ubuntu see "
                "kernel.apparmor_restrict_unprivileged_userns. To run the code without isolation, where it can do "
                "whatever you can, say `unsafe: true`"
            )

    def ask(self, program: Program) -> dict[str, Any] | None:
        """The warden's answer; None if it was lost."""
        with self._lock:
            self.start()
            assert self._process is not None and self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps(asdict(program)).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                self.end()
                return None
            answer = self._read(self._options["wall_seconds"] + _GRACE_SECONDS)
            if answer is None:
                self.end()
            return answer

    def end(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # what was still buffered has nobody to read it
                pipe.close()
        self._process = None

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """The next line, or None at the end or when it takes too long."""
        assert self._process is not None and self._process.stdout is not None
        kept = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not kept.endswith(b"\n"):
                if not selector.select(seconds):
                    return None
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    return None
                kept += chunk
        answer: dict[str, Any] = json.loads(kept)
        return answer


def _ran(answer: Mapping[str, Any], num_calls: int) -> Ran:
    values: dict[int, Any] = {}
    errors: dict[int, str] = {}
    for line in str(answer["results"]).splitlines():
        try:
            said = json.loads(line)
            index = said.get("index", -1)
            if not isinstance(index, int) or not -1 <= index < num_calls or index in values or index in errors:
                continue
            if "error" in said:
                errors[index] = str(said["error"])
            elif index >= 0:
                values[index] = _decoded(said["value"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue  # the program wrote it, and it is no result
    return Ran(ended=answer["ended"], code=answer["code"], stdout=answer["stdout"], values=values, errors=errors)


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        raise ValueError("no value is written so")
    if not isinstance(value, list):
        return value
    kind, items = value
    if kind == "int":
        return int(items[0], 16)
    if kind == "complex":
        return complex(*items)
    if kind == "bytes":
        return bytes(items)
    if kind == "dict":
        return {_decoded(key): _decoded(each) for key, each in items}
    return _CONTAINERS[kind](_decoded(each) for each in items)
