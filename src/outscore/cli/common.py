"""What the commands share: their common arguments, and how they speak of errors."""

import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import rich.console
import typer
import typer.core
from rich.text import Text

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings to change, as key=value: stages.grpo.steps=200 seed=1", metavar="key=value"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print data instead of a table.")]
RunPath = Annotated[Path | None, typer.Option("--run", help="Run directory; runs/NAME by default. It must not exist.")]
Target = Annotated[str, typer.Argument(help="A run, a checkpoint, a model directory, a .gguf file or a hub id.")]

TRACEBACK = "OUTSCORE_TRACEBACK"
"""The environment variable that lets a command print the traceback of an error, if it is not empty."""
INTERRUPTED = 130
"""Exit status of a run that was asked to stop: 128 + SIGINT."""


class _PlainFlags:
    """Mixed into a command: its help says `--json`, not `--json <bool>`, as if a value had to follow."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters, those without a value without a type."""
        params = super().get_params(ctx)  # type: ignore[misc]  # of the command it is mixed into
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Command(_PlainFlags, typer.core.TyperCommand):
    """A command of `outscore`."""


class CommandGroup(_PlainFlags, typer.core.TyperGroup):
    """`outscore` itself."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors meant for users into one message and exit status 1; a traceback comes before it where the environment
    asks for one."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
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
