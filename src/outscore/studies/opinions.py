"""The study `group-robust-opinions`: IPO, importance sampling and GR-IPO on a small language model.

In the manner of the paper's experiment on GlobalOpinionQA (arXiv 2405.20304, section 5.2), with opinions made here.
Each seed has a world of its own: what five countries like (`outscore.tasks.synthetic_opinions`), the initial weights
and the order of the data. A model from scratch imitates the best letters; from there each method is trained on the same
pairs for as many steps. On the way the worst-off country, or for plain methods the mean, is watched on validation
questions, and steps become smaller on a plateau; what is reported is on test questions.

The settings are the paper's where it has them: beta, batch, what moves the weights, twice the rate for GR-IPO, and the
schedule. The rate itself is for all weights of a model from scratch instead of adapters of a large one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from outscore.report import Evaluation, RunDirectory
from outscore.studies.over_seeds import completed
from outscore.studies.records import Claim, Figure, Panel, Progress, Row, Series, StudyResult
from outscore.tasks.synthetic_opinions import DIFFERENCES, SIZES
from outscore.train.inspect import evaluate_target

BETA = 0.01
BATCH = 32
"""The paper's 16, twice accumulated."""
SFT_STEPS, STEPS = 200, 150
SFT_LR, LR = 2e-3, 3e-4
WEIGHT_STEP = 5e-7 * BATCH
"""The paper's, which is of losses summed over a batch of 16 and taken twice in an optimizer step; ours are means."""
METHODS: Mapping[str, Mapping[str, Any]] = {
    "IPO": {"weights": "shares"},
    "IS-IPO": {"weights": "equal"},
    "GR-IPO": {"weights": "robust", "step_size": WEIGHT_STEP},
}
"""The weights of the populations in each."""
RATE: Mapping[str, float] = {"IPO": LR, "IS-IPO": LR, "GR-IPO": 2 * LR}
"""6e-5 for GR-IPO and 3e-5 for IPO in the paper."""
WATCHED: Mapping[str, str] = {
    "IPO": "preference_loss",
    "IS-IPO": "preference_loss",
    "GR-IPO": "worst/preference_loss",
}
"""What tells a plateau: the rate is then divided by 10, and the step size of the weights by 2."""
WATCH_EVERY, NUM_WATCHED = 30, 250
"""960 pairs apart, on so many validation questions: the paper's tenth."""
NUM_EVAL = 200
"""Test questions of each country: more than the paper's tenth, because a mean over 31 would be noise."""
MEASURES = (
    *("worst/preference_loss", "preference_loss", "spread/preference_loss"),
    *("worst/preference_accuracy", "preference_accuracy", "worst/likelihood_accuracy", "likelihood_accuracy"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one method did on one seed."""

    evaluations: Sequence[Evaluation]
    """On validation questions, in order; the last is that of the trained model."""
    test: Evaluation
    """Of the trained model, on test questions."""
    weights: Mapping[str, float]
    """Of the countries, in the last step."""


WITH_ERROR = ("worst loss", "worst accuracy")
"""Columns of the table that are followed by their standard error; the curves have every seed."""
Found = Mapping[str, Sequence[Outcome]]
"""By method an outcome for each seed."""


def run(
    *,
    num_seeds: int,
    progress: Progress,
    runs: Path,
    sft_steps: int = SFT_STEPS,
    steps: int = STEPS,
    num_eval: int = NUM_EVAL,
    hidden_size: int = 256,
) -> StudyResult:
    """Do it for the seeds 0, 1, ….

    `sft_steps` and `steps` are optimizer steps of the imitation and of each method, `num_eval` test questions of each
    country, `hidden_size` the model's width.
    """
    found: dict[str, list[Outcome]] = {name: [] for name in METHODS}
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a model this small gains little from a second thread
    try:
        for seed in range(num_seeds):
            progress(f"seed {seed}", seed, num_seeds)
            settings = recipe(seed, sft_steps, steps, num_eval, hidden_size)
            for name, outcome in outcomes(settings, runs / str(seed)).items():
                found[name].append(outcome)
    finally:
        torch.set_num_threads(before)
    progress("done", num_seeds, num_seeds)
    return StudyResult(
        settings={
            "study": "group-robust-opinions",
            "seeds": num_seeds,
            "beta": BETA,
            "batch": BATCH,
            "sft_steps": sft_steps,
            "steps": steps,
            "lr": LR,
            "lr_robust": RATE["GR-IPO"],
            "step_size": WEIGHT_STEP,
        },
        summary=[_summary(name, own) for name, own in found.items()],
        curves=[row for name, own in found.items() for row in _curves(name, own)],
        claims=_claims(found),
        figures=[_figure(found)],
        notes=(
            "On test questions, means over seeds, ±: standard error. worst: of the five countries, in each seed by "
            "itself. accuracy: of the implicit reward; likelihood: the better letter is the more probable one.",
            "last weights: " + "; ".join(f"{name}: {_weights(own)}" for name, own in found.items()),
        ),
    )


def recipe(seed: int, sft_steps: int, steps: int, num_eval: int, hidden_size: int) -> dict[str, Any]:
    """All methods on one seed: stages that begin where the imitation ended."""
    every = WATCH_EVERY * steps // STEPS or 1
    sft = {"lr": SFT_LR, "schedule": "cosine", "warmup_steps": 10, "weight_decay": 0.1}
    return {
        "name": f"opinions-{seed}",
        "seed": seed,
        "model": {"source": "tiny", "tiny": {"hidden_size": hidden_size}, "precision": "fp32"},
        "task": {"kind": "synthetic_opinions", "seed": seed, "held_out": "validation", "num_eval": num_eval},
        "stages": [
            {"algorithm": "sft", "steps": sft_steps, "batch_size": BATCH, "optimizer": sft},
            *(_stage(name, steps) for name in METHODS),
        ],
        "evaluation": {"problems": min(NUM_WATCHED, num_eval * len(SIZES)), "every": every},
        "checkpoints": {"every": max(steps, sft_steps)},
    }


def _stage(name: str, steps: int) -> dict[str, Any]:
    return {
        "name": name,
        "algorithm": "ipo",
        "start": "sft",
        "steps": steps,
        "batch_size": BATCH,
        "optimizer": {"lr": RATE[name], "warmup_steps": 5, "betas": [0.9, 0.99]},
        "cells": {"kl_coef": BETA},
        "populations": dict(METHODS[name]),
        "plateau": {"metric": WATCHED[name], "evaluations": 2, "lr_factor": 0.1, "step_size_factor": 0.5},
    }


def outcomes(settings: Mapping[str, Any], path: Path) -> dict[str, Outcome]:
    """Run a recipe of this study at `path` and read what each method did."""
    done = completed(settings, path)
    return {
        name: Outcome(
            evaluations=[found for found in done.evaluations() if found.stage == name],
            test=_tested(done, name, settings["stages"][-1]["steps"]),
            weights=_last_weights(done, name),
        )
        for name in METHODS
    }


def _tested(done: RunDirectory, name: str, step: int) -> Evaluation:
    """The last checkpoint of a method, on all test questions."""
    every = int(done.config()["task"]["num_eval"]) * len(SIZES)
    settings = ["task.held_out=test", f"evaluation.problems={every}"]
    return evaluate_target(str(done.checkpoint_path(name, step)), overrides=settings)[0]


def _last_weights(done: RunDirectory, stage: str) -> dict[str, float]:
    last = done.metrics(stage)[-1]
    return {name: float(last[f"population_weight/{name}"]) for name in sorted(SIZES)}


def _values(own: Sequence[Outcome], metric: str) -> list[float]:
    return [outcome.test.metrics[metric] for outcome in own]


def _mean_sem(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _summary(name: str, own: Sequence[Outcome]) -> Row:
    row: dict[str, Any] = {"method": name}
    for metric, label in (
        ("worst/preference_loss", "worst loss"),
        ("preference_loss", "loss"),
        ("worst/preference_accuracy", "worst accuracy"),
        ("preference_accuracy", "accuracy"),
        ("worst/likelihood_accuracy", "worst likelihood"),
        ("likelihood_accuracy", "likelihood"),
    ):
        mean, sem = _mean_sem(_values(own, metric))
        row |= {label: mean, f"± {label}": sem} if label in WITH_ERROR else {label: mean}
    return row


def _curves(name: str, own: Sequence[Outcome]) -> list[Row]:
    rows: list[Row] = []
    for seed, outcome in enumerate(own):
        last = outcome.evaluations[-1].step
        told = [("validation", found.step, found) for found in outcome.evaluations]
        for split, step, found in [*told, ("test", last, outcome.test)]:
            row: dict[str, Any] = {"method": name, "seed": seed, "split": split, "step": step}
            row |= {metric: found.metrics[metric] for metric in MEASURES}
            row |= {f"preference_loss/{name}": found.metrics[f"preference_loss/{name}"] for name in sorted(SIZES)}
            row |= {f"last_weight/{name}": weight for name, weight in outcome.weights.items()}
            rows.append(row)
    return rows


def _claims(found: Found) -> list[Claim]:
    orders = (
        ("worst/preference_loss", "loss of the worst-off country", ("GR-IPO", "IS-IPO", "IPO")),
        ("worst/preference_accuracy", "reward accuracy of the worst-off country", ("IPO", "IS-IPO", "GR-IPO")),
        ("worst/likelihood_accuracy", "accuracy of the worst-off country by likelihood", ("IPO", "IS-IPO", "GR-IPO")),
        ("spread/preference_loss", "spread of the countries' losses", ("GR-IPO", "IS-IPO", "IPO")),
    )
    claims = []
    for metric, what, names in orders:
        values = [_values(found[name], metric) for name in names]
        means = [_mean_sem(own)[0] for own in values]
        least, most = values[0], values[-1]
        gap, sem = _mean_sem([high - low for low, high in zip(least, most, strict=True)])
        wins = sum(low < high for low, high in zip(least, most, strict=True))
        shown = ", ".join(f"{mean:.3g}" for mean in means)
        by_seed = f"{names[-1]} - {names[0]} = {gap:.3g} ± {sem:.2g} by seed, > 0 in {wins} of {len(least)}"
        claims.append(
            Claim(
                where="section 5.2",
                claim=f"{what}: {' < '.join(names)}",
                measured=f"{shown}; {by_seed}",
                holds=all(low < high for low, high in pairwise(means)),
            )
        )
    heavy = [max(own.weights, key=lambda name: own.weights[name]) for own in found["GR-IPO"]]
    hardest = max(DIFFERENCES, key=lambda name: DIFFERENCES[name])
    claims.append(
        Claim(
            where="section 5.2",
            claim=f"most weight goes to the country that is hardest, here by making {hardest}",
            measured=", ".join(heavy),
            holds=2 * heavy.count(hardest) > len(heavy),
        )
    )
    return claims


def _figure(found: Found) -> Figure:
    panels = [
        _panel(found, "worst/preference_loss", "loss of the worst-off country (validation)"),
        _panel(found, "worst/preference_accuracy", "accuracy of the worst-off country (validation)"),
    ]
    names = sorted(SIZES)
    bars = []
    for name in names:
        mean, sem = _mean_sem([own.weights[name] for own in found["GR-IPO"]])
        bars.append(Series(label=name, x=[0.0], mean=[mean], sem=[sem]))
    panels.append(Panel(title="GR-IPO: last weights", x_label="", y_label="weight", series=bars, kind="bars"))
    return Figure(name="opinions", title="Five countries, a small language model", panels=panels)


def _panel(found: Found, metric: str, label: str) -> Panel:
    lines = []
    for name, own in found.items():
        steps = [evaluation.step for evaluation in own[0].evaluations]
        by_step = [[each.evaluations[i].metrics[metric] for each in own] for i in range(len(steps))]
        both = [_mean_sem(values) for values in by_step]
        lines.append(Series(label=name, x=steps, mean=[m for m, _ in both], sem=[s for _, s in both]))
    return Panel(title=label, x_label="step", y_label=metric.replace("worst/", ""), series=lines)


def _weights(own: Sequence[Outcome]) -> str:
    means = {name: _mean_sem([each.weights[name] for each in own])[0] for name in sorted(SIZES)}
    return ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
