"""`outscore score`: a file of completions scored as a step would score them."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

from outscore.inputs import nearest, read_yaml
from outscore.records import Completion, Problem, Prompt, SampledCompletion, SampledGroup, Score, ScoringFailure
from outscore.rewards import Rewards
from outscore.tasks.base import question_text
from outscore.tasks.readers import Row, read_file

QUESTIONS = ("question", "prompt", "messages")
COMPLETIONS = ("completion", "response", "text")
TOKENS = ("completion_ids", "token_ids")
"""Columns in which a file may have these, the first that is there counts."""

TOTAL = "total"
"""What the weighted sum is called beside the rewards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredRow:
    """One completion of the file.

    >>> ScoredRow(where="data.jsonl:1", total=1.0, parts={"last_number": 1.0}, failure=None)
    """

    where: str
    """File and line."""
    total: float | None
    """The weighted sum; None where scoring failed."""
    parts: Mapping[str, float | None]
    """Each reward by name; None where it does not apply, and for all where scoring failed."""
    failure: str | None
    """Which reward failed and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How the values of one reward are spread.

    >>> Spread(name="last_number", values=(1.0, 0.0), num_without=1)
    """

    name: str
    """The reward, or `total`."""
    values: tuple[float, ...]
    """Its values, in the order of the file."""
    num_without: int
    """Completions that it does not apply to, or whose scoring failed."""

    def summary(self) -> dict[str, float | int | None]:
        """count, without, mean, std (population), min, median, max; None where there is no value."""
        values = self.values
        measures = {"mean": fmean, "std": pstdev, "min": min, "median": median, "max": max}
        counts: dict[str, float | int | None] = {"count": len(values), "without": self.num_without}
        return counts | {name: float(of(values)) if values else None for name, of in measures.items()}  # type: ignore[operator]  # each takes numbers

    def histogram(self, num_bins: int) -> list[tuple[float, float, int]]:
        """(from, to, count) of bins of equal width, the last with its upper end; one bin for each value where there
        are no more different values than bins."""
        different = sorted(set(self.values))
        if len(different) <= num_bins:
            return [(value, value, self.values.count(value)) for value in different]
        low, high = different[0], different[-1]
        width = (high - low) / num_bins
        counts = [0] * num_bins
        for value in self.values:
            counts[min(int((value - low) / width), num_bins - 1)] += 1
        return [(low + n * width, low + (n + 1) * width, count) for n, count in enumerate(counts)]


def score_file(path: Path, rewards: Sequence[str]) -> tuple[list[ScoredRow], dict[str, tuple[float, float]]]:
    """Score the completions of a JSONL, JSON, CSV or Parquet file, a run's `groups/step-N.parquet` among them.

    Rows with the same `problem_id` or `id`, and the same answer, are a group, and so are, without these, rows that
    differ in nothing but their completion; of the other columns those reach the rewards that are the same throughout
    their group. A completion whose scoring fails is a row with a
    failure.

    Args:
        path: the file; columns as in `QUESTIONS`, `COMPLETIONS`, `TOKENS`; `answer` is the gold answer.
        rewards: each a name, file.py:function, or an entry as in a recipe, written as YAML: `{name: …, weight: …}`.

    Returns:
        the rows in the order of the file, and what the rewards logged.

    Raises:
        ValueError: for what is wrong with the file or the rewards, naming it.
    """
    made = Rewards([_spec(each) for each in rewards], on_failure="exclude", scoring={})
    rows = read_file(path)
    question, completion = _column(rows[0], QUESTIONS, path, needed=False), _column(rows[0], COMPLETIONS, path)
    tokens = _column(rows[0], TOKENS, path, needed=False)
    assert completion is not None
    _check_tokens(made, tokens, path)
    grouped: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        problem = row.values.get("problem_id", row.values.get("id"))
        own = {key: value for key, value in row.values.items() if key not in (completion, tokens)}
        key = repr(own) if problem is None else f"{problem}\n{row.values.get('answer')}"
        grouped.setdefault(key, []).append(place)
    groups = [
        _group(f"row {places[0] + 1}", [rows[place] for place in places], question, completion, tokens)
        for places in grouped.values()
    ]
    result = made.score(groups, step=0)
    scored: list[ScoredRow | None] = [None] * len(rows)
    for places, group in zip(grouped.values(), result.groups, strict=True):
        for place, score in zip(places, group.scores, strict=True):
            scored[place] = _scored(rows[place].where, score, made.names)
    return [each for each in scored if each is not None], dict(result.logged)


