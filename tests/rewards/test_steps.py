"""Rewards that score steps: what is read, where it is paid, and that a worker process changes nothing."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rewards.building import group

from outscore.records import Score, ScoringFailure, StepScore
from outscore.rewards import RewardError, Rewards
from outscore.rewards.totals import as_earned

SOURCE = """
import math, sys

def steps(completions, completion_ids, log_extra, **columns):
    log_extra("ends", [len(ids) - 1 for ids in completion_ids])
    return [said(text, len(ids)) for text, ids in zip(completions, completion_ids)]

async def waiting(completions, completion_ids, log_extra, **columns):
    return steps(completions, completion_ids, log_extra)

def said(text, count):
    tables = {
        "whole": 2.0,
        "absent": None,
        "nan": [(0, math.nan), (1, 1.0)],
        "opposite": [(0, math.inf), (1, -math.inf)],
        "huge": [(0, 1.7e308), (1, 1.7e308)],
        "empty": [],
        "falling": [(1, 0.0), (0, 1.0)],
        "twice": [(1, 0.0), (1, 1.0)],
        "negative": [(-1, 0.0)],
        "beyond": [(0, 0.0), (count, 1.0)],
        "between": [(0.5, 1.0)],
        "word": [(0, "good")],
        "flat": [0.5, 1.0],
    }
    return tables.get(text, [(n, 0.1 * (n + 1)) for n in range(count)])

def forged(completions, **columns):
    worker = sys.modules["outscore.rewards.worker"]
    beyond = {"forge a step": [[len(completions[0]), 1.0]], "forge a word": "good"}[completions[0]]
    worker.written = lambda values: [beyond]
    return [1.0]
