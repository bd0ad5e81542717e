"""The run directory, the live view, and what `outscore show` prints. Imports neither torch nor a model."""

from outscore.report.alarms import Alarm, AlarmWatch, find_alarms
from outscore.report.console import Console
from outscore.report.evaluation import Evaluation
from outscore.report.progress import Progress
from outscore.report.reporter import Reporter
from outscore.report.rows import CompletionRow, completion_rows, given_rows
from outscore.report.run import Discarded, RunDirectory, StagePlan, StepFile
from outscore.report.show import show_run
from outscore.report.trackers import Tracker, open_trackers, require_trackers

__all__ = [
    "Alarm",
    "AlarmWatch",
    "CompletionRow",
    "Console",
    "Discarded",
    "Evaluation",
    "Progress",
    "Reporter",
    "RunDirectory",
    "StagePlan",
    "StepFile",
    "Tracker",
    "completion_rows",
    "find_alarms",
    "given_rows",
    "open_trackers",
    "require_trackers",
    "show_run",
]
