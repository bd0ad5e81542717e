"""The rewards that come with Outscore, each built from its options. docs/rewards.md has a table with examples.

Each builder returns a `Reward`: its function follows the contract of `outscore.rewards.contract`. Answer rewards are 1
for a right answer, 0 for a wrong one or none, and None where the problem has no gold answer they can judge by.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from outscore.rewards.answers import boxed, extract_answer, last_number, parse_number, tag_content
from outscore.rewards.code_rewards import code_stdin, code_tests
from outscore.rewards.consistency import answer_follows, equations_hold, language_consistency
from outscore.rewards.contract import Reward
from outscore.rewards.format import format_tags, json_format
from outscore.rewards.gym import gym_rewards
from outscore.rewards.kinds import answer_reward, check_number, known_form, same_number
from outscore.rewards.length import soft_overlong, target_length
from outscore.rewards.llm_judge import llm_judge
from outscore.rewards.math_answers import import_math_verify, math_rewards, require_math_verify
from outscore.rewards.reward_model import perplexity, process_reward_model, reward_model
from outscore.rewards.structured import answer_list, answer_set, multiple_choice
from outscore.rewards.writing import coherence, completeness, degeneration, fluency, reflection, repetition


def answer_exact(*, form: str = "auto", ignore_case: bool = False) -> Reward:
    """1 if the answer in the place `form` names is the gold answer as text, white space at its ends aside."""

    extract = partial(extract_answer, form=known_form("answer_exact", form))

    def check(text: str, gold: str) -> bool:
        found = extract(text)
        return found is not None and _folded(found, ignore_case) == _folded(gold, ignore_case)

    return answer_reward("answer_exact", check, extract)


def answer_numeric(*, form: str = "auto", tolerance: float = 1e-6) -> Reward:
    """1 if the answer in the place `form` names is the gold number: |a - gold| <= tolerance * max(1, |gold|).

    The answer is that place's number, or the last number in it where it holds more than a number. Arithmetic is exact.
    """
    check_number("answer_numeric", "tolerance", tolerance)
    extract = partial(extract_answer, form=known_form("answer_numeric", form))

    def check(text: str, gold: str) -> bool | None:
        found = extract(text)
        return same_number(found if parse_number(found) is not None else last_number(found or ""), gold, tolerance)

    return answer_reward("answer_numeric", check, extract)


def last_number_reward(*, tolerance: float = 0.0) -> Reward:
    """1 if the last number of the completion is the gold number, whatever stands around it."""
    check_number("last_number", "tolerance", tolerance)
    return answer_reward("last_number", lambda text, gold: same_number(last_number(text), gold, tolerance), last_number)


def tag_answer(*, tag: str = "answer") -> Reward:
    """1 if what stands in the last <answer> tag is the gold answer, as text or as a number (82 is 82.0)."""

    def check(text: str, gold: str) -> bool:
        found = tag_content(text, tag)
        return found is not None and (found == gold.strip() or bool(same_number(found, gold, 0.0)))

    return answer_reward("tag_answer", check, partial(tag_content, tag=tag))


def math_verify(*, seconds: float = 5.0) -> Reward:
    """1 if math-verify finds the completion's mathematical answer equal to the gold one (extra `outscore[math]`).

    It runs in worker processes, one completion at a time. One that takes longer than `seconds`, or too much memory, has
    not been found equal: it counts as 0 and as a failure of the reward. None where the gold answer cannot be parsed.
    """
    if seconds <= 0:
        raise ValueError(f"reward 'math_verify': seconds = {seconds!r} must be above 0")
    require_math_verify()

    def extract(text: str) -> str | None:
        found = boxed(text)
        return extract_answer(text) if found is None else found

    return Reward(
        name="math_verify",
        function=math_rewards,
        full=1.0,
        extract=extract,
        batched=False,
        isolate=True,
        limits={"seconds": seconds},
        prepare=import_math_verify,
        on_failure=0.0,
    )


def gym(*, form: str = "auto") -> Reward:
    """reasoning_gym's own score of the answer, in [0, 1], for problems of the task `reasoning_gym`; None for others.

    With `auto`, an answer outside any tag or box is the last number where the gold answer is one, else the whole
    completion.
    """
    place = known_form("gym", form)
    extract = partial(extract_answer, form=place)
    return Reward(name="gym", function=partial(gym_rewards, form=place), full=1.0, extract=extract)


BUILTIN_REWARDS: Mapping[str, Callable[..., Reward]] = MappingProxyType(
    {
        "format_tags": format_tags,
        "answer_exact": answer_exact,
        "answer_numeric": answer_numeric,
        "last_number": last_number_reward,
        "tag_answer": tag_answer,
        "math_verify": math_verify,
        "gym": gym,
        "multiple_choice": multiple_choice,
        "answer_set": answer_set,
        "answer_list": answer_list,
        "json_format": json_format,
        "answer_follows": answer_follows,
        "equations_hold": equations_hold,
        "language_consistency": language_consistency,
        "coherence": coherence,
        "completeness": completeness,
        "fluency": fluency,
        "repetition": repetition,
        "degeneration": degeneration,
        "reflection": reflection,
        "soft_overlong": soft_overlong,
        "target_length": target_length,
        "perplexity": perplexity,
        "reward_model": reward_model,
        "process_reward_model": process_reward_model,
        "code_tests": code_tests,
        "code_stdin": code_stdin,
        "llm_judge": llm_judge,
    }
)
"""Name in a recipe -> builder: add a function and a line here."""


def _folded(text: str, ignore_case: bool) -> str:
    return text.strip().casefold() if ignore_case else text.strip()
