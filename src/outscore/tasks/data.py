"""One's own data: a JSONL, JSON, CSV or Parquet file, or a Hugging Face data set, with its columns mapped."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outscore.records import Demonstration, LabelledSolution, Message, Problem, Ranking, Rating
from outscore.tasks.base import question_text
from outscore.tasks.columns import FEEDBACK_ROLES, ColumnMap, resolve
from outscore.tasks.rankings import implicit_prompt, labelled_of, pair_of, ranking_of, rating_of, reply
from outscore.tasks.readers import Row, check_exists, read_file, read_hub


class DataTask:
    """Problems from a file (`path`) or a Hugging Face data set (`hub`: an id, or a directory).

    Held-out problems come from `eval_path` or `eval_split`, or are the rows whose id hashes into the lowest
    `eval_fraction` of all hashes: a row's side does not depend on the other rows. With `eval_fraction` 1, or
    `eval_path` alone, all are held out: a task to evaluate on. A training row with the question of a held-out one is
    left out. Without `question` or `messages` the column `question` is used, or else `messages`, or
    `prompt`, whose demonstration is then the column `response` or `completion`; without `answer` the column `answer` if
    there is one. Preferences (`chosen` and `rejected`, or `completions` and `ranking`), labels of steps (`completions`
    and `labels`) and ratings (`expected_reward`) are read where there are such columns. Every other column reaches the
    rewards by its own name. ValueError for whatever is wrong with the data, naming file, line and the columns present;
    ImportError for `hub` without the package `datasets`.

    >>> DataTask(path="problems.jsonl", question="prompt", answer="solution", eval_fraction=0.1)
    """

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        hub: str | None = None,
        rows: Iterable[Mapping[str, Any]] | None = None,
        subset: str | None = None,
        split: str = "train",
        eval_path: str | Path | None = None,
        eval_split: str | None = None,
        eval_fraction: float = 0.1,
        question: str | None = None,
        messages: str | None = None,
        answer: str | None = None,
        answer_after: str | None = None,
        demonstration: str | None = None,
        id: str | None = None,
        population: str | None = None,
        chosen: str | None = None,
        rejected: str | None = None,
        completions: str | None = None,
        ranking: str | None = None,
        labels: str | None = None,
        rating: str | None = None,
        num_train: int | None = None,
        num_eval: int | None = None,
        name: str | None = None,
    ) -> None:
        if rows is None and path is None and hub is None:  # eval_path alone
            path, eval_path, eval_fraction = eval_path, None, 1.0
        _check_sources(rows, path, hub, eval_path, eval_split, eval_fraction, num_train, num_eval)
        if question is not None and messages is not None:
            raise ValueError(f"task data: question={question!r} and messages={messages!r} exclude each other")
        self.name = name or (Path(str(path or hub)).stem if rows is None else "rows")
        asked = ColumnMap(
            question=question,
            messages=messages,
            answer=answer,
            answer_after=answer_after,
            demonstration=demonstration,
            id=id,
            population=population,
            chosen=chosen,
            rejected=rejected,
            completions=completions,
            ranking=ranking,
            labels=labels,
            rating=rating,
        )
        read = _read(path, hub, subset, split) if rows is None else _given(rows)
        train = _entries(read, asked, self.name)
        if eval_path is not None or eval_split is not None:
            held_out = _entries(_read(eval_path, hub, subset, eval_split or split), asked, f"{self.name}/eval")
        else:
            train, held_out = _hold_out(train, eval_fraction)
        held_out = held_out[:num_eval]
        kept = _apart(train, held_out, self.name) if train or eval_fraction < 1 else []
        self.num_left_out = len(train) - len(kept)
        """Training rows left out because their question is held out."""
        self._train, self._eval = kept[:num_train], held_out

    def train_problems(self) -> Sequence[Problem]:
        """Problems to train on, in the order of the file."""
        return [each.problem for each in self._train]

    def eval_problems(self) -> Sequence[Problem]:
        """Held-out problems; empty with eval_fraction 0."""
        return [each.problem for each in self._eval]

    def demonstrations(self) -> Sequence[Demonstration]:
        """The training rows that have a response to imitate."""
        return [
            Demonstration(problem=each.problem, response=each.response)
            for each in self._train
            if each.response is not None
        ]

    def train_rankings(self) -> Sequence[Ranking]:
        """Pairs and rankings to train on."""
        return [each.feedback for each in self._train if isinstance(each.feedback, Ranking)]

    def eval_rankings(self) -> Sequence[Ranking]:
        """Pairs and rankings of held-out problems."""
        return [each.feedback for each in self._eval if isinstance(each.feedback, Ranking)]

    def train_ratings(self) -> Sequence[Rating]:
        """Rated responses to train on."""
        return [each.feedback for each in self._train if isinstance(each.feedback, Rating)]

    def eval_ratings(self) -> Sequence[Rating]:
        """Rated responses to held-out problems."""
        return [each.feedback for each in self._eval if isinstance(each.feedback, Rating)]

    def labelled_solutions(self) -> Sequence[LabelledSolution]:
        """The training rows whose steps are labelled."""
        return [each.feedback for each in self._train if isinstance(each.feedback, LabelledSolution)]

    def eval_labelled_solutions(self) -> Sequence[LabelledSolution]:
        """Those of held-out problems."""
        return [each.feedback for each in self._eval if isinstance(each.feedback, LabelledSolution)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row that has been understood.

    >>> Entry(problem=problem, response=None, feedback=None, hold_out_key="3f2a")
    """

    problem: Problem
    """Question, answer and columns."""
    response: str | None
    """The demonstration, if the row has one."""
    feedback: Ranking | Rating | LabelledSolution | None
    """What was said about completions, if the row says anything."""
    hold_out_key: str
    """What is hashed to decide whether the row is held out, wherever the row lies: its id or, where none are given, a
    digest of its question, which rows with the same question share."""


