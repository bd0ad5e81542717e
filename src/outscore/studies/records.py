"""What a study is and what it hands back: tables, curves, figures as data, and published claims judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Row = Mapping[str, Any]
"""A line of a table: column -> text, number, truth value or None. The rows of one table have the same columns."""
Progress = Callable[[str, int, int], None]
"""Is told which part of a study is at work, how much of the part is done, and out of how much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A line with a band of one standard error, or bars with whiskers.

    >>> Series(label="GR-DPO", x=(0, 100), mean=(0.58, 0.49), sem=(0.01, 0.01))
    """

    label: str
    """As the legend names it; the same label has the same colour in every panel."""
    x: Sequence[float]
    """Where the values are. A bar needs none: its label says what it is."""
    mean: Sequence[float]
    """Mean over seeds."""
    sem: Sequence[float]
    """Standard error of that mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One pair of axes."""

    title: str
    """What stands above."""
    x_label: str
    """What x is."""
    y_label: str
    """What the values are."""
    series: Sequence[Series]
    """What is drawn."""
    kind: Literal["lines", "bars"] = "lines"
    """Lines with bands, or one bar for each series."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """Panels side by side."""

    name: str
    """Names its files: NAME.png and NAME.svg."""
    title: str
    """What stands above all."""
    panels: Sequence[Panel]
    """From left to right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Something the paper says, and whether it was found here."""

    where: str
    """Figure or section of the paper."""
    claim: str
    """What is said there."""
    measured: str
    """What was found."""
    holds: bool
    """Whether the two agree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """All that a study found."""

    settings: Row
    """What it was run with."""
    summary: Sequence[Row]
    """The table that is printed; a row for each condition."""
    curves: Sequence[Row]
    """The numbers behind the figures, long form."""
    claims: Sequence[Claim]
    """The paper's statements, judged."""
    figures: Sequence[Figure]
    """What is drawn."""
    notes: Sequence[str] = field(default=())
    """What a reader of the table must know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A row of the table of studies."""

    name: str
    """As users write it."""
    summary: str
    """What it shows, in a line."""
    source: str
    """The paper."""
    module: str
    """Whose function `run(*, num_seeds, progress, **options)` does it; its other parameters are the study's options.
    One that trains by recipes has `runs` as well: the directory of its runs."""
    num_seeds: int
    """How many seeds the paper took, and the default."""
