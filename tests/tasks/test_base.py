"""A task that validates itself: what is sound passes, and each way to be wrong is named."""

import pytest

from outscore.records import Demonstration, Problem
from outscore.rewards import Rewards
from outscore.tasks import ArithmeticTask, validate


class Handmade:
    """A task of given problems."""

    name = "handmade"

    def __init__(self, train=(), held_out=(), demonstrations=()):
        self._sets = train, held_out, demonstrations

    def train_problems(self):
        return self._sets[0]

    def eval_problems(self):
        return self._sets[1]

    def demonstrations(self):
        return self._sets[2]


def problem(question, answer, id="p/1"):
    return Problem(id=id, question=question, answer=answer, columns={})


RIGHT = Demonstration(
    problem=problem("1+1=", "2"), response="<reasoning>\n1+1=2\n</reasoning>\n<answer>\n2\n</answer>\n"
)
ANSWER_AND_FORMAT = ["tag_answer", {"name": "format_tags", "weight": 0.5}]


def test_the_embedded_task_is_sound_under_answer_and_format_rewards():
    task = ArithmeticTask(num_train=20, num_eval=20, num_demonstrations=20)
    check = validate(task, Rewards(ANSWER_AND_FORMAT))
    assert check.ok
    assert check.num_problems == 3 * 16


@pytest.mark.parametrize("reward", ["tag_answer", "last_number", "answer_exact", "answer_numeric"])
def test_a_gold_answer_is_full_in_whichever_frame_the_rewards_read(reward):
    assert validate(Handmade([problem("1+1=", "2")]), Rewards([reward])).complaints == ()


def test_braces_in_an_answer_are_no_place_holders():
    task = Handmade([problem("half", r"\frac{1}{2}")])
    assert validate(task, Rewards(["tag_answer"])).ok


def test_a_wrong_demonstration_is_named():
    wrong = Demonstration(problem=problem("1+1=", "3", id="p/wrong"), response=RIGHT.response)
    check = validate(Handmade([problem("2+2=", "4")], (), [RIGHT, wrong]), Rewards(ANSWER_AND_FORMAT))
    assert check.complaints == (
        # 0.5 * 0.5 for the format against 1 + 0.5 * 0.5
        "p/wrong: the gold answer scores 0.25, full is 1.25",
    )


def test_a_gold_answer_that_the_rewards_cannot_read_is_named():
    check = validate(Handmade([problem("capital?", "Paris")]), Rewards(["last_number"]))
    [complaint] = check.complaints
    assert complaint.startswith("p/1: reward 'last_number' cannot score the gold answer")


def test_a_reward_that_likes_nothing_is_named():
    check = validate(Handmade([problem("1+1=", "2")]), Rewards([lambda completions: [1.0] * len(completions)]))
    assert check.complaints == (
        "p/1: an empty completion scores 1, the gold answer 1",
        "p/1: nonsense scores 1, the gold answer 1",
        "p/1: a frame with no answer in it scores 1, the gold answer 1",
    )


def any_text(completions):
    return [float(bool(text)) for text in completions]


def tagged(completions):
    return [float("<answer>" in text) for text in completions]


def a_number(completions):
    return [float(any(map(str.isdigit, text))) for text in completions]


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (any_text, {"nonsense", "a frame with no answer in it", "another problem's answer"}),
        (tagged, {"a frame with no answer in it", "another problem's answer"}),
        (a_number, {"another problem's answer"}),
    ],
)
def test_a_reward_that_garbage_satisfies_is_named_with_the_garbage(reward, expected):
    check = validate(Handmade([problem("1+1=", "2", "p/1"), problem("4+4=", "8", "p/2")]), Rewards([reward]))
    said = {f"{place}: {what} scores 1, the gold answer 1" for place in ("p/1", "p/2") for what in expected}
    assert set(check.complaints) == said


def test_the_same_answer_written_otherwise_is_no_wrong_answer():
    task = Handmade([problem("1+1=", "2", "p/1"), problem("4-2=", "2.0", "p/2"), problem("yes?", "Yes", "p/3")])
    assert not [each for each in validate(task, Rewards(["answer_exact"])).complaints if "another" in each]
    numbers = Handmade([problem("1+1=", "2", "p/1"), problem("4-2=", "2.0", "p/2")])
    assert validate(numbers, Rewards(["last_number"])).ok


def test_a_reward_that_fails_on_garbage_is_named():
    def number(completions):
        return [float(text) for text in completions]

    [complaint, *_] = validate(Handmade([problem("1+1=", "2")]), Rewards([number])).complaints
    assert complaint.startswith("p/1: reward 'number' cannot score an empty completion: raised ValueError")


def test_evaluation_questions_that_are_trained_on_are_named():
    task = Handmade([problem("1+1=", "2", id="a")], [problem("1+1=", "2", id="b")])
    assert validate(task, Rewards(["last_number"])).complaints == (
        "1 evaluation questions are trained on, the first is 'b'",
    )


def test_chat_questions_are_compared_by_their_messages():
    chat = ({"role": "user", "content": "1+1="},)
    task = Handmade([problem(chat, "2", id="a")], [problem(chat, "2", id="b")])
    assert not validate(task, Rewards(["last_number"])).ok


def test_nothing_to_check_is_a_complaint_and_nothing_to_train_on_an_error():
    assert not validate(Handmade([problem("1+1=", None)]), Rewards(["last_number"])).ok
    with pytest.raises(ValueError, match="task 'handmade' has no training problem"):
        validate(Handmade(), Rewards(["last_number"]))
