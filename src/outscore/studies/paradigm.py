"""The study `paradigm`: what DeepSeekMath and DeepSeek-R1 say of their methods, where nothing else differs.

Arms start from one SFT checkpoint of the demo's model and take as many samples of the same problems, in as many
optimizer steps at one learning rate, with its rewards and without KL:

- RFT imitates right samples of the SFT model, online RFT those of the policy as it is then (DeepSeekMath, figure 5);
- GRPO weighs all samples of a group, or all but those below its mean;
- PPO's advantages look ahead by λ = 0.95, or to the end (DeepSeek-R1, A.3).

Share of right answers among samples at temperature 0.7, of which figure 7 takes the majority or any (maj@k, pass@k).
Seeds 0, 1, 2, … and all sizes were fixed before the first run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from outscore.report import Evaluation
from outscore.studies.over_seeds import above, after, course, courses, evaluated, interval, within
from outscore.studies.records import Claim, Figure, Progress, Row, StudyResult

SFT_STEPS = 140
STEPS, PROMPTS, GROUP_SIZE = 40, 32, 8
IMITATED = 160
"""Samples that RFT imitates in a step: about as many as are right among those of online RFT."""
LR = 2e-4
PROBLEMS, SAMPLES, TEMPERATURE = 200, 64, 0.7
EVERY = 10
"""Steps between evaluations on the way of an arm."""
START = "sft"
RFT, ONLINE, POSITIVE, GRPO, PPO, PPO_1 = "rft", "online-rft", "grpo-without-negatives", "grpo", "ppo", "ppo-lambda-1"
ARMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ONLINE: ("online-rft", {}),
    POSITIVE: ("grpo", {"zero_negative": True}),
    GRPO: ("grpo", {}),
    PPO: ("ppo", {"gae_lambda": 0.95}),
    PPO_1: ("ppo", {"gae_lambda": 1.0}),
}
"""Arms that sample the policy -> their row of the table of algorithms and its cells, but for the KL."""
NAMES = (START, RFT, *ARMS)
MAJORITY, ANY = f"maj@{SAMPLES}", f"pass@{SAMPLES}"
MEASURES = ("pass@1", MAJORITY, ANY, "greedy")
ABOUT = 0.05
"""Two arms that are no further apart are about the same."""

Table = Mapping[str, Mapping[str, Sequence[float]]]
"""Arm -> measure -> its value for each seed."""


def run(*, num_seeds: int, progress: Progress, runs: Path) -> StudyResult:
    """One run for each seed, and their evaluations together."""
    found = evaluated(recipe, num_seeds, progress, runs)
    table = {name: {key: [after(each, name).metrics[key] for each in found] for key in MEASURES} for name in NAMES}
    return StudyResult(
        settings={"study": "paradigm", "steps": STEPS, "samples": STEPS * PROMPTS * GROUP_SIZE, "seeds": num_seeds},
        summary=[_row(name, measures) for name, measures in table.items()],
        curves=[
            {"arm": arm, "seed": seed, "step": step, "greedy": greedy, "pass@1": sampled}
            for arm in NAMES[1:]
            for seed, each in enumerate(found)
            for step, greedy, sampled in course(each, START, arm)
        ],
        claims=claims(table),
        figures=[_figure(found)],
        notes=[
            f"± is half of a 95 % interval over seeds (Student's t); % of {PROBLEMS} held-out problems, samples at "
            f"temperature {TEMPERATURE:g}."
        ],
    )


def recipe(seed: int) -> dict[str, Any]:
    """The run of a seed."""
    sampling = {"max_new_tokens": 32, "max_rows": 512}
    optimizer = {"lr": LR, "schedule": "linear", "warmup_steps": 5, "betas": [0.9, 0.99]}
    common = {"start": START, "steps": STEPS, "sampling": sampling, "optimizer": optimizer}
    return {
        "seed": seed,
        "model": {"source": "tiny"},
        "task": {
            **{"kind": "arithmetic", "num_train": 4000, "num_eval": PROBLEMS, "num_demonstrations": 500},
            "seed": seed,
        },
        "rewards": [{"name": "format_tags", "weight": 0.4}, "tag_answer"],
        "stages": [
            {
                **{"name": START, "algorithm": "sft", "steps": SFT_STEPS, "batch_size": 32},
                "optimizer": {"lr": 2e-3, "schedule": "cosine", "warmup_steps": 10, "weight_decay": 0.1},
            },
            {
                **{"algorithm": "rft", **common, "num_prompts": STEPS * PROMPTS, "group_size": GROUP_SIZE},
                "batch_size": IMITATED,
            },
            *(
                {
                    **{"name": name, "algorithm": row, **common, "prompts_per_step": PROMPTS, "group_size": GROUP_SIZE},
                    **{"token_budget": 16384, "cells": {**cells, "kl_coef": 0.0}},
                }
                for name, (row, cells) in ARMS.items()
            ),
        ],
        "evaluation": {"problems": PROBLEMS, "samples": SAMPLES, "temperature": TEMPERATURE, "every": EVERY},
    }


def claims(table: Table) -> list[Claim]:
    """What the sources found, by the differences of each seed."""
    greater = [
        ("DeepSeekMath, fig. 5", "online RFT ends above RFT", RFT, ONLINE, "pass@1"),
        ("DeepSeekMath, 5.2.1", "GRPO above online RFT", ONLINE, GRPO, "pass@1"),
        ("DeepSeekMath, 5.2.1", "negative advantages help", POSITIVE, GRPO, "pass@1"),
        ("DeepSeek-R1, A.3", "PPO: lambda 1 above 0.95", PPO, PPO_1, "pass@1"),
        ("DeepSeekMath, fig. 7", f"RL raises {MAJORITY}", START, GRPO, MAJORITY),
    ]
    alike = [
        ("DeepSeek-R1, A.3", "PPO with lambda 1 is about GRPO", GRPO, PPO_1, "pass@1"),
        ("DeepSeekMath, fig. 7", f"and leaves {ANY} as it was", START, GRPO, ANY),
    ]
    return [
        *(above(where, text, low, table[low][key], high, table[high][key]) for where, text, low, high, key in greater),
        *(
            within(where, text, ABOUT, low, table[low][key], high, table[high][key])
            for where, text, low, high, key in alike
        ),
    ]


def _row(name: str, measures: Mapping[str, Sequence[float]]) -> Row:
    return {"after": name, **{k: f"{100 * fmean(v):.1f} ± {100 * interval(v):.1f}" for k, v in measures.items()}}


def _figure(found: Sequence[Sequence[Evaluation]]) -> Figure:
    panel = courses(found, START, {arm: arm for arm in NAMES[1:]})
    return Figure(name="paradigm", title="From one SFT checkpoint, with equal samples", panels=[panel])
