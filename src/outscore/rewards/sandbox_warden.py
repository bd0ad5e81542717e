"""The process that runs programs behind the walls of `sandbox_walls`: one JSON line a program in, one JSON line out.

Started as `python -s -S -P sandbox_warden.py OPTIONS` with an empty environment; imports no Outscore. It never learns
what a program should give: expected values stay with the caller. A program runs in a fork of this interpreter, so that
it starts in a millisecond, as process 1 of a namespace of its own, so that nothing outlives it.
"""

import contextlib
import gc
import importlib.util
import json
import math
import os
import selectors
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_RESULTS = 3  # the descriptor on which a program's harness answers
_CHUNK = 65536
_LONG_INTEGER = 10_000  # bits
_MODULES = ("bisect", "collections", "functools", "heapq", "itertools", "math", "random", "re", "string")
"""Imported before any program runs: a fork has them for nothing."""


def main() -> None:
    """Say `ready`, or why not; then answer until the input ends."""
    options = json.loads(sys.argv[1])
    orders, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    warden = Warden(options, orders)
    try:
        warden.prepare()
    except OSError as error:
        _write(answers, {"refused": str(error)})
        return
    gc.collect()
    gc.freeze()  # a collection in a fork need not touch, and so copy, what all forks share
    _write(answers, {"ready": True})
    for line in _lines(orders):
        _write(answers, warden.run(json.loads(line)))


