"""Built-in rewards on hand-made good and bad completions, and on a source's broken outputs."""

import re

import pytest
from rewards.building import scores

from outscore.rewards import make_reward

AS_PRINTED = r"^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$"
"""The pattern of a source, letter by letter."""

ONE_LINE = "<reasoning>\n7+8=15 4+3=7 7+1=8\n</reasoning>\n<answer>\n85\n</answer>\n"
TWO_LINES = "<reasoning>\n7+8=15\n4+3=7 7+1=8\n</reasoning>\n<answer>\n85\n</answer>\n"

# The two outputs that the source calls correct and incorrect: the first never closes <reasoning>, the second breaks it.
SOURCE_CORRECT = (
    "<reasoning>First, let's find out how many hens there are. The total number of chickens is 325, and 28 are "
    "roosters. So, the number of hens is 325 - 28 = 297. Of these 297 hens, 20 do not lay eggs, so the number of "
    "egg-laying hens is 297 - 20 = 277.\n\n<answer>277</answer>\n"
)
SOURCE_INCORRECT = (
    "<reasoning>You need to subtract the 20 hens that do not lay eggs from the total number of hens to find the "
    "number of egg-laying hens. So, the number of egg-laying hens is 325 - 20 = 305./reasoning>\n\n"
    "<answer>305</answer>\n"
)


MALFORMED = [
    "",
    ONE_LINE.rstrip("\n").removesuffix("</answer>"),
    ONE_LINE.replace("</reasoning>", "/reasoning>"),
    ONE_LINE.replace("</reasoning>\n", ""),
    ONE_LINE.replace("<answer>\n", "<answer>"),
    "Sure! " + ONE_LINE,
    ONE_LINE + "Anything else?",
    ONE_LINE.replace("reasoning", "think"),
    ONE_LINE.rstrip("\n") + " ",
]


@pytest.mark.parametrize("strict", [True, False])
def test_the_format_reward_is_the_printed_pattern(strict):
    texts = [ONE_LINE, TWO_LINES, ONE_LINE + "\n", *MALFORMED]
    expected = [0.5 if re.match(AS_PRINTED, text, 0 if strict else re.DOTALL) else 0.0 for text in texts]
    assert scores({"name": "format_tags", "strict_single_line": strict}, *texts) == expected


def test_the_printed_pattern_takes_single_lines_only_and_dotall_takes_several():
    assert scores({"name": "format_tags", "strict_single_line": True}, ONE_LINE, TWO_LINES) == [0.5, 0.0]
    assert scores("format_tags", ONE_LINE, TWO_LINES) == [0.5, 0.5]
    assert scores("format_tags", *MALFORMED) == [0.0] * len(MALFORMED)


@pytest.mark.parametrize("strict", [True, False])
def test_both_broken_outputs_of_the_source_get_no_format_reward(strict):
    assert scores({"name": "format_tags", "strict_single_line": strict}, SOURCE_CORRECT, SOURCE_INCORRECT) == [0.0, 0.0]


@pytest.mark.parametrize("name", ["last_number", "tag_answer", "answer_exact", "answer_numeric"])
def test_the_source_s_answers_277_is_right_and_305_and_297_are_wrong(name):
    wrong = SOURCE_INCORRECT.replace("305</", "297</")
    assert scores(name, SOURCE_CORRECT, SOURCE_INCORRECT, wrong) == [1.0, 0.0, 0.0]


def test_other_tags_another_amount_and_free_white_space():
    spec = {"name": "format_tags", "tags": ["think", "answer"], "line_breaks": False, "reward": 1.0}
    good, bad = "<think> because </think><answer> 4 </answer>", "<think> because <answer> 4 </answer>"
    assert scores(spec, good, bad) == [1.0, 0.0]


CASES = [
    ("answer_exact", "Paris", ["<answer>Paris</answer>", r"\boxed{Paris}"], ["<answer>paris</answer>", "Paris", ""]),
    ("answer_numeric", "82", ["<answer>82.0</answer>", "it is 82", "<answer>about 82</answer>"], ["28", "82.1", ""]),
    ("answer_numeric", "1/3", ["<answer>2/6</answer>", "<answer>0.3333333</answer>"], ["<answer>0.33</answer>"]),
    ("last_number", "-4", ["5-9=-4", "-4.0", "-4 !"], ["4", "-4 or 5", ""]),
    ("last_number", "1,234", ["1234", "1,234.00"], ["234"]),
    (
        "tag_answer",
        "82",
        ["<answer>\n82\n</answer>\n", "<answer>82.0</answer>"],
        ["82", "<answer>82", "<answer></answer>"],
    ),
    ("tag_answer", "blue", ["<answer>blue</answer>"], ["blue", "<answer>red</answer>"]),
]


@pytest.mark.parametrize(("name", "gold", "good", "bad"), CASES)
def test_answer_rewards_on_hand_made_pairs(name, gold, good, bad):
    assert scores(name, *good, *bad, answer=gold) == [1.0] * len(good) + [0.0] * len(bad)


def test_options_change_where_and_how_answers_are_compared():
    assert scores({"name": "answer_exact", "ignore_case": True}, "<answer>PARIS</answer>", answer="Paris") == [1.0]
    assert scores({"name": "answer_exact", "form": "last_number"}, "<answer>1</answer> 2", answer="2") == [1.0]
    assert scores({"name": "answer_numeric", "tolerance": 0.1}, "90", "91", answer="100") == [1.0, 1.0]
    assert scores({"name": "answer_numeric", "tolerance": 0.05}, "95", "94", answer="100") == [1.0, 0.0]
    assert scores({"name": "tag_answer", "tag": "final"}, "<final>3</final>", answer="3") == [1.0]


@pytest.mark.parametrize("name", ["answer_numeric", "last_number"])
def test_numeric_rewards_do_not_apply_where_the_gold_answer_is_no_number(name):
    assert scores(name, "Paris", answer="Paris") == [None]


@pytest.mark.parametrize("name", ["answer_exact", "answer_numeric", "last_number", "tag_answer"])
def test_answer_rewards_do_not_apply_without_a_gold_answer(name):
    assert scores(name, "82", answer=None) == [None]


@pytest.mark.parametrize("name", ["format_tags", "answer_exact", "answer_numeric", "last_number", "tag_answer"])
def test_chat_completions_score_as_plain_ones(name):
    messages = ({"role": "user", "content": "47+38="},)
    assert scores(name, ONE_LINE, "", answer="85", question=messages) == scores(name, ONE_LINE, "", answer="85")


@pytest.mark.parametrize("name", ["format_tags", "answer_exact", "answer_numeric", "last_number", "tag_answer"])
def test_no_value_exceeds_what_the_reward_calls_full(name):
    reward = make_reward(name)
    assert reward.full == max(value for value in scores(name, ONE_LINE, "", answer="85"))


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"name": "format_tags", "tags": "answer"}, r"reward 'format_tags': tags = 'answer' must be a list"),
        ({"name": "format_tags", "tags": []}, r"tags = \[\] must be different names, such as"),
        ({"name": "format_tags", "tags": ["answer", "answer"]}, r"must be different names"),
        ({"name": "last_number", "tolerance": "x"}, r"reward 'last_number': tolerance = 'x' must be a valid number"),
        ({"name": "answer_exact", "form": "tags"}, r"form = 'tags'.*did you mean `tag`"),
        ({"name": "last_number", "tolerance": -1}, r"tolerance = -1.0 must be 0 or above"),
        ({"name": "math_verify", "seconds": 0}, r"seconds = 0.0 must be above 0"),
    ],
)
def test_impossible_options_are_named(spec, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_reward(spec)
