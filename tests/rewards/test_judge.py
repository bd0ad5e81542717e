"""Results a reward may not give: what is said, and what the two policies do."""

import asyncio
import time

import numpy as np
import pytest
import torch
from rewards.building import group

from outscore.records import Score, ScoringFailure, StepScore
from outscore.rewards import RewardError, Rewards, make_reward
from outscore.rewards.call import InProcess, pause
from outscore.rewards.contract import TrainerState, items_of
from outscore.rewards.judge import Trial, judge, judge_each


def returning(*values):
    def reward(completions, **_):
        return list(values)[: len(completions)] if len(completions) < len(values) else list(values)

    return reward


def scores_of(function, *texts, **options):
    [scored] = Rewards([function], **options).score([group(*texts)], step=1).groups
    return scored.scores


@pytest.mark.parametrize(
    "output",
    [
        [1.0, 0.0],
        (1, 0),
        [True, False],
        np.array([1.0, 0.0]),
        [np.float32(1), np.int64(0)],
        torch.tensor([1.0, 0.0]),
        [torch.tensor(1.0), torch.tensor(0)],
        [torch.tensor([1.0]), torch.tensor([0.0])],
    ],
    ids=repr,
)
def test_lists_arrays_and_tensors_are_understood(output):
    assert [score.reward for score in scores_of(lambda completions: output, "a", "b")] == [1.0, 0.0]


def test_an_iterator_is_understood():
    assert [score.reward for score in scores_of(lambda completions: map(len, completions), "a", "bb")] == [1.0, 2.0]


@pytest.mark.parametrize("policy", ["stop", "exclude"])
@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ([1.0], "returned 1 value for a batch of 2 completions, and must return one for each"),
        ([1.0, 2.0, 3.0], "returned 3 values for a batch of 2 completions"),
        (1.0, "returned float '1.0'; a list of 2 floats or None is due"),
        (None, "returned NoneType"),
        ("ab", "returned str 'ab'"),
        ({"a": 1.0, "b": 2.0}, "returned dict"),
    ],
    ids=repr,
)
def test_a_result_of_the_wrong_shape_stops_under_either_policy(output, complaint, policy):
    def wrong(completions):
        return output if len(completions) == 2 else [0.0]

    with pytest.raises(RewardError, match=complaint) as caught:
        scores_of(wrong, "first text", "second text", on_failure=policy)
    assert caught.value.reward_name == "wrong"
    # Each alone is scored well, so none is accused; where the batch began is still of use.
    _, blame, prompt, completion = str(caught.value).splitlines()
    assert blame == "  no completion alone is to blame; the batch begins with problem 'p/1', completion 1 of 2"
    assert "325-28-20=" in prompt and "first text" in completion


def test_a_completion_that_is_left_out_of_the_result_is_the_culprit():
    def forgetful(completions):
        return [1.0 for text in completions if text != "b"]

    with pytest.raises(
        RewardError, match=r"returned 0 values for a batch of 1 completion.*completion 2 of 3"
    ) as caught:
        scores_of(forgetful, "a", "b", "c")
    assert "to blame" not in str(caught.value)


def test_a_value_that_is_no_number_names_its_completion():
    def words(completions):
        return ["good" if text == "b" else 1.0 for text in completions]

    with pytest.raises(RewardError, match=r"returned str 'good' among its values.*completion 2 of 3"):
        scores_of(words, "a", "b", "c")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e308, -1e16])
def test_a_value_that_is_not_finite_stops_naming_reward_prompt_and_completion(bad):
    def reward(completions):
        return [bad if text == "the culprit" else 1.0 for text in completions]

    with pytest.raises(RewardError) as caught:
        scores_of(reward, "a", "the culprit", "c")
    assert str(caught.value).splitlines() == [
        f"reward 'reward' returned {bad} (problem 'p/1', completion 2 of 3)",
        "  prompt: '325-28-20='",
        "  completion: 'the culprit'",
    ]


def divides(completions, **_):
    return [1.0 / float(text) for text in completions]


