"""math-verify as a reward. Its own time limits use a signal that only a main thread may set, and some inputs hang with
them anyhow: here they are off, and the reward runs in a worker process, which is ended when a completion takes too long
(`outscore.rewards.pool`)."""

import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

from outscore.rewards.answers import tag_content
from outscore.rewards.contract import completion_text


def require_math_verify() -> None:
    """ImportError naming the extra if math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError("the reward 'math_verify' needs math-verify: pip install 'outscore[math]'")


def import_math_verify() -> None:
    """Import it, which takes seconds, where calls are made."""
    import math_verify

    assert math_verify
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # one warning a call that time limits are off


def math_rewards(completions: Sequence[Any], answer: Sequence[str | None], **_: Any) -> list[float | None]:
    """1 or 0 for each completion, None where the gold answer is missing or cannot be parsed."""
    pairs = zip(completions, answer, strict=True)
    return [None if gold is None else verified(gold, answer_part(completion_text(each))) for each, gold in pairs]


def answer_part(text: str) -> str:
    """What math-verify is to look at: what is inside the last <answer> tag, since it takes the tag for mathematics."""
    inside = tag_content(text)
    return text if inside is None else inside


def verified(gold: str, text: str) -> float | None:
    """1 if the texts are equal as mathematics, else 0; None where the gold answer is no mathematics."""
    import math_verify  # only the worker process needs it

    expected = _parsed(gold) or _parsed(f"${gold}$")
    if not expected:
        return None
    # What it cannot do (out of memory, too deep) is a failure, and no wrong answer.
    return float(math_verify.verify(expected, _parsed(text), timeout_seconds=None, raise_on_error=True))


def _parsed(text: str) -> list[Any]:
    """The first mathematical value in a text, the last \\boxed{} before others; empty if there is none."""
    import math_verify

    found: list[Any] = math_verify.parse(
        text, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None
    )
    return found
