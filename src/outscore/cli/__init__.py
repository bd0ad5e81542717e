"""The `outscore` command: parse, build a configuration, make one call."""

import os
from collections.abc import Callable

import typer

from outscore.cli.common import Command, CommandGroup
from outscore.cli.looking import chat, evaluate, score, show
from outscore.cli.making import export, fetch, init, label
from outscore.cli.methods import STUDIES_IN_A_LINE, algorithms, reproduce
from outscore.cli.planning import plan
from outscore.cli.searching import search
from outscore.cli.training import check, demo, resume, train

app = typer.Typer(
    name="outscore",
    cls=CommandGroup,
    help="Post-train language models by reinforcement: sample a group of completions for each prompt, score them, "
    "and make those that outscore their group more likely.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "resume": resume,
    "check": check,
    "plan": plan,
    "eval": evaluate,
    "search": search,
    "score": score,
    "show": show,
    "chat": chat,
    "fetch": fetch,
    "export": export,
    "init": init,
    "label": label,
    "reproduce": reproduce,
    "algorithms": algorithms,
}
"""In the order in which `--help` shows them."""
EPILOGS = {"reproduce": STUDIES_IN_A_LINE}

for name, command in COMMANDS.items():
    app.command(name, cls=Command, epilog=EPILOGS.get(name))(command)


def main() -> None:
    """Entry point of the command."""
    # A step makes and frees large tensors. On huge pages they cost a sixth of the page faults and, where Linux has them
    # at "madvise", half the system time; torch reads this when it is imported, and allocates as before without it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    app()
