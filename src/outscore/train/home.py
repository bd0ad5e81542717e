"""The directory that a run was started in: what its recipe's relative paths mean, from wherever the run is used.

It is kept relative to the run directory, so that a project can be moved as a whole, and runs of one project can be
compared byte for byte.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from outscore.report import RunDirectory
from outscore.report.run import FACTS
from outscore.stage_parts import POLICY
from outscore.stages import BASE, PREVIOUS

WORKING_DIRECTORY = "working_directory"
"""Its key among what a run keeps of how it began."""
_PATHS = ("path", "eval_path", "hub", "source", "teacher", "samples_from", "start")
"""Keys of a recipe whose value is, or may be, a path."""


def working_directory(run: Path) -> str:
    """The working directory as a run in this directory keeps it."""
    return os.path.relpath(Path.cwd(), run.resolve())


def home_of(run: Path, config: Mapping[str, Any]) -> Path | None:
    """Where a run with this configuration was started; None where that is here, is not known or is no more."""
    recorded = config.get(FACTS, {}).get(WORKING_DIRECTORY)
    found = None if recorded is None else (run.resolve() / recorded).resolve()
    return found if found is not None and found.is_dir() and found != Path.cwd() else None


@contextlib.contextmanager
def at_home(run: Path) -> Iterator[Path]:
    """Within, the process works in the directory that a run was started in; yields the run's path from there.

    Raises:
        ValueError: if there is no run.
    """
    home = home_of(run, RunDirectory.open(run).config())
    if home is None:
        yield run
        return
    absolute = run.absolute()
    with contextlib.chdir(home):
        yield absolute


def located(config: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """A run's configuration with the paths that lead to something from its home made absolute."""
    stages = [stage.get("name") or stage["algorithm"] for stage in config.get("stages", [])]
    words = {"", BASE, PREVIOUS, POLICY, "tiny", *stages}

    def moved(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [moved(each) for each in value]
        if not isinstance(value, str) or value in words or not (home / value).exists():
            return value
        return str(home / value)

    def code(value: Any) -> Any:
        """`file.py:function` with the file's path; anything else as it is."""
        place, colon, function = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        return f"{moved(place)}:{function}" if colon and place.endswith(".py") else value

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: moved(each) if key in _PATHS else walk(each) for key, each in value.items()}
        return [walk(each) for each in value] if isinstance(value, list | tuple) else code(value)

    return {key: walk(value) for key, value in config.items()}
