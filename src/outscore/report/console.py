"""Training as it happens: a live view in a terminal, plain lines anywhere else."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import rich.console
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from outscore.records import StepReport
from outscore.report import populations, views
from outscore.report.evaluation import Evaluation, is_by_population
from outscore.report.progress import Progress
from outscore.report.rows import CompletionRow
from outscore.report.text import format_seconds, format_value, visible

SECONDS_BETWEEN_FRAMES = 0.1
SECONDS_BETWEEN_LINES = 5.0
"""Without a terminal, a line is printed for the first and last step of a stage and after this much step time."""
LINES_BETWEEN_GROUPS = 10
"""Without a terminal, one sampled group is printed with the first line of a stage and every so many lines."""


def step_metrics(report: StepReport) -> dict[str, float | None]:
    """The metrics of a step by name; None for one that counted nothing."""
    return {name: report.mean(name) if count else None for name, (_, count) in report.metrics.items()}


class Console:
    """Shows a run while it trains. It never writes to the run and nothing depends on it.

    A live view where there is a terminal that can redraw; lines where there is none or TERM is `dumb`.
    """

    def __init__(
        self,
        *,
        title: str = "",
        rich_console: rich.console.Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = rich_console or rich.console.Console()
        self._title = title
        self._clock = clock
        self._is_live = self._out.is_terminal and not self._out.is_dumb_terminal
        self._live: Live | None = None
        self._drawn_at = float("-inf")
        self._stages: dict[str, Progress] = {}
        self._later: Mapping[str, int] = {}
        self._stage = ""
        self._history: list[Mapping[str, float | None]] = []
        self._rate: float | None = None
        self._group: Sequence[CompletionRow] = ()
        self._activity = ""
        self._lines = 0
        self._unprinted_seconds = 0.0

    def stage_started(
        self,
        name: str,
        total_steps: int,
        history: Sequence[Mapping[str, Any]] = (),
        later: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """A stage begins, or goes on after a resume with `history`, the metrics of its steps so far; the stages of
        `later`, name -> steps, will follow."""
        self._later = later
        self._stage, self._history, self._group, self._rate = name, list(history), (), None
        self._stages[name] = Progress(total_steps=total_steps, steps_done=len(history))
        self._lines, self._unprinted_seconds, self._activity = 0, 0.0, ""
        if self._is_live:
            self._draw(force=True)
        else:
            resumed = f", {len(history)} of them done" if history else ""
            self.message(f"{name}: {total_steps} steps{resumed}")

    def step(self, report: StepReport, group_rows: Sequence[CompletionRow] = ()) -> None:
        """A step is done; `group_rows` is the group to show, empty where nothing was sampled."""
        progress = self._stages[self._stage]
        progress.advance(report.step, report.seconds)
        self._history.append(step_metrics(report))
        seconds = sum(report.seconds.values())
        self._rate = report.num_tokens / seconds if seconds > 0 else None
        self._group, self._activity = group_rows, ""
        if self._is_live:
            self._draw(force=progress.steps_done >= progress.total_steps)
        else:
            self._print_line(progress, seconds)

    def stage_ended(self) -> None:
        """The stage is over; it may have been stopped before its last step."""
        self._stages[self._stage].has_ended = True
        if self._is_live:
            self._draw(force=True)

    def activity(self, what: str) -> None:
        """What is going on within a step ("sampling 12/32"); shown in the live view only."""
        self._activity = what
        if self._is_live:
            self._draw()

    def evaluation(self, found: Evaluation) -> None:
        """An evaluation is done."""
        worst = f"{populations.WORST}/"
        names = [name for name in found.metrics if not is_by_population(name) or name.startswith(worst)]
        chunks = [f"{name} {format_value(name, found.metrics[name])}" for name in views.ordered(set(names))]
        self.message(f"{found.label}: " + "  ".join(chunks))

    def message(self, content: str, *, warning: bool = False) -> None:
        """A line that stays on the screen, above the live view."""
        self._print(Text(visible(content), style="yellow" if warning else ""))

    def close(
        self, evaluations: Sequence[Evaluation] = (), run: Path | None = None, weights: str | None = None
    ) -> None:
        """Leave the live view; print the table of these evaluations, with the SHA-256 of the weights the run began
        with, and where the run is kept. May be called twice."""
        if self._live is not None:
            self._draw(force=True)
            self._live.stop()
            self._live = None
        if evaluations:
            self._out.print()
            self._out.print(views.evaluation_table(evaluations, weights, min(self._out.width, 120)))
            by_population = populations.population_table(evaluations[-1])
            if by_population is not None:
                self._out.print()
                self._out.print(by_population)
        if run is not None:
            self._out.print()
            self._print(
                Text(f"The run is kept in {visible(str(run))}: look at it with `outscore show {visible(str(run))}`")
            )

    def _print(self, line: Text) -> None:
        # Soft wrap: a log file gets one line however long; a terminal wraps it itself.
        self._out.print(line, soft_wrap=True)

    def _print_line(self, progress: Progress, seconds: float) -> None:
        self._unprinted_seconds += seconds
        is_edge = len(progress.history) == 1 or progress.steps_done >= progress.total_steps
        if not is_edge and self._unprinted_seconds < SECONDS_BETWEEN_LINES:
            return
        self._unprinted_seconds = 0.0
        last = self._history[-1]
        names = views.curve_names([last])
        chunks = [f"{name} {format_value(name, last[name])}" for name in names] + views.metric_chunks(last)
        head = f"{self._stage} {progress.steps_done}/{progress.total_steps}"
        left = ", then ".join([f"{format_seconds(progress.seconds_left)} left", *self._later])
        self.message("  ".join([head, left, *chunks, *self._rate_chunk()]))
        if self._group and self._lines % LINES_BETWEEN_GROUPS == 0:
            self._out.print(views.group_view(self._group, self._width))
        self._lines += 1

    @property
    def _width(self) -> int:
        return min(self._out.width, 120)

    def _rate_chunk(self) -> list[str]:
        return [] if self._rate is None else [f"{self._rate:.0f} tokens/s"]

    def _draw(self, *, force: bool = False) -> None:
        now = self._clock()
        if not force and now - self._drawn_at < SECONDS_BETWEEN_FRAMES:
            return
        self._drawn_at = now
        if self._live is None:
            self._live = Live(console=self._out, auto_refresh=False)
            self._live.start()
        self._live.update(self._view(), refresh=True)

    def _view(self) -> RenderableType:
        width = self._width
        parts: list[RenderableType] = [Text(visible(self._title), style="bold")] if self._title else []
        parts.append(views.progress_bars(self._stages, self._later))
        ascii_only = not self._out.encoding.startswith("utf")
        parts += views.curves(self._history, width, ascii_only=ascii_only)
        chunks = (views.metric_chunks(self._history[-1]) if self._history else []) + self._rate_chunk()
        parts += [Text(line, style="dim") for line in views.pack(chunks, width)]
        if self._group:
            # Short windows get short answers: the view is cut at the bottom where it is taller than the screen.
            room = self._out.height - len(parts) - len(self._stages) - len(self._later) - 6
            lines = 2 if room >= 2 * min(len(self._group), 8) else 1
            parts += [
                Text(""),
                views.group_view(self._group, width, lines=lines, max_rows=max(2, min(8, room // lines))),
            ]
        if self._activity:
            parts.append(views.literal(self._activity, width, style="dim"))
        return Group(*parts)
