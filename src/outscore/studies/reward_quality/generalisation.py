"""The study `reward-generalisation`: how well a reward model judges what it was not trained on (DeepSeekMath,
arXiv 2402.03300, 5.2.3: reward models must generalise to other questions and to what better decoding finds).

A reward model of whole solutions learns from samples of an SFT model, on sums, which of them are right. Then it judges
held-out samples of five kinds: as it was trained on; of other questions, differences; of a policy that a rule has made
stronger; of a policy that was paid by the reward model itself; and the sample that it chooses among eight. Policy and
questions of the first kind are those of its training, and no problem is.

Seeds 0, 1, 2, … and all sizes were fixed before the first run on them; whether it runs at all was tried with seed 1000.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from outscore.config import parse_recipe
from outscore.objectives.reward_models import label_accuracy, label_calibration_error
from outscore.records import SampleRequest, SamplingParams, Score, ScoredGroup
from outscore.report import RunDirectory
from outscore.report.run import FACTS
from outscore.rewards import Rewards
from outscore.rollout import make_sampler
from outscore.studies.over_seeds import above, completed, interval, sem
from outscore.studies.records import Claim, Figure, Panel, Progress, Row, Series, StudyResult
from outscore.train.evaluate import EVALUATION_SEED
from outscore.train.setup import prepare

PROBLEMS, SAMPLES = 400, 8
"""Held-out problems, about half of them sums, and samples of each."""
MAX_NEW_TOKENS = 32
SFT_STEPS, RM_STEPS, GRPO_STEPS = 140, 80, 40
PROMPTS = 32
RM_PROBLEMS = 1000
"""Problems whose samples, four of each, the reward model learns from."""

TRAINED, OTHER, STRONGER, PAID, CHOSEN = "as trained on", "other questions", "stronger", "paid by it", "best of 8"
KINDS: Mapping[str, tuple[str, str]] = {
    TRAINED: ("sft", "+"),
    OTHER: ("sft", "-"),
    STRONGER: ("rule", "+"),
    PAID: ("learned", "+"),
    CHOSEN: ("sft", "+"),
}
"""Kind -> the stage whose policy sampled, and which questions."""
WHERE = "DeepSeekMath, 5.2.3"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """The samples of a problem, as they are and as the reward model sees them."""

    scores: tuple[float, ...]
    """Log-odds of being right, as the reward model says."""
    right: tuple[bool, ...]
    """Whether they are."""

    @property
    def best(self) -> "Judged":
        """The one sample of the highest score, the first among equals."""
        place = max(range(len(self.scores)), key=self.scores.__getitem__)
        return Judged(scores=(self.scores[place],), right=(self.right[place],))

    @property
    def ranking(self) -> float | None:
        """The share of pairs of a right and a wrong sample in which the right one scores higher, half of it where they
        are equal; None where there is no such pair."""
        pairs = [
            (mine > other) + 0.5 * (mine == other)
            for mine, is_right in zip(self.scores, self.right, strict=True)
            for other, is_other in zip(self.scores, self.right, strict=True)
            if is_right and not is_other
        ]
        return fmean(pairs) if pairs else None


Found = Mapping[str, float | None]
"""Measure -> its value for one kind and seed."""


def measures(judged: Sequence[Judged]) -> Found:
    """`right`, the share of right samples; `said`, the mean chance that the reward model gives; `label accuracy`, how
    often it is on the right side of 1/2; `ranking`, the mean over problems; `calibration error`."""
    scores = torch.tensor([score for each in judged for score in each.scores], dtype=torch.float64)
    labels = torch.tensor([float(verdict) for each in judged for verdict in each.right], dtype=torch.float64)
    rankings = [value for each in judged if (value := each.ranking) is not None]
    return {
        "right": float(labels.mean()),
        "said": float(scores.sigmoid().mean()),
        "label accuracy": float(label_accuracy(scores, labels).mean()),
        "ranking": fmean(rankings) if rankings else None,
        "calibration error": label_calibration_error(scores.sigmoid(), labels),
    }


def recipe(seed: int) -> dict[str, Any]:
    """The run of a seed: its reward model, and the policies whose samples that judges."""
    sampling = {"max_new_tokens": MAX_NEW_TOKENS, "max_rows": 512}
    task = {"kind": "arithmetic", "num_train": 3000, "num_eval": PROBLEMS, "num_demonstrations": 500, "seed": seed}
    grpo = {
        **{"algorithm": "grpo", "start": "sft", "steps": GRPO_STEPS, "prompts_per_step": PROMPTS, "group_size": 8},
        **{"token_budget": 16384, "sampling": sampling, "cells": {"kl_coef": 0.01}},
        "optimizer": {"lr": 3e-4, "warmup_steps": 5, "betas": [0.9, 0.99]},
    }
    return {
        "seed": seed,
        "model": {"source": "tiny"},
        "task": task,
        "rewards": ["tag_answer"],
        "stages": [
            {
                **{"name": "sft", "algorithm": "sft", "steps": SFT_STEPS, "batch_size": 32},
                "optimizer": {"lr": 2e-3, "schedule": "cosine", "warmup_steps": 10, "weight_decay": 0.1},
            },
            {
                **{"name": "judge", "algorithm": "outcome-reward-model", "steps": RM_STEPS, "batch_size": 64},
                **{"token_budget": 8192, "task": {**task, "operations": ["+"], "num_eval": 1}},
                "sample": {"num_prompts": RM_PROBLEMS, "group_size": 4, "sampling": sampling},
                "optimizer": {"lr": 3e-4, "schedule": "linear", "warmup_steps": 5},
            },
            {**grpo, "name": "rule"},
            {**grpo, "name": "learned", "rewards": [{"name": "reward_model", "stage": "judge"}]},
        ],
        "evaluation": {"problems": PROBLEMS, "samples": 1},
    }


def judged(run: RunDirectory, stage: str) -> Mapping[str, list[Judged]]:
    """Samples of the policy after a stage, on the held-out problems of each operation."""
    config = run.config()
    facts = config.pop(FACTS)
    last = {each.stage: each.path for each in run.checkpoints()}
    learned = {"name": "reward_model", "path": str(last["judge"]), "weight": 0}
    rewards = Rewards(["tag_answer", learned])
    made = parse_recipe(config)
    workshop = prepare(made, weights=last[stage], facts=facts, evaluation_only=True, rewards=rewards)
    requests = [
        SampleRequest(prompt=prompt, num_samples=SAMPLES, slot=slot)
        for slot, prompt in enumerate(workshop.eval_prompts)
    ]
    params = SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    drawn = make_sampler(workshop.policy, 512).sample(requests, params, seed=made.seed + EVALUATION_SEED, step=0)
    found: dict[str, list[Judged]] = {"+": [], "-": []}
    for group in rewards.score(drawn, step=0).groups:
        found[str(group.sampled.prompt.problem.columns["operation"])].append(_judged(group))
    return found


def run(*, num_seeds: int, progress: Progress, runs: Path) -> StudyResult:
    """One run for each seed, and what its reward model says of five kinds of samples."""
    found: dict[str, list[Found]] = {kind: [] for kind in KINDS}
    for seed in range(num_seeds):
        progress(f"seed {seed}", seed, num_seeds)
        done = completed(recipe(seed), runs / str(seed))
        samples = {stage: judged(done, stage) for stage in dict.fromkeys(stage for stage, _ in KINDS.values())}
        for kind, (stage, operation) in KINDS.items():
            own = samples[stage][operation]
            found[kind].append(measures([each.best for each in own] if kind == CHOSEN else own))
    progress("done", num_seeds, num_seeds)
    return StudyResult(
        settings={"study": "reward-generalisation", "samples": SAMPLES, "seeds": num_seeds},
        summary=[_row(kind, own) for kind, own in found.items()],
        curves=[
            {"samples": kind, "seed": seed, **each} for kind, own in found.items() for seed, each in enumerate(own)
        ],
        claims=claims(found),
        figures=[_figure(found)],
        notes=[
            "Samples of held-out problems: as trained on, the SFT model's sums; other questions, its differences; "
            "stronger, the sums of a policy paid by a rule; paid by it, of one paid by the reward model; best of 8, "
            "the SFT model's sum of the highest score.",
            "ranking: pairs of a right and a wrong sample of a problem in which the right one scores higher. said: the "
            "mean chance that it gives. ± is half of a 95 % interval over seeds (Student's t).",
        ],
    )


def claims(found: Mapping[str, Sequence[Found]]) -> list[Claim]:
    """Where a reward model should be expected to judge worse, by the differences of each seed."""
    chosen = found[CHOSEN]
    return [
        *(_ranks_worse(kind, found[kind], found[TRAINED]) for kind in (OTHER, STRONGER, PAID)),
        above(
            WHERE,
            "what it chooses is less often right than it says",
            "right",
            _values(chosen, "right"),
            "said",
            _values(chosen, "said"),
        ),
    ]


def _ranks_worse(kind: str, own: Sequence[Found], trained: Sequence[Found]) -> Claim:
    """Over the seeds in which there is something to rank in both."""
    ranked = [(each["ranking"], other["ranking"]) for each, other in zip(own, trained, strict=True)]
    both = [(low, high) for low, high in ranked if low is not None and high is not None]
    claim = f"it ranks worse: {kind}"
    if len(both) < 2:
        return Claim(where=WHERE, claim=claim, measured="nothing to rank in most seeds", holds=False)
    return above(WHERE, claim, kind, [low for low, _ in both], TRAINED, [high for _, high in both])


def _judged(group: ScoredGroup) -> Judged:
    scores = [score for score in group.scores if isinstance(score, Score)]
    assert len(scores) == len(group.scores)
    return Judged(
        scores=tuple(float(score.parts["reward_model"] or 0.0) for score in scores),
        right=tuple(score.parts["tag_answer"] == 1.0 for score in scores),
    )


def _values(own: Sequence[Found], measure: str) -> list[float]:
    return [value for each in own if (value := each[measure]) is not None]


def _row(kind: str, own: Sequence[Found]) -> Row:
    row: dict[str, Any] = {"samples": kind}
    for measure in own[0]:
        values = _values(own, measure)
        row[measure] = f"{100 * fmean(values):.1f} ± {100 * interval(values):.1f}" if len(values) > 1 else None
    return row


def _figure(found: Mapping[str, Sequence[Found]]) -> Figure:
    def panel(title: str, measure: str) -> Panel:
        series = [
            Series(label=kind, x=[0], mean=[fmean(values)], sem=[sem(values)])
            for kind, own in found.items()
            if len(values := _values(own, measure)) > 1  # of one seed nothing is known of the spread
        ]
        return Panel(title=title, x_label="", y_label="share", series=series, kind="bars")

    panels = [
        panel("right above wrong, same problem", "ranking"),
        panel("on the right side of one half", "label accuracy"),
        panel("calibration error", "calibration error"),
    ]
    return Figure(name="reward-generalisation", title="A reward model on what it was not trained on", panels=panels)
