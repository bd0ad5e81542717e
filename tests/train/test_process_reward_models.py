"""Stages that learn labels: steps labelled by hand, or by completions from each of them; resumed, replayed, refused."""

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from train.building import tiny_policy
from transformers import AutoModelForSequenceClassification

from outscore.config import parse_recipe
from outscore.model.heads import RewardModel, load_reward_model, reward_model_from
from outscore.model.rows import group_rows
from outscore.model.steps import decoder
from outscore.records import Completion, LabelledGroup, Problem, Prompt
from outscore.report import RunDirectory
from outscore.report.rows import read_parquet
from outscore.rewards import Rewards
from outscore.rewards.process_model import StepScorer
from outscore.rollout import ScriptedSampler
from outscore.stages import ProcessRewardModelSettings
from outscore.train.build import build_stage
from outscore.train.check import check_recipe
from outscore.train.checkpoint import policy_checkpoints
from outscore.train.evaluate import Judge
from outscore.train.labels import labelled_batch
from outscore.train.reward_models import batch_scores, update_reward_model
from outscore.train.run import resume, run_recipe
from outscore.train.setup import prepare
from outscore.train.step_labels import SampledLabels, estimate, replayed

TINY = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
ROWS = [
    {"prompt": "1+1+1=", "completions": ["1+1=2", "2+1=3"], "labels": [True, True], "answer": "3"},
    {"prompt": "2+1+1=", "completions": ["2+1=3", "3+1=5"], "labels": [True, False], "answer": "4"},
    {"prompt": "1+2+1=", "completions": ["1+2=2", "2+1=3"], "labels": [False, False], "answer": "4"},
    {"prompt": "3+1+1=", "completions": ["3+1=4", "4+1=5"], "labels": [0.75, 0.5], "answer": "5"},
]
PRM = {"algorithm": "process-reward-model", "steps": 4, "batch_size": 2, "separators": [" "], "optimizer": {"lr": 1e-3}}
BY_HAND: dict[str, Any] = {
    "model": TINY,
    "task": {"kind": "data", "eval_fraction": 0.3},
    "stages": [PRM],
    "evaluation": {"every": 2, "max_new_tokens": 4},
    "checkpoints": {"every": 2},
}
SAMPLE = {"num_prompts": 6, "group_size": 3, "completions": 4, "held_out": 0.2, "sampling": {"max_new_tokens": 20}}
SAMPLED: dict[str, Any] = {
    "seed": 3,
    "model": TINY,
    "task": {"kind": "arithmetic", "num_train": 12, "num_eval": 4, "num_demonstrations": 8},
    "stages": [{"algorithm": "sft", "steps": 2, "batch_size": 4}, {**PRM, "sample": SAMPLE}],
    "evaluation": {"problems": 2, "samples": 1},
    "checkpoints": {"every": 2},
    "scoring": {"isolate": False},
}


def even(completions: list[str], **columns: Any) -> list[float]:
    """What an untaught model gets right half of the time."""
    return [float(len(text) % 2 == 0) for text in completions]