def spreads(rows: Sequence[ScoredRow], names: Sequence[str]) -> list[Spread]:
    """The spread of each reward and, where there are several, of the total."""
    columns = {name: [row.parts[name] for row in rows] for name in names}
    if len(names) > 1:
        columns[TOTAL] = [row.total for row in rows]
    return [
        Spread(name=name, values=tuple(v for v in column if v is not None), num_without=column.count(None))
        for name, column in columns.items()
    ]


def _spec(text: str) -> str | Mapping[str, Any]:
    """An entry in YAML's braces, else a name or place."""
    if not text.lstrip().startswith("{"):
        return text
    read = read_yaml(text, where=f"--reward {text!r}")
    if not isinstance(read, Mapping):
        raise ValueError(f"--reward {text!r} must be a name, or an entry such as {{name: last_number, weight: 2}}")
    return read


def _column(row: Row, wanted: Sequence[str], path: Path, *, needed: bool = True) -> str | None:
    found = next((name for name in wanted if name in row.values), None)
    if found is None and needed:
        hint = nearest(wanted[0], list(row.values))
        raise ValueError(f"{path}: needs one of the columns {', '.join(wanted)}{hint}")
    return found


def _check_tokens(rewards: Rewards, tokens: str | None, path: Path) -> None:
    """A reward that asks for tokens gets them or is refused: without them every length would be 0."""
    for reward in rewards.rewards:
        if tokens is None and "completion_ids" in inspect.signature(reward.function).parameters:
            raise ValueError(f"{path}: reward {reward.name!r} asks for the tokens; give a column {' or '.join(TOKENS)}")


def _group(name: str, rows: Sequence[Row], question: str | None, completion: str, tokens: str | None) -> SampledGroup:
    first = rows[0].values
    asked = first.get(question) if question else ""
    shown = tuple(asked) if isinstance(asked, list) else str(asked or "")
    gold = first.get("answer")
    columns = {
        key: value
        for key, value in first.items()
        if key not in (question, completion, tokens, "answer") and all(row.values.get(key) == value for row in rows)
    }
    problem = Problem(id=name, question=shown, answer=None if gold is None else str(gold), columns=columns)
    drawn = tuple(_sampled(row, completion, tokens) for row in rows)
    prompt = Prompt(problem=problem, text=question_text(problem), token_ids=(0,))
    return SampledGroup(prompt=prompt, completions=drawn, slot=0, attempt=0)


def _sampled(row: Row, completion: str, tokens: str | None) -> SampledCompletion:
    text = row.values.get(completion)
    if isinstance(text, list) and text and isinstance(text[-1], Mapping):
        text = text[-1].get("content")
    if not isinstance(text, str):
        raise ValueError(f"{row.where}: {completion} = {text!r} must be text, or messages")
    ids = tuple(row.values.get(tokens) or ()) if tokens else ()
    return SampledCompletion(
        completion=Completion(token_ids=ids, text=text, counts=(True,) * len(ids)),
        sampler_logprobs=(0.0,) * len(ids),
        finish="stop",
        policy_version=0,
    )


def _scored(where: str, score: Score | ScoringFailure, names: Sequence[str]) -> ScoredRow:
    if isinstance(score, ScoringFailure):
        reason = f"{score.reward_name}: {score.reason}"
        return ScoredRow(where=where, total=None, parts=dict.fromkeys(names), failure=reason)
    assert math.isfinite(score.reward)
    return ScoredRow(where=where, total=score.reward, parts=score.parts, failure=None)
