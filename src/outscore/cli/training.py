"""Commands that train, and that try whether training can begin."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import rich.console
import typer
from rich.table import Table
from rich.text import Text

from outscore.cli.common import INTERRUPTED, AsJson, Overrides, RunPath, explained, free_path, print_json


def demo(
    overrides: Overrides = None,
    run: RunPath = None,
) -> None:
    """Train a small model from nothing to good arithmetic in a few minutes: SFT on demonstrations, then GRPO.

    Nothing is downloaded. It is a recipe like any other; `outscore init` writes one to start from.
    """
    from importlib.resources import files

    with explained():
        recipe = files("outscore") / "recipes" / "demo.yaml"
        _train(str(recipe), overrides, run or free_path(Path("runs") / "demo"))


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file (YAML).")],
    overrides: Overrides = None,
    run: RunPath = None,
) -> None:
    """Run a recipe: its stages in order, with evaluation, checkpoints and every completion kept."""
    with explained():
        _train(recipe, overrides, run)


def resume(run: Annotated[Path, typer.Argument(help="The run directory.")]) -> None:
    """Go on with a run from its newest sound checkpoint, exactly as if it had never stopped."""
    with explained():
        from outscore.report import Console
        from outscore.train.run import resume as go_on

        with _training(run):
            result = go_on(run, console=Console(title=str(run)))
        if not result.finished:
            raise typer.Exit(INTERRUPTED)


def check(
    recipe: Annotated[str, typer.Argument(help="A recipe file (YAML), or a file of rewards (.py).")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Try everything a run depends on before it spends time: data, template, stop tokens, lengths, rewards,
    variance.

    A file of rewards is tried on its own EXAMPLES: outscore check my_reward.py
    """
    with explained():
        from outscore.config import load_recipe
        from outscore.train.check import Finding, check_recipe, check_reward_file

        findings: list[Finding] = []

        if recipe.endswith(".py"):
            if overrides:
                raise ValueError(f"{recipe} is no recipe, and has no settings to change: {overrides[0]!r}")
            findings = check_reward_file(recipe)
        else:
            checked = load_recipe(recipe, overrides or ())
            try:
                check_recipe(checked, findings)
            except (ValueError, ImportError, OSError) as error:
                if not as_json:
                    _print_findings(findings)
                    raise
                findings.append(Finding(what="error", status="fail", detail=str(error)))
        if as_json:
            print_json([{"what": f.what, "status": f.status, "detail": f.detail} for f in findings])
        else:
            _print_findings(findings)
        if any(finding.status == "fail" for finding in findings):
            raise typer.Exit(1)


def _train(recipe: str, overrides: list[str] | None, run: Path | None) -> None:
    from outscore.config import load_recipe
    from outscore.report import Console
    from outscore.train.run import run_recipe

    checked = load_recipe(recipe, overrides or ())
    path = run or Path("runs") / checked.name
    with _training(path):
        result = run_recipe(checked, path, console=Console(title=checked.name))
    if not result.finished:
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _training(run: Path) -> Iterator[None]:
    """Say how to go on with a run that Ctrl-C stopped at once: before its first step, or by a second one."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"stopped at once; what the last checkpoint holds is kept: go on with `outscore resume {run}`"
        message = kept if (run / "run.json").is_file() else "stopped before the run began; nothing was written"
        rich.console.Console(stderr=True).print(Text(message), soft_wrap=True)
        raise


def _print_findings(findings: Any) -> None:
    marks = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}
    table = Table(show_header=False, box=None, pad_edge=False)
    for finding in findings:
        word, style = marks[finding.status]
        table.add_row(Text(word, style=style), Text(finding.what), Text(finding.detail))
    rich.console.Console().print(table)
