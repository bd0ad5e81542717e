"""One row per completion: the table behind `groups/`, as records and as Parquet."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from outscore.records import Completion, GivenGroup, Prompt, RankedGroup, Score, ScoredGroup, ScoringFailure

PART_PREFIX = "reward/"
EXTRA_PREFIX = "extra/"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRow:
    """Everything known of one completion of one step, which was sampled or, as a demonstration, given."""

    stage: str
    """Name of the stage."""
    step: int
    """Step of the stage, 1 for the first."""
    slot: int
    """The group's place in its step."""
    attempt: int
    """0 for the first draw of the slot, 1 and up for refills."""
    sample: int
    """The completion's place in its group."""
    problem_id: str
    """Which problem of the task."""
    population: str | None
    """The problem's population, if it has one."""
    question: str
    """The question as the task states it; chat messages as JSON."""
    prompt: str
    """The text the model read, template included."""
    answer: str | None
    """The gold answer."""
    response: str
    """The text of the completion."""
    extracted: str | None
    """The answer found in the response, where the task extracts one."""
    correct: bool | None
    """Whether the answer is right, where that is known."""
    reward: float | None
    """The total reward; None when scoring failed, or nothing was to be scored."""
    failure: str | None
    """Which reward failed and why; with a reward beside it, the recipe put a constant in its place."""
    advantage: float | None
    """What training used; None when the completion was left out of it, or was given."""
    finish: str | None
    """`stop` or `length`; None where the completion was given."""
    policy_version: int | None
    """Optimizer steps the sampled policy had taken; None where the completion was given."""
    prompt_token_ids: tuple[int, ...]
    """Tokens of the prompt."""
    token_ids: tuple[int, ...]
    """Tokens of the completion, the stop token included."""
    counts: tuple[bool, ...]
    """For each token, whether it carries loss."""
    sampler_logprobs: tuple[float, ...] | None
    """For each token, its log-prob under the distribution sampled from; kept in float32. None where the completion was
    given."""
    coefficients: tuple[float, ...] | None = None
    """For each token, the coefficient on the gradient of its log-prob that was applied in the step's first pass over
    it; kept in float32. None when the completion was left out of training."""
    step_ends: tuple[int, ...] | None = None
    """The last token of each step, where a reward scored steps."""
    step_rewards: tuple[float, ...] | None = None
    """What each step earned; together they are the reward."""
    rank: int | None = None
    """Where completions were given in the order they were liked: 0 for the best; equal ranks are a tie."""
    parts: Mapping[str, float | None] = field(default_factory=dict)
    """Each reward by name, before weighting."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Columns that rewards logged."""

    @property
    def was_given(self) -> bool:
        """Whether nobody sampled it: a demonstration, a piece of text, one of a ranking."""
        return self.policy_version is None


def completion_rows(
    *,
    stage: str,
    step: int,
    groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float | None]],
    extracted: Sequence[str | None] | None = None,
    correct: Sequence[bool | None] | None = None,
    extra_columns: Mapping[str, Sequence[Any]] | None = None,
    coefficients: Sequence[Sequence[float] | None] | None = None,
) -> list[CompletionRow]:
    """The rows of a step's groups, in the order given.

    `advantages` has one sequence per group; `extracted`, `correct`, `coefficients` and each extra column have one entry
    per completion, flat over all groups in order.
    """
    total = sum(len(group.scores) for group in groups)
    assert len(advantages) == len(groups)
    flat = [advantage for group in advantages for advantage in group]
    found = list(extracted) if extracted is not None else [None] * total
    right = list(correct) if correct is not None else [None] * total
    pulls = [None if own is None else tuple(own) for own in coefficients or [None] * total]
    extras = dict(extra_columns or {})
    for column in (flat, found, right, pulls, *extras.values()):
        assert len(column) == total, f"{len(column)} values for {total} completions"
    rows: list[CompletionRow] = []
    for group in groups:
        for sample in range(len(group.scores)):
            i = len(rows)
            known: dict[str, Any] = {"advantage": flat[i], "extracted": found[i], "correct": right[i]}
            known["coefficients"] = pulls[i]
            extra = {name: values[i] for name, values in extras.items()}
            rows.append(CompletionRow(stage=stage, step=step, extra=extra, **known, **_sampled(group, sample)))
    return rows


def given_rows(
    *,
    stage: str,
    step: int,
    groups: Sequence[GivenGroup],
    coefficients: Sequence[Sequence[float] | None],
) -> list[CompletionRow]:
    """The rows of a step's groups whose completions were given, in the order given: what sampling and scoring would say
    of them is None. `coefficients` has one entry per completion, flat over all groups in order."""
    rows: list[CompletionRow] = []
    unknown: dict[str, Any] = dict.fromkeys(
        ("extracted", "correct", "reward", "failure", "advantage", "finish", "policy_version", "sampler_logprobs")
    )
    for slot, group in enumerate(groups):
        completions, ranks = _members(group)
        for sample, (completion, rank) in enumerate(zip(completions, ranks, strict=True)):
            own = coefficients[len(rows)]
            known: dict[str, Any] = {
                **{"slot": slot, "attempt": 0, "sample": sample, "rank": rank},
                **_texts(group.prompt, completion),
                "coefficients": None if own is None else tuple(own),
            }
            rows.append(CompletionRow(stage=stage, step=step, **known, **unknown))
    assert len(rows) == len(coefficients), f"{len(coefficients)} values for {len(rows)} completions"
    return rows