def test_a_raise_in_a_batched_call_is_traced_to_the_completion_that_caused_it():
    with pytest.raises(RewardError) as caught:
        scores_of(divides, "1", "2", "0", "4")
    assert "raised ZeroDivisionError" in str(caught.value)
    assert "completion 3 of 4" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.sample == 2


def test_a_raise_that_no_completion_causes_alone_says_so():
    def crowd(completions):
        if len(completions) > 1:
            raise RuntimeError("too many")
        return [0.0]

    line = crowd.__code__.co_firstlineno + 2
    said = f"raised RuntimeError: too many at test_judge.py:{line}\n  no completion alone is to blame"
    with pytest.raises(RewardError, match=said):
        scores_of(crowd, "a", "b")
    reason = f"raised RuntimeError: too many at test_judge.py:{line}, but on no completion alone"
    both = scores_of(crowd, "a", "b", on_failure="exclude")
    assert both == (ScoringFailure(reward_name="crowd", reason=reason),) * 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_excluded_completions_become_failures_and_the_rest_are_scored_together(asynchronous):
    sizes = []

    def reward(completions, log_extra, **_):
        sizes.append(len(completions))
        values = [1.0 / float(text) for text in completions]
        log_extra("batch", sizes[-1:] * len(completions))
        return values

    async def waiting(completions, log_extra, **_):
        await asyncio.sleep(0)
        return reward(completions, log_extra)

    rewards = Rewards([waiting if asynchronous else reward], on_failure="exclude")
    result = rewards.score([group("1", "0", "4", "x")], step=1)
    first, second, third, fourth = result.groups[0].scores
    assert (first.reward, third.reward) == (1.0, 0.25)
    line = reward.__code__.co_firstlineno + 2
    reason = f"raised ZeroDivisionError: float division by zero at test_judge.py:{line}"
    assert second == ScoringFailure(reward_name=rewards.names[0], reason=reason)
    assert isinstance(fourth, ScoringFailure)
    assert "ValueError" in fourth.reason
    assert sizes[-1] == 2
    assert result.extra_columns == {"batch": [2, None, 2, None]}
    assert result.metrics[f"reward/{rewards.names[0]}"] == (1.25, 2.0)


def test_under_exclude_a_value_that_is_not_finite_is_a_failure():
    scores = scores_of(returning(1.0, float("nan")), "a", "b", on_failure="exclude")
    assert isinstance(scores[0], Score)
    assert scores[1] == ScoringFailure(reward_name="reward", reason="returned nan")


def test_under_exclude_a_batch_of_culprits_only_is_a_batch_of_failures():
    assert all(isinstance(score, ScoringFailure) for score in scores_of(divides, "0", "x", on_failure="exclude"))


def test_under_exclude_a_fault_that_has_passed_costs_nothing():
    calls = []

    def flaky(completions):
        calls.append(len(completions))
        if len(calls) == 1:
            raise ConnectionError("try again")
        return [1.0] * len(completions)

    assert [score.reward for score in scores_of(flaky, "a", "b", on_failure="exclude")] == [1.0, 1.0]


