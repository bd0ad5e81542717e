"""The study `every-row`: each row that learns from samples, from one SFT checkpoint, with equal numbers of them.

One run for a seed: SFT on demonstrations of arithmetic, and then a stage for each row that starts from there. All have
the demo's model, its rewards, `STEPS` steps of `PROMPTS` problems times `GROUP_SIZE` samples, one learning rate (but
for rejection sampling, which imitates at its own) and no KL but what a row is about. So the figures say what a row does
under the demo's settings, not what it could under its own, and nothing is claimed of them: claims are the study
`paradigm`'s. Seeds 0, 1, 2, … and the budget were fixed before the first run, and every run is in the table.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from outscore.algorithms.rows import ALGORITHMS
from outscore.report import Evaluation
from outscore.studies.over_seeds import after, evaluated, gains, interval, sem
from outscore.studies.records import Figure, Panel, Progress, Row, Series, StudyResult

STEPS, PROMPTS, GROUP_SIZE = 40, 32, 8
LR = 2e-4
RFT_STEPS, RFT_BATCH, RFT_LR = 60, 64, 5e-4
"""Rejection sampling draws as many samples as the others, all at once, and imitates those that are right."""
SAMPLES = 8
MEASURES = ("pass@1", f"maj@{SAMPLES}", f"pass@{SAMPLES}", "greedy")
SHOWN = ("pass@1", f"pass@{SAMPLES}", "greedy")
"""Those of the table; all are in `curves.csv`."""
START = "sft"

Table = Mapping[str, Mapping[str, Sequence[float]]]
"""Row -> measure -> its value for each seed."""


def run(*, num_seeds: int, progress: Progress, runs: Path) -> StudyResult:
    """One run for each seed, and their evaluations together."""
    found = evaluated(recipe, num_seeds, progress, runs)
    table = collected(found)
    return StudyResult(
        settings={"study": "every-row", "steps": STEPS, "samples": STEPS * PROMPTS * GROUP_SIZE, "seeds": num_seeds},
        summary=[_row(name, measures, table[START]) for name, measures in table.items()],
        curves=[
            {"row": name, "seed": seed, **{measure: values[seed] for measure, values in measures.items()}}
            for name, measures in table.items()
            for seed in range(num_seeds)
        ],
        claims=[],
        figures=[_figure(table)],
        notes=[
            "± is half of a 95 % interval over seeds (Student's t); % of 200 held-out problems. gain: of pass@1, over "
            "the SFT checkpoint of the same seed."
        ],
    )


def rows() -> list[str]:
    """The rows compared: all that learn from samples of the policy, but for distillation, which needs a teacher."""
    return [name for name, row in ALGORITHMS.items() if row.source == "policy" and not row.needs_teacher]


def variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """Stage -> its row and cells: every row, and what single cells change in two of them."""
    found: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in rows()}
    found["grpo-without-negatives"] = ("grpo", {"zero_negative": True})
    found["ppo-lambda-1"] = ("ppo", {"gae_lambda": 1.0})
    return found


def recipe(seed: int) -> dict[str, Any]:
    """The run of a seed."""
    sampling = {"max_new_tokens": 32, "max_rows": 512}
    stages: list[dict[str, Any]] = [
        {
            **{"name": START, "algorithm": "sft", "steps": 140, "batch_size": 32},
            "optimizer": {"lr": 2e-3, "schedule": "cosine", "warmup_steps": 10, "weight_decay": 0.1},
        },
        {
            **{"algorithm": "rft", "start": START, "num_prompts": STEPS * PROMPTS, "group_size": GROUP_SIZE},
            **{"steps": RFT_STEPS, "batch_size": RFT_BATCH, "sampling": sampling},
            "optimizer": {"lr": RFT_LR, "schedule": "cosine", "warmup_steps": 5, "weight_decay": 0.1},
        },
    ]
    for name, (row, cells) in variants().items():
        about_kl = ALGORITHMS[row].kl_coef > 0.0 and row not in ("grpo", "grpo-r1")
        stages.append(
            {
                **{"name": name, "algorithm": row, "start": START, "steps": STEPS, "refills": 0, "overlong_buffer": 0},
                **{"prompts_per_step": PROMPTS, "group_size": GROUP_SIZE, "token_budget": 16384, "sampling": sampling},
                "optimizer": {"lr": LR, "schedule": "linear", "warmup_steps": 5, "betas": [0.9, 0.99]},
                "cells": {**cells, **({} if about_kl else {"kl_coef": 0.0})},
            }
        )
    return {
        "seed": seed,
        "model": {"source": "tiny"},
        "task": {"kind": "arithmetic", "num_train": 4000, "num_eval": 200, "num_demonstrations": 500, "seed": seed},
        "rewards": [{"name": "format_tags", "weight": 0.4}, "tag_answer"],
        "stages": stages,
        "evaluation": {"problems": 200, "samples": SAMPLES},
    }


def collected(found: Sequence[Sequence[Evaluation]]) -> Table:
    """The measures after SFT and after each row."""
    names = [START, "rft", *variants()]
    return {
        name: {measure: [after(run, name).metrics[measure] for run in found] for measure in MEASURES} for name in names
    }


def _row(name: str, measures: Mapping[str, Sequence[float]], start: Mapping[str, Sequence[float]]) -> Row:
    gained = gains(start["pass@1"], measures["pass@1"])
    gain = "" if name == START else f"{100 * fmean(gained):+.1f} ± {100 * interval(gained):.1f}"
    return {
        "row": name,
        "gain": gain,
        **{k: f"{100 * fmean(measures[k]):.1f} ± {100 * interval(measures[k]):.1f}" for k in SHOWN},
    }


def _figure(table: Table) -> Figure:
    series = [
        Series(
            label=name,
            x=[0],
            mean=[fmean(measures["pass@1"])],
            sem=[sem(measures["pass@1"])],
        )
        for name, measures in table.items()
    ]
    panel = Panel(title="pass@1 on held-out problems", x_label="", y_label="share", series=series, kind="bars")
    return Figure(name="every-row", title="Every row from one checkpoint, with equal samples", panels=[panel])
