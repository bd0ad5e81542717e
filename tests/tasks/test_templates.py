"""Prompts with tokenizers built here: with and without a chat template, with and without a beginning token."""

from dataclasses import replace

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from outscore.records import Problem
from outscore.tasks import render
from outscore.tasks.templates import R1_ZERO

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
SPECIAL = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def build(*, adds_bos=False, adds_eos=False, template=None):
    """One token a character of printable ASCII, and the special tokens."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    raw = Tokenizer(models.WordLevel({each: n for n, each in enumerate(characters)}))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIAL[2:]
    )
    tokenizer.chat_template = template
    around = (["<s>"] if adds_bos else []) + ["$A"] + (["</s>"] if adds_eos else [])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(around), special_tokens=[(each, tokenizer.convert_tokens_to_ids(each)) for each in SPECIAL[:2]]
    )
    return tokenizer


@pytest.fixture(scope="module")
def plain():
    return build()


@pytest.fixture(scope="module")
def chat():
    return build(adds_bos=True, template=CHATML)


def problem(question="47+38="):
    return Problem(id="p/1", question=question, answer="85", columns={})


def tokens(tokenizer, prompt):
    return tokenizer.convert_ids_to_tokens(list(prompt.token_ids))


def test_none_is_the_question_alone(plain):
    prompt = render(problem(), plain, "none")
    assert prompt.text == "47+38="
    assert tokens(plain, prompt) == list("47+38=")


def test_a_text_with_the_question_s_place_is_a_template_and_other_braces_stay(plain):
    question = r"What is \frac{1}{question}?"
    prompt = render(problem(question), plain, 'Give {"answer": ...}.\nQ: {question}\nA:')
    assert prompt.text == 'Give {"answer": ...}.\nQ: ' + question + "\nA:"


def test_the_r1_zero_template_is_deepseek_s(plain):
    expected = (
        "A conversation between User and Assistant. The User asks a question and the Assistant solves it. The "
        "Assistant first thinks about the reasoning process in the mind and then provides the User with the answer. "
        "The reasoning process and answer are enclosed within <think>...</think> and <answer>...</answer> tags, "
        "respectively, that is, <think> reasoning process here </think><answer> answer here </answer>. User: "
        "{prompt}. Assistant:"
    )
    assert R1_ZERO.replace("{question}", "{prompt}") == expected
    assert render(problem(), plain, "r1-zero").text == expected.replace("{prompt}", "47+38=")


def test_chat_is_the_tokenizer_s_template_opened_for_the_assistant(chat):
    prompt = render(problem("hi"), chat, "chat", system="Be brief.")
    assert prompt.text == "<|system|>Be brief.<|end|><|user|>hi<|end|><|assistant|>"
    assert tokens(chat, prompt) == [
        "<|system|>",
        *"Be brief.",
        "<|end|>",
        "<|user|>",
        "h",
        "i",
        "<|end|>",
        "<|assistant|>",
    ]


def test_messages_keep_their_turns_and_a_begun_answer_is_continued(chat):
    turns = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "So"})
    assert render(problem(turns[:1]), chat, "chat").text == "<|user|>hi<|end|><|assistant|>"
    assert render(problem(turns), chat, "auto").text == "<|user|>hi<|end|><|assistant|>So"


def test_auto_is_chat_where_there_is_a_chat_template(chat, plain):
    assert render(problem(), chat, "auto") == render(problem(), chat, "chat")
    assert render(problem(), plain, "auto") == render(problem(), plain, "none")


@pytest.mark.parametrize("adds_eos", [False, True])
def test_plain_prompts_begin_with_one_beginning_token_and_have_no_end_token(adds_eos):
    tokenizer = build(adds_bos=True, adds_eos=adds_eos)
    for template in ("none", "<s>{question}"):
        prompt = render(problem("1+1="), tokenizer, template)
        assert tokens(tokenizer, prompt) == ["<s>", "1", "+", "1", "="]
        assert prompt.text == "<s>1+1="


def test_a_chat_template_that_writes_the_beginning_token_gets_no_second_one():
    tokenizer = build(adds_bos=True, template="{{ bos_token }}" + CHATML)
    assert tokens(tokenizer, render(problem("hi"), tokenizer, "chat"))[:3] == ["<s>", "<|user|>", "h"]


def test_messages_without_a_chat_template_are_an_error(plain):
    with pytest.raises(ValueError, match=r"prompt 'p/1' is messages, but the tokenizer .* has no chat template"):
        render(problem(({"role": "user", "content": "hi"},)), plain, "auto")


@pytest.mark.parametrize(
    ("template", "system", "complaint"),
    [
        ("chat", None, r"'chat' was asked for, but the tokenizer of this model has no chat template"),
        ("r1_zero", None, r"template: 'r1_zero' is no template's name .*; did you mean `r1-zero`\?"),
        ("Question: {prompt}", None, r"has no \{question\} in it"),
        ("none", "Be brief.", r"system: 'Be brief.' needs template 'chat'; 'none' has no place for it"),
    ],
)
def test_templates_that_do_not_suit_are_named(template, system, complaint, plain):
    with pytest.raises(ValueError, match=complaint):
        render(problem(), plain, template, system=system)


def test_plain_templates_cannot_render_messages(chat):
    with pytest.raises(ValueError, match=r"'none' cannot render the messages of prompt 'p/1'; use 'chat'"):
        render(problem(({"role": "user", "content": "hi"},)), chat, "none")


def test_two_system_messages_are_an_error(chat):
    turns = ({"role": "system", "content": "a"}, {"role": "user", "content": "hi"})
    with pytest.raises(ValueError, match="already begins with a system message"):
        render(problem(turns), chat, "chat", system="b")


def test_messages_that_a_template_refuses_are_named():
    tokenizer = build(template=NO_SYSTEM)
    with pytest.raises(ValueError, match=r"prompt 'p/1': .*System role not supported"):
        render(problem("hi"), tokenizer, "chat", system="b")


def test_a_prompt_that_does_not_fit_is_named_with_its_length(plain):
    assert render(problem(), plain, "none", limit=6).token_ids
    with pytest.raises(ValueError, match=r"prompt 'p/1' has 6 tokens, and the model's context holds 5: '47\+38='"):
        render(problem(), plain, "none", limit=5)
    assert render(problem(), plain, "none", limit=10, room=4).token_ids
    with pytest.raises(ValueError, match=r"context holds 10, which leaves 4 .*sampling\.max_new_tokens = 5 must not"):
        render(problem(), plain, "none", limit=10, room=5)


def test_an_empty_prompt_is_an_error(plain):
    with pytest.raises(ValueError, match="prompt 'p/1' is empty"):
        render(problem(""), plain, "none")


def test_the_population_stands_where_the_template_or_the_system_message_names_it(plain, chat):
    japan = replace(problem("47+38="), population="15")
    assert render(japan, plain, "{population}-{question}").text == "15-47+38="
    # What the question itself says stays as it is.
    asked = replace(problem("{population}"), population="15")
    assert render(asked, plain, "{population}: {question}").text == "15: {population}"
    assert "you are 15" in render(japan, chat, "chat", system="you are {population}").text
    with pytest.raises(ValueError, match=r"template: .* names a population, and prompt 'p/1' has none"):
        render(problem(), plain, "{population}-{question}")


def test_columns_of_the_data_stand_where_the_template_or_the_system_message_names_them(plain, chat):
    columns = {"context": "It has {question} in it.", "year": 1912, "tags": ["a", "é"], "answer": "85", "empty": None}
    own = replace(problem("Who {context}?"), columns=columns)
    # In one pass: what a column or a question holds is not looked into, and braces that name nothing stay.
    text = render(own, plain, r"{context} ({year}) {question} {other} \\boxed{answer}").text
    assert text == r"It has {question} in it. (1912) Who {context}? {other} \\boxed{answer}"
    assert "say 1912" in render(own, chat, "chat", system="say {year}").text
    with pytest.raises(ValueError, match=r"template: .* names the column 'empty', and prompt 'p/1' has none"):
        render(own, plain, "{empty} {question}")


def test_a_character_without_a_token_is_named(plain):
    with pytest.raises(ValueError, match="prompt 'p/1' cannot be tokenised: this model has no token for 'é'"):
        render(problem("é"), plain, "none")
