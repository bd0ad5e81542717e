"""Where prompts, gold answers and demonstrations come from, and the one place where prompts are rendered."""

from outscore.tasks.arithmetic import ArithmeticTask
from outscore.tasks.base import RankingTask, Task, TaskCheck, validate
from outscore.tasks.data import DataTask
from outscore.tasks.gym import GymTask
from outscore.tasks.rankings import parse_ranking
from outscore.tasks.registry import TASKS, make_task
from outscore.tasks.templates import render

__all__ = [
    "TASKS",
    "ArithmeticTask",
    "DataTask",
    "GymTask",
    "RankingTask",
    "Task",
    "TaskCheck",
    "make_task",
    "parse_ranking",
    "render",
    "validate",
]
