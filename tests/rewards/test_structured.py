"""Multiple choice, sets and lists on hand-made answers."""

import pytest
from rewards.building import scores

from outscore.rewards import make_reward
from outscore.rewards.structured import chosen_letter, items

CHOICES = {
    "<answer>B</answer>": "B",
    "<answer>(b)</answer>": "B",
    "<answer>B) Paris</answer>": "B",
    "<answer>b. Paris,\nFrance</answer>": "B",
    r"so \boxed{B}": "B",
    "A is wrong. The answer is (B).": "B",
    "Answer: B": "B",
    "The answer is **B**": "B",
    "First I thought the answer is A. No, the answer is C.": "C",
    "B": "B",
    "B) Paris": "B",
    "The answer is a dog.": None,
    "A or B": None,
    "The answer is A or B": None,
    "<answer>A B C D</answer>": None,
    "<answer>F</answer>": None,
    "A good question": None,
    "": None,
}


@pytest.mark.parametrize("text", CHOICES)
def test_the_letter_a_text_chooses(text):
    assert chosen_letter(text) == CHOICES[text]


def test_multiple_choice_compares_letters_however_they_are_written():
    assert scores("multiple_choice", "<answer>(b)</answer>", "<answer>C</answer>", "", answer="B)") == [1.0, 0.0, 0.0]
    assert scores({"name": "multiple_choice", "letters": "WXYZ"}, "answer: X", "answer: B", answer="X") == [1.0, 0.0]
    assert scores("multiple_choice", "B", answer="Paris") == [None]


ITEMS = {
    "{2, 3 and 'blue'}": ["2", "3", "blue"],
    '["a", "b"]': ["a", "b"],
    "1; 2\n3": ["1", "2", "3"],
    "salt and pepper": ["salt", "pepper"],
    "sand": ["sand"],
    "()": [],
    "": [],
}


@pytest.mark.parametrize("text", ITEMS)
def test_items_of_hand_written_lists(text):
    assert items(text) == ITEMS[text]


def test_a_set_has_no_order_and_no_repeats():
    good = ["<answer>{3, 2, 1}</answer>", "1, 2, 3, 3", r"\boxed{\{1, 2.0, 3\}}", "<answer>1 and 2 and 3</answer>"]
    bad = ["1, 2", "1, 2, 3, 4", "1, 2, 4", ""]
    assert scores("answer_set", *good, *bad, answer="[1, 2, 3]") == [1.0] * 4 + [0.0] * 4


def test_partial_credit_for_a_set_is_f1():
    spec = {"name": "answer_set", "partial_credit": True}
    # |A ∩ B| = 2, 3, 0: 2*2/(2+3), 2*3/(4+3), 0
    assert scores(spec, "1, 2", "1, 2, 3, 4", "5", answer="1, 2, 3") == [0.8, 6 / 7, 0.0]
    assert scores(spec, "", "1", answer="{}") == [1.0, 0.0]


def test_a_list_has_an_order():
    assert scores("answer_list", "Red, green", "green, red", "red", answer="red, green") == [1.0, 0.0, 0.0]
    spec = {"name": "answer_list", "partial_credit": True}
    # right places of the longer list's: 1 of 3 (the middle), 2 of 3, 3 of 4
    assert scores(spec, "3, 2, 1", "1, 2", "1, 2, 3, 4", answer="1, 2, 3") == [1 / 3, 2 / 3, 0.75]


def test_numbers_in_sets_and_lists_have_a_tolerance():
    assert scores({"name": "answer_set", "tolerance": 0.01}, "0.333, 100.5", answer="1/3, 100") == [1.0]
    assert scores({"name": "answer_list", "tolerance": 0.001}, "0.333, 100.5", answer="1/3, 100") == [0.0]


@pytest.mark.parametrize("letters", ["A", "AA", "A1"])
def test_impossible_letters_are_named(letters):
    with pytest.raises(ValueError, match=f"letters = '{letters}' must be different letters"):
        make_reward({"name": "multiple_choice", "letters": letters})
