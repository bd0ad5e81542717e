"""Agreement of a completion with itself, on hand-made texts; no test here has a gold answer."""

import pytest
from rewards.building import scores

from outscore.rewards import make_reward
from outscore.rewards.answers import chain_of_thought
from outscore.rewards.equations import equations, last_result
from outscore.rewards.language import share_of_language

STATED = {
    "7+8=15, so 15+1=17": [("7+8=15", True), ("15+1=17", False)],
    "2+3=5+1=6": [("2+3=5+1", False), ("5+1=6", True)],
    "7 = 3 + 4": [("7=3+4", True)],
    "(2+3)*4=20 and 2^10=1024": [("(2+3)*4=20", True), ("2^10=1024", True)],
    "3 x 4 = 12, 3 × 4 = 13": [("3*4=12", True), ("3*4=13", False)],
    r"12 \times 3 = 36": [("12*3=36", True)],
    "$5 + $3 = $8.": [("5+3=8", True)],
    "1,000 + 1 = 1,001": [("1,000+1=1,001", True)],
    "10 - 2 - 3 = 5": [("10-2-3=5", True)],
    "2 + 3 * 4 = 20": [("2+3*4=20", False)],
    "-3+5=2": [("-3+5=2", True)],
    "50% * 20 = 10": [("50%*20=10", True)],
    "10 / 3 = 3.33": [("10/3=3.33", True)],
    "10 / 3 = 3.34": [("10/3=3.34", False)],
    "10/3 = 3": [("10/3=3", False)],
    "22/7≈3": [("22/7≈3", True)],
    "5/0 = 3": [("5/0=3", False)],
    "7+8=15 4+3=8": [("7+8=15", True), ("4+3=8", False)],
    "1+1=2 1 + 1 = 2": [("1+1=2", True)],
    "(3+4=7), 3+5=8 (so 9)": [("3+4=7", True), ("3+5=8", True)],
    "3+4=5(x+1)": [],
    "x = 3 + 4 = 7": [("3+4=7", True)],
    "8 eggs - 3 eggs = 5 eggs": [],
    "x + 3 = 5": [],
    "2x + 3 = 7": [],
    "y + 3 + 4 = 7": [],
    "3+4 = 7x": [],
    "f(3+4) = 7": [],
    "3+4 == 7": [],
    r"\frac{1}{2} + 1 = 1.5": [],
    "So - 3 + 5 = 2": [],
    "9^9^9=1": [],
    "(" * 5000 + "1=1": [],
    "7 = 7": [],
    "no numbers": [],
    "": [],
}


@pytest.mark.parametrize("text", STATED, ids=lambda text: text[:24])
def test_equations_of_hand_written_texts(text):
    assert [(each.text, each.holds) for each in equations(text)] == STATED[text]


def test_the_reward_is_the_share_of_true_equations():
    assert scores("equations_hold", "7+8=15 4+3=7 7+1=8", "7+8=15 4+3=8", "7+8=16", answer=None) == [1.0, 0.5, 0.0]


def test_without_an_equation_the_recipe_says_what_it_gets():
    assert scores("equations_hold", "it is 15") == [0.0]
    assert scores({"name": "equations_hold", "without": 0.5}, "it is 15") == [0.5]
    assert scores({"name": "equations_hold", "without": None}, "it is 15") == [None]
    with pytest.raises(ValueError, match=r"without = 2.0 must be from 0 to 1, or null"):
        make_reward({"name": "equations_hold", "without": 2})


def test_the_last_result_is_the_last_right_side():
    assert last_result("325-28=297, and 297-20=277 eggs from 20 hens") == 277
    assert last_result("7 = 3 + 4") is None