@pytest.fixture
def by_hand(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {**BY_HAND, "task": {**BY_HAND["task"], "path": str(path)}}


def labelled(policy: Any, question: str, steps: list[str], labels: tuple[float, ...]) -> LabelledGroup:
    encode = policy.tokenizer.encode
    parts = [encode(step, add_special_tokens=False) for step in steps]
    ids = (*itertools.chain(*parts), policy.tokenizer.eos_token_id)
    ends = [sum(map(len, parts[: i + 1])) - 1 for i in range(len(parts))]
    prompt = Prompt(
        problem=Problem(id=question, question=question, answer=None, columns={}),
        text=question,
        token_ids=tuple(encode(question, add_special_tokens=False)),
    )
    completion = Completion(token_ids=ids, text="".join(steps), counts=(True,) * len(ids))
    return LabelledGroup(prompt=prompt, completion=completion, ends=(*ends[:-1], len(ids) - 1), labels=labels)


def test_hand_labels_become_groups_whose_labels_stand_at_step_ends(by_hand: dict[str, Any]) -> None:
    workshop = prepare(parse_recipe({**by_hand, "task": {**by_hand["task"], "eval_fraction": 0.0}}))
    found = {group.prompt.text: group for group in workshop.materials[0].labelled}
    decode = decoder(workshop.policy.tokenizer)
    for row in ROWS:
        group = found[str(row["prompt"])]
        first, second = row["completions"]
        assert group.labels == tuple(map(float, row["labels"]))
        assert [decode(group.completion.token_ids[: end + 1]) for end in group.ends] == [
            f"{first} ",
            f"{first} {second}",
        ]
        assert group.ends[-1] == len(group.completion.token_ids) - 1  # the end token


@pytest.mark.parametrize(("neutral", "labels"), [("right", (1.0, 1.0)), ("wrong", (0.0, 1.0)), ("drop", (1.0,))])
def test_a_step_that_is_neither_counts_as_the_recipe_says(
    by_hand: dict[str, Any], neutral: str, labels: tuple[float, ...]
) -> None:
    row = {"prompt": "1+1+1=", "completions": ["1+1=2", "2+1=3"], "labels": [0, 1]}
    Path(by_hand["task"]["path"]).write_text(json.dumps(row))
    recipe = {**by_hand, "task": {**by_hand["task"], "eval_fraction": 0.0}, "stages": [{**PRM, "neutral": neutral}]}
    [group] = prepare(parse_recipe(recipe)).materials[0].labelled
    assert group.labels == labels


@pytest.mark.parametrize(
    ("row", "stage", "message"),
    [
        ({"completions": ["1", "2"], "labels": [True]}, {}, r"steps\.jsonl.*1: 2 steps in 'completions', but 1 labels"),
        ({"completions": ["1", "", ""], "labels": [True] * 3}, {"separators": []}, "end in the same token"),
        ({"response": "2", "expected_reward": 1.0}, {}, "has no labelled steps"),
        ({"completions": ["1"], "labels": [True]}, {"algorithm": "outcome-reward-model"}, "has no ratings"),
        ({"response": "2", "expected_reward": 4.0}, {"algorithm": "outcome-reward-model"}, "is 4, .*squared_error"),
    ],
)
def test_what_cannot_be_learnt_names_the_record(
    by_hand: dict[str, Any], row: dict[str, Any], stage: dict[str, Any], message: str
) -> None:
    Path(by_hand["task"]["path"]).write_text(json.dumps({"prompt": "1+1=", **row}))
    own = {**PRM, **stage}
    if "algorithm" in stage:
        own.pop("separators")
    recipe = {**by_hand, "task": {**by_hand["task"], "eval_fraction": 0.0}, "stages": [own]}
    with pytest.raises(ValueError, match=message):
        prepare(parse_recipe(recipe))


def test_beginnings_are_scored_as_if_each_stood_alone(tmp_path: Path) -> None:
    """Hugging Face's sequence classifier on prompt and beginning, one at a time, in both layouts."""
    policy = tiny_policy()
    model = reward_model_from(policy, seed=0, end_token_id=None, separators=[" "])
    model.base.save_pretrained(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    groups = [
        labelled(policy, "1+1=", ["1 ", "2 ", "3"], (1.0, 0.0, 0.0)),
        labelled(policy, "1+1=", ["1 ", "9"], (1.0, 0.5)),
    ]
    batch = labelled_batch(groups)
    assert batch.labels is not None and batch.labels.tolist() == [1.0, 0.0, 0.0, 1.0, 0.5]
    expected = []
    for group in groups:
        for end in group.ends:
            ids = torch.tensor([[*group.prompt.token_ids, *group.completion.token_ids[: end + 1]]])
            with torch.no_grad():
                expected.append(theirs(input_ids=ids).logits.item())
    model.tokenizer.save_pretrained(tmp_path)
    for scorer in (model, load_reward_model(tmp_path, layout="separate_rows")):
        torch.testing.assert_close(batch_scores(scorer, batch, 10_000), torch.tensor(expected), atol=1e-5, rtol=0)
    packed = group_rows(batch.groups, batch.starts)
    assert packed.num_slots == 4 + 6 + 2  # the prompt once, "1 2 3</s>", and what differs of "1 9</s>"


def test_updates_learn_the_labels_and_micro_batches_change_nothing(by_hand: dict[str, Any]) -> None:
    moved = []
    for budget in (10_000, 1):
        recipe = parse_recipe({**by_hand, "stages": [{**PRM, "token_budget": budget, "optimizer": {"lr": 5e-3}}]})
        stage = build_stage(recipe, 0, prepare(recipe))
        model = stage.learner.policy
        assert isinstance(model, RewardModel)
        batch = labelled_batch(
            [
                labelled(model, "1+1=", ["1 ", "2 ", "3"], (1.0, 0.0, 0.0)),
                labelled(model, "3+1=", ["4 ", "5"], (0.25, 1.0)),
            ]
        )
        metrics = update_reward_model(stage.learner, batch, stage.plan)
        moved.append((metrics["loss"][0], metrics["grad_norm"][0]))
    assert moved[0] == pytest.approx(moved[1], rel=1e-4)
    for _ in range(100):
        update_reward_model(stage.learner, batch, stage.plan)
    chances = batch_scores(model, batch, 10_000).sigmoid()
    assert batch.labels is not None
    torch.testing.assert_close(chances, batch.labels, atol=0.1, rtol=0)


def test_a_run_on_hand_labels_reports_and_saves_what_scores_steps(by_hand: dict[str, Any], tmp_path: Path) -> None:
    result = run_recipe(by_hand, tmp_path / "run")
    assert [found.label for found in result.evaluations] == [
        *("before process-reward-model", "process-reward-model step 2", "after process-reward-model")
    ]
    assert set(result.evaluations[-1].metrics) == {"label_accuracy", "calibration_error", "label_loss"}
    run = RunDirectory.open(result.path)
    assert policy_checkpoints(run) == []
    saved = load_reward_model(run.checkpoint_path("process-reward-model", 4))
    assert saved.separators == (" ",)
    assert {"loss", "label", "label_accuracy", "labels_per_completion"} <= set(run.metrics("process-reward-model")[-1])


def test_ratings_are_regressed_on(by_hand: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+1=", "response": str(n + 1), "expected_reward": n - 3.5} for n in range(8)]
    Path(by_hand["task"]["path"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"algorithm": "outcome-reward-model", "steps": 2, "batch_size": 4, "cells": {"surrogate": "squared_error"}}
    result = run_recipe({**by_hand, "stages": [stage], "evaluation": {"max_new_tokens": 4}}, tmp_path / "run")
    assert "label_loss" in result.evaluations[-1].metrics


def test_ratings_that_do_not_vary_leave_nothing_to_explain(by_hand: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+1=", "response": str(n + 1), "expected_reward": 1.5} for n in range(8)]
    Path(by_hand["task"]["path"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"algorithm": "outcome-reward-model", "steps": 2, "batch_size": 4, "cells": {"surrogate": "squared_error"}}
    result = run_recipe({**by_hand, "stages": [stage]}, tmp_path / "run")
    assert all(math.isnan(found.metrics["explained"]) for found in result.evaluations)
    assert all(found.metrics["label_loss"] > 0 for found in result.evaluations)
    lines = (result.path / "evals.jsonl").read_text().splitlines()
    assert {json.loads(line)["metrics"]["explained"] for line in lines} == {None}


class Tree(ScriptedSampler):
    """Solutions `r w`, `w r`, `r r`; from `r ` on, one of four completions is right, from `w ` none."""

    def __init__(self, tokenizer: Any) -> None:
        self.asked: list[str] = []
        super().__init__(self._text_of, tokenizer)

    def _text_of(self, prompt: Prompt, sample: int) -> str:
        self.asked.append(prompt.text)
        if prompt.text == "7+7=":
            return ("1 2", "2 1", "1 1", "1 2")[sample]
        return "1" if prompt.text == "7+7=1 " and sample == 2 else "2"


def tree_labels(estimated: str) -> tuple[list[LabelledGroup], Tree]:
    policy = tiny_policy()
    tokenizer = policy.tokenizer
    prompt = Prompt(
        problem=Problem(id="p", question="7+7=", answer="1", columns={}),
        text="7+7=",
        token_ids=tuple(tokenizer.encode("7+7=", add_special_tokens=False)),
    )
    sampler = Tree(tokenizer)
    settings = ProcessRewardModelSettings(
        steps=1,
        separators=(" ",),
        sample={"group_size": 4, "completions": 4, "estimate": estimated, "held_out": 0.0},  # type: ignore[arg-type]
    )
    labels = SampledLabels(
        prompts=[prompt],
        sampler=sampler,
        decode=decoder(tokenizer),
        rewards=Rewards([ends_in_1]),
        judge=Judge(reward_name="ends_in_1", extract=str.strip),
        settings=settings,
        seed=0,
        stage=0,
    )
    return list(labels.trained()), sampler


def ends_in_1(completions: list[str]) -> list[float]:
    return [float(text.endswith("1")) for text in completions]


@pytest.mark.parametrize(("estimated", "first"), [("soft", 0.25), ("hard", 1.0)])
def test_a_step_is_labelled_by_how_completions_from_there_end(estimated: str, first: float) -> None:
    groups, sampler = tree_labels(estimated)
    # `1 ` leads to a right answer in one of four, `2 ` never; the last step is as right as the solution.
    assert [group.labels for group in groups] == [(first, 0.0), (0.0, 1.0), (first, 1.0), (first, 0.0)]
    assert [group.completion.text for group in groups] == ["1 2", "2 1", "1 1", "1 2"]
    # Four completions from each of the two different beginnings, not of all four.
    assert sampler.asked == ["7+7="] * 4 + ["7+7=1 "] * 4 + ["7+7=2 "] * 4


def test_estimates_by_hand() -> None:
    assert [estimate([True, False, False], hard=hard) for hard in (False, True)] == [pytest.approx(1 / 3), 1.0]
    assert [estimate([False, False], hard=hard) for hard in (False, True)] == [0.0, 0.0]


def test_the_soft_estimate_converges_to_the_chance_and_the_hard_one_does_not() -> None:
    """By enumeration of N completions that are right with chance 0.3."""
    for count in (1, 4, 8):
        expected = {True: 0.0, False: 0.0}
        for verdicts in itertools.product([True, False], repeat=count):
            weight = 0.3 ** sum(verdicts) * 0.7 ** (count - sum(verdicts))
            for hard in expected:
                expected[hard] += weight * estimate(verdicts, hard=hard)
        assert expected[False] == pytest.approx(0.3)
        assert expected[True] == pytest.approx(1 - 0.7**count)


def test_samples_with_their_labels_are_on_record_and_a_resume_reads_them(tmp_path: Path) -> None:
    whole = run_recipe(SAMPLED, tmp_path / "whole", rewards=[even])
    run = RunDirectory.open(whole.path)
    rows = read_parquet(run.groups_path("process-reward-model", 0))
    assert len(rows) == 6 * 3 and {row.policy_version for row in rows} == {2}
    for row in rows:
        assert row.step_ends and row.step_rewards and row.step_ends[-1] == len(row.token_ids) - 1
        assert row.step_rewards[-1] == float(bool(row.correct))
        assert all(4 * label in range(5) for label in row.step_rewards)
        steps = [tuple(row.token_ids[: end + 1]) for end in row.step_ends]
        assert all(text.endswith(" ") for text in map(decoder(_tokenizer(run)), steps[:-1]))
    assert len({label for row in rows for label in row.step_rewards}) > 2
    log = (run.path / "events.log").read_text()
    assert "process-reward-model: 15 completions with" in log and "3 held out" in log

    shutil.copytree(whole.path, tmp_path / "again")
    again = RunDirectory.open(tmp_path / "again")
    shutil.rmtree(again.checkpoint_path("process-reward-model", 4))
    resume(again.path, rewards=[even])
    for name in ("metrics.jsonl", "evals.jsonl", "checkpoints/process-reward-model/step-000004/model.safetensors"):
        assert (whole.path / name).read_bytes() == (again.path / name).read_bytes(), name


def _tokenizer(run: RunDirectory) -> Any:
    return load_reward_model(run.checkpoint_path("process-reward-model", 4)).tokenizer


def test_an_outcome_model_of_samples_labels_whole_completions(tmp_path: Path) -> None:
    sample = {key: value for key, value in SAMPLE.items() if key != "completions"}
    stage = {"algorithm": "outcome-reward-model", "steps": 1, "batch_size": 2, "sample": sample}
    result = run_recipe({**SAMPLED, "stages": [stage]}, tmp_path / "run", rewards=[even])
    rows = read_parquet(RunDirectory.open(result.path).groups_path("outcome-reward-model", 0))
    assert all(row.step_ends == (len(row.token_ids) - 1,) for row in rows)
    assert [row.step_rewards for row in rows] == [(float(bool(row.correct)),) for row in rows]


def test_a_tenth_of_what_is_trained_on_is_replayed() -> None:
    policy = tiny_policy()
    history = [labelled(policy, f"{n}+1=", ["1"], (1.0,)) for n in range(50)]
    some = replayed(history, 90, 0.1, [0, 1])
    assert len(some) == 10 == len({group.prompt.text for group in some})  # 10 of 100
    assert some == replayed(history, 90, 0.1, [0, 1]) != replayed(history, 90, 0.1, [0, 2])
    assert replayed(history, 9_000, 0.1, [0]) == history and replayed(history, 90, 0.0, [0]) == []


def test_settings_and_checks() -> None:
    recipe = parse_recipe({**SAMPLED, "rewards": ["tag_answer"]})
    findings = {found.what: found.status for found in check_recipe(recipe)}
    assert findings["memory"] == "ok" and findings["prompts"] == "ok"
    with pytest.raises(ValueError, match="at least one is needed to train on sampled completions"):
        parse_recipe(SAMPLED)
    with pytest.raises(ValueError, match=r"process-reward-model\.group_size` has no effect on a process reward"):
        parse_recipe({**BY_HAND, "stages": [{**PRM, "group_size": 2}]})
    with pytest.raises(ValueError, match=r"replay = 0.2 has no effect without `continues`"):
        parse_recipe({**BY_HAND, "stages": [{**PRM, "replay": 0.2}]})
    for wrong in ("sft", "nothing"):
        stages = [{"algorithm": "sft", "steps": 1}, {**PRM, "continues": wrong}]
        with pytest.raises(ValueError, match=f"continues = '{wrong}' is no earlier stage with algorithm: process"):
            parse_recipe({**BY_HAND, "stages": stages})


def test_grpo_is_paid_for_each_step_by_a_model_of_the_same_run(tmp_path: Path) -> None:
    grpo = {
        **{"algorithm": "grpo", "steps": 1, "prompts_per_step": 2, "group_size": 3, "sampling": {"max_new_tokens": 8}},
        "cells": {"supervision": "process", "kl_coef": 0.0},
        "rewards": [{"name": "process_reward_model", "stage": "process-reward-model", "score": "steps"}],
    }
    recipe = {**SAMPLED, "rewards": ["tag_answer"], "stages": [SAMPLED["stages"][1], grpo]}
    run = RunDirectory.open(run_recipe(recipe, tmp_path / "run").path)
    scorer = StepScorer(run.checkpoint_path("process-reward-model", 4))
    [file] = [item for item in run.group_files() if item.stage == "grpo"]
    for row in read_parquet(file.path):
        [steps] = scorer.steps([(row.prompt, row.token_ids)])
        assert row.step_ends == tuple(end for end, _ in steps)
        assert row.step_rewards == pytest.approx([chance for _, chance in steps], abs=1e-4)
        assert row.reward == pytest.approx(sum(chance for _, chance in steps), abs=1e-4)
    # `check` cannot ask a model that is not there yet, and says nothing of the stage's groups.
    assert {"rewards", "lengths"}.isdisjoint(found.what for found in check_recipe(parse_recipe(recipe)))
