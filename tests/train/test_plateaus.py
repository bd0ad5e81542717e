"""Plateaus: what evaluations measure is known before any work, and a plateau that could never be found is refused."""

import math
from pathlib import Path
from typing import Any

import pytest

from outscore.config import parse_recipe
from outscore.records import Problem, Rating
from outscore.report import Evaluation, RunDirectory
from outscore.stage_parts import PlateauSettings
from outscore.train.check import check_recipe
from outscore.train.checkpoint import Progress
from outscore.train.loop import after_evaluation, ranked
from outscore.train.plateaus import check_plateaus, evaluated_metrics
from outscore.train.run import run_recipe
from outscore.train.setup import prepare

TINY = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
TASK = {"kind": "arithmetic", "num_train": 12, "num_eval": 6, "num_demonstrations": 12, "num_preferences": 12}
COMMON = {"steps": 2, "optimizer": {"lr": 1e-3}}
BY_OPERATION = {"column": "operation", "weights": "equal"}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"algorithm": "sft", "batch_size": 4, **COMMON},
    "ipo": {"algorithm": "ipo", "batch_size": 4, "populations": BY_OPERATION, **COMMON},
    "reward-model": {"algorithm": "reward-model", "batch_size": 4, "populations": BY_OPERATION, **COMMON},
    "outcome-reward-model": {"algorithm": "outcome-reward-model", "batch_size": 4, **COMMON},
    "ratings": {
        "algorithm": "outcome-reward-model",
        "batch_size": 4,
        "cells": {"surrogate": "squared_error"},
        **COMMON,
    },
    "grpo": {
        "algorithm": "grpo",
        "prompts_per_step": 2,
        "group_size": 2,
        "sampling": {"max_new_tokens": 4},
        "populations": BY_OPERATION,
        **COMMON,
    },
}
EVALUATION = {"problems": 6, "every": 1, "max_new_tokens": 4}
REWARDS = [{"name": "format_tags", "weight": 0.1}, "tag_answer"]


def recipe(*names: str, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"model": TINY, "task": TASK, "stages": [STAGES[name] for name in names]}
    rewards = REWARDS if {"sft", "grpo"} & set(names) else []
    return {**base, "rewards": rewards, "evaluation": EVALUATION, **changes}


class Rated:
    """A few completions of three people with a number each."""

    name = "rated"
    characters = "0123456789+="

    def train_problems(self) -> list[Problem]:
        return self._problems("train")

    def eval_problems(self) -> list[Problem]:
        return self._problems("eval")

    def demonstrations(self) -> list[Any]:
        return []

    def train_ratings(self) -> list[Rating]:
        return [Rating(problem=each, response="1", reward=0.5) for each in self._problems("train")]

    def eval_ratings(self) -> list[Rating]:
        return [
            Rating(problem=each, response="1", reward=(0.0, 0.25, 0.75, 1.0, 0.25)[n])
            for n, each in enumerate(self._problems("eval"))
        ]

    def labelled_solutions(self) -> list[Any]:
        return []

    def eval_labelled_solutions(self) -> list[Any]:
        return []

    def _problems(self, split: str) -> list[Problem]:
        first = 0 if split == "train" else 5
        return [
            Problem(id=f"{split}{n}", question=f"{first + n}+1=", answer=None, columns={}, population="abc"[n % 3])
            for n in range(5)
        ]


@pytest.mark.parametrize("name", list(STAGES))
def test_what_will_be_measured_is_what_an_evaluation_within_the_stage_has(name: str, tmp_path: Path) -> None:
    task = Rated() if name in ("outcome-reward-model", "ratings") else None
    settings = recipe(name)
    if task is not None:
        settings["task"] = {"kind": "python", "name": task.name}
    parsed = parse_recipe(settings)
    known = evaluated_metrics(parsed, 0, prepare(parsed, task=task))
    run = run_recipe(settings, tmp_path / "run", task=task)
    within = next(found for found in RunDirectory.open(run.path).evaluations() if found.label.endswith("step 1"))
    expected = set(known)
    for metric, populations in known.items():
        assert populations is not None
        if populations:
            expected |= {f"{metric}/{each}" for each in (*populations,)} | {f"worst/{metric}", f"spread/{metric}"}
    assert set(within.metrics) == expected and expected
    assert any(known.values()) == (name != "sft")  # whose problems name no population here


