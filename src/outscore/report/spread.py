"""How scores are spread, for 80 columns: a table with a row for each reward, and a histogram of each."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from outscore.report.text import format_value
from outscore.report.views import literal

BAR = "█"
_COLUMNS = ("count", "without", "mean", "std", "min", "median", "max")

Bins = Sequence[tuple[float, float, int]]
"""(from, to, count) of each."""


def spread_table(summaries: Mapping[str, Mapping[str, float | int | None]]) -> Table:
    """A row for each reward: how many values, how many completions without one, and where the values lie."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("reward", max_width=22)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for name, summary in summaries.items():
        cells = (summary[each] for each in _COLUMNS)
        table.add_row(
            literal(name, 22), *(Text(str(c) if isinstance(c, int) else format_value("reward", c)) for c in cells)
        )
    return table


def histogram(name: str, bins: Bins, width: int) -> list[Text]:
    """The name, then a line for each bin: its value or its ends, its count, and a bar as long as its share.

    The longest bar fills the width; a bin with any value in it has a bar.
    """
    if not bins:
        return [literal(name, width, style="bold"), Text("  no value", style="dim")]
    labels = [_ends(low, high) for low, high, _ in bins]
    label_width, count_width = max(map(len, labels)), max(len(str(count)) for _, _, count in bins)
    room = max(8, width - label_width - count_width - 6)
    most = max(count for _, _, count in bins)
    lines = [literal(name, width, style="bold")]
    for label, (_, _, count) in zip(labels, bins, strict=True):
        bar = BAR * (max(1, round(room * count / most)) if count else 0)
        lines.append(Text.assemble(f"  {label:>{label_width}}  {count:>{count_width}}  ", (bar, "cyan")))
    return lines


def _ends(low: float, high: float) -> str:
    first = format_value("reward", low)
    return first if low == high else f"{first} to {format_value('reward', high)}"
