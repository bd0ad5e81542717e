"""A preset: a row of the table in words, and the cells in which it differs from GRPO."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A row of the table in words, and the cells that make it.

    >>> PRESETS["gspo"].cells["clip_high"]
    0.0004
    """

    name: str
    """What a recipe calls it."""
    family: str
    """The heading it stands under."""
    summary: str
    """What sets it apart, in a few words."""
    equation: str
    """What is maximised for a completion, or what its advantage is, where that differs from GRPO."""
    paper: str
    """Where it comes from."""
    left_out: str = ""
    """What of that source is not in the row, or is our choice."""
    cells: Mapping[str, Any]
    """The cells in which it differs from `grpo`."""