FOLLOWS = {
    "<think>325-28=297, 297-20=277</think><answer>277</answer>": 1.0,
    "<think>297-20=277 eggs from 20 hens</think><answer>277</answer>": 1.0,
    "<think>297 less 20 is 277</think><answer>277.0</answer>": 1.0,
    "<reasoning>\n297-20=277\n</reasoning>\n<answer>\n277\n</answer>\n": 1.0,
    r"297-20=277, so \boxed{277}": 1.0,
    "<think>It rains.\nSo it must be wet</think><answer>wet</answer>": 1.0,
    "<think>297-20=277</think><answer>305</answer>": 0.0,
    "<think>297-20=277. It is 20</think><answer>297</answer>": 0.0,
    "<think>It is wet.\nSo it is dry</think><answer>wet</answer>": 0.0,
    "<think></think><answer>277</answer>": 0.0,
    "<think>297-20=277</think>": 0.0,
    "<answer>277</answer>": 0.0,
    "277": 0.0,
    "": 0.0,
}


@pytest.mark.parametrize("text", FOLLOWS)
def test_the_answer_follows_from_the_reasoning_or_not(text):
    assert scores("answer_follows", text, answer=None) == [FOLLOWS[text]]


THOUGHTS = {
    "<think>a</think> b": "a",
    "a</think> b": "a",
    "<think>a": "a",
    "<reasoning>a</reasoning><answer>b</answer>": "a",
    "a <answer>b</answer>": "a ",
    r"a \boxed{b}": "a ",
    "a": "a",
}


@pytest.mark.parametrize("text", THOUGHTS)
def test_the_chain_of_thought(text):
    assert chain_of_thought(text) == THOUGHTS[text]


# Words counted by hand. English: "So the number of hens is three hundred" 8, "So the number of hens is" 6.
LANGUAGES = {
    ("en", "So the number of hens is three hundred."): 8 / 8,
    ("en", "Le nombre de poules est donc de trois cents. So the number of hens is three hundred."): 8 / 17,
    ("fr", "Le nombre de poules est donc de trois cents. So the number of hens is three hundred."): 9 / 17,
    ("de", "Die Zahl der Hennen ist also genau dreihundert."): 8 / 8,
    ("en", "So the number of hens is 297. 所以是二九七"): 6 / 12,
    ("zh", "So the number of hens is 297. 所以是二九七"): 6 / 12,
    ("ja", "答えは五です"): 6 / 6,
    ("zh", "答えは五です"): 0 / 6,
    ("ru", "Первое число равно двум, и второе число тоже равно двум."): 9 / 9,
    ("ko", "답은 다섯 answer"): 2 / 3,
    ("el", "ο αριθμός των αυγών είναι πέντε"): 5 / 5,
    ("en", r"x = 3 + y, \frac{a}{b} ```python\nreturn x```"): None,
    ("en", ""): None,
}


@pytest.mark.parametrize(("language", "text"), LANGUAGES)
def test_the_share_of_words_in_the_target_language(language, text):
    assert share_of_language(text, language) == LANGUAGES[language, text]


def test_the_reward_looks_at_the_chain_of_thought_alone():
    texts = ["<think>So the number of hens is three hundred.</think> 三百", "<think>所以是三百</think> It is 300."]
    assert scores("language_consistency", *texts) == [1.0, 0.0]


def test_a_mixed_chain_of_thought_ranks_between_a_pure_and_a_foreign_one():
    english, french = "First we add the two numbers and then we subtract.", "Ensuite nous ajoutons les deux nombres."
    pure, mixed, foreign = scores("language_consistency", english, f"{english} {french}", french)
    assert pure == 1.0 and foreign == 0.0 and 0.0 < mixed < 1.0


def test_languages_it_does_not_know_are_named():
    with pytest.raises(ValueError, match=r"'eng' is no language it knows; did you mean `en`"):
        make_reward({"name": "language_consistency", "language": "eng"})
    with pytest.raises(ValueError, match=r"among = \['de'\] must hold the target 'en'"):
        make_reward({"name": "language_consistency", "among": ["de"]})
