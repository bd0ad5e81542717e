"""reasoning_gym's own scorers as a reward."""

import importlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from outscore.rewards.answers import AnswerForm, extract_answer, parse_number
from outscore.rewards.contract import completion_text


def gym_rewards(
    completions: Sequence[Any],
    question: Sequence[Any],
    answer: Sequence[str | None],
    form: AnswerForm,
    reasoning_gym: Sequence[Mapping[str, Any] | None] | None = None,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    **_: Any,
) -> list[float | None]:
    """Score completions by the data sets their problems come from; None where a problem comes from none."""
    nothing: list[None] = [None] * len(completions)
    rewards: list[float | None] = []
    for completion, asked, gold, origin, facts in zip(
        completions, question, answer, reasoning_gym or nothing, metadata or nothing, strict=True
    ):
        if origin is None:
            rewards.append(None)
            continue
        found = gym_answer(completion_text(completion), gold, form)
        entry = {"question": asked, "answer": gold, "metadata": dict(facts or {})}
        rewards.append(float(_scorer(json.dumps(origin, sort_keys=True)).score_answer(found, entry)))
    return rewards


def gym_answer(text: str, gold: str | None, form: AnswerForm) -> str | None:
    """The answer to score: a last number only where a number is asked for, since other answers hold numbers as well."""
    if form != "auto" or parse_number(gold) is not None:
        return extract_answer(text, form)
    for place in ("tag", "boxed", "text"):
        found = extract_answer(text, place)
        if found is not None:
            return found
    return None


@lru_cache(maxsize=64)
def _scorer(origin: str) -> Any:
    """A data set as the problems were made with: some score by their options."""
    described = json.loads(origin)
    try:
        factory = importlib.import_module("reasoning_gym.factory")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "reasoning_gym":
            raise
        raise ImportError("the reward 'gym' needs reasoning_gym: pip install 'outscore[gym]'") from error
    return factory.create_dataset(described["dataset"], seed=0, size=1, **described["options"])
