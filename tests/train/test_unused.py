"""Settings without an effect are named, and those with one are not."""

from pathlib import Path
from typing import Any

import pytest
from repo.tree import ROOT

from outscore.config import dump_recipe, load_recipe, parse_recipe
from outscore.train.check import check_recipe
from outscore.train.run import run_recipe
from outscore.train.unused import unused_settings

KL = {"kl_coef": 0.1}
USED: dict[str, Any] = {
    "model": {"source": "some/model"},
    "task": {"kind": "arithmetic"},
    "rewards": ["tag_answer"],
    "evaluation": {"samples": 4, "temperature": 0.7},
    "stages": [
        {
            "algorithm": "grpo",
            "steps": 3,
            "minibatches": 2,
            "refresh_reference_every": 2,
            "cells": KL,
            "optimizer": {"schedule": "linear", "final_fraction": 0.0, "warmup_steps": 5},
        }
    ],
}


def said(**changes: Any) -> list[str]:
    return unused_settings(parse_recipe({**USED, **changes}))


def stage(**changes: Any) -> dict[str, Any]:
    return {"stages": [{**USED["stages"][0], **changes}]}


def vapo(max_new_tokens: int) -> dict[str, Any]:
    return {"stages": [{"algorithm": "vapo", "steps": 4, "sampling": {"max_new_tokens": max_new_tokens}}]}


def test_nothing_is_said_of_settings_that_count() -> None:
    assert said() == []
    assert said(**vapo(21)) == []
    # Nor of defaults that a run's config has written out.
    sft = {"algorithm": "sft", "steps": 1}
    plain = parse_recipe({"task": USED["task"], "rewards": USED["rewards"], "stages": [sft]})
    assert unused_settings(parse_recipe(dump_recipe(plain))) == []


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        # Three steps of two updates each.
        (stage(optimizer={"warmup_steps": 6}), "warmup_steps = 6 never ends, because the stage has 6 updates"),
        (stage(optimizer={"final_fraction": 0.5}), "final_fraction = 0.5 has no effect on schedule: constant"),
        (stage(refresh_reference_every=4), "refresh_reference_every = 4 has no effect, because the stage ends"),
        # 1 / 0.05 = 20: an answer of 20 tokens has lambda 0, one of 21 has more.
        (vapo(20), "lambda_alpha = 0.05 makes lambda 0 for"),
        ({"model": {"source": "some/model", "tiny": {"num_layers": 3}}}, "model.tiny has no effect"),
        ({"evaluation": {"samples": 1, "temperature": 0.7}}, "evaluation.temperature = 0.7 has no effect"),
    ],
)
def test_a_setting_without_an_effect_is_named(changes: dict[str, Any], part: str) -> None:
    (sentence,) = said(**changes)
    assert part in sentence


def test_length_that_is_charged_twice_is_named_and_once_is_not() -> None:
    overlong = {"name": "soft_overlong", "max_length": 20, "cache": 4}
    twice = stage(overlong_buffer=4, rewards=["tag_answer", overlong])
    assert said(**twice) == [
        "stage `grpo`: length is charged twice, by overlong_buffer = 4 and by the reward soft_overlong; leave the "
        "reward out, or give overlong_buffer: 0"
    ]
    assert said(**stage(overlong_buffer=4), rewards=["tag_answer", overlong]) == said(**twice)
    assert said(**stage(overlong_buffer=4)) == said(**stage(rewards=["tag_answer", overlong])) == []
    assert said(**stage(overlong_buffer=4, rewards=["tag_answer", {**overlong, "weight": 0}])) == []
    # DAPO has a buffer where a recipe gives none.
    dapo = {"algorithm": "dapo", "steps": 3, "rewards": ["tag_answer", overlong]}
    assert "charged twice" in said(stages=[dapo])[0]
    assert said(stages=[{**dapo, "overlong_buffer": 0}]) == []


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_recipe_of_ours_has_such_a_setting(path: Any) -> None:
    assert unused_settings(load_recipe(path)) == []


def test_a_check_and_a_run_say_so(tmp_path: Path) -> None:
    tiny = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
    recipe = {
        "model": tiny,
        "task": {"kind": "arithmetic", "num_train": 4, "num_eval": 2, "num_demonstrations": 2},
        "evaluation": {"problems": 0},
        "stages": [{"algorithm": "sft", "steps": 1, "optimizer": {"final_fraction": 0.5}}],
    }
    (found,) = [finding for finding in check_recipe(parse_recipe(recipe)) if finding.what == "unused"]
    assert found.status == "warn" and "final_fraction = 0.5 has no effect" in found.detail
    run = run_recipe(recipe, tmp_path / "run")
    assert found.detail in (run.path / "events.log").read_text(encoding="utf-8")
