"""Answers taken out of hand-written texts."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outscore.rewards.answers import boxed, extract_answer, last_number, parse_number, tag_content

NUMBERS = {
    "the answer is 277": "277",
    "325 - 28 = 297, and 297 - 20 = 277.": "277",
    "5-9=-4": "-4",
    "it is -4": "-4",
    "10-4": "4",
    "10 - 4": "4",
    "(3)-4": "4",
    "x-4": "4",
    "minus: \N{MINUS SIGN}12": "-12",
    "$1,234.50!": "1234.50",
    "1,234,567": "1234567",
    "1,2,3": "3",
    "12,34": "34",
    "+7": "7",
    "is .5": ".5",
    "3.14.": "3.14",
    "version 1.2.3": "3",
    "2e3": "2e3",
    "1e99999": "99999",
    "no digits": None,
    "": None,
    "٣": None,
    "82\n</answer>\n": "82",
}


@pytest.mark.parametrize("text", NUMBERS)
def test_last_number_of_hand_written_texts(text):
    assert last_number(text) == NUMBERS[text]


VALUES = {
    "82": Fraction(82),
    " 82.0 ": Fraction(82),
    "1,234.5": Fraction(2469, 2),
    "-3/4": Fraction(-3, 4),
    "6 / 8": Fraction(3, 4),
    "1/0": None,
    "$12": Fraction(12),
    "5%": Fraction(5),
    "12.": Fraction(12),
    ".5": Fraction(1, 2),
    "1e3": Fraction(1000),
    "3 apples": None,
    "12 13": None,
    "": None,
    "nan": None,
    "inf": None,
    "9" * 5000: None,
    "1e999999999": None,
}


@pytest.mark.parametrize("text", VALUES, ids=lambda text: text[:12])
def test_value_of_hand_written_numbers(text):
    assert parse_number(text) == VALUES[text]


def test_no_text_has_no_value():
    assert parse_number(None) is None


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12))
def test_an_integer_with_or_without_thousands_commas_is_read_back(number):
    assert last_number(f"so it is {number}.") == str(number)
    assert last_number(f"so it is {number:,}.") == str(number)
    assert parse_number(f"{number:,}") == number


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_without_error(text):
    for form in ("auto", "tag", "boxed", "last_number", "text"):
        answer = extract_answer(text, form)
        # What is read stands in the text: nothing is invented.
        assert answer is None or answer.replace(",", "") in text.replace(",", "")
        assert isinstance(parse_number(answer), Fraction | None)


def test_tag_content_is_that_of_the_last_closed_pair():
    assert tag_content("<answer>\n82\n</answer>\n") == "82"
    assert tag_content("<answer>1</answer> no <answer>2</answer>") == "2"
    assert tag_content("<answer>1</answer> and <answer>2") == "1"
    assert tag_content("<answer>82") is None
    assert tag_content("82</answer>") is None
    assert tag_content("<final>3</final>", "final") == "3"


def test_boxed_balances_braces():
    assert boxed(r"so \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert boxed(r"\boxed{1} then \boxed{2}") == "2"
    assert boxed(r"\boxed{1") is None
    assert boxed("1") is None


def test_automatic_extraction_prefers_the_tag_then_the_box_then_the_last_number():
    assert extract_answer(r"<answer>7</answer> \boxed{8} 9") == "7"
    assert extract_answer(r"\boxed{8} 9") == "8"
    assert extract_answer("8 or 9") == "9"
    assert extract_answer("<answer></answer> 9") == ""
    assert extract_answer(" text ", "text") == "text"
    assert extract_answer("  ", "text") is None
