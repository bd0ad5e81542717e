"""A study's result as files and on the screen."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from outscore.report.files import publishing_directory, write_json, write_text
from outscore.studies.plots import draw
from outscore.studies.records import Row, StudyResult


def as_data(result: StudyResult) -> dict[str, Any]:
    """All but curves and figures, as `result.json` and `--json` show it."""
    return {
        "settings": dict(result.settings),
        "summary": [dict(row) for row in result.summary],
        "claims": [asdict(claim) for claim in result.claims],
        "notes": list(result.notes),
    }


def write_result(result: StudyResult, directory: Path, *, figures: bool = True) -> None:
    """Write result.json, summary.csv, claims.csv, curves.csv, and each figure as PNG and SVG.

    The directory is complete or absent. Raises FileExistsError when it holds something, ImportError where `figures` are
    wanted and matplotlib is not installed.
    """
    with publishing_directory(directory) as fresh:
        write_json(fresh / "result.json", as_data(result))
        write_text(fresh / "summary.csv", _csv(result.summary))
        write_text(fresh / "claims.csv", _csv([asdict(claim) for claim in result.claims]))
        write_text(fresh / "curves.csv", _csv(result.curves))
        if figures:
            draw(result.figures, fresh)


def view(result: StudyResult) -> RenderableType:
    """The summary, the claims and the notes in 80 columns."""
    settings = ", ".join(f"{key}={value}" for key, value in result.settings.items())
    summary = _table(list(result.summary[0]), ([_cell(value) for value in row.values()] for row in result.summary))
    judged = _table(
        ["paper", "claim", "measured", ""],
        (
            [Text(c.where), Text(c.claim), Text(c.measured), Text(*(("yes", "green") if c.holds else ("NO", "red")))]
            for c in result.claims
        ),
    )
    claims = [judged] if result.claims else []
    return Group(Text(settings, style="dim"), summary, *claims, *(Text(note, style="dim") for note in result.notes))


def _table(columns: Sequence[str], rows: Iterable[Sequence[Text]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _cell(value: Any) -> Text:
    if isinstance(value, float):
        return Text(f"{value:.4g}", justify="right")
    return Text("–" if value is None else str(value))


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()
