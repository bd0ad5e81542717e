"""Which language the words of a text are in: by their script, and where languages share one, by an offline identifier.

The identifier (py3langid, naive Bayes over byte n-grams, its model inside the package) is sure of a sentence and not of
a word, so words are judged in blocks: consecutive sentences with at least `BLOCK_WORDS` words of one script.
"""

import importlib
import importlib.util
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from outscore.inputs import nearest

BLOCK_WORDS = 6
"""Fewest words that the identifier is asked about, where the text has as many."""

SCRIPTS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "LATIN": (
            "en",
            "de",
            "fr",
            "es",
            "it",
            "pt",
            "nl",
            "sv",
            "da",
            "no",
            "fi",
            "pl",
            "cs",
            "hu",
            "ro",
            "tr",
            "id",
            "vi",
        ),
        "CYRILLIC": ("ru", "uk", "bg", "sr"),
        "ARABIC": ("ar", "fa", "ur"),
        "DEVANAGARI": ("hi", "mr", "ne"),
        "CJK": ("zh",),
        "KANA": ("ja",),
        "HANGUL": ("ko",),
        "GREEK": ("el",),
        "HEBREW": ("he",),
        "THAI": ("th",),
        "BENGALI": ("bn",),
        "TAMIL": ("ta",),
    }
)
"""Script -> the languages it is read as."""

_WITHOUT_BLANKS = frozenset({"CJK", "KANA", "THAI"})
"""Scripts that do not part words: each character counts as one."""
_NOT_WORDS = re.compile(r"```.*?(?:```|\Z)|<[^<>\n]{1,40}>|\\[A-Za-z]+|https?://\S+", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s*|\n+")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def share_of_language(text: str, language: str, among: Sequence[str] | None = None) -> float | None:
    """The share of the words of a text that are in a language; None where it has no word.

    Numbers, single letters of an alphabet (variables), LaTeX commands, tags and ``` blocks are no words. In scripts
    that do not part words each character is one. Chinese characters are Japanese in a sentence with kana, else Chinese.
    """
    blocks = list(_blocks(_NOT_WORDS.sub(" ", text)))
    total = sum(len(words) for _, words in blocks)
    if not total:
        return None
    return sum(len(words) for script, words in blocks if _language(script, words, language, among) == language) / total


def check_language(language: str, among: Sequence[str] | None) -> None:
    """ValueError for a language there is not; ImportError if the identifier is needed and not installed."""
    known = [each for languages in SCRIPTS.values() for each in languages]
    for each in (language, *(among or ())):
        if each not in known:
            raise ValueError(f"reward 'language_consistency': {each!r} is no language it knows{nearest(each, known)}")
    if among is not None and language not in among:
        raise ValueError(f"reward 'language_consistency': among = {list(among)} must hold the target {language!r}")
    shared = len(_candidates(_script_of(language), among)) > 1
    if shared and importlib.util.find_spec("py3langid") is None:
        raise ImportError(
            f"the reward 'language_consistency' needs py3langid to tell {language!r} from other languages of its "
            "script: pip install 'outscore[language]'"
        )


def _language(script: str, words: Sequence[str], target: str, among: Sequence[str] | None) -> str | None:
    """The language of words of one script, as far as it matters: only the target's script is looked at closely."""
    languages = _candidates(script, among)
    if target not in languages:
        return None
    return target if len(languages) == 1 else _identified(" ".join(words), tuple(languages))


def _candidates(script: str, among: Sequence[str] | None) -> list[str]:
    return [each for each in SCRIPTS.get(script, ()) if among is None or each in among]


def _script_of(language: str) -> str:
    return next(script for script, languages in SCRIPTS.items() if language in languages)


def _blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """(script, words) of consecutive sentences, with at least BLOCK_WORDS words where the text has so many; what is
    left over at the end belongs to the block before."""
    blocks: dict[str, list[list[str]]] = {}
    for sentence in _SENTENCE_END.split(text):
        for script, words in _by_script(sentence).items():
            earlier = blocks.setdefault(script, [[]])
            if len(earlier[-1]) >= BLOCK_WORDS:
                earlier.append([])
            earlier[-1] += words
    for script, found in blocks.items():
        if len(found) > 1 and len(found[-1]) < BLOCK_WORDS:
            left_over = found.pop()
            found[-1] += left_over
        for words in found:
            yield script, words


def _by_script(sentence: str) -> dict[str, list[str]]:
    words: dict[str, list[str]] = {}
    for match in _WORD.finditer(sentence):
        for script, piece in _pieces(match[0]):
            words.setdefault(script, []).append(piece)
    if "KANA" in words and "CJK" in words:
        words["KANA"] += words.pop("CJK")
    return words


def _pieces(word: str) -> Iterator[tuple[str, str]]:
    """(script, word): a run of letters cut where its script changes; single letters of an alphabet left out."""
    start = 0
    scripts = [_script(char) for char in word]
    for end in range(1, len(word) + 1):
        if end < len(word) and scripts[end] in (scripts[start], ""):
            continue
        script, piece = scripts[start], word[start:end]
        if script in _WITHOUT_BLANKS:
            yield from ((script, char) for char in piece)
        elif script and len(piece) > 1:
            yield script, piece
        start = end


@lru_cache(maxsize=4096)
def _script(char: str) -> str:
    """The script by the first word of the character's Unicode name; empty for what has none of its own."""
    if not char.isalpha():
        return ""
    first = unicodedata.name(char, "UNKNOWN").split()[0].split("-")[0]
    return "KANA" if first in ("HIRAGANA", "KATAKANA") else first


@lru_cache(maxsize=4096)
def _identified(text: str, languages: tuple[str, ...]) -> str:
    label, _ = _identifier(languages).classify(text.lower())
    return str(label)


@lru_cache(maxsize=16)
def _identifier(languages: tuple[str, ...]) -> Any:
    langid = importlib.import_module("py3langid.langid")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    identifier.set_languages(languages)
    return identifier
