"""Rewards for writing, without a gold answer: coherence, completeness, fluency, and what degenerate text shows.

Deterministic counts, in any language that parts its words by blanks. They catch text that falls apart; they do not
judge style, and a model can satisfy them without saying anything, so they go beside a reward for the answer.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

from outscore.rewards.contract import Reward, completion_text
from outscore.rewards.kinds import check_number, text_reward

_WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_TAG = re.compile(r"</?[A-Za-z][\w-]*>")
_FINISHED = re.compile(r"(?:[.!?…:)\]}\"'”’`$]|</[\w-]+>|[0-9])\Z")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_LETTER_RUN = re.compile(r"([^\W\d_])\1\1", re.IGNORECASE)
_LONGEST_WORD = 25
_STEM = 6
_SHORTEST_LOOP = 8
_SHORTEST_CONTENT_WORD = 4
_SENTENCE_WORDS = range(2, 51)


def repetition(*, n: int = 4) -> Reward:
    """-(1 - different / all) over the n-grams of words: 0 where none comes twice, near -1 where all are one."""
    check_number("repetition", "n", n, least=1)
    return text_reward("repetition", lambda text: -repeated_share(text, n), full=0.0)


def degeneration() -> Reward:
    """-(share of the text that a loop at its end takes): 0 where it does not end in a loop, near -1 where it is one."""
    return text_reward("degeneration", lambda text: -loop_share(text), full=0.0)


REFLECTIVE = ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check")
"""The words whose frequency DeepSeek-R1 follows through the training of R1-Zero (arXiv 2501.12948, appendix)."""


def reflection(*, words: Sequence[str] = REFLECTIVE) -> Reward:
    """How many reflective words there are, a number from 0: to look at, with `weight: 0`, as a curve over a run."""
    if not words:
        raise ValueError("reward 'reflection': words = [] counts nothing; give words, or leave it out")
    known = {word.casefold() for word in words}
    return text_reward("reflection", lambda text: float(sum(word in known for word in _WORD.findall(text.casefold()))))


def fluency() -> Reward:
    """How much a text looks like writing, from 0 to 1: the product of four shares, 0 for no word at all.

    Different 3-grams of words of all; what no loop at its end takes; words that look like words (at most 25 letters, no
    letter three times in a row, no digit between letters, no capital after a small letter); sentences of 2 to 50 words.
    """
    return text_reward("fluency", fluency_of, full=1.0)


def completeness(*, parts: Sequence[str] = ()) -> Reward:
    """Which share of these hold, from 0 to 1; 0 for an empty completion.

    It ends like something finished (a full stop or other closing mark, a closing tag, a number); its brackets and
    ``` marks are balanced; its tags are closed in order; and one more for each text in `parts`, that it occurs.
    """
    return text_reward("completeness", lambda text: completeness_of(text, parts), full=1.0)


def coherence() -> Reward:
    """Which share of the sentences is tied to the prompt or to one of the two sentences before it, from 0 to 1.

    A tie is a shared content word (4 letters or more, compared by their first 6) or number; a sentence said before word
    by word has none. 0 for no sentence.
    """

    def score(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        asked = (each if isinstance(each, str) else str(each[-1]["content"]) for each in prompts)
        return [coherence_of(completion_text(c), p) for c, p in zip(completions, asked, strict=True)]

    return Reward(name="coherence", function=score, full=1.0)


def repeated_share(text: str, n: int) -> float:
    """1 - different / all, over the n-grams of the text's words, without regard to case; 0 where there is none.

    >>> repeated_share("a b a b a b", 2)
    0.6
    """
    words = _words(text)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loop_share(text: str) -> float:
    """The share of the characters that belong to a loop at the end: a piece that comes at least three times in a row
    and fills at least 8 characters, the longest such stretch for any piece. Blanks at the end aside.

    >>> loop_share("so it is is is is is")
    0.75
    """
    backwards = text.rstrip()[::-1]
    longest = 0
    for period in range(1, len(backwards) // 3 + 1):
        # A loop of a shorter piece is one of its multiples, too, and no other piece loops three times inside of it.
        if 3 * period <= longest or backwards[: 2 * period] != backwards[period : 3 * period]:
            continue
        length = 3 * period
        while length < len(backwards) and backwards[length] == backwards[length - period]:
            length += 1
        if length >= _SHORTEST_LOOP:
            longest = length
    return longest / len(backwards) if backwards else 0.0


def fluency_of(text: str) -> float:
    """The value of `fluency`."""
    plain = _TAG.sub(" ", text)
    words = _WORD.findall(plain)
    if not words:
        return 0.0
    sentences = [count for each in _SENTENCE_END.split(plain) if (count := len(_WORD.findall(each)))]
    shares = (
        1 - repeated_share(plain, 3),
        1 - loop_share(plain),
        sum(_looks_like_a_word(word) for word in words) / len(words),
        sum(count in _SENTENCE_WORDS for count in sentences) / len(sentences),
    )
    return prod(shares)


def completeness_of(text: str, parts: Sequence[str] = ()) -> float:
    """The value of `completeness`."""
    bare = text.strip()
    if not bare:
        return 0.0
    checks = [
        bool(_FINISHED.search(bare)),
        bare.count("```") % 2 == 0 and _brackets_close(bare),
        _tags_close(bare),
        *(part in text for part in parts),
    ]
    return sum(checks) / len(checks)


def coherence_of(text: str, prompt: str) -> float:
    """The value of `coherence` for one completion."""
    sentences = [each for each in _SENTENCE_END.split(_TAG.sub(" ", text)) if _WORD.search(each)]
    asked = _content(prompt)
    said: list[list[str]] = []
    tied = 0
    for sentence in sentences:
        context = asked.union(*(_content(" ".join(words)) for words in said[-2:]))
        words = _words(sentence)
        tied += words not in said and bool(_content(sentence) & context)
        said.append(words)
    return tied / len(sentences) if sentences else 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _content(text: str) -> set[str]:
    """Numbers, and stems of the words that are long enough to be about something."""
    words = _words(text)
    return {word[:_STEM] for word in words if len(word) >= _SHORTEST_CONTENT_WORD or word[0].isdigit()}


def _looks_like_a_word(word: str) -> bool:
    if word[0].isdigit():
        return len(word) <= _LONGEST_WORD
    mixed = any(a.islower() and b.isupper() for a, b in pairwise(word))
    digits = any(char.isdigit() for char in word)
    return len(word) <= _LONGEST_WORD and not mixed and not digits and not _LETTER_RUN.search(word)


def _brackets_close(text: str) -> bool:
    opened: list[str] = []
    for char in text:
        if char in "([{":
            opened.append(char)
        elif char in _PAIRS and (not opened or opened.pop() != _PAIRS[char]):
            return False
    return not opened


def _tags_close(text: str) -> bool:
    opened: list[str] = []
    for tag in _TAG.findall(text):
        if not tag.startswith("</"):
            opened.append(tag[1:-1])
        elif not opened or opened.pop() != tag[2:-1]:
            return False
    return not opened
