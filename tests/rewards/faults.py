"""A reward file that does everything a reward should not: what goes wrong stands in the completion, or in a table."""

SOURCE = '''
import asyncio, ctypes, json, os, pathlib, signal, sys, time

TABLE = pathlib.Path(__file__).with_name("table.json")
FAULTS = json.loads(TABLE.read_text()) if TABLE.exists() else {}


def value(text):
    """What a healthy call gives."""
    return len(text) + sum(map(ord, text)) / 1000


def act(kind):
    """Do what a fault does; what it returns, if anything, stands for the value."""
    if kind == "raise":
        return 1 / 0
    if kind == "exit":
        sys.exit(3)
    if kind == "os_exit":
        os._exit(7)
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    if kind == "loop":
        while True:
            pass
    if kind == "sleep":
        time.sleep(600)
    if kind == "allocate":
        return len(bytearray(8 << 30))
    if kind == "nan":
        return float("nan")
    if kind == "unpicklable":
        return lambda: 1.0
    if kind == "endless_output":
        while True:
            os.write(1, b"x" * (1 << 20))
    if kind == "output":
        for _ in range(32):
            os.write(1, b"x" * (1 << 20))
    if kind == "slow":
        time.sleep(0.3)
    return None


def one(text, kind):
    done = act(kind)
    return value(text) if done is None else done


def faulty(prompts, completions, **columns):
    kinds = [FAULTS.get(f"{prompt}|{text}", text) for prompt, text in zip(prompts, completions)]
    values = [one(text, kind) for text, kind in zip(completions, kinds)]
    return values + [0.0] * kinds.count("wrong_length")


async def faulty_async(prompts, completions, **columns):
    await asyncio.sleep(0)
    if completions == ["async_sleep"]:
        await asyncio.sleep(600)
    return faulty(prompts, completions)
'''


def _line(text: str) -> int:
    """The line of the source that has this in it."""
    [found] = [number for number, line in enumerate(SOURCE.splitlines(), start=1) if text in line]
    return found


REASONS = {
    "raise": f"raised ZeroDivisionError: division by zero at faulty.py:{_line('1 / 0')}",
    "exit": "called sys.exit(3)",
    "os_exit": "ended its worker process with exit code 7",
    "segfault": "ended its worker process by SIGSEGV",
    "signal": "ended its worker process by SIGTERM",
    "loop": "took longer than 2 s",
    "sleep": "took longer than 2 s",
    "allocate": f"raised MemoryError:  at faulty.py:{_line('8 << 30')}",
    "nan": "returned nan",
    "wrong_length": "returned 2 values for a batch of 1 completion, and must return one for each",
    "endless_output": "took longer than 2 s",
}
"""Fault -> what is said of it."""

HARMLESS = ("slow", "output")
"""What costs time and no score."""

SECONDS = 2
"""The time limit that the faults are tested with: long for a healthy call on a slow machine, short for the tests."""


def value(text: str) -> float:
    """What a healthy call gives."""
    return len(text) + sum(map(ord, text)) / 1000
