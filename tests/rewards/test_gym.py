"""reasoning_gym's scorers, with reasoning_gym itself as the oracle."""

import pytest
from rewards.building import group

from outscore.rewards import Rewards
from outscore.rewards.gym import gym_answer

reasoning_gym = pytest.importorskip("reasoning_gym")


def parts(name, options, entry, *texts):
    columns = {"metadata": entry["metadata"], "reasoning_gym": {"dataset": name, "options": options}}
    sampled = group(*texts, answer=entry["answer"], question=entry["question"], columns=columns)
    [scored] = Rewards(["gym"]).score([sampled], step=1).groups
    return [score.parts["gym"] for score in scored.scores]


def test_a_numeric_answer_is_taken_from_tag_box_or_last_number():
    options = {"min_terms": 2, "max_terms": 2}
    dataset = reasoning_gym.create_dataset("chain_sum", seed=3, size=1, **options)
    gold = dataset[0]["answer"]
    texts = [gold, f"<answer>{gold}</answer>", f"so\\boxed{{{gold}}}", f"it is {gold}.", "1000001", ""]
    assert parts("chain_sum", options, dataset[0], *texts) == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_answers_with_many_right_forms_are_scored_by_the_data_set_with_its_options():
    options = {"min_numbers": 4, "max_numbers": 4}
    dataset = reasoning_gym.create_dataset("countdown", seed=5, size=1, **options)
    entry = dataset[0]
    right = entry["metadata"]["expression"]
    answers = [right, "1+1", "nonsense"]
    expected = [dataset.score_answer(each, entry) for each in answers]
    assert expected[0] == 1.0
    assert parts("countdown", options, entry, *[f"<answer>{each}</answer>" for each in answers]) == expected
    assert parts("countdown", options, entry, *answers) == expected


def test_problems_from_elsewhere_are_not_judged():
    [scored] = Rewards(["gym", "last_number"]).score([group("277")], step=1).groups
    assert scored.scores[0].parts == {"gym": None, "last_number": 1.0}


def test_the_whole_completion_is_the_answer_where_no_number_is_asked_for():
    assert gym_answer("3 of hearts", "hearts", "auto") == "3 of hearts"
    assert gym_answer("3 of 4", "4", "auto") == "4"
    assert gym_answer("<answer>x</answer> 5", "x", "auto") == "x"
    assert gym_answer("", "x", "auto") is None
