"""The process behind the reward `math_verify`: one JSON line [gold, text] in, one JSON verdict out. Imports no
Outscore."""

import json
import logging
import sys
from typing import Any

import math_verify

MEMORY_BYTES = 4 * 2**30
"""Limit of the process: 9**9**9 must cost a completion, not the machine."""


def main() -> None:
    """Answer until the input ends."""
    limit_memory()
    logging.disable(logging.CRITICAL)  # one warning a call that time limits are off
    answers = sys.stdout
    sys.stdout = sys.stderr  # nothing a library prints may pass for a verdict
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        gold, text = json.loads(line)
        print(json.dumps(verdict(gold, text)), file=answers, flush=True)


def verdict(gold: str, text: str) -> str:
    """`equal`, `different`, or `no_gold` where the gold answer is no mathematics."""
    expected = parsed(gold) or parsed(f"${gold}$")
    if not expected:
        return "no_gold"
    found = parsed(text)
    try:
        same = math_verify.verify(expected, found, timeout_seconds=None)
    except (MemoryError, RecursionError):
        return "gave_up"
    return "equal" if same else "different"


def parsed(text: str) -> list[Any]:
    """The first mathematical value in a text, the last \\boxed{} before others; empty if there is none."""
    found: list[Any] = math_verify.parse(
        text, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None
    )
    return found


def limit_memory() -> None:
    """Apply MEMORY_BYTES where the system can."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (OSError, ValueError):  # macOS refuses
        return


if __name__ == "__main__":
    main()