class Warden:
    """Runs one program at a time.

    Args:
        options: the limits, and `isolate`.
        orders: the descriptor orders come on; when it ends in mid-program, the caller is gone.
    """

    def __init__(self, options: dict[str, Any], orders: int) -> None:
        self.options = options
        self._orders = orders
        self._walls = _sibling("sandbox_walls")
        for name in _MODULES:
            importlib.import_module(name)

    def prepare(self) -> None:
        """Build the walls. OSError where the system does not let them be built."""
        if self.options["isolate"]:
            self._walls.build()
            self._walls.fresh_scratch(self.options["scratch_bytes"], again=False)
        else:
            os.chdir(tempfile.mkdtemp(prefix="outscore-unsafe-"))
        self._try_to_enter()

    def _try_to_enter(self) -> None:
        """A program that does nothing: what fails before a program begins must not be taken for its own failure."""
        child = self._fork()
        if child == 0:
            try:
                self._enter(*(os.open(os.devnull, mode) for mode in (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)))
                os._exit(0)
            finally:
                os._exit(70)
        code, _ = self._end(child, time.monotonic() + 10)
        if code:
            raise OSError(
                f"a program's limits or its filter of system calls cannot be set (exit status {code}); perhaps the "
                "process has inherited a smaller limit: see ulimit -a -H"
            )

    def run(self, order: dict[str, Any]) -> dict[str, Any]:
        """Run one program: `source`, `stdin`, `calls` (expressions) in; how it ended, `stdout` and `results` out."""
        output, results, given = os.pipe(), os.pipe(), _file(order["stdin"])
        child = self._fork()
        if child == 0:
            try:
                self._enter(given, output[1], results[1])
                _execute(order["source"], order["calls"])
            finally:
                os._exit(70)  # only what goes wrong before the program begins comes here
        for descriptor in (output[1], results[1], given):
            os.close(descriptor)
        return self._watch(child, output[0], results[0])

    def _fork(self) -> int:
        return int(self._walls.fork_first()) if self.options["isolate"] else os.fork()

    def _enter(self, given: int, output: int, results: int) -> None:
        """In the child: only its own descriptors, its limits, its scratch space."""
        for place, descriptor in enumerate((given, output, os.open(os.devnull, os.O_WRONLY), results)):
            os.dup2(descriptor, place)
        os.closerange(_RESULTS + 1, 256)
        options = self.options
        isolated = options["isolate"]
        os.setsid()  # out of the warden's process group, which a signal to one's own group would reach
        if isolated:
            os.chdir("/tmp")
        self._walls.limit(
            cpu_seconds=math.ceil(options["seconds"]),
            memory_bytes=options["memory_bytes"],
            file_bytes=options["scratch_bytes"],
            num_processes=options["processes"] + 1 if isolated else None,  # the warden is of the same user
        )
        if isolated:
            self._walls.drop_everything()

    def _watch(self, child: int, output: int, results: int) -> dict[str, Any]:
        """Collect what the child writes until it ends, or has to be ended."""
        deadline = time.monotonic() + self.options["wall_seconds"]
        kept: dict[int, bytearray] = {output: bytearray(), results: bytearray()}
        ended = "exit"
        with selectors.DefaultSelector() as selector:
            for descriptor in (output, results, self._orders):
                os.set_blocking(descriptor, descriptor == self._orders)
                selector.register(descriptor, selectors.EVENT_READ)
            ending = os.pidfd_open(child) if hasattr(os, "pidfd_open") else None
            if ending is not None:
                selector.register(ending, selectors.EVENT_READ)
            while True:
                left = deadline - time.monotonic()
                ready = [key.fd for key, _ in selector.select(max(left, 0.0))]
                if self._orders in ready:  # orders come one at a time: this is the end of the caller
                    self._end(child, 0.0)
                    os._exit(0)
                for descriptor in (output, results):
                    if descriptor in ready and not _read_on(descriptor, kept[descriptor]):
                        selector.unregister(descriptor)
                if any(len(each) > self.options["output_bytes"] for each in kept.values()):
                    ended = "output"
                elif not ready and left <= 0:
                    ended = "timeout"
                if ended != "exit" or ending in ready or (ending is None and len(selector.get_map()) == 1):
                    break
        code, cpu_seconds = self._end(child, deadline if ended == "exit" else 0.0)
        if ended == "exit" and code == -signal.SIGKILL:
            ended = self._killed(cpu_seconds)
        if ending is not None:
            os.close(ending)
        for descriptor in (output, results):  # what was still in the pipes
            while len(kept[descriptor]) <= self.options["output_bytes"] and _read_on(descriptor, kept[descriptor]):
                pass
            os.close(descriptor)
        self._tidy()
        return _answer(ended, code, kept[output][: self.options["output_bytes"]], kept[results])

    def _killed(self, cpu_seconds: float) -> str:
        """Who killed a child that was not ended here: its limit of CPU time, or a system without memory. Only without
        isolation can it have been the program itself."""
        # A program may lower its own limit, to one second at the least; the kernel's clock for it is a coarse one.
        if cpu_seconds > 0.8 * min(self.options["seconds"], 1.0):
            return "timeout"
        return "lost" if self.options["isolate"] else "exit"

    def _end(self, child: int, deadline: float) -> tuple[int, float]:
        """The child's exit status, negative for a signal, and its CPU time; killed with all it started if it is not
        done in time."""
        if child == 0:
            os._exit(0)
        while time.monotonic() < deadline:
            pid, status, used = os.wait4(child, os.WNOHANG)
            if pid:
                break
            time.sleep(0.001)
        else:
            os.kill(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
        if not self.options["isolate"]:
            with contextlib.suppress(OSError):  # nothing is left of its group
                os.killpg(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime

    def _tidy(self) -> None:
        """An empty scratch space for the next program, on which the one before has written nothing, in no way."""
        if not self.options["isolate"]:
            return
        if os.listdir("/tmp") or os.listxattr("/tmp") or os.stat("/tmp").st_mode & 0o777 != 0o700:
            self._walls.fresh_scratch(self.options["scratch_bytes"], again=True)
        os.utime("/tmp", (0, 0))


def _execute(source: str, calls: list[str]) -> None:
    """In the child: run the program, then evaluate the calls in its namespace, and end the process."""
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.argv = ["program"]
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    code = 0
    try:
        exec(compile(source, "<program>", "exec"), namespace)
        for index, call in enumerate(calls):
            _send(_RESULTS, _called(index, call, namespace))
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException as error:  # whatever a program raises is its result
        code = 1
        _write(_RESULTS, {"error": _named(error)})
    try:
        sys.stdout.flush()
    finally:
        os._exit(code & 0xFF)


def _called(index: int, call: str, namespace: dict[str, Any]) -> bytes:
    """What a call gives, or raises, as it is sent."""
    try:
        return _line({"index": index, "value": encoded(eval(compile(call, "<call>", "eval"), namespace))})
    except Exception as error:
        return _line({"index": index, "error": _named(error)})


def _named(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:  # its own __str__ raises
        return type(error).__name__


def encoded(value: Any) -> Any:
    """A value of plain types as JSON: scalars as they are, containers as [kind, items]. TypeError for anything else."""
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        # Python writes no decimal number of more than some thousand digits.
        return value + 0 if value.bit_length() < _LONG_INTEGER else ["int", [hex(value)]]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, bytes):
        return ["bytes", list(value)]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [encoded(each) for each in value]]
    if isinstance(value, dict):
        return ["dict", [[encoded(key), encoded(each)] for key, each in value.items()]]
    raise TypeError(f"a {type(value).__name__} is no plain value")


def _answer(ended: str, code: int, output: bytearray, results: bytearray) -> dict[str, Any]:
    return {
        "ended": ended,
        "code": code,
        "stdout": output.decode("utf-8", errors="replace"),
        "results": results.decode("utf-8", errors="replace"),
    }


def _read_on(descriptor: int, kept: bytearray) -> bool:
    """Read what there is; False at the end, and where nothing is there and nothing is waited for."""
    try:
        chunk = os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return False
    kept += chunk
    return bool(chunk)


def _file(text: str) -> int:
    """A descriptor from which the text can be read."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("stdin")
    else:
        with tempfile.TemporaryFile() as made:
            descriptor = os.dup(made.fileno())
    with open(descriptor, "wb", closefd=False) as file:
        file.write(text.encode("utf-8", errors="replace"))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _lines(descriptor: int) -> Any:
    kept = bytearray()
    while _read_on(descriptor, kept):
        while (end := kept.find(b"\n")) >= 0:
            line = bytes(kept[:end])
            del kept[: end + 1]
            yield line


def _write(descriptor: int, message: dict[str, Any]) -> None:
    _send(descriptor, _line(message))


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _send(descriptor: int, line: bytes) -> None:
    data = memoryview(line)
    while data:
        data = data[os.write(descriptor, data) :]


def _sibling(name: str) -> Any:
    """A module beside this one, whose folder is kept off the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