def _members(group: GivenGroup) -> tuple[Sequence[Completion], Sequence[int | None]]:
    """The completions of a group, and the rank of each where they have one."""
    if isinstance(group, RankedGroup):
        return group.completions, group.ranks
    return (group.completion,), (None,)


def _sampled(group: ScoredGroup, sample: int) -> dict[str, Any]:
    drawn, score = group.sampled.completions[sample], group.scores[sample]
    scored: dict[str, Any] = (
        {"reward": None, "failure": f"{score.reward_name}: {score.reason}", "parts": {}}
        if isinstance(score, ScoringFailure)
        else {"reward": score.reward, "failure": _replaced(score), "parts": dict(score.parts)}
    )
    if isinstance(score, Score) and score.steps:
        scored["step_ends"] = tuple(each.end for each in score.steps)
        scored["step_rewards"] = tuple(each.reward for each in score.steps)
    return {
        "slot": group.sampled.slot,
        "attempt": group.sampled.attempt,
        "sample": sample,
        "finish": drawn.finish,
        "policy_version": drawn.policy_version,
        "sampler_logprobs": drawn.sampler_logprobs,
        **_texts(group.sampled.prompt, drawn.completion),
        **scored,
    }


def _texts(prompt: Prompt, completion: Completion) -> dict[str, Any]:
    """What was asked and what was answered."""
    problem, question = prompt.problem, prompt.problem.question
    return {
        "problem_id": problem.id,
        "population": problem.population,
        "question": question if isinstance(question, str) else json.dumps([dict(m) for m in question]),
        "prompt": prompt.text,
        "answer": problem.answer,
        "response": completion.text,
        "prompt_token_ids": prompt.token_ids,
        "token_ids": completion.token_ids,
        "counts": completion.counts,
    }


def _replaced(score: Score) -> str | None:
    return "; ".join(f"{name}: {reason}" for name, reason in score.failures.items()) or None


_FIXED = pa.schema(
    [
        ("stage", pa.string()),
        ("step", pa.int32()),
        ("slot", pa.int32()),
        ("attempt", pa.int32()),
        ("sample", pa.int32()),
        ("problem_id", pa.string()),
        ("population", pa.string()),
        ("question", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("response", pa.string()),
        ("extracted", pa.string()),
        ("correct", pa.bool_()),
        ("reward", pa.float64()),
        ("failure", pa.string()),
        ("advantage", pa.float64()),
        ("finish", pa.string()),
        ("policy_version", pa.int64()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("counts", pa.list_(pa.bool_())),
        ("sampler_logprobs", pa.list_(pa.float32())),
        ("coefficients", pa.list_(pa.float32())),
        ("step_ends", pa.list_(pa.int32())),
        ("step_rewards", pa.list_(pa.float64())),
        ("rank", pa.int32()),
    ]
)


def to_parquet(rows: Sequence[CompletionRow]) -> bytes:
    """The rows as a Parquet file: the same rows give the same bytes with the same version of pyarrow."""
    schema, columns = _FIXED, {name: [getattr(row, name) for row in rows] for name in _FIXED.names}
    for name in sorted({name for row in rows for name in row.parts}):
        schema = schema.append(pa.field(PART_PREFIX + name, pa.float64()))
        columns[PART_PREFIX + name] = [row.parts.get(name) for row in rows]
    for name in sorted({name for row in rows for name in row.extra}):
        values = [row.extra.get(name) for row in rows]
        kind = _kind_of(values)
        schema = schema.append(pa.field(EXTRA_PREFIX + name, kind))
        columns[EXTRA_PREFIX + name] = [_cast(value, kind) for value in values]
    columns = {name: [_encodable(value) for value in values] for name, values in columns.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), buffer, compression="zstd", store_schema=False)
    return buffer.getvalue()


def read_parquet(path: Path, *, problem_id: str | None = None) -> list[CompletionRow]:
    """The rows of a group file, or those of one problem."""
    filters = None if problem_id is None else [("problem_id", "==", problem_id)]
    return [_row(values) for values in pq.read_table(path, filters=filters, partitioning=None).to_pylist()]


def read_rewards(path: Path) -> list[tuple[int, int, float | None]]:
    """(slot, attempt, reward) of each completion of a group file, without reading the rest."""
    table = pq.read_table(path, columns=["slot", "attempt", "reward"], partitioning=None)
    return [(row["slot"], row["attempt"], row["reward"]) for row in table.to_pylist()]


def _row(values: Mapping[str, Any]) -> CompletionRow:
    fixed: dict[str, Any] = {
        name: tuple(value) if isinstance(value := values[name], list) else value
        for name in _FIXED.names
        if name in values  # a file of an earlier version lacks the newer columns, which then keep their defaults
    }
    return CompletionRow(**fixed, parts=_named(values, PART_PREFIX), extra=_named(values, EXTRA_PREFIX))


def _named(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _kind_of(values: Sequence[Any]) -> Any:
    # A column nobody has filled yet is text, as is everything that is neither a truth value nor a number.
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, bool) for value in known):
        return pa.bool_()
    if known and all(isinstance(value, int | float) for value in known):
        return pa.float64()
    return pa.string()


def _cast(value: Any, kind: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if pa.types.is_string(kind):
        return json.dumps(value, default=str, ensure_ascii=False)
    return float(value) if pa.types.is_floating(kind) else value


def _encodable(value: Any) -> Any:
    # A lone surrogate, which a reward may log, has no UTF-8; it is kept as its escape.
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
