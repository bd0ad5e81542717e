"""From a problem to exactly what the model reads, by chat templates and plain ones; the one place a prompt is
tokenised."""

import json
import re
from collections.abc import Sequence

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from outscore.inputs import nearest
from outscore.records import Message, Problem, Prompt

R1_ZERO = (
    "A conversation between User and Assistant. The User asks a question and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process and answer are enclosed within <think>...</think> and <answer>...</answer> tags, respectively, that is, "
    "<think> reasoning process here </think><answer> answer here </answer>. User: {question}. Assistant:"
)
"""DeepSeek-R1-Zero's template to the letter (arXiv 2501.12948), the question for its {prompt}."""

TEMPLATES = ("auto", "chat", "none", "r1-zero")
"""Templates by name. Any other text with {question} in it is a template of its own."""


def render(
    problem: Problem,
    tokenizer: PreTrainedTokenizerBase,
    template: str = "auto",
    *,
    system: str | None = None,
    limit: int | None = None,
    room: int = 0,
) -> Prompt:
    """Render a problem with a template and tokenise it.

    `chat` is the tokenizer's own chat template (with `system` as the first message, and a final assistant message
    continued rather than closed), `none` the question alone, `r1-zero` DeepSeek's, a text with {question} itself; in
    such a text, or in `system`, {population} is the problem's population, and the name of a data column in braces is
    the problem's value of it, but for {answer}, which a model must not read; other braces stay as they are;
    `auto` is `chat` where the tokenizer has a chat template and `none` where not. Plain templates get the
    beginning-of-sequence token if the tokenizer adds one, never a second one; chat templates write their own.
    ValueError for messages or `chat` without a chat template, a `system` that the template cannot place, a template
    without {question}, a column that the problem leaves empty, an empty prompt, and one that a context of `limit`
    tokens cannot hold with `room` new ones.

    >>> render(problem, tokenizer, "Question: {question}\\nAnswer:").text
    'Question: 47+38=\\nAnswer:'
    """
    template = check_template(problem, tokenizer, template, system)
    system = None if system is None else _filled(system, problem, "system")
    if template == "chat":
        text = _chat_text(problem, tokenizer, system)
        token_ids = _encode(problem, tokenizer, text)
    else:
        assert isinstance(problem.question, str)
        text = _plain_text(problem, template)
        token_ids = _encode(problem, tokenizer, text)
        opening = _opening_token(tokenizer)
        if opening is not None and token_ids[:1] != [opening]:
            text = str(tokenizer.bos_token) + text
            token_ids = [opening, *token_ids]
    if not token_ids:
        raise ValueError(f"prompt {problem.id!r} is empty: its question is {problem.question!r}")
    if limit is not None and len(token_ids) + room > limit:
        too_long = f"prompt {problem.id!r} has {len(token_ids)} tokens, and the model's context holds {limit}"
        left = limit - len(token_ids)
        if left > 0:
            too_long += f", which leaves {left} for an answer: sampling.max_new_tokens = {room} must not be more"
        raise ValueError(f"{too_long}: {_short(text)}")
    return Prompt(problem=problem, text=text, token_ids=tuple(token_ids))


def check_template(problem: Problem, tokenizer: PreTrainedTokenizerBase, template: str, system: str | None) -> str:
    """The template that will really be used; ValueError where it does not suit the problem, tokenizer or system
    message."""
    if template not in TEMPLATES and "{question}" not in template:
        raise ValueError(
            f"template: {template!r} is no template's name and has no {{question}} in it{nearest(template, TEMPLATES)}"
        )
    has_messages = not isinstance(problem.question, str)
    if template == "auto":
        template = "chat" if has_messages or tokenizer.chat_template else "none"
    if has_messages and template != "chat":
        raise ValueError(f"template: {template!r} cannot render the messages of prompt {problem.id!r}; use 'chat'")
    if template == "chat" and not tokenizer.chat_template:
        wanted = f"prompt {problem.id!r} is messages" if has_messages else "template: 'chat' was asked for"
        advice = (
            "use a chat model or plain questions" if has_messages else "use 'none', 'r1-zero' or a text with {question}"
        )
        raise ValueError(f"{wanted}, but the tokenizer of this model has no chat template; {advice}")
    if system is not None and template != "chat":
        raise ValueError(f"system: {_short(system)} needs template 'chat'; {template!r} has no place for it")
    return template


def _plain_text(problem: Problem, template: str) -> str:
    assert isinstance(problem.question, str)
    if template == "none":
        return problem.question
    if template == "r1-zero":
        return R1_ZERO.replace("{question}", problem.question)
    return _filled(template, problem, "template", question=problem.question)


def _filled(text: str, problem: Problem, key: str, **also: str) -> str:
    """The text with the problem's own in the place of {population} and of its columns' names, and what is `also` given;
    ValueError where one is wanted and there is none."""
    known = {**problem.columns, "population": problem.population, **also}
    known.pop("answer", None)

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in known:
            return match[0]
        if known[name] is None:
            what = "a population" if name == "population" else f"the column {name!r}"
            raise ValueError(f"{key}: {_short(text)} names {what}, and prompt {problem.id!r} has none")
        return known[name] if isinstance(known[name], str) else json.dumps(known[name], ensure_ascii=False, default=str)

    # In one pass, and not by str.format: templates and questions hold braces of their own (JSON, LaTeX).
    return re.sub(r"\{([^{}]+)\}", value, text)


def _chat_text(problem: Problem, tokenizer: PreTrainedTokenizerBase, system: str | None) -> str:
    question = problem.question
    turns: Sequence[Message] = [{"role": "user", "content": question}] if isinstance(question, str) else question
    messages = [dict(turn) for turn in turns]
    if not messages:
        raise ValueError(f"prompt {problem.id!r} has no messages")
    if system is not None:
        if messages[0]["role"] == "system":
            raise ValueError(f"system: prompt {problem.id!r} already begins with a system message")
        messages = [{"role": "system", "content": system}, *messages]
    continues = messages[-1]["role"] == "assistant"
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=not continues, continue_final_message=continues
            )
        )
    except (TemplateError, ValueError) as error:
        raise ValueError(
            f"prompt {problem.id!r}: the tokenizer's chat template refuses its messages: {error}"
        ) from error


def _encode(problem: Problem, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    try:
        token_ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    except Exception as error:
        # The tokenizers library raises a bare Exception for a character without a token, and does not name it.
        if type(error) is not Exception:
            raise
        vocabulary = tokenizer.get_vocab()
        unknown = next((character for character in text if character not in vocabulary), None)
        raise ValueError(
            f"prompt {problem.id!r} cannot be tokenised: this model has no token for {unknown!r} ({error})"
        ) from error
    return token_ids


def _opening_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token the tokenizer puts before a text, or None. An end token it may append is not wanted in a prompt."""
    around_nothing = tokenizer("")["input_ids"]
    bos = tokenizer.bos_token_id
    return int(bos) if isinstance(bos, int) and around_nothing[:1] == [bos] else None


def _short(text: str, limit: int = 120) -> str:
    squeezed = re.sub(r"\s+", " ", text)
    return repr(squeezed if len(squeezed) <= limit else squeezed[: limit - 3] + "...")