def _check_sources(
    rows: Iterable[Mapping[str, Any]] | None,
    path: str | Path | None,
    hub: str | None,
    eval_path: str | Path | None,
    eval_split: str | None,
    eval_fraction: float,
    num_train: int | None,
    num_eval: int | None,
) -> None:
    if rows is None and (path is None) == (hub is None):
        raise ValueError(
            f"task data: give either path (a file) or hub (a Hugging Face data set), or eval_path alone to evaluate; "
            f"path={path!r}, hub={hub!r}"
        )
    if eval_path is not None and eval_split is not None:
        raise ValueError(f"task data: eval_path={str(eval_path)!r} and eval_split={eval_split!r} exclude each other")
    if eval_split is not None and hub is None:
        raise ValueError(f"task data: eval_split={eval_split!r} is for hub; a file has no splits, use eval_path")
    if not 0 <= eval_fraction <= 1:
        raise ValueError(f"task data: eval_fraction={eval_fraction!r} must be from 0 to 1, which holds out all rows")
    for key, count in (("num_train", num_train), ("num_eval", num_eval)):
        if count is not None and count < 1:
            raise ValueError(f"task data: {key}={count!r} must be at least 1")


def _read(path: str | Path | None, hub: str | None, subset: str | None, split: str) -> list[Row]:
    if path is None:
        assert hub is not None
        return read_hub(hub, subset=subset, split=split)
    check_exists(Path(path))
    return read_hub(str(path), subset=subset, split=split) if Path(path).is_dir() else read_file(Path(path))


def _given(rows: Any) -> list[Row]:
    """Rows that a script hands over, a Hugging Face data set among them; ValueError for what cannot be iterated into
    mappings."""
    wanted = 'one mapping a problem, such as {"question": "1+1=", "answer": "2"}'
    try:
        # A mapping is iterated by its keys: a DatasetDict holds splits, not rows.
        found = None if isinstance(rows, Mapping | str | bytes) else list(rows)
    except TypeError:
        found = None
    if found is None:
        raise ValueError(
            f"task data: rows must be a task or {wanted}; got {type(rows).__name__} (of several splits, give one)"
        )
    if not found:
        raise ValueError("task data: rows is empty")
    for index, row in enumerate(found):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"task data: rows must be {wanted}; rows[{index}] is {type(row).__name__} {str(row)[:40]!r} "
                "(of a pandas table, give table.to_dict('records'))"
            )
    return [Row(values=dict(row), where=f"rows[{index}]") for index, row in enumerate(found)]


def _entries(rows: Sequence[Row], asked: ColumnMap, name: str) -> list[Entry]:
    mapping = resolve(rows, asked)
    empty = {column: None for row in rows for column in row.values}  # a row of JSON may leave columns out
    entries: list[Entry] = []
    places: dict[str, str] = {}
    for row in rows:
        entry = _entry(Row(values={**empty, **row.values}, where=row.where), mapping, name, places)
        places[entry.problem.id] = row.where
        entries.append(entry)
    return entries


def _entry(row: Row, mapping: ColumnMap, name: str, places: Mapping[str, str]) -> Entry:
    for role in ("question", "messages", "id"):
        column = getattr(mapping, role)
        if column is not None and row.values.get(column) is None:
            has = ", ".join(repr(own) for own, value in row.values.items() if value is not None)
            raise ValueError(f"{row.where}: the row has no {column!r} (for {role}); it has: {has}")
    pair: tuple[str, str] | None = None
    if mapping.has_implicit_prompt:
        assert mapping.chosen is not None and mapping.rejected is not None
        value, *sides = implicit_prompt(row, mapping.chosen, mapping.rejected)
        question: str | tuple[Message, ...] = value if isinstance(value, str) else _messages(row.where, "chosen", value)
        response, pair = None, (sides[0], sides[1])
    else:
        question, response = _question(row, mapping)
    text = question_text(Problem(id="", question=question, answer=None, columns={}))
    own = str(row.values[mapping.id]) if mapping.id else _digest(text)[:12]
    key = f"{name}/{own}"
    if mapping.id and key in places:
        raise ValueError(f"{row.where}: the id {row.values[mapping.id]!r} is already that of {places[key]}")
    population = row.values.get(mapping.population) if mapping.population else None
    hidden = {"question", "answer", *(getattr(mapping, role) for role in FEEDBACK_ROLES[:-1])}
    problem = Problem(
        id=key if mapping.id else _unused(key, places),
        question=question,
        answer=_answer(row, mapping),
        columns={column: value for column, value in row.values.items() if column not in hidden},
        population=None if population is None else str(population),
    )
    feedback = _feedback(row, mapping, problem, pair)
    rated = isinstance(feedback, Rating)
    return Entry(problem=problem, response=None if rated else response, feedback=feedback, hold_out_key=own)