def test_a_keyboard_interrupt_is_no_fault_of_a_reward():
    def interrupted(completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scores_of(interrupted, "a", on_failure="exclude")


def test_a_reward_may_score_steps_and_its_value_is_their_sum():
    first, second = scores_of(lambda completions: [[(0, 0.25), (2, 0.5)], None], "abc", "b", on_failure="exclude")
    assert isinstance(first, Score) and first.reward == 0.75 and list(first.parts.values()) == [0.75]
    assert first.steps == (StepScore(end=0, reward=0.25), StepScore(end=2, reward=0.5))
    assert isinstance(second, ScoringFailure)


def test_steps_of_several_rewards_add_up_to_the_total_and_what_has_none_is_paid_at_the_end():
    def steps(completions):
        return [[(1, 1.0), (2, 2.0)], [(0, 4.0)]]

    specs = [{"name": steps, "weight": 0.5}, {"name": lambda completions: [1.0, None], "label": "end"}]
    [scored] = Rewards(specs).score([group("abc", "de")], step=1).groups
    assert scored.scores[0].steps == (StepScore(end=1, reward=0.5), StepScore(end=2, reward=2.0))
    # What does not apply counts as its mean over the group, at the end like any outcome.
    assert scored.scores[1].steps == (StepScore(end=0, reward=2.0), StepScore(end=1, reward=1.0))
    assert all(sum(step.reward for step in score.steps) == score.reward for score in scored.scores)
    assert scored.scores[0].parts == {"steps": 3.0, "end": 1.0}


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ([], "returned steps that end at tokens []"),
        ([(1, 0.5), (1, 0.5)], "returned steps that end at tokens [1, 1]; at least one is due, in rising order"),
        ([(2, 0.5), (1, 0.5)], "in rising order, from 0 to 2"),
        ([(3, 0.5)], "from 0 to 2"),
        ([(-1, 0.5)], "from 0 to 2"),
        ([(1.5, 0.5)], "returned a step that ends at token 1.5; an index is due"),
        ([0.5, 0.25], "as a step; a step is (index of its last token, reward)"),
        ([(0, "x")], "returned str 'x' among its values"),
        ([(0, float("nan"))], "returned nan"),
    ],
    ids=repr,
)
def test_steps_that_do_not_match_the_completion_name_it(steps, complaint):
    with pytest.raises(RewardError) as caught:
        scores_of(lambda completions: [steps if text == "bad" else 1.0 for text in completions], "ok", "bad")
    assert complaint in str(caught.value) and "completion 2 of 2" in str(caught.value)


def says_where_it_failed(completions, log_extra=None, **_):
    """What it gives depends on how many it sees, so that scoring again would show."""
    return [
        RuntimeError(f"no answer to {text}") if text.startswith("bad") else float(len(completions))
        for text in completions
    ]


@pytest.mark.parametrize("batched", [True, False])
def test_an_exception_in_the_place_of_a_value_is_that_completion_s_failure_and_the_others_stand(batched):
    spec = {"name": says_where_it_failed, "batched": batched}
    [scored] = Rewards([spec], on_failure="exclude").score([group("a", "bad 1", "b", "bad 2")], step=1).groups
    reason = "failed with RuntimeError: no answer to bad {}"
    one = 4.0 if batched else 1.0
    assert [each.reward if isinstance(each, Score) else each.reason for each in scored.scores] == [
        *(one, reason.format(1), one, reason.format(2))
    ]


def test_to_stop_names_the_first_completion_with_an_exception_in_its_place():
    with pytest.raises(RewardError, match=r"failed with RuntimeError: no answer to bad 1 .*completion 2 of 3"):
        scores_of(says_where_it_failed, "a", "bad 1", "bad 2")


def test_an_exception_beside_a_value_that_is_not_finite_is_not_asked_for_again():
    seen = []

    def mixed(completions):
        seen.append(list(completions))
        return [{"x": TimeoutError("late"), "nan": float("nan")}.get(text, 1.0) for text in completions]

    failed = [isinstance(each, ScoringFailure) for each in scores_of(mixed, "a", "x", "nan", on_failure="exclude")]
    assert failed == [False, True, True] and seen == [["a", "x", "nan"], ["a"]]


def test_the_seconds_of_a_try_that_failed_are_lost_though_the_next_one_succeeds():
    tried = []

    def flaky(completions):
        tried.append(1)
        time.sleep(0.05)
        if len(tried) == 1:
            raise ConnectionError("again")
        return [1.0] * len(completions)

    reward = make_reward(flaky)
    trial = Trial(
        reward=reward,
        runner=InProcess(reward, retries=1),
        items=items_of([group("a", "b")]),
        state=TrainerState(global_step=1, max_steps=1),
        on_failure="exclude",
    )
    assert 0.05 + pause(0) <= judge(trial).seconds_lost < 60  # the first try and the pause, at least
    tried.clear()
    each = judge_each(trial)
    assert each.values == (1.0, 1.0) and each.seconds_lost >= 0.05 + pause(0)
    assert judge(trial).seconds_lost < 0.05  # no failure, nothing lost