@pytest.mark.parametrize(
    ("changes", "plateau", "message"),
    [
        ({"evaluation": {"problems": 6}}, {}, "plateau has no effect without evaluation.every"),
        (
            {"evaluation": {"problems": 6, "every": 4}},
            {"evaluations": 2},
            r"every = 4 makes 2 evaluations before step 10, the last, and plateau.evaluations = 2 asks for 3",
        ),
        ({"evaluation": {"problems": 0, "every": 1}}, {}, r"stage `ipo`: plateau has no effect, because .* nothing"),
        (
            {},
            {"metric": "worst/preferense_loss"},
            r"plateau.metric = 'worst/preferense_loss' is not evaluated.*did you mean `worst/preference_loss`",
        ),
        ({}, {"metric": "greedy"}, "'greedy' is not evaluated; known: likelihood_accuracy, "),
        ({}, {"metric": "preference_loss/*"}, r"'preference_loss/\*' is not evaluated"),
        ({}, {"schedule": "cosine"}, "schedule"),
        ({}, {"lr_factor": 1.5}, "lr_factor"),
    ],
)
def test_a_plateau_that_could_never_be_found_is_refused(
    changes: dict[str, Any], plateau: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = recipe("ipo", **changes)
    settings["stages"] = [{**settings["stages"][0], "steps": 10, "plateau": plateau}]
    with pytest.raises(ValueError, match=message):
        check_recipe(parse_recipe(settings))
    with pytest.raises(ValueError, match=message):
        run_recipe(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_patience_without_anything_to_evaluate_is_refused(tmp_path: Path) -> None:
    settings = recipe("sft", evaluation={"problems": 0, "every": 1, "patience": 1})
    settings["stages"] = [{**settings["stages"][0], "steps": 10}]
    with pytest.raises(ValueError, match=r"patience = 1 has no effect, because no stage evaluates anything"):
        check_recipe(parse_recipe(settings))
    with pytest.raises(ValueError, match=r"patience = 1 has no effect"):
        run_recipe(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", ["preference_loss", "worst/preference_loss", "preference_loss/+", "spread/margin"])
def test_a_plateau_may_wait_for_whatever_is_measured(metric: str) -> None:
    settings = recipe("ipo")
    settings["stages"] = [{**settings["stages"][0], "steps": 10, "plateau": {"metric": metric}}]
    parsed = parse_recipe(settings)
    if metric == "spread/margin":  # margins are not told by population
        with pytest.raises(ValueError, match="is not evaluated"):
            check_plateaus(parsed, prepare(parsed))
    else:
        check_plateaus(parsed, prepare(parsed))


@pytest.mark.parametrize("metric", ["preference_loss/Japan", "worst/preference_loss", "spread/preference_accuracy"])
def test_what_should_fall_is_on_a_plateau_when_it_rises(metric: str) -> None:
    settings = PlateauSettings(metric=metric, evaluations=1)
    progress = Progress(stage="ipo", step=0, finished=False, policy_version=0, num_updates=0)
    for value, plateaus in ((3.0, 0), (2.0, 0), (2.5, 1)):
        found = Evaluation(
            label="", stage="ipo", step=1, policy_version=1, num_problems=1, samples=0, metrics={metric: value}
        )
        progress = after_evaluation(progress, settings, found)
        assert progress.num_plateaus == plateaus


def test_what_is_no_number_is_neither_the_best_nor_a_plateau() -> None:
    settings = PlateauSettings(metric="explained", evaluations=1)
    progress = Progress(stage="ratings", step=0, finished=False, policy_version=0, num_updates=0)
    for value, best in ((math.nan, None), (-math.inf, None), (0.5, 0.5), (math.nan, 0.5)):
        found = Evaluation(
            label="", stage="ratings", step=1, policy_version=1, num_problems=1, samples=0, metrics={"explained": value}
        )
        progress = after_evaluation(progress, settings, found)
        progress, better = ranked(progress, found, 1)
        assert better == (value == 0.5)
        assert (progress.best_value, progress.plateau_best, progress.num_plateaus) == (best, best, 0)
