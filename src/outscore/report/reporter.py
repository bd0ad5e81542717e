"""One door for the training loop: what a step did goes to disk, screen and trackers in the order a resume relies on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from outscore.records import StepReport
from outscore.report.alarms import Alarm, AlarmWatch, find_alarms
from outscore.report.console import Console, step_metrics
from outscore.report.evaluation import Evaluation
from outscore.report.rows import CompletionRow
from outscore.report.run import RESERVED, RunDirectory
from outscore.report.trackers import Tracker


class Reporter:
    """Writes a step to the run first, and shows it afterwards: what is on screen is on disk."""

    def __init__(self, run: RunDirectory, *, console: Console | None = None, trackers: Sequence[Tracker] = ()) -> None:
        self._run = run
        self._console = console
        self._trackers = trackers
        self._stage = ""
        self._history: list[Mapping[str, float | None]] = []
        self._watch = AlarmWatch()

    def stage_started(self, name: str, total_steps: int) -> None:
        """A stage begins, or goes on after a resume; its earlier steps are read back from the run."""
        self._stage, self._watch = name, AlarmWatch()
        self._history = [_metrics_of(line) for line in self._run.metrics(name)]
        # Alarms that stood before the resume have been raised already.
        self._watch.update(self._history)
        self._run.log(f"{name}: started at step {len(self._history)} of {total_steps}")
        if self._console is not None:
            names = [plan.name for plan in self._run.stages]
            later = {plan.name: plan.num_steps for plan in self._run.stages[names.index(name) + 1 :]}
            self._console.stage_started(name, total_steps, self._history, later)

    def stage_ended(self, why: str = "") -> None:
        """A stage is over; `why` is said where it had steps left."""
        if why:
            self.message(f"{self._stage}: {why}")
        if self._console is not None:
            self._console.stage_ended()

    def step(self, report: StepReport, completions: Sequence[CompletionRow] = (), shown_slot: int | None = 0) -> None:
        """A step is done. `completions` are all of the step, none where no policy is trained; one slot is shown, or
        none."""
        if completions:
            self._run.write_groups(self._stage, report.step, completions)
        self._run.append_step(self._stage, report)
        metrics = step_metrics(report)
        self._history.append(metrics)
        self._track(report.step, metrics | {f"seconds/{phase}": s for phase, s in report.seconds.items()})
        if self._console is not None:
            self._console.step(report, _one_group(completions, shown_slot))
        for alarm in self._watch.update(self._history):
            self._raise(alarm, report.step)

    def failed(self, step: int, metrics: Mapping[str, float | None]) -> str:
        """A step that is not recorded because of these metrics: raises their alarms, and returns what they say."""
        alarms = find_alarms([metrics])
        for alarm in alarms:
            self._raise(alarm, step)
        return " ".join(alarm.sentence for alarm in alarms)

    def evaluation(self, found: Evaluation) -> None:
        """An evaluation is done."""
        self._run.append_evaluation(found)
        self._track(found.step, {f"eval/{name}": value for name, value in found.metrics.items()}, stage=found.stage)
        if self._console is not None:
            self._console.evaluation(found)

    def message(self, content: str, *, warning: bool = False) -> None:
        """Something a person should know: to `events.log` and the screen."""
        self._run.log(content)
        if self._console is not None:
            self._console.message(content, warning=warning)

    def activity(self, what: str) -> None:
        """What is going on within a step; nothing of it is kept."""
        if self._console is not None:
            self._console.activity(what)

    def close(self, evaluations: Sequence[Evaluation] = ()) -> None:
        """Close screen and trackers; `evaluations` become the closing table."""
        if self._console is not None:
            self._console.close(evaluations, self._run.path, self._run.weights_sha256)
        for tracker in self._trackers:
            tracker.close()

    def _raise(self, alarm: Alarm, step: int) -> None:
        self._run.log(f"alarm: {alarm.sentence}")
        if self._console is not None:
            self._console.message(f"step {step}: {alarm.sentence}", warning=True)

    def _track(self, step: int, values: Mapping[str, float | None], stage: str | None = None) -> None:
        finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        for tracker in self._trackers:
            tracker.log(stage or self._stage, step, finite)


def _metrics_of(line: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: value for name, value in line.items() if name not in RESERVED}


def _one_group(completions: Sequence[CompletionRow], slot: int | None) -> list[CompletionRow]:
    # Of a slot that was refilled, the last attempt: the one that was trained on.
    attempts = [row.attempt for row in completions if row.slot == slot]
    return [row for row in completions if row.slot == slot and row.attempt == max(attempts)]
