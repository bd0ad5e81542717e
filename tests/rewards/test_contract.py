"""TRL's reward contract (peers.md 2.2), from the side of the function that is called."""

import pytest
from rewards.building import group

from outscore.rewards import RewardError, Rewards, TrainerState
from outscore.rewards.contract import shorten


class Spy:
    """A reward that remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def __call__(self, **given):
        self.calls.append(given)
        return [0.0] * len(given["completions"])


def test_one_call_a_step_for_the_whole_batch_with_every_column_by_name():
    spy = Spy()
    groups = [
        group("a", "bc", answer="1", question="q1", columns={"level": 3}, id="p/1"),
        group("d", answer=None, question="q2", columns={"solution": "x"}, id="p/2", slot=1),
    ]
    Rewards([spy]).score(groups, step=7, max_steps=50)
    [given] = spy.calls
    assert callable(given.pop("log_extra"))
    assert callable(given.pop("log_metric"))
    assert given == {
        "prompts": ["q1", "q1", "q2"],
        "rendered_prompts": ["rendered", "rendered", "rendered"],
        "completions": ["a", "bc", "d"],
        "completion_ids": [[97], [98, 99], [100]],
        "question": ["q1", "q1", "q2"],
        "answer": ["1", "1", None],
        "level": [3, 3, None],
        "solution": [None, None, "x"],
        "trainer_state": TrainerState(global_step=7, max_steps=50),
    }


def test_chat_data_arrive_as_lists_of_messages():
    spy = Spy()
    messages = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    Rewards([spy]).score([group("hello", question=messages)], step=1)
    assert spy.calls[0]["prompts"] == [[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]]
    assert spy.calls[0]["completions"] == [[{"role": "assistant", "content": "hello"}]]


def test_the_columns_prompt_completion_and_completion_ids_are_not_passed():
    spy = Spy()
    Rewards([spy]).score([group("a", columns={"prompt": "x", "completion": "y", "completion_ids": [1]})], step=1)
    assert {"prompt", "completion"}.isdisjoint(spy.calls[0])
    assert spy.calls[0]["completion_ids"] == [[97]]


def test_a_function_without_kwargs_receives_only_what_its_signature_names():
    def narrow(completions, answer):
        return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]

    [scored] = Rewards([narrow]).score([group("277", "305", columns={"level": 1})], step=1).groups
    assert [score.reward for score in scored.scores] == [1.0, 0.0]


def test_a_default_stands_where_the_data_have_no_such_column():
    def narrow(completions, scale=2.0):
        return [scale] * len(completions)

    [scored] = Rewards([narrow]).score([group("a")], step=1).groups
    assert scored.scores[0].reward == 2.0


def test_a_column_that_is_not_there_is_named_with_the_nearest_under_either_policy():
    def needs(completions, solutoin, **kwargs):
        return [0.0] * len(completions)

    for policy in ("stop", "exclude"):
        rewards = Rewards([needs], on_failure=policy)
        with pytest.raises(ValueError, match=r"'needs' asks for 'solutoin'.*did you mean `solution`"):
            rewards.score([group("a", columns={"solution": "1"})], step=1)


def test_a_positional_only_parameter_is_refused():
    def wrong(completions, /):
        return [0.0]

    with pytest.raises(ValueError, match="'completions' is positional only"):
        Rewards([wrong]).score([group("a")], step=1)


def test_a_data_column_may_not_have_a_name_of_the_contract():
    with pytest.raises(ValueError, match=r"problem 'p/1': rename its column 'prompts'"):
        Rewards(["last_number"]).score([group("a", columns={"prompts": "x"})], step=1)


def test_a_reward_that_changes_its_arguments_changes_no_other_reward_s():
    def vandal(prompts, completions, answer, **_):
        prompts[0][0]["content"] = "changed"
        completions.clear()
        answer[0] = "changed"
        return [0.0, 0.0]

    spy = Spy()
    question = ({"role": "user", "content": "u"},)
    sampled = group("a", "b", question=question)
    Rewards([vandal, spy]).score([sampled], step=1)
    assert spy.calls[0]["prompts"][0] == [{"role": "user", "content": "u"}]
    assert len(spy.calls[0]["completions"]) == 2
    assert spy.calls[0]["answer"] == ["277", "277"]
    assert sampled.prompt.problem.question == question


def test_logged_columns_and_metrics_come_back_with_the_scores():
    def talks(completions, log_extra, log_metric, **_):
        log_extra("length", [len(text) for text in completions])
        for text in completions:
            log_metric("mean_length", len(text))
        return [0.0] * len(completions)

    result = Rewards([talks]).score([group("a", "bbb"), group("cc", id="p/2", slot=1)], step=1)
    assert result.extra_columns == {"length": [1, 3, 2]}
    assert result.metrics["mean_length"] == (6.0, 3.0)


def test_a_logged_column_of_the_wrong_length_is_an_error_of_the_reward():
    def talks(completions, log_extra, **_):
        log_extra("length", [1, 2, 3])
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"'talks' raised ValueError: log_extra\('length'\) got 3 values for"):
        Rewards([talks]).score([group("a", "b")], step=1)


def test_long_texts_are_shortened_in_messages():
    assert shorten("ab") == "'ab'"
    assert len(shorten("x" * 10_000)) < 420
