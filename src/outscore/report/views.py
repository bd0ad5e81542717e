"""What the console and `outscore show` draw: progress, metrics, one group, the table of evaluations.

Model text only ever enters as `rich.text.Text` made by `literal`, so it is neither markup nor a terminal's command.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from outscore.report.evaluation import Evaluation, is_by_population
from outscore.report.progress import Progress
from outscore.report.rows import PART_PREFIX, CompletionRow
from outscore.report.text import fold, format_seconds, format_value, is_share, shorten, sparkline, visible

CURVES = ("reward", "accuracy", "preference_accuracy")
"""Metrics drawn as sparklines; a stage without them shows its loss."""
BESIDE = (
    *(
        "reward_std",
        "zero_variance",
        "truncated",
        "scoring_failures",
        "completion_length",
        "distinct_share",
        "entropy",
    ),
    *("margin", "chosen_logprob", "forward_kl"),
    *("ref_kl", "approx_kl", "clip_fraction_low", "clip_fraction_high", "sampler_kl", "grad_norm", "lr"),
)
"""Metrics named below the sparklines, in this order, where a stage has them."""
MAX_PARTS = 3
"""Reward parts that have a column of their own in an 80-column group table."""

History = Sequence[Mapping[str, float | None]]
"""Metrics by name, a mapping per step, oldest first."""

_Column = tuple[str, int, Callable[[CompletionRow], Text]]
"""A column of a group's table: its name, how wide it is, and what it says of a completion."""


def literal(content: str, width: int | None = None, *, style: str = "") -> Text:
    """Text shown exactly as it is: no markup, no control characters, cut to `width` cells if one is given."""
    shown = visible(content)
    return Text(shown if width is None else shorten(shown, width), style=style, overflow="fold")


def progress_bars(stages: Mapping[str, Progress], later: Mapping[str, int]) -> Table:
    """A bar, a count and the time left (or taken) for each stage begun so far; below them the later ones, name ->
    steps: how long those take nobody knows yet."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True, min_width=12)
    for name, progress in stages.items():
        done, total = progress.steps_done, progress.total_steps
        spent, left = format_seconds(progress.seconds_spent), f"{format_seconds(progress.seconds_left)} left"
        bar = ProgressBar(total=max(total, 1), completed=done if total else 1)
        time = Text(spent if progress.is_over else left)
        grid.add_row(literal(name, 16, style="bold"), bar, Text(f"{done}/{total}"), time)
    for name, total in later.items():
        grid.add_row(literal(name, 16), ProgressBar(total=max(total, 1)), Text(f"0/{total}"), Text("to come"))
    return grid


def curves(history: History, width: int, *, ascii_only: bool = False) -> list[Text]:
    """One line for each main metric: its name, its last value and its sparkline."""
    lines = []
    for name in curve_names(history):
        values = series(history, name)
        head = f"{name:<10}{format_value(name, values[-1]):>9}  "
        lines.append(Text.assemble(head, (sparkline(values, width - len(head), ascii_only=ascii_only), "cyan")))
    return lines


def curve_names(history: History) -> list[str]:
    """Which of the main metrics these steps have; the loss when none."""
    named = {name for step in history for name in step}
    return [name for name in CURVES if name in named] or [name for name in ("loss",) if name in named]


def series(history: History, name: str) -> list[float]:
    """A metric over the steps, NaN where it is missing."""
    values = [step.get(name) for step in history]
    return [float("nan") if value is None else float(value) for value in values]


def metric_chunks(metrics: Mapping[str, float | None]) -> list[str]:
    """`name value` for each of the secondary metrics that are there."""
    return [f"{name} {format_value(name, metrics[name])}" for name in BESIDE if name in metrics]


def pack(chunks: Sequence[str], width: int, separator: str = " · ") -> list[str]:
    """The chunks in lines of at most `width`, none broken unless it is wider than a line itself."""
    lines: list[str] = []
    for chunk in chunks:
        if lines and len(lines[-1]) + len(separator) + len(chunk) <= width:
            lines[-1] += separator + chunk
        else:
            lines.append(chunk)
    return lines


def group_view(rows: Sequence[CompletionRow], width: int, *, max_rows: int = 8, lines: int = 2) -> RenderableType:
    """A group: its question, and each completion, in at most `lines` lines, with its rewards and its ending or, where
    it was given, with its rank and the mean of its tokens' coefficients."""
    columns = _given_columns(rows) if rows[0].was_given else _sampled_columns(rows)
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    # A blank between any two columns; the response takes what is left.
    response_width = max(12, width - sum(size + 1 for _, size, _ in columns))
    table.add_column("response", width=response_width, no_wrap=True)
    for name, size, _ in columns:
        table.add_column(literal(name, size), justify="right", width=size, no_wrap=True)
    for row in rows[:max_rows]:
        cells = (cell(row) for _, _, cell in columns)
        table.add_row(Text(fold(visible(row.response), response_width, lines)), *cells)
    below = [Text(f"… {len(rows) - max_rows} more", style="dim")] if len(rows) > max_rows else []
    below += [literal(row.failure, width, style="red") for row in rows if row.failure][:1]
    return Group(*heading(rows[0], width), table, *below)