def _feedback(
    row: Row, mapping: ColumnMap, problem: Problem, pair: tuple[str, str] | None
) -> Ranking | Rating | LabelledSolution | None:
    """What a row says about completions; None where it says nothing."""
    if mapping.rating and mapping.demonstration and row.values.get(mapping.rating) is not None:
        return rating_of(row, problem, mapping.demonstration, mapping.rating)
    if mapping.completions and mapping.ranking and row.values.get(mapping.ranking) is not None:
        return ranking_of(row, problem, mapping.completions, mapping.ranking)
    if mapping.completions and mapping.labels and row.values.get(mapping.labels) is not None:
        return labelled_of(row, problem, mapping.completions, mapping.labels)
    if mapping.chosen and mapping.rejected:
        chosen, rejected = pair or (reply(row, mapping.chosen)[1], reply(row, mapping.rejected)[1])
        return pair_of(row, problem, chosen, rejected)
    return None


def _question(row: Row, mapping: ColumnMap) -> tuple[str | tuple[Message, ...], str | None]:
    """The question, and the demonstration if there is one."""
    column = mapping.messages or mapping.question
    assert column is not None
    value = row.values[column]
    response = row.values.get(mapping.demonstration) if mapping.demonstration else None
    if isinstance(response, list) and mapping.demonstration:
        _, response = reply(row, mapping.demonstration)
    if response is not None and not isinstance(response, str):
        raise ValueError(f"{row.where}: {mapping.demonstration!r} must be text, not {type(response).__name__}")
    if isinstance(value, str) and mapping.messages is None:
        return value, response
    messages = _messages(row.where, column, value)
    if mapping.messages is not None and mapping.demonstration is None and messages[-1]["role"] == "assistant":
        if len(messages) == 1:
            raise ValueError(f"{row.where}: {column!r} has an assistant message and nothing before it")
        return messages[:-1], messages[-1]["content"]
    return messages, response


def _messages(where: str, column: str, value: Any) -> tuple[Message, ...]:
    messages = value if isinstance(value, list) else []
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(
                f'{where}: {column!r} must be messages such as {{"role": "user", "content": "..."}}, not {message!r}'
            )
    if not messages:
        raise ValueError(f"{where}: {column!r} must be text or a list of messages, not {value!r}")
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _answer(row: Row, mapping: ColumnMap) -> str | None:
    value = row.values.get(mapping.answer) if mapping.answer else None
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{row.where}: {mapping.answer!r} must be text or a number, not {type(value).__name__}")
    text = str(value)
    if mapping.answer_after is not None:
        if mapping.answer_after not in text:
            raise ValueError(f"{row.where}: {mapping.answer!r} has no {mapping.answer_after!r} in it: {text[-80:]!r}")
        text = text.rpartition(mapping.answer_after)[2].strip()
    return text


def _hold_out(entries: Sequence[Entry], fraction: float) -> tuple[list[Entry], list[Entry]]:
    """Split by hash. At least one row is held out if any is wanted, the one that hashes lowest."""
    shares = [int(_digest(each.hold_out_key)[:16], 16) / 16**16 for each in entries]
    bar = max(fraction, min(shares) + 16**-13) if fraction > 0 else 0.0
    return _where(entries, (share >= bar for share in shares)), _where(entries, (share < bar for share in shares))


def _apart(train: Sequence[Entry], held_out: Sequence[Entry], name: str) -> list[Entry]:
    """The training rows whose question is not held out; ValueError where there is none."""
    questions = {question_text(each.problem) for each in held_out}
    kept = [each for each in train if question_text(each.problem) not in questions]
    if not kept:
        raise ValueError(
            f"task data: no training row of {name!r} is left that is not held out for evaluation "
            "(to evaluate only, give eval_path alone)"
        )
    return kept


def _where(entries: Sequence[Entry], chosen: Iterable[bool]) -> list[Entry]:
    return [entry for entry, keep in zip(entries, chosen, strict=True) if keep]


def _unused(key: str, places: Mapping[str, str]) -> str:
    """The key, or the key with the first number that makes it unique: repeats of a question are `key-2`, `key-3`."""
    number, unused = 1, key
    while unused in places:
        number += 1
        unused = f"{key}-{number}"
    return unused


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
