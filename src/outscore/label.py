"""Asking a person: completions of a model, shown blind and shuffled, and what is said of them kept as data.

Two of InstructGPT's steps (arXiv 2203.02155) need people: responses to imitate, and rankings of several responses to
one prompt. The files written here are read by the task `data` as they are.
"""

import json
import os
import random
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from outscore.records import Problem, SampleRequest, SamplingParams
from outscore.rollout import make_sampler
from outscore.tasks import make_task
from outscore.tasks.base import question_text
from outscore.tasks.rankings import parse_ranking
from outscore.train.build import EVALUATION_ROWS
from outscore.train.inspect import check_named, target_recipe
from outscore.train.materials import render_prompt
from outscore.train.setup import load_policy

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
AHEAD = 8
"""Questions sampled together; a person reads one while the next are there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A question with completions to judge, in an order that says nothing of where they come from.

    >>> Sheet(problem=problem, completions={"A": "4", "B": "5"}, model="1e7c8a1c726e")
    """

    problem: Problem
    """What was asked."""
    completions: Mapping[str, str]
    """Label -> text. Samples that say the same are shown once."""
    model: str
    """The beginning of the SHA-256 of the weights they were sampled from."""


class LabelFile:
    """A JSONL file that grows by a line for each question answered; a question that stands there is not asked again.

    A line cut off by a crash is removed when the file is opened. ValueError, naming the line, where the file holds
    anything else than labels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        if not path.exists():
            return
        lines = path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                self.done.add(str(json.loads(line)["id"]))
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) and not line.endswith(b"\n"):
                    os.truncate(path, sum(map(len, lines[:-1])))
                    break
                raise ValueError(f"{path}:{number} is no label, so nothing is added to this file: {error!r}") from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a label; it is on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done.add(str(row["id"]))


def sheets(
    target: str,
    *,
    num_samples: int,
    params: SamplingParams,
    seed: int,
    done: set[str],
    recipe: str | None = None,
    task: str | None = None,
    overrides: Sequence[str] = (),
) -> Iterator[Sheet]:
    """Sheets for the training problems that are not done, in the task's order, sampled as they are asked for.

    The samples and their order depend on the seed and the problem alone. With two samples or more, questions whose
    samples all say the same are left out: there is nothing to rank.

    Raises:
        ValueError: if it is not said which task to ask about, or the model or task cannot work.
    """
    settings = target_recipe(target, recipe=recipe, task=task, overrides=overrides)
    check_named(target, settings, ("task",))
    problems = make_task(**settings.task).train_problems()
    policy, facts = load_policy(settings.model.model_copy(update={"precision": "fp32"}), None, 0)
    model = str(facts["weights_sha256"])[:12]
    sampler = make_sampler(policy, EVALUATION_ROWS)
    places = [place for place, problem in enumerate(problems) if problem.id not in done]
    for first in range(0, len(places), AHEAD):
        chosen = places[first : first + AHEAD]
        requests = [
            SampleRequest(
                prompt=render_prompt(problems[place], policy, settings, room=params.max_new_tokens),
                num_samples=num_samples,
                slot=place,
            )
            for place in chosen
        ]
        for place, group in zip(chosen, sampler.sample(requests, params, seed=seed, step=0), strict=True):
            texts = list(dict.fromkeys(drawn.completion.text.strip() for drawn in group.completions))
            if num_samples > 1 and len(texts) == 1:
                continue
            random.Random(f"{seed}/{problems[place].id}").shuffle(texts)
            yield Sheet(problem=problems[place], completions=dict(zip(LABELS, texts, strict=False)), model=model)


def ranking_row(sheet: Sheet, ranking: str) -> dict[str, Any]:
    """What is kept of a ranking such as `D > G > A = B`."""
    return {
        **_question(sheet),
        "completions": dict(sheet.completions),
        "ranking": ranking,
        "model": sheet.model,
    }


def review_row(sheet: Sheet, verdict: str, response: str | None) -> dict[str, Any]:
    """What is kept of a response that was accepted, edited or rejected; a rejected one is no demonstration."""
    given = {} if response is None else {"response": response}
    return {
        **_question(sheet),
        **given,
        "verdict": verdict,
        "sampled": next(iter(sheet.completions.values())),
        "model": sheet.model,
    }


def _question(sheet: Sheet) -> dict[str, Any]:
    question = sheet.problem.question
    return {
        "id": sheet.problem.id,
        "prompt": question if isinstance(question, str) else [dict(message) for message in question],
        **({} if sheet.problem.answer is None else {"answer": sheet.problem.answer}),
    }


Edit = Callable[[str], str | None]
"""Lets a person change a text; None where they saved nothing."""

RANK_HELP = "best to worst, as B > A = C; s skips, q ends"
REVIEW_HELP = "a accepts, e edits, r rejects; s skips, q ends"


def ask(asked: Iterable[Sheet], file: LabelFile, console: Console, *, limit: int, edit: Edit) -> int:
    """Show sheets one after another and keep what is said of each, until there are none, `limit` are answered or the
    person ends it. Returns how many were answered; each is on the disk before the next is shown."""
    answered = 0
    for sheet in asked:
        console.rule(Text(f"{answered + 1} of at most {limit}"))
        console.print(Text(question_text(sheet.problem)), soft_wrap=True)
        for label, text in sheet.completions.items():
            console.print(Panel(Text(text or "(nothing)"), title=Text(label), title_align="left"))
        try:
            row = _rank(sheet, console) if len(sheet.completions) > 1 else _review(sheet, console, edit)
        except (EOFError, KeyboardInterrupt, _EndedError):
            break
        if row is not None:
            file.append(row)
            answered += 1
        if answered == limit:
            break
    return answered


def in_editor(text: str) -> str | None:
    """The text as a person leaves it in `$VISUAL` or `$EDITOR` (else vi); None where it was not changed.

    Raises ValueError where there is no such editor.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.NamedTemporaryFile("w+", suffix=".txt", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        try:
            subprocess.run([*shlex.split(editor), file.name], check=False)
        except FileNotFoundError as error:
            raise ValueError(f"there is no editor {editor!r}: set EDITOR to one") from error
        changed = Path(file.name).read_text(encoding="utf-8").strip()
    return None if changed == text.strip() else changed


class _EndedError(Exception):
    """The person has had enough."""


def _said(console: Console, help_text: str) -> str:
    said = console.input(Text(f"{help_text}\n> ", style="bold")).strip()
    if said.lower() in ("q", "quit"):
        raise _EndedError
    return said


def _rank(sheet: Sheet, console: Console) -> dict[str, Any] | None:
    while True:
        said = _said(console, RANK_HELP)
        if said.lower() in ("s", "skip"):
            return None
        try:
            parse_ranking(said.upper(), list(sheet.completions))
        except ValueError as error:
            console.print(Text(str(error), style="red"))
            continue
        return ranking_row(sheet, said.upper())


def _review(sheet: Sheet, console: Console, edit: Edit) -> dict[str, Any] | None:
    [sampled] = sheet.completions.values()
    while True:
        said = _said(console, REVIEW_HELP).lower()
        if said in ("s", "skip"):
            return None
        if said in ("a", "accept"):
            return review_row(sheet, "accepted", sampled)
        if said in ("r", "reject"):
            return review_row(sheet, "rejected", None)
        changed = edit(sampled) if said in ("e", "edit") else None
        if changed is not None and changed.strip():
            return review_row(sheet, "edited", changed.strip())
        console.print(Text("nothing was saved" if said in ("e", "edit") else f"{said!r} is none of these", style="red"))
