"""Where steps end: in texts with all kinds of blanks, and among the tokens of several tokenizers."""

import pytest
from train.building import tiny_policy

from outscore.model.steps import join_steps, solution_score, split_steps, step_ends
from outscore.model.tiny import tiny_model


@pytest.mark.parametrize(
    ("text", "separators", "steps"),
    [
        ("a\nb\nc", ["\n"], ("a\n", "b\n", "c")),
        ("a\nb\n", ["\n"], ("a\n", "b\n")),
        ("a\n\n b\n \n", ["\n"], ("a\n\n", " b\n \n")),
        ("\n\na\nb", ["\n"], ("\n\na\n", "b")),
        ("a. b; c", [".", ";"], ("a.", " b;", " c")),
        ("a\n\nb\nc", ["\n\n"], ("a\n\n", "b\nc")),
        ("a", ["\n"], ("a",)),
        ("a b", [], ("a b",)),
        ("", ["\n"], ("",)),
        ("\n", ["\n"], ("\n",)),
    ],
)
def test_steps_end_with_their_separators_and_are_the_text(text, separators, steps):
    found = split_steps(text, separators)
    assert found == steps
    assert "".join(found) == text


def test_steps_of_data_are_closed_where_they_are_not():
    assert join_steps(["a", "b\n", "c"], ["\n"]) == ("a\n", "b\n", "c")
    assert join_steps(["a", "b"], []) == ("a", "b")


def test_a_step_ends_at_the_token_that_writes_its_last_character():
    """By reading tokens one after another until the step's text is there."""
    tokenizer = tiny_policy().tokenizer
    text = "7+8=15 4+3=7 <a>7 7"
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    steps = split_steps(text, [" "])

    def decode(some):
        return tokenizer.decode(some, skip_special_tokens=True)

    expected = []
    for count in range(1, len(steps)):
        upto = "".join(steps[:count])
        expected.append(next(t for t in range(len(ids)) if decode(ids[: t + 1]).startswith(upto)))
    assert step_ends(steps, ids, decode) == (*expected, len(ids) - 1)
    assert [decode(ids[: end + 1]) for end in step_ends(steps, ids, decode)] == [
        "7+8=15 ",
        "7+8=15 4+3=7 ",
        "7+8=15 4+3=7 <a>7 ",
        text,
    ]


def test_steps_inside_one_token_end_there_together():
    _, tokenizer = tiny_model("ab", ["a b b"], 0, hidden_size=8, num_layers=1, num_heads=1)
    ids = tokenizer("a b ba", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2
    decode = tokenizer.decode
    assert step_ends(("a ", "b ", "ba"), ids, decode) == (0, 0, 1)
    assert step_ends(("",), [5], decode) == (0,)


def test_a_solution_is_worth_its_worst_step_the_product_or_the_last():
    assert solution_score([0.5, 0.8, 0.25], "min") == 0.25
    assert solution_score([0.5, 0.8, 0.25], "product") == pytest.approx(0.1)
    assert solution_score([0.25, 0.8, 0.5], "last") == 0.5
    with pytest.raises(ValueError, match="without steps"):
        solution_score([], "min")
