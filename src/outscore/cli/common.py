"""What the commands share: their common arguments, and how they speak of errors."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import rich.console
import typer
from rich.text import Text

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings to change, as key=value: stages.grpo.steps=200 seed=1", metavar="key=value"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print data instead of a table.")]
RunPath = Annotated[Path | None, typer.Option("--run", help="Run directory; runs/NAME by default. It must not exist.")]
Target = Annotated[str, typer.Argument(help="A run, a checkpoint, a model directory, a .gguf file or a hub id.")]

INTERRUPTED = 130
"""Exit status of a run that was asked to stop: 128 + SIGINT."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors meant for users into one message and exit status 1, without a traceback."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        rich.console.Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def free_path(wanted: Path) -> Path:
    """The path, or the first of path-2, path-3, … that does not exist."""
    path, number = wanted, 1
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path


def print_json(data: Any) -> None:
    """What `--json` prints."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