def _sampled_columns(rows: Sequence[CompletionRow]) -> list[_Column]:
    names = sorted({name for row in rows for name in row.parts})
    names = names if 1 < len(names) <= MAX_PARTS else []

    def part(name: str) -> _Column:
        return name, 7, lambda row: Text(format_value(PART_PREFIX, row.parts.get(name)))

    def reward(row: CompletionRow) -> Text:
        return Text("failed", style="red") if row.failure else Text(format_value("reward", row.reward))

    def ended(row: CompletionRow) -> Text:
        return Text(row.finish or "", style="yellow" if row.finish == "length" else "")

    others: list[_Column] = [("reward", 7, reward), ("advant.", 7, lambda row: _signed(row.advantage, ".2f"))]
    return [*map(part, names), *others, ("ended", 6, ended)]


def _given_columns(rows: Sequence[CompletionRow]) -> list[_Column]:
    def pull(row: CompletionRow) -> Text:
        own = [value for value, counts in zip(row.coefficients or (), row.counts, strict=False) if counts]
        return _signed(math.fsum(own) / len(own) if own else None, ".1e")

    ranks: list[_Column] = [("rank", 4, lambda row: Text(str(row.rank)))] if rows[0].rank is not None else []
    return [*ranks, ("mean coeff.", 11, pull)]


def heading(first: CompletionRow, width: int) -> list[Text]:
    """In which step a group was trained on, its question and its gold answer."""
    gold = "" if first.answer is None else shorten(f"   gold: {visible(first.answer)}", width // 2)
    question = Text(shorten(visible(first.question), width - cell_len(gold)))
    title = literal(f"{first.stage} step {first.step} · {first.problem_id}", width, style="bold")
    return [title, Text.assemble(question, (gold, "green"))]


def _signed(value: float | None, form: str) -> Text:
    style = "" if not value else "green" if value > 0 else "red"
    return Text("–" if value is None else f"{value:+{form}}", style=style)


def evaluation_table(evaluations: Sequence[Evaluation], weights: str | None = None, width: int = 80) -> RenderableType:
    """A row per evaluation, a column per metric, with the half-width of the confidence interval where it has one; as
    many tables below each other as it takes for all columns to fit into `width`. What is known by population has a
    table of its own (`outscore.report.populations`). Of pass@k those of one sample and of all are shown.

    `weights` is a SHA-256, whose beginning stands below: of the weights a run began with, or that were evaluated.
    """
    labels = [f"{evaluations[-1].num_problems} held-out", *(found.label for found in evaluations)]
    first = min(max(map(len, labels)), 20) + 2
    tables: list[list[tuple[str, list[str]]]] = [[]]
    left = width - first
    names = {name for found in evaluations for name in found.metrics if _has_column(name, found.samples)}
    for name in ordered(names):
        cells = [_with_interval(found, name) for found in evaluations]
        head = f"{name} %" if is_share(name) else name
        needed = max(len(cell) for cell in (head, *cells)) + 1
        if tables[-1] and needed > left:
            tables.append([])
            left = width - first
        tables[-1].append((head, cells))
        left -= needed
    shown: list[RenderableType] = [_columns(labels, columns) for columns in tables]
    if weights is not None:
        shown.append(literal(f"weights {weights[:12]}…", style="dim"))
    return Group(*shown)


def _has_column(metric: str, samples: int) -> bool:
    """Whether a metric of an evaluation of so many samples stands in the table."""
    is_between = metric.startswith("pass@") and metric not in ("pass@1", f"pass@{samples}")
    return not (is_between or is_by_population(metric))


def _columns(labels: Sequence[str], columns: Sequence[tuple[str, Sequence[str]]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(labels[0], no_wrap=True)
    for head, _ in columns:
        table.add_column(literal(head), justify="right", no_wrap=True)
    for number, label in enumerate(labels[1:]):
        table.add_row(literal(label, 20), *(Text(cells[number]) for _, cells in columns))
    return table


def ordered(names: set[str]) -> list[str]:
    """Metric names as a table shows them: greedy, pass@k and maj@k by k, then the rest by name."""

    def key(name: str) -> tuple[int, int, str]:
        match = re.fullmatch(r"(pass|maj)@(\d+)", name)
        if match:
            return (1 if match[1] == "pass" else 2, int(match[2]), name)
        return (0 if name == "greedy" else 3, 0, name)

    return sorted(names, key=key)


def _with_interval(found: Evaluation, name: str) -> str:
    shown = format_value(name, found.metrics.get(name)).removesuffix(" %")
    if name not in found.intervals or shown == "–":
        return shown
    low, high = found.intervals[name]
    return f"{shown} ±{50 * (high - low):.1f}" if is_share(name) else f"{shown} ±{(high - low) / 2:.3f}"
