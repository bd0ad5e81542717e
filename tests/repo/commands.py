"""The command line as data."""

from collections.abc import Iterator
from typing import Any

import typer


def command_tree() -> Any:
    """The root command of `outscore`."""
    from outscore.cli import app

    return typer.main.get_command(app)


def command_names() -> set[str]:
    """First words after `outscore`."""
    return set(command_tree().commands)


def options(command: Any = None, path: str = "outscore") -> Iterator[str]:
    """One line for each argument and option of each command: `outscore train RECIPE`, `outscore train --json`."""
    command = command_tree() if command is None else command
    for param in command.params:
        spellings = [*param.opts, *param.secondary_opts]
        if param.param_type_name == "argument":
            yield f"{path} {param.name.upper()}"
        elif "--help" not in spellings:
            yield f"{path} {' / '.join(spellings)}"
    for name, child in getattr(command, "commands", {}).items():
        yield from options(child, f"{path} {name}")
