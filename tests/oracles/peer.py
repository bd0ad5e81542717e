"""Lines of another library's long methods, run on given tensors."""

import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any


def run_lines(method: Callable[..., Any], first: str, last: str, known: dict[str, Any]) -> None:
    """Run the source lines of `method` from the one that has `first` in it to before the next that has `last`, among
    its module's names and `known`, into which they write. ValueError where such lines are not there."""
    lines = inspect.getsource(method).splitlines()
    begins = [place for place, line in enumerate(lines) if first in line]
    ends = [place for place, line in enumerate(lines) if last in line and begins and place > begins[0]]
    if not begins or not ends:
        raise ValueError(f"{method.__qualname__} has no lines from {first!r} to {last!r}")
    code = textwrap.dedent("\n".join(lines[begins[0] : ends[0]]))
    exec(code, {**vars(sys.modules[method.__module__])}, known)
