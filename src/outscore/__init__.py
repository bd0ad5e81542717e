"""Outscore: post-train language models by reinforcement, where everything is a group.

Whole runs: `run_recipe`, `resume`, `evaluate`, `export_model`. The pieces alone, for one's own loop: `load_policy` and
`make_sampler` (sampling), `group_rows` and `token_logprobs` (training rows), `group_advantages` and `policy_loss` (the
mathematics), `Rewards`, `make_task`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outscore.algorithms.rows import ALGORITHMS as ALGORITHMS
    from outscore.algorithms.rows import Algorithm as Algorithm
    from outscore.algorithms.rows import algorithm as algorithm
    from outscore.config import ModelSettings as ModelSettings
    from outscore.config import Recipe as Recipe
    from outscore.config import load_recipe as load_recipe
    from outscore.config import parse_recipe as parse_recipe
    from outscore.model.attention import TreeAttention as TreeAttention
    from outscore.model.forest import Segment as Segment
    from outscore.model.load import load_model as load_model
    from outscore.model.load import stop_token_ids as stop_token_ids
    from outscore.model.logprobs import token_logprobs as token_logprobs
    from outscore.model.policy import Policy as Policy
    from outscore.model.rows import TrainingGroup as TrainingGroup
    from outscore.model.rows import flat_starts as flat_starts
    from outscore.model.rows import group_rows as group_rows
    from outscore.objectives.advantages import group_advantages as group_advantages
    from outscore.objectives.estimators import maj_at_k as maj_at_k
    from outscore.objectives.estimators import pass_at_k as pass_at_k
    from outscore.objectives.loss import policy_loss as policy_loss
    from outscore.records import Completion as Completion
    from outscore.records import Demonstration as Demonstration
    from outscore.records import Problem as Problem
    from outscore.records import Prompt as Prompt
    from outscore.records import Ranking as Ranking
    from outscore.records import SampledCompletion as SampledCompletion
    from outscore.records import SampledGroup as SampledGroup
    from outscore.records import SampleRequest as SampleRequest
    from outscore.records import SamplingParams as SamplingParams
    from outscore.records import Score as Score
    from outscore.records import ScoredGroup as ScoredGroup
    from outscore.records import ScoringFailure as ScoringFailure
    from outscore.report.console import Console as Console
    from outscore.report.run import RunDirectory as RunDirectory
    from outscore.report.show import show_run as show_run
    from outscore.rewards import Reward as Reward
    from outscore.rewards import RewardError as RewardError
    from outscore.rewards import Rewards as Rewards
    from outscore.rollout import GroupEngine as GroupEngine
    from outscore.rollout import Sampler as Sampler
    from outscore.rollout import ScriptedSampler as ScriptedSampler
    from outscore.rollout import make_sampler as make_sampler
    from outscore.tasks import Task as Task
    from outscore.tasks import make_task as make_task
    from outscore.tasks.templates import render as render
    from outscore.train.inspect import evaluate as evaluate
    from outscore.train.inspect import export_model as export_model
    from outscore.train.run import RunResult as RunResult
    from outscore.train.run import resume as resume
    from outscore.train.run import run_recipe as run_recipe
    from outscore.train.setup import load_policy as load_policy

_HOMES = {
    "outscore.config": ("ModelSettings", "Recipe", "load_recipe", "parse_recipe"),
    "outscore.model.attention": ("TreeAttention",),
    "outscore.model.forest": ("Segment",),
    "outscore.model.load": ("load_model", "stop_token_ids"),
    "outscore.model.logprobs": ("token_logprobs",),
    "outscore.model.policy": ("Policy",),
    "outscore.model.rows": ("TrainingGroup", "flat_starts", "group_rows"),
    "outscore.objectives.advantages": ("group_advantages",),
    "outscore.algorithms.rows": ("ALGORITHMS", "Algorithm", "algorithm"),
    "outscore.objectives.estimators": ("maj_at_k", "pass_at_k"),
    "outscore.objectives.loss": ("policy_loss",),
    "outscore.records": (
        "Completion",
        "Demonstration",
        "Problem",
        "Prompt",
        "Ranking",
        "SampleRequest",
        "SampledCompletion",
        "SampledGroup",
        "SamplingParams",
        "Score",
        "ScoredGroup",
        "ScoringFailure",
    ),
    "outscore.report.console": ("Console",),
    "outscore.report.run": ("RunDirectory",),
    "outscore.report.show": ("show_run",),
    "outscore.rewards": ("Reward", "RewardError", "Rewards"),
    "outscore.rollout": ("GroupEngine", "Sampler", "ScriptedSampler", "make_sampler"),
    "outscore.tasks": ("Task", "make_task"),
    "outscore.tasks.templates": ("render",),
    "outscore.train.inspect": ("evaluate", "export_model"),
    "outscore.train.run": ("RunResult", "resume", "run_recipe"),
    "outscore.train.setup": ("load_policy",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `outscore --help` must not wait for torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'outscore' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__doc__"])
