"""The progress bar of a study, on standard error: standard output is for the result."""

from collections.abc import Iterator
from contextlib import contextmanager

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from outscore.studies import records


@contextmanager
def progress_bar(console: rich.console.Console | None = None) -> Iterator[records.Progress]:
    """A bar that shows what it is told, and is gone when the block ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    out = console or rich.console.Console(stderr=True)
    with Progress(*columns, console=out, transient=True) as bars:
        task = bars.add_task("", total=None)

        def show(part: str, done: int, total: int) -> None:
            bars.update(task, description=part, completed=done, total=total)

        yield show
