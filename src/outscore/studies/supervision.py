"""The study `process-supervision`: GRPO paid for each step of a solution where it ends, or at the end for all of it.

DeepSeekMath compares a process reward model with an outcome reward model (arXiv 2402.03300, figure 5), so that two
things differ: where rewards are paid, and which model they come from. Here a rule pays in both, by comparing with the
worked solution, so that what is measured is supervision and not how well a reward model was trained. Three arms start
from one SFT checkpoint: the answer alone is paid (outcome supervision), each step is paid where it ends (process
supervision), and the same steps are paid in one sum at the end, which tells finer rewards from finer places.

Seeds 0, 1, 2, … and all sizes were fixed before the first run on them; whether it runs at all was tried with seed 1000.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from outscore.model.steps import Decode, decoder, split_steps, step_ends
from outscore.model.tiny import character_tokenizer
from outscore.report import Evaluation
from outscore.studies.over_seeds import above, after, course, courses, evaluated, interval
from outscore.studies.records import Figure, Progress, Row, StudyResult
from outscore.tasks.arithmetic import RESPONSE, ArithmeticTask, columns

SEPARATORS = (" ", "\n</reasoning>\n")
"""What ends a step: the blank between columns, and the end of the reasoning; the answer is the last step."""
SFT_STEPS = 140
STEPS, PROMPTS, GROUP_SIZE = 60, 32, 8
LR = 3e-4
PROBLEMS, SAMPLES = 400, 4
POINTS = 2
"""Evaluations on the way of an arm."""
START = "sft"
OUTCOME, PROCESS, SUM = "outcome", "process", "steps at the end"
ARMS: Mapping[str, tuple[str, str]] = {
    OUTCOME: ("answer", "outcome"),
    PROCESS: ("steps", "process"),
    SUM: ("steps", "outcome"),
}
"""Arm -> what is paid, and how."""
MEASURES = ("pass@1", f"maj@{SAMPLES}", "greedy")

Table = Mapping[str, Mapping[str, Sequence[float]]]
"""Arm -> measure -> its value for each seed."""


def steps(
    completions: Sequence[str], completion_ids: Sequence[Sequence[int]], question: Sequence[str]
) -> list[list[tuple[int, float]]]:
    """A reward of steps: 1 for each that the worked solution has in its place, letter by letter, else 0; paid where it
    ends. Steps beyond the solution's are worth 0, so that writing more earns nothing."""
    return [
        [
            (end, float(place < len(gold) and step == gold[place]))
            for place, (step, end) in enumerate(zip(own, step_ends(own, ids, _decode()), strict=True))
        ]
        for own, ids, gold in (
            (split_steps(text, SEPARATORS), ids, split_steps(_worked(asked), SEPARATORS))
            for text, ids, asked in zip(completions, completion_ids, question, strict=True)
        )
    ]


def run(*, num_seeds: int, progress: Progress, runs: Path) -> StudyResult:
    """One run for each seed, and their evaluations together."""
    found = evaluated(recipe, num_seeds, progress, runs)
    table = {name: {key: [after(each, name).metrics[key] for each in found] for key in MEASURES} for name in _names()}
    return StudyResult(
        settings={"study": "process-supervision", "steps": STEPS, "samples": PROMPTS * GROUP_SIZE, "seeds": num_seeds},
        summary=[_row(name, measures) for name, measures in table.items()],
        curves=[
            {"arm": arm, "seed": seed, "step": step, "greedy": greedy, "pass@1": sampled}
            for arm in ARMS
            for seed, each in enumerate(found)
            for step, greedy, sampled in course(each, START, _stage(arm))
        ],
        claims=[
            above("DeepSeekMath, fig. 5", "process supervision above outcome supervision", *_pair(table, OUTCOME)),
            above("DeepSeekMath, 4.1.3", "and by where steps are paid, not by what is paid", *_pair(table, SUM)),
        ],
        figures=[_figure(found)],
        notes=[
            f"± is half of a 95 % interval over seeds (Student's t); % of {PROBLEMS} held-out problems. outcome: 1 for "
            "a right answer. process: 1 for each right step, where it ends. steps at the end: the sum of the same.",
        ],
    )


def recipe(seed: int) -> dict[str, Any]:
    """The run of a seed."""
    paid: dict[str, list[Any]] = {
        "answer": ["tag_answer"],
        "steps": [{"name": f"{__name__}:steps", "isolate": False}, {"name": "tag_answer", "weight": 0}],
    }
    stages: list[dict[str, Any]] = [
        {
            **{"name": START, "algorithm": "sft", "steps": SFT_STEPS, "batch_size": 32},
            "optimizer": {"lr": 2e-3, "schedule": "cosine", "warmup_steps": 10, "weight_decay": 0.1},
        },
    ]
    for name, (reward, supervision) in ARMS.items():
        stages.append(
            {
                **{"name": _stage(name), "algorithm": "grpo", "start": START, "rewards": paid[reward]},
                **{"steps": STEPS, "prompts_per_step": PROMPTS, "group_size": GROUP_SIZE, "token_budget": 16384},
                "sampling": {"max_new_tokens": 32, "max_rows": 512},
                "optimizer": {"lr": LR, "schedule": "linear", "warmup_steps": 5, "betas": [0.9, 0.99]},
                "cells": {"kl_coef": 0.0, "supervision": supervision},
            }
        )
    return {
        "seed": seed,
        "model": {"source": "tiny"},
        "task": {
            **{"kind": "arithmetic", "num_train": 4000, "num_eval": PROBLEMS, "num_demonstrations": 500},
            "seed": seed,
        },
        "rewards": ["tag_answer"],
        "stages": stages,
        "evaluation": {"problems": PROBLEMS, "samples": SAMPLES, "every": STEPS // POINTS},
    }


def _stage(name: str) -> str:
    return name.replace(" ", "-")


def _names() -> list[str]:
    return [START, *map(_stage, ARMS)]


def _pair(table: Table, low: str) -> tuple[str, Sequence[float], str, Sequence[float]]:
    return low, table[_stage(low)]["pass@1"], PROCESS, table[PROCESS]["pass@1"]


def _worked(question: str) -> str:
    """The solution of `47+38=`."""
    expression = question.removesuffix("=")
    operation = "+" if "+" in expression else "-"
    left, right = map(int, expression.split(operation))
    answer = left + right if operation == "+" else left - right
    return RESPONSE.format(reasoning=columns(left, operation, right), answer=answer)


@cache
def _decode() -> Decode:
    return decoder(character_tokenizer(ArithmeticTask.characters, ArithmeticTask.special_strings))


def _row(name: str, measures: Mapping[str, Sequence[float]]) -> Row:
    return {"arm": name, **{k: f"{100 * fmean(v):.1f} ± {100 * interval(v):.1f}" for k, v in measures.items()}}


def _figure(found: Sequence[Sequence[Evaluation]]) -> Figure:
    panel = courses(found, START, {arm: _stage(arm) for arm in ARMS})
    return Figure(name="process-supervision", title="GRPO paid for the answer, or for each step", panels=[panel])
