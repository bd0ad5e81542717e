"""A stage that stops early ends with its best weights, and every stage's best checkpoint is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from train.stopping import BOUNDARY, Stops, contents, digits
from train.test_plateaus import STAGES

from outscore.report import Evaluation, RunDirectory
from outscore.train.checkpoint import trained_weights
from outscore.train.evaluate import Evaluator
from outscore.train.loop import StageRun
from outscore.train.run import resume, run_recipe

GREEDY = {"first": (0.2, 0.5, 0.4, 0.5), "second": (0.1, 0.6, 0.3)}
"""What the stages' evaluations find: the first is best at step 2, and again at step 4, which is not better."""

SFT, GRPO = BOUNDARY["stages"]
STILL = {**GRPO, "name": "second", "steps": 3, "optimizer": {"lr": 1e-30}}
"""A stage whose weights are those it began with."""
EARLY: dict[str, Any] = {
    **BOUNDARY,
    "task": {**BOUNDARY["task"], "num_preferences": 12},
    "stages": [{**SFT, "name": "first", "steps": 9}, STILL],
    "evaluation": {"problems": 4, "samples": 1, "every": 1, "patience": 2},
    "checkpoints": {"every": 50},
}

Weights = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Weights]:
    """Label of an evaluation -> the weights it was of. What evaluations find is written above."""
    found: dict[str, Weights] = {}
    evaluate = StageRun.evaluate

    def watched(run: StageRun, label: str, *arguments: Any, **named: Any) -> Evaluation:
        found[label] = {name: each.clone() for name, each in run.stage.learner.masters.state_dict().items()}
        return evaluate(run, label, *arguments, **named)

    def run(evaluator: Evaluator, sampler: object, **named: Any) -> Evaluation:
        named = {key: value for key, value in named.items() if key not in ("greedy_only", "tell")}
        values = GREEDY[named["stage"]]
        value = values[min(named["step"], len(values)) - 1] if named["step"] else 0.0
        return Evaluation(**named, num_problems=4, samples=1, metrics={"greedy": value}, intervals={})

    monkeypatch.setattr(StageRun, "evaluate", watched)
    monkeypatch.setattr(Evaluator, "run", run)
    return found


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def kept(run: RunDirectory, stage: str) -> list[int]:
    return [item.step for item in run.checkpoints() if item.stage == stage]


def test_the_best_is_evaluated_saved_and_handed_on(tmp_path: Path, seen: dict[str, Weights]) -> None:
    run = RunDirectory.open(run_recipe(EARLY, tmp_path / "run").path)
    assert [line["step"] for line in run.metrics("first")] == [1, 2, 3, 4]
    assert "step 4 of 9" in (events := (run.path / "events.log").read_text()) and "the weights of step 2" in events
    assert not equal(seen["first step 2"], seen["first step 4"])
    assert equal(seen["first step 2"], seen["after first"])
    assert equal(dict(trained_weights(run.checkpoint_path("first", 4))), seen["first step 2"])
    moved = (seen["second step 1"][name] - weight for name, weight in seen["first step 2"].items())
    assert max(float(each.abs().max()) for each in moved) < 1e-9


def test_the_best_of_every_stage_is_kept_and_a_stage_that_ends_by_itself_keeps_its_last_weights(
    tmp_path: Path, seen: dict[str, Weights]
) -> None:
    stages = [{**SFT, "name": "second", "steps": 4}, {**STILL, "name": "first", "steps": 2}]
    recipe = {**EARLY, "stages": stages, "evaluation": {**EARLY["evaluation"], "patience": 0}}
    run = RunDirectory.open(run_recipe(recipe, tmp_path / "run").path)
    assert kept(run, "second") == [2, 4]
    assert equal(dict(trained_weights(run.checkpoint_path("second", 2))), seen["second step 2"])
    assert not equal(seen["after second"], seen["second step 2"])


@pytest.mark.parametrize(
    ("precision", "stops_at"), [("fp32", [("first", 4), ("second", 0)]), ("bf16", [("second", 0)])]
)
def test_an_early_stop_resumes_exactly(tmp_path: Path, precision: str, stops_at: list[tuple[str, int]]) -> None:
    recipe = {**EARLY, "model": {**EARLY["model"], "precision": precision}}
    run_recipe(recipe, tmp_path / "whole")
    assert kept(RunDirectory.open(tmp_path / "whole"), "first") == [2, 4]
    for stage, step in stops_at:
        run = tmp_path / f"{stage}-{step}"
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, run, console=Stops(stage, step))
        assert resume(run).finished
        assert contents(run) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "stage",
    [
        {**STAGES["reward-model"], "populations": None, "normalise": False},
        {**GRPO, "algorithm": "ppo", "critic": {"lr": 1e-3}, "cells": {"reward": "total"}},
    ],
    ids=lambda stage: str(stage["algorithm"]),
)
def test_a_reward_model_and_a_critic_go_back_too(tmp_path: Path, stage: dict[str, Any]) -> None:
    recipe = {**EARLY, "stages": [{**stage, "name": "first", "steps": 9}], "checkpoints": {"every": 1}}
    run = RunDirectory.open(run_recipe(recipe, tmp_path / "run", rewards=[digits]).path)
    assert kept(run, "first") == [2, 3, 4]
    best, before, last = (contents(run.checkpoint_path("first", step)) for step in (2, 3, 4))
    models = [name for name in best if name.endswith(("model.safetensors", "trainer.safetensors"))]
    assert len(models) == (4 if stage["algorithm"] == "ppo" else 2)  # of policy and critic
    for name in models:
        assert best[name] == last[name], name
        assert best[name] != before[name], name
