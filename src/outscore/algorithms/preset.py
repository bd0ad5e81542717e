"""A preset: a row of the table in words, and the cells in which it differs from GRPO."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A whole number that is a part of another setting of the stage.

    >>> Part(of="steps", divisor=2, most=50).number(60)
    30
    """

    of: Literal["steps", "max_new_tokens"]
    """The setting."""
    divisor: int
    """What it is divided by, rounding down."""
    least: int = 0
    """Not less than this."""
    most: int | None = None
    """Not more than this; None is no bound."""

    def number(self, whole: int) -> int:
        """The part of a setting whose value is `whole`."""
        part = max(whole // self.divisor, self.least)
        return part if self.most is None else min(part, self.most)


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
    stage_defaults: Mapping[str, Any] = field(default_factory=dict)
    """What it asks of its stage beside its row, for settings that a recipe leaves out: numbers, or a `Part` of another
    setting, by key of the stage, nested as there."""
