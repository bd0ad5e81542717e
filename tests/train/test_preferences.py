"""Stages of preferences: groups stay whole, micro-batches change nothing, and what is held out is measured."""

from typing import Any

import pytest
import torch
from torch import Tensor
from train.building import learner_of, plan_of, prompt_of, tiny_policy

from outscore.algorithms.rows import algorithm
from outscore.config import parse_recipe
from outscore.model.adapters import trainable_parameters
from outscore.model.policy import Policy
from outscore.model.rows import split_groups
from outscore.records import Completion, RankedGroup
from outscore.report import RunDirectory
from outscore.stage_rows import stage_algorithm
from outscore.stages import PreferenceSettings
from outscore.train.build import build_stage
from outscore.train.check import check_recipe
from outscore.train.preferences import PreferenceMeasure, PreferenceSource, ranked_batch
from outscore.train.run import run_recipe
from outscore.train.setup import prepare
from outscore.train.step import Batch, Reference, accumulate, batch_logprobs, update

TINY = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
TASK = {"kind": "arithmetic", "num_train": 4, "num_eval": 3, "num_demonstrations": 2, "num_preferences": 12}
DPO = {"algorithm": "dpo", "steps": 4, "batch_size": 4, "optimizer": {"lr": 1e-3}}
RECIPE: dict[str, Any] = {
    "model": TINY,
    "task": TASK,
    "stages": [DPO],
    "evaluation": {"every": 2, "max_new_tokens": 4},
    "checkpoints": {"every": 2},
}


def ranked(policy: Policy, question: str, texts: list[str], ranks: tuple[int, ...]) -> RankedGroup:
    completions = []
    for text in texts:
        ids = (*policy.tokenizer(text, add_special_tokens=False)["input_ids"], policy.tokenizer.eos_token_id)
        completions.append(Completion(token_ids=ids, text=text, counts=(True,) * len(ids)))
    return RankedGroup(prompt=prompt_of(policy, question, ""), completions=tuple(completions), ranks=ranks)


def three_groups(policy: Policy) -> Batch:
    groups = [
        ranked(policy, "1+1=", ["2", "33"], (0, 1)),
        ranked(policy, "12+9=", ["21", "212121", "20", "1"], (0, 2, 1, 1)),
        ranked(policy, "7-5=", ["20", "2"], (1, 0)),
    ]
    return ranked_batch(groups, ties="half")


def gradient(row: Any, **changes: Any) -> Tensor:
    policy = tiny_policy(dtype=torch.float64)
    batch, reference = three_groups(policy), Reference(trainable_parameters(policy.model))
    generator = torch.Generator().manual_seed(1)
    for weight in reference.weights.values():  # another model than the policy
        weight += 0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    learner = learner_of(policy, reference)
    with reference.in_place():
        ref = batch_logprobs(policy, batch, batch.groups, 10_000)
    accumulate(learner, batch, batch.groups, plan_of(row, **changes), {"ref_logprobs": ref})
    return torch.cat([p.grad.flatten() for p in learner.masters.parameters.values()])


@pytest.mark.parametrize("name", ["dpo", "dpo-mean", "cdpo", "ipo"])
def test_micro_batches_change_no_gradient(name: str) -> None:
    whole, parts = (gradient(algorithm(name), token_budget=budget) for budget in (10_000, 1))
    # Llama norms compute in fp32 whatever the weights are, so agreement is to fp32 rounding.
    assert (whole - parts).norm() <= 1e-6 * whole.norm()
    assert whole.norm() > 0


def test_a_group_of_preferences_is_never_split() -> None:
    batch = three_groups(tiny_policy())
    split = [[group.completion_index for group in micro] for micro in split_groups(batch.groups, 1, whole=True)]
    assert split == [[(0, 1)], [(2, 3, 4, 5)], [(6, 7)]]
    assert len(list(split_groups(batch.groups, 10_000, whole=True))) == 1
    assert len(list(split_groups(batch.groups, 1))) == 8


