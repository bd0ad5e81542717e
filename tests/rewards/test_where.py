"""Rewards that are for some of the problems, and reward models of an earlier stage."""

import os

import pytest
from rewards.building import group

from outscore.config import parse_recipe
from outscore.records import Score
from outscore.rewards import Rewards

SEEN: list[list[str]] = []


def length(completions, **columns):
    SEEN.append(list(completions))
    return [float(len(text)) for text in completions]


def mixed():
    sums = group("aa", "b", id="p/1", columns={"domain": "sums"})
    chat = group("cccc", id="p/2", columns={"domain": "chat"}, slot=1)
    talk = group("ddd", id="p/3", columns={"domain": "talk"}, slot=2)
    return [sums, chat, talk]


def parts(rewards):
    scored = rewards.score(mixed(), step=1).groups
    return [score.parts if isinstance(score, Score) else None for each in scored for score in each.scores]


@pytest.mark.parametrize(
    ("wanted", "own", "asked"),
    [
        ("sums", [2.0, 1.0, None, None], ["aa", "b"]),
        (["sums", "talk"], [2.0, 1.0, None, 3.0], ["aa", "b", "ddd"]),
        ("nothing", [None] * 4, None),
    ],
)
def test_it_sees_and_scores_its_own_completions_only(wanted, own, asked):
    SEEN.clear()
    rewards = Rewards([{"name": length, "where": {"domain": wanted}}, {"name": length, "label": "all"}])
    found = parts(rewards)
    assert [each["length"] for each in found] == own
    assert [each["all"] for each in found] == [2.0, 1.0, 4.0, 3.0]
    assert [each for each in (asked, ["aa", "b", "cccc", "ddd"]) if each is not None] == SEEN


@pytest.mark.skipif(os.name != "posix", reason="worker processes need Linux or macOS")
@pytest.mark.parametrize("batched", [True, False])
def test_so_it_does_in_worker_processes_and_a_fault_is_its_own_completion_s(tmp_path, batched):
    (tmp_path / "mine.py").write_text(
        "def bad(completions, **columns):\n    return [1 / (len(text) - 1) for text in completions]\n"
    )
    spec = {"name": "mine.py:bad", "where": {"domain": ["sums", "talk"]}, "batched": batched}
    rewards = Rewards([{"name": length, "label": "all"}, spec], folder=tmp_path, on_failure="exclude", scoring={})
    assert [each and each["bad"] for each in parts(rewards)] == [1.0, None, None, 0.5]
    scored = rewards.score(mixed(), step=1).groups
    assert not isinstance(scored[0].scores[1], Score) and isinstance(scored[1].scores[0], Score)
    rewards.close()


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"where\.domian: problem 'p/1' has no column 'domian'.*domain"):
        parts(Rewards([{"name": length, "where": {"domian": "sums"}}]))
    with pytest.raises(ValueError, match="must map a data column to its value"):
        Rewards([{"name": length, "where": "sums"}])


def recipe(rewards, own=None):
    model = {"algorithm": "reward-model", "name": "rm", "steps": 1}
    policy = {"algorithm": "grpo", "steps": 1, **({} if own is None else {"rewards": own})}
    return parse_recipe({"task": {"kind": "arithmetic"}, "rewards": rewards, "stages": [model, policy]})


def test_a_reward_model_of_a_stage_is_one_trained_earlier():
    assert recipe(["tag_answer"], [{"name": "reward_model", "stage": "rm"}])
    with pytest.raises(ValueError, match=r"stage `grpo`: its reward's stage = 'mr' is no earlier stage .*rm"):
        recipe(["tag_answer"], [{"name": "reward_model", "stage": "mr"}])
    with pytest.raises(ValueError, match=r"rewards: stage = 'rm' names a reward model that this run trains"):
        recipe([{"name": "reward_model", "stage": "rm"}])
    with pytest.raises(ValueError, match="give either path"):
        Rewards([{"name": "reward_model"}])