"""

WRONG = {
    "nan": "returned nan",
    "opposite": "returned nan",
    "huge": "returned inf",
    "empty": "returned steps that end at tokens []; at least one is due, in rising order, from 0 to 4",
    "falling": "returned steps that end at tokens [1, 0]; at least one is due, in rising order, from 0 to 6",
    "twice": "returned steps that end at tokens [1, 1]; at least one is due, in rising order, from 0 to 4",
    "negative": "returned steps that end at tokens [-1]; at least one is due, in rising order, from 0 to 7",
    "beyond": "returned steps that end at tokens [0, 6]; at least one is due, in rising order, from 0 to 5",
    "between": "returned a step that ends at token 0.5; an index is due",
    "word": "returned str 'good' among its values; each is a float or None",
    "flat": "returned float '0.5' as a step; a step is (index of its last token, reward)",
}
"""Completion -> what is said of the steps that it gets."""

WAYS = [{"isolate": False}]
if os.name == "posix":
    WAYS += [{"isolate": True}, {"isolate": True, "batched": False}]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rewards]]:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "stepwise.py").write_text(SOURCE)
    made: list[Rewards] = []

    def rewards(name: str = "steps", *others, policy="exclude", **spec) -> Rewards:
        own = {"name": f"stepwise.py:{name}", **spec}
        made.append(Rewards([own, *others], on_failure=policy, folder=tmp_path))
        return made[-1]

    yield rewards
    for each in made:
        each.close()


def scores(rewards: Rewards, *texts: str, **problem):
    [scored] = rewards.score([group(*texts, **problem)], step=1).groups
    return scored.scores


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("name", ["steps", "waiting"])
def test_steps_are_the_same_from_wherever_the_reward_runs(make, name, way):
    rewards = make(name, **way)
    result = rewards.score([group("abc", "whole", "absent", "f")], step=1)
    three, whole, absent, one = result.groups[0].scores
    steps = (StepScore(end=0, reward=0.1), StepScore(end=1, reward=0.2), StepScore(end=2, reward=0.1 * 3))
    assert three == Score(reward=0.1 + 0.2 + 0.1 * 3, parts={name: 0.1 + 0.2 + 0.1 * 3}, steps=steps)
    assert whole == Score(reward=2.0, parts={name: 2.0})
    assert isinstance(absent, ScoringFailure)
    assert one.steps == (StepScore(end=0, reward=0.1),)
    assert result.extra_columns == {"ends": [2, 4, 5, 0]}


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_wrong_steps_are_named_and_fail_their_own_completion(make, way):
    rewards = make(**way)
    texts = [text for wrong in WRONG for text in (wrong, "ab")]
    for text, score in zip(texts, scores(rewards, *texts), strict=True):
        if text in WRONG:
            assert score == ScoringFailure(reward_name="steps", reason=WRONG[text])
        else:
            assert [step.reward for step in score.steps] == [0.1, 0.2]
    with pytest.raises(RewardError, match=r"end at tokens \[0, 6\].*completion 2 of 2"):
        scores(make(policy="stop", **way), "ab", "beyond")


@pytest.mark.skipif(os.name != "posix", reason="worker processes need Linux or macOS")
def test_what_a_worker_answers_is_checked_once_more_where_it_arrives(make):
    rewards = make("forged", isolate=True, batched=False, limits={"workers": 1})
    reasons = [score.reason for score in scores(rewards, "forge a step", "forge a word")]
    assert reasons[0] == "returned steps that end at tokens [12]; at least one is due, in rising order, from 0 to 11"
    assert reasons[1] == "returned str 'good' among its values; each is a float or None"


def test_arrays_and_tensors_of_steps_are_understood():
    outputs = [np.array([[0, 1.0], [2, 0.5]]), torch.tensor([[0, 1.0], [2, 0.5]]), [torch.tensor([0, 1.0]).tolist()]]
    found = scores(Rewards([lambda completions: outputs]), "abc", "abc", "abc")
    assert [score.reward for score in found] == [1.5, 1.5, 1.0]
    assert found[0].steps == found[1].steps == (StepScore(end=0, reward=1.0), StepScore(end=2, reward=0.5))


def test_what_has_no_steps_is_paid_at_the_last_token():
    """Steps 1 at token 0 and 2 at token 3, of weight 0.5; 5 of weight 2 without steps; a total of 11.5."""
    steps = (StepScore(end=0, reward=1.0), StepScore(end=3, reward=2.0))
    earned = as_earned([steps, ()], [3.0, 5.0], [0.5, 2.0], total=11.5, num_tokens=5)
    assert earned == tuple(StepScore(end=end, reward=value) for end, value in [(0, 0.5), (3, 1.0), (4, 10.0)])
    assert as_earned([steps, ()], [3.0, 5.0], [0.5, 0.0], total=1.5, num_tokens=5) == earned[:2]
    assert as_earned([steps, ()], [3.0, 5.0], [0.0, 2.0], total=10.0, num_tokens=5) == ()
    # The step at the last token and the rest are one.
    assert as_earned([steps, ()], [3.0, 5.0], [1.0, 1.0], total=8.0, num_tokens=4)[1:] == (
        StepScore(end=3, reward=7.0),
    )


def test_a_reward_whose_value_shaping_changes_is_paid_at_the_last_token(make):
    """What counts of it is no longer what its steps add up to."""
    ab, abc = scores(make(clip=[0.0, 0.5]), "ab", "abc")
    assert [step.reward for step in ab.steps] == [0.1, 0.2]  # a sum of 0.3, which the clip leaves alone
    assert (abc.reward, abc.steps) == (0.5, (StepScore(end=2, reward=0.5),))
    assert abc.parts == {"steps": 0.1 + 0.2 + 0.1 * 3}
    wrong, right = scores(make("steps", {"name": "last_number", "weight": 2.0}, only_if="last_number"), "27", "277")
    assert (wrong.reward, wrong.steps) == (0.0, (StepScore(end=1, reward=0.0),))
    assert [step.reward for step in right.steps] == pytest.approx([0.1, 0.2, 0.3 + 2.0])


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_shaping_sees_the_constant_of_a_failure_which_is_paid_at_the_last_token(make, way):
    rewards = make("steps", {"name": "last_number", "only_if": "steps"}, on_failure=-4, clip=[-1.0, 1.0], **way)
    failed, _ = scores(rewards, "twice", "277")
    assert failed == Score(
        reward=-1.0, parts={"steps": -4.0, "last_number": 0.0}, failures={"steps": WRONG["twice"]}, steps=()
    )
    normalised = make("steps", on_failure=0, normalise="group", **way)
    # (0 - 0.3) / 0.3 and (0.6 - 0.3) / 0.3, by the population standard deviation of 0 and 0.6.
    assert [score.reward for score in scores(normalised, "twice", "abc")] == pytest.approx([-1.0, 1.0])


@pytest.mark.skipif(os.name != "posix", reason="worker processes need Linux or macOS")
def test_the_rendered_prompt_reaches_a_worker(tmp_path):
    (tmp_path / "reads.py").write_text(
        "def reads(rendered_prompts):\n    return [len(each) for each in rendered_prompts]\n"
    )
    rewards = Rewards([{"name": "reads.py:reads", "isolate": True, "batched": False}], folder=tmp_path)
    assert scores(rewards, "a")[0].reward == len("rendered")
    rewards.close()