def test_a_step_of_dpo_widens_the_margin_from_the_reference_which_stays() -> None:
    policy = tiny_policy()
    batch, reference = three_groups(policy), Reference(trainable_parameters(policy.model))
    learner, plan = learner_of(policy, reference), plan_of(algorithm("dpo"))
    before = {name: weight.clone() for name, weight in reference.weights.items()}
    margins = []
    for _ in range(4):
        metrics = update(learner, batch, plan)
        total, count = metrics["margin"]
        margins.append(total / count)
    assert margins[0] == pytest.approx(0.0, abs=1e-6)
    assert sorted(margins) == margins and margins[-1] > 0
    assert all(torch.equal(weight, before[name]) for name, weight in reference.weights.items())


def test_the_measure_is_what_separate_forwards_say() -> None:
    policy = tiny_policy()
    groups = [ranked(policy, "1+1=", ["2", "33", "4"], (0, 1, 1)), ranked(policy, "7-5=", ["20", "2"], (1, 0))]
    reference = Reference(trainable_parameters(policy.model))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    measure = PreferenceMeasure(
        rankings=groups,
        policy=policy,
        token_budget=20,
        reference=reference,
        algorithm=algorithm("dpo", kl_coef=0.5),
    )
    found = measure.run()

    def whole(group: RankedGroup, i: int) -> float:
        """log p of a completion, by the model's own forward."""
        ids = torch.tensor([[*group.prompt.token_ids, *group.completions[i].token_ids]])
        policy.base.set_attn_implementation("eager")
        with torch.no_grad():
            logprobs = policy.base(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
        policy.base.set_attn_implementation("outscore")
        start = len(group.prompt.token_ids)
        return float(sum(logprobs[t - 1, ids[0, t]] for t in range(start, ids.shape[1])))

    pairs = [(groups[0], 0, 1), (groups[0], 0, 2), (groups[1], 1, 0)]
    now = [whole(g, i) - whole(g, j) for g, i, j in pairs]
    with reference.in_place():
        ref = [whole(g, i) - whole(g, j) for g, i, j in pairs]
    margins = [0.5 * (a - b) for a, b in zip(now, ref, strict=True)]
    assert found["likelihood_accuracy"].value == sum(d > 0 for d in now) / 3  # type: ignore[union-attr]
    assert found["preference_accuracy"].value == sum(m > 0 for m in margins) / 3  # type: ignore[union-attr]
    assert found["margin"] == pytest.approx(sum(margins) / 3, abs=1e-4)
    losses = [torch.nn.functional.softplus(torch.tensor(-m)).item() for m in margins]
    assert found["preference_loss"] == pytest.approx((losses[0] + losses[1]) / 4 + losses[2] / 2, abs=1e-4)
    assert set(PreferenceMeasure(rankings=groups, policy=policy, token_budget=20).run()) == {"likelihood_accuracy"}


def test_every_ranking_comes_once_in_an_epoch() -> None:
    policy = tiny_policy()
    groups = [ranked(policy, f"{n}+1=", ["2", "33"], (0, 1)) for n in range(6)]
    source = PreferenceSource(rankings=groups, batch_size=2, ties="drop", seed=3, stage=1)
    prompts = [group.prompt_ids for step in (1, 2, 3) for group in source.collect(step).batch.groups]
    assert sorted(prompts) == sorted(group.prompt.token_ids for group in groups)
    assert source.collect(2).metrics == source.collect(2).metrics
    assert source.collect(1).metrics["pairs"] == (2.0, 2.0)


def test_a_ranking_that_is_all_ties_is_named_where_ties_are_dropped() -> None:
    tied = [ranked(tiny_policy(), "1+1=", ["2", "33"], (0, 0))]
    PreferenceSource(rankings=tied, batch_size=1, ties="half", seed=0, stage=0)
    with pytest.raises(ValueError, match=r"preference 'p0' \('1\+1='\): all its completions rank alike"):
        PreferenceSource(rankings=tied, batch_size=1, ties="drop", seed=0, stage=0)


def test_without_rewards_the_best_checkpoint_is_the_one_that_tells_most_pairs_apart(tmp_path: Any) -> None:
    result = run_recipe(RECIPE, tmp_path / "run")
    assert [found.label for found in result.evaluations] == ["before dpo", "dpo step 2", "after dpo"]
    assert (result.evaluations[0].num_problems, result.evaluations[0].samples) == (3, 0)
    for found in result.evaluations:
        assert set(found.metrics) == {"likelihood_accuracy", "preference_accuracy", "margin", "preference_loss"}
        assert set(found.intervals) == {"likelihood_accuracy", "preference_accuracy"}
    assert result.evaluations[0].metrics["preference_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert result.best is not None
    best = max(result.evaluations[1:], key=lambda found: (found.metrics["preference_accuracy"], found.step))
    assert result.best.name == f"step-{best.step:06d}"


def test_a_stage_of_preferences_resumes_exactly(tmp_path: Any) -> None:
    whole = run_recipe(RECIPE, tmp_path / "whole")
    stopped = RunDirectory.open(run_recipe(RECIPE, tmp_path / "stopped").path)
    import shutil

    from outscore.train.run import resume

    shutil.rmtree(stopped.checkpoint_path("dpo", 4))
    resume(stopped.path)
    kept = ("checkpoints/dpo/step-000004/model.safetensors", "groups/dpo/step-000004.parquet")
    for name in ("metrics.jsonl", "evals.jsonl", *kept):
        assert (whole.path / name).read_bytes() == (stopped.path / name).read_bytes(), name


def test_the_check_counts_preferences() -> None:
    findings = {found.what: found for found in check_recipe(parse_recipe(RECIPE))}
    assert findings["preferences"].detail == "12 pairs and rankings to train on, 3 held out"
    assert findings["memory"].status == "ok"


def test_settings_and_rows_of_preferences_are_the_same_names() -> None:
    from outscore.algorithms.rows import ALGORITHMS

    for name, row in ALGORITHMS.items():
        [stage] = parse_recipe(
            {**RECIPE, "rewards": ["tag_answer"], "stages": [{"algorithm": name, "steps": 1}]}
        ).stages
        assert isinstance(stage, PreferenceSettings) == (row.source == "preferences")
        assert stage_algorithm(stage).source == row.source


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [{**DPO, "group_size": 4}]}, "`stages.dpo.group_size` has no effect on preferences"),
        ({"stages": [{**DPO, "ties": "split"}]}, "ties"),
        ({"stages": [{**DPO, "cells": {"kl_coef": 0.0}}]}, "stage `dpo`: kl_coef=0.0: it is the beta"),
        ({"stages": [{**DPO, "cells": {"source": "policy"}}]}, "come from 'preferences'"),
        ({"task": {**TASK, "num_preferences": 0}}, "needs pairs or rankings, and task arithmetic has none"),
    ],
)
def test_what_cannot_work_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(parse_recipe({**RECIPE, **changes}))


