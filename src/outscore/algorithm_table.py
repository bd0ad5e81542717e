"""The table of algorithms for people: what `outscore algorithms` prints."""

import ast
import inspect
import math
import textwrap
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from outscore.algorithms.cell_effects import is_read
from outscore.algorithms.preset import Preset
from outscore.algorithms.presets import PRESETS
from outscore.algorithms.rows import ALGORITHMS, Algorithm
from outscore.inputs import nearest
from outscore.stage_rows import stage_defaults
from outscore.stages import PolicySettings

OTHERS = "others"
"""The heading of rows that no preset describes."""
NO_BOUND = ".inf"
"""How a recipe writes a cell that is infinite; JSON has no number for it."""


def described(name: str | None = None) -> Any:
    """All rows as data, or one with its preset's words; ValueError names the nearest row."""
    if name is None:
        return [_cells(row) for row in ALGORITHMS.values()]
    row, preset = _row(name), PRESETS.get(name)
    words = asdict(preset) if preset else {}
    words.pop("cells", None)
    return {**words, "cells": _cells(row), "stage_defaults": _stage_defaults(name)}


def table_of_algorithms(width: int) -> RenderableType:
    """A line for each row, under the heading of its family."""
    families: dict[str, list[str]] = {}
    for name in ALGORITHMS:
        families.setdefault(PRESETS[name].family if name in PRESETS else OTHERS, []).append(name)
    parts: list[RenderableType] = []
    for family, names in families.items():
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=max(len(name) for name in ALGORITHMS), no_wrap=True)
        grid.add_column(overflow="fold")
        for name in names:
            grid.add_row(Text(name, style="bold"), Text(PRESETS[name].summary if name in PRESETS else ""))
        parts += [Text(family, style="cyan"), grid, Text("")]
    parts.append(Text("One row: outscore algorithms NAME. Override a cell: stages.STAGE.cells.CELL=value"))
    return Group(*parts)


def one_algorithm(name: str, width: int) -> RenderableType:
    """The cells of a row that anything reads with what they mean, those marked in which it differs from grpo, and the
    names of the others; its equation and source.

    Raises:
        ValueError: naming the nearest row, if there is none of this name.
    """
    row, preset = _row(name), PRESETS.get(name)
    parts: list[RenderableType] = [Text(name, style="bold")]
    if preset:
        parts += _words(preset, width)
    if defaults := _stage_defaults(name):
        chosen = ", ".join(f"{key}={value}" for key, value in defaults.items())
        parts += [Text(textwrap.fill(f"stage settings where a recipe gives none: {chosen}", width))]
    plain, meanings = _cells(ALGORITHMS["grpo"]), _meanings()
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    chosen_cells = asdict(row)
    unread = [cell for cell in chosen_cells if not is_read(cell, chosen_cells)]
    for cell, value in _cells(row).items():
        if cell != "name" and cell not in unread:
            differs = value != plain[cell]
            grid.add_row(
                Text(f"{'*' if differs else ' '}{cell}", style="bold" if differs else ""),
                Text(str(value), style="bold" if differs else ""),
                Text(meanings[cell], style="dim"),
            )
    without = textwrap.fill(f"no effect in this row: {', '.join(unread)}", width, subsequent_indent="    ")
    return Group(*parts, Text(""), grid, Text("* other than grpo"), Text(without, style="dim"))


def _row(name: str) -> Algorithm:
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm {name!r} is not known{nearest(name, ALGORITHMS)}")
    return ALGORITHMS[name]


def _cells(row: Algorithm) -> dict[str, Any]:
    """The cells of a row, each as a recipe would write it."""
    return {cell: NO_BOUND if value == math.inf else value for cell, value in asdict(row).items()}


def _words(preset: Preset, width: int) -> list[RenderableType]:
    lines = [preset.summary, "", f"  {preset.equation}", "", f"source: {preset.paper}"]
    lines += [f"left out, or ours: {preset.left_out}"] if preset.left_out else []
    return [Text(textwrap.fill(line, width, subsequent_indent="    ") if line else "") for line in lines]


def _stage_defaults(name: str) -> dict[str, Any]:
    """What `name` asks of its stage, at the stage's own default lengths."""
    return stage_defaults(PolicySettings(algorithm=name, steps=200))


def _meanings() -> dict[str, str]:
    """The first sentence of the docstring below each cell."""
    (body,) = ast.parse(inspect.getsource(Algorithm)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for cell, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(cell, ast.AnnAssign) and isinstance(cell.target, ast.Name) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            found[cell.target.id] = " ".join(text.split(". ")[0].split()).rstrip(".")
    return found
