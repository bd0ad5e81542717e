"""Text of a model made safe to look at, numbers made short, series made into sparklines. Pure functions."""

import math
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from rich.cells import cell_len, chop_cells, set_cell_size

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-~=*#@"
SHARES = (
    *(
        "accuracy",
        "preference_accuracy",
        "likelihood_accuracy",
        "zero_variance",
        "truncated",
        "scoring_failures",
        "distinct_share",
        "clip_fraction",
        "mismatch_capped",
        "population_weight",
    ),
    *("greedy", "pass@", "maj@"),
)
"""Metrics, or beginnings of their names, that are shares of one and are shown in per cent."""


def visible(text: str) -> str:
    r"""The text on one line with every control and format character written out, so that a terminal only prints it.

    Line ends become `\n`. The categories are Unicode's Cc, Cf (bidirectional overrides, zero width), Cs, Zl and Zp.

    >>> visible("a\x1b[31mb\n")
    'a\\x1b[31mb\\n'
    """
    return "".join(_escape(char) if unicodedata.category(char) in _HIDDEN else char for char in text)


_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escape(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shorten(text: str, width: int) -> str:
    """At most `width` terminal cells of a text, its middle left out: an answer stands at the end.

    >>> shorten("0123456789", 7)
    '012…789'
    """
    if cell_len(text) <= width:
        return text
    tail = (width - 1) // 2
    head = width - 1 - tail
    reversed_tail = set_cell_size(text[::-1], tail).rstrip() if tail else ""
    return set_cell_size(text, head) + "…" + reversed_tail[::-1]


def fold(text: str, width: int, lines: int) -> str:
    """A text in at most `lines` lines of `width` cells, its middle left out where it is longer.

    >>> fold("0123456789", 4, 2)
    '0123\\n…789'
    """
    # A wide character may leave a cell unused at the end of each line, hence the room for one per line break.
    room = width * lines - (lines - 1 if cell_len(text) != len(text) else 0)
    return "\n".join(chop_cells(shorten(text, room), width))


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """A series as at most `width` bars from its smallest value to its largest; neighbours are averaged, NaN is a blank.

    >>> sparkline([0.0, 1.0, 2.0, 3.0], 2)
    '▁█'
    """
    bars = ASCII_BARS if ascii_only else BARS
    points = _average(values, width)
    finite = [value for value in points if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[round((value - low) * scale)] if math.isfinite(value) else " " for value in points)


def _average(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    buckets = [[v for v in values[a:b] if math.isfinite(v)] for a, b in pairwise(edges)]
    return [math.fsum(bucket) / len(bucket) if bucket else math.nan for bucket in buckets]


def is_share(name: str) -> bool:
    """Whether a metric is a share of one, to be shown in per cent."""
    return name.removeprefix("worst/").removeprefix("spread/").startswith(SHARES)


def format_value(name: str, value: float | None) -> str:
    """A metric for human eyes: shares in per cent, the rest with about four digits, `–` for nothing.

    >>> format_value("accuracy", 0.625), format_value("lr", 1e-5), format_value("reward", 1.25)
    ('62.5 %', '1.0e-05', '1.250')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if is_share(name):
        return f"{100 * value:.1f} %"
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e6):
        return f"{value:.1e}"
    return f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:.0f}"


def format_seconds(seconds: float | None) -> str:
    """A duration as `m:ss` or `h:mm:ss`; `–` when unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