def test_a_preference_too_long_for_the_model_is_named() -> None:
    rows = [{"prompt": mark * 10, "chosen": mark * 502, "rejected": mark} for mark in "12"]
    task = {"kind": "data", "rows": rows, "eval_fraction": 0.5}
    with pytest.raises(ValueError, match=r"preference 'rows/.*' has 513 tokens .* context of 512"):
        prepare(parse_recipe({**RECIPE, "task": task}))


def test_a_preference_of_equals_is_refused_before_any_work() -> None:
    rows = [{"prompt": f"{n}+1=", "completions": ["1", "2"], "ranking": "A = B"} for n in range(4)]
    task = {"kind": "data", "rows": rows, "eval_fraction": 0.5}
    with pytest.raises(ValueError, match=r"\('\d\+1='\): all its completions rank alike, .*set ties: half"):
        prepare(parse_recipe({**RECIPE, "task": task}))
    prepare(parse_recipe({**RECIPE, "task": task, "stages": [{**DPO, "ties": "half"}]}))


def test_a_built_stage_has_the_reference_of_the_policy_as_it_stands() -> None:
    recipe = parse_recipe(RECIPE)
    workshop = prepare(recipe)
    stage = build_stage(recipe, 0, workshop)
    assert stage.learner.reference is not None and stage.plan.algorithm.name == "dpo"
    assert all(
        torch.equal(weight, dict(workshop.policy.model.named_parameters())[name])
        for name, weight in stage.learner.reference.weights.items()
    )
