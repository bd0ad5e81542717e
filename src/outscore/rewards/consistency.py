"""Rewards for consistency: does a completion agree with itself? None of them knows the gold answer."""

import re

from outscore.rewards.answers import boxed, chain_of_thought, last_number, parse_number, tag_content
from outscore.rewards.contract import Reward
from outscore.rewards.equations import equations, last_result
from outscore.rewards.kinds import text_reward
from outscore.rewards.language import check_language, share_of_language

_WORD = re.compile(r"\w+")


def answer_follows() -> Reward:
    """1 if the answer is what the reasoning comes to, else 0.

    The answer is what stands in the last <answer> tag or \\boxed{}, the reasoning `answers.chain_of_thought`. A number
    follows if it is the right side of the reasoning's last equation or its last number; words follow if the last line
    of the reasoning that has words holds them, without regard to case. Without an answer or a reasoning: 0.
    """
    return text_reward("answer_follows", lambda text: float(_follows(text)), full=1.0)


def _follows(text: str) -> bool:
    found = tag_content(text)
    found = boxed(text) if found is None else found
    reasoning = chain_of_thought(text)
    if not found or not reasoning.strip() or reasoning == text:
        return False
    number = parse_number(found)
    if number is not None:
        return number in (last_result(reasoning), parse_number(last_number(reasoning)))
    lines = [words for line in reasoning.splitlines() if (words := _WORD.findall(line.casefold()))]
    wanted = _WORD.findall(found.casefold())
    return bool(lines and wanted) and f" {' '.join(wanted)} " in f" {' '.join(lines[-1])} "


def equations_hold(*, without: float | None = 0.0) -> Reward:
    """The share of the different equations between numbers in the completion that are true, from 0 to 1.

    `equations.equations` says what counts. `without` is what a completion gets that states none: 0 makes a model state
    some, null says that the reward does not apply, and 1 rewards saying nothing.
    """
    if without is not None and not 0 <= without <= 1:
        raise ValueError(f"reward 'equations_hold': without = {without!r} must be from 0 to 1, or null")

    def score(text: str) -> float | None:
        found = equations(text)
        return sum(each.holds for each in found) / len(found) if found else without

    return text_reward("equations_hold", score, full=1.0)


def language_consistency(*, language: str = "en", among: tuple[str, ...] | None = None) -> Reward:
    """DeepSeek-R1's Num(Words_target) / Num(Words) over the chain of thought, from 0 to 1 (R1, eq. 7).

    `language.share_of_language` says what a word is and whose. None where there is no word. The extra
    `outscore[language]` is needed where other languages share the target's script.

    Args:
        language: the target, as its two letters (ISO 639-1).
        among: the languages that words of the target's script can be of; by default the common ones.
    """
    check_language(language, among)

    def score(text: str) -> float | None:
        return share_of_language(chain_of_thought(text), language, among)

    return text_reward("language_consistency", score, full=1.0)
