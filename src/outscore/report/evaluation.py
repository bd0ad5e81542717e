"""What an evaluation found, as a line of `evals.jsonl`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PART = "part/"
"""Begins the name of the mean of one reward, where there are several."""
HEADLINES = (
    *("greedy", "pass@1", "accuracy", "reward", "preference_accuracy", "likelihood_accuracy"),
    *("label_accuracy", "explained", "text_logprob"),
)
"""Which metric ranks evaluations when nobody says: the first of these that is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluation on held-out problems.

    >>> Evaluation(label="after SFT", stage="sft", step=100, policy_version=100, num_problems=200, samples=8,
    ...            metrics={"pass@1": 0.41, "pass@8": 0.78}, intervals={"pass@1": (0.36, 0.46)})
    """

    label: str
    """What a table calls it: "before SFT", "step 40"."""
    stage: str
    """The stage it belongs to."""
    step: int
    """After this step of the stage; 0 for before the first."""
    policy_version: int
    """Optimizer updates the evaluated policy had taken."""
    num_problems: int
    """Held-out problems."""
    samples: int
    """Completions per problem; 0 where nothing was sampled."""
    metrics: Mapping[str, float]
    """`pass@1`, `pass@8`, `maj@8`, `greedy` and the like; shares of one."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Confidence interval of those metrics that have one."""


def to_line(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as the object that `evals.jsonl` holds; nothing in it depends on the clock."""
    return {
        "stage": evaluation.stage,
        "step": evaluation.step,
        "policy_version": evaluation.policy_version,
        "label": evaluation.label,
        "num_problems": evaluation.num_problems,
        "samples": evaluation.samples,
        "metrics": {name: finite(evaluation.metrics[name]) for name in sorted(evaluation.metrics)},
        "intervals": {name: list(evaluation.intervals[name]) for name in sorted(evaluation.intervals)},
    }


def from_line(line: Mapping[str, Any]) -> Evaluation:
    """The inverse of `to_line`; null reads as NaN."""
    metrics = {name: math.nan if value is None else value for name, value in line["metrics"].items()}
    intervals = {name: (low, high) for name, (low, high) in line["intervals"].items()}
    return Evaluation(**{**line, "metrics": metrics, "intervals": intervals})


def best(evaluations: Sequence[Evaluation], metric: str | None = None) -> tuple[str, Evaluation] | None:
    """The last stage's evaluation with the highest value of a metric, the latest of equals, and which metric it was.

    Only the last stage counts, the one of the last evaluation: what an earlier stage ended with is where this one
    began. Without a metric, the first of `HEADLINES` that the last evaluation has. None when no evaluation has it.
    """
    metric = metric or (headline(evaluations[-1]) if evaluations else None)
    if metric is None:
        return None
    last = [e for e in evaluations if e.stage == evaluations[-1].stage]
    ranked = [e for e in reversed(last) if math.isfinite(e.metrics.get(metric, math.nan))]
    return (metric, max(ranked, key=lambda e: e.metrics[metric])) if ranked else None


def headline(found: Evaluation) -> str | None:
    """The metric that ranks an evaluation: the first of `HEADLINES` that it has; None where it has none."""
    return next((name for name in HEADLINES if name in found.metrics), None)


def is_by_population(metric: str) -> bool:
    """Whether a metric's name is that of one population (`greedy/Japan`), the worst-off one or the spread
    (`worst/greedy`), and not of one reward.

    >>> is_by_population("worst/greedy"), is_by_population("part/spread"), is_by_population("pass@8")
    (True, False, False)
    """
    return "/" in metric and not metric.startswith(PART)


def finite(value: float) -> float | None:
    """The value, or None where JSON has no number for it (NaN, infinities)."""
    return value if math.isfinite(value) else None
