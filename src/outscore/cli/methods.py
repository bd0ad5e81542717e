"""Commands about the methods themselves: their table, and what was published about them."""

from pathlib import Path
from typing import Annotated

import rich.console
import typer

from outscore.cli.common import AsJson, explained, free_path, print_json
from outscore.studies.registry import STUDIES

STUDIES_IN_A_LINE = "Studies: " + "; ".join(f"{s.name}: {s.summary} ({s.source})" for s in STUDIES.values())
"""What there is to reproduce."""


def reproduce(
    name: Annotated[str, typer.Argument(help=f"A study: {', '.join(STUDIES)}.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Options of the study: figures=[2] features=same", metavar="key=value")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; the paper's by default.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for tables, curves and figures; reproduced/NAME by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Repeat a published experiment: its figures and tables, and what the paper says held against what was measured.

    Figures are drawn by matplotlib (the extra `plots`). The directory must not exist. A study that trains by recipes
    keeps its runs in DIRECTORY-runs, to be looked at with `outscore show`; where it was stopped, the same command goes
    on with them.
    """
    with explained():
        from outscore.studies.output import as_data, view, write_result
        from outscore.studies.plots import require_matplotlib
        from outscore.studies.progress import progress_bar
        from outscore.studies.registry import run_study

        require_matplotlib()
        path = out or free_path(Path("reproduced") / name)
        runs = path.with_name(f"{path.name}-runs")
        try:
            with progress_bar() as progress:
                result = run_study(name, num_seeds=seeds, overrides=overrides or (), runs=runs, progress=progress)
        except KeyboardInterrupt:
            if runs.is_dir():
                typer.echo(f"stopped; {runs} holds what is done, and the same command goes on", err=True)
            raise
        write_result(result, path)
        if as_json:
            print_json({**as_data(result), "directory": str(path)})
        else:
            rich.console.Console().print(view(result))
            typer.echo(f"{path} holds tables, curves and figures")


def algorithms(
    name: Annotated[str | None, typer.Argument(help="One of them, to see every cell of its row.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the table of algorithms, or one row of it: each is a row of choices, and a recipe may override any cell."""
    with explained():
        from outscore.algorithm_table import described, one_algorithm, table_of_algorithms

        if as_json:
            print_json(described(name))
            return
        width = rich.console.Console().width
        shown = table_of_algorithms(width) if name is None else one_algorithm(name, width)
        rich.console.Console(highlight=False).print(shown)
