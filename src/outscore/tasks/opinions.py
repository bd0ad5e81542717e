"""GlobalOpinionQA: which answer to a survey question people of a country give most often.

The data (Durmus et al., arXiv 2306.16388, `Anthropic/llm_global_opinions`) have a row for each question with its
options and, for each country, the share of people who chose each. Here a question and a country are a problem, whose
population is the country (Ramesh et al., arXiv 2405.20304, section 5.2):

    Opinion of people in Japan on: Is … good? Please select the best response: A) Yes, B) No

The answer is the letter of the most probable option, also as the demonstration; a preference sets it above a random
other letter.
"""

import ast
import hashlib
import random
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from outscore.inputs import nearest
from outscore.records import Demonstration, Problem, Ranking
from outscore.tasks.readers import Row, check_exists, read_file, read_hub

HUB = "Anthropic/llm_global_opinions"
POPULATIONS = ("Nigeria", "Egypt", "India (Current national sample)", "China", "Japan")
"""The five countries of the paper, as the data name them."""
HELD_OUT = 0.1
"""Share of the questions for validation, and as much again for the test."""
_COLUMNS = ("question", "options", "selections")


def prompt_text(population: str, question: str, options: Sequence[str]) -> str:
    """The question as the model reads it.

    >>> prompt_text("Japan", "Is rain good", ["Yes", "No"])
    'Opinion of people in Japan on: Is rain good. Please select the best response: A) Yes, B) No'
    """
    text = question.strip()
    end = "" if text.endswith((".", "?", "!", ":")) else "."
    listed = ", ".join(f"{letter}) {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))
    return f"Opinion of people in {population} on: {text}{end} Please select the best response: {listed}"


class GlobalOpinionTask:
    """Opinions of some countries. The columns of a problem: `options`, `probabilities`, `chosen` and `rejected`, the
    letters of the most probable option (of equals the first) and of a random other.

    `path` is a file, or a directory that `datasets` saved; without it the data set of the hub is read. `populations`
    are the countries. A question is in one split for all countries, chosen by a hash of it: a tenth for validation, a
    tenth for the test, of which `held_out` is evaluated on. `seed` draws the rejected letters.

    Answers that nobody in the country gave, questions with fewer than two options or more than 26, and shares that are
    not one for each option are left out and counted in `num_left_out`. ValueError for a row that cannot be read, a
    country nobody of whom was asked, or one with fewer than two problems to train on or none held out.
    """

    name = "global_opinions"

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        populations: Sequence[str] = POPULATIONS,
        held_out: Literal["validation", "test"] = "validation",
        seed: int = 0,
    ) -> None:
        if not populations or len(set(populations)) != len(populations):
            raise ValueError(f"task {self.name}: populations={list(populations)!r} must be one or more different names")
        self.num_left_out = 0
        """Pairs of a question and one of the countries that have no usable answer."""
        splits: dict[str, list[Problem]] = {"train": [], "validation": [], "test": []}
        known: set[str] = set()
        for row in _read(path):
            question, options, shares = _parsed(row)
            known.update(shares)
            for population in populations:
                if population not in shares:
                    continue
                if not _usable(question, options, shares[population]):
                    self.num_left_out += 1
                    continue
                problem = _problem(population, question, options, shares[population], seed)
                splits[_split(question)].append(problem)
        self._train, self._eval = _unrepeated(splits["train"]), _unrepeated(splits[held_out])
        self._check(populations, known, held_out)

    def train_problems(self) -> Sequence[Problem]:
        """Problems to train on, in the order of the data."""
        return self._train

    def eval_problems(self) -> Sequence[Problem]:
        """Problems of the validation or test split."""
        return self._eval

    def demonstrations(self) -> Sequence[Demonstration]:
        """The letter of the most probable option for each training problem."""
        return [Demonstration(problem=each, response=each.columns["chosen"]) for each in self._train]

    def train_rankings(self) -> Sequence[Ranking]:
        """The chosen letter above the rejected one, for each training problem."""
        return [_ranking(problem) for problem in self._train]

    def eval_rankings(self) -> Sequence[Ranking]:
        """The same for each problem of the validation or test split."""
        return [_ranking(problem) for problem in self._eval]

    def _check(self, populations: Sequence[str], known: set[str], held_out: str) -> None:
        for split, problems, least in (("train", self._train, 2), (held_out, self._eval, 1)):
            counts = Counter(problem.population for problem in problems)
            for population in populations:
                if population not in known:
                    raise ValueError(
                        f"task {self.name}: nobody of population {population!r} was asked{nearest(population, known)}"
                    )
                if counts[population] < least:
                    raise ValueError(
                        f"task {self.name}: population {population!r} has {counts[population]} problems in the split "
                        f"{split!r}; it needs at least {least}: leave it out or give more data"
                    )


def _read(path: str | Path | None) -> list[Row]:
    if path is None:
        return read_hub(HUB, subset=None, split="train")
    check_exists(Path(path))
    return read_hub(str(path), subset=None, split="train") if Path(path).is_dir() else read_file(Path(path))


def _parsed(row: Row) -> tuple[str, list[str], Mapping[str, Sequence[float]]]:
    for column in _COLUMNS:
        if column not in row.values:
            present = ", ".join(map(repr, row.values))
            raise ValueError(f"{row.where}: no column {column!r}{nearest(column, row.values)} (present: {present})")
    question = str(row.values["question"] or "")
    options, shares = (_literal(row, column) for column in ("options", "selections"))
    if not isinstance(options, list | tuple) or not isinstance(shares, Mapping):
        raise ValueError(f"{row.where}: 'options' must be a list and 'selections' a mapping of country to shares")
    return question, [str(option) for option in options], shares


def _literal(row: Row, column: str) -> Any:
    """A value, or what its Python source says: the published data hold `defaultdict(<class 'list'>, {...})` as text."""
    value = row.values[column]
    if value is None or value == "":
        return {} if column == "selections" else []
    if not isinstance(value, str):
        return value
    source = value[value.find("{") : value.rfind("}") + 1] if column == "selections" else value
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{row.where}: {column!r} is neither data nor a Python literal: {value[:60]!r}") from error


def _usable(question: str, options: Sequence[str], shares: Sequence[float] | None) -> bool:
    if not question.strip() or not 2 <= len(options) <= len(string.ascii_uppercase):
        return False
    return shares is not None and len(shares) == len(options) and min(shares) >= 0 and sum(shares) > 0


def _problem(population: str, question: str, options: list[str], shares: Sequence[float], seed: int) -> Problem:
    letters = string.ascii_uppercase[: len(options)]
    chosen = letters[max(range(len(options)), key=lambda place: shares[place])]
    text = prompt_text(population, question, options)
    key = _digest(text)[:12]
    # Keyed by the problem: a draw does not depend on what else is in the data.
    rejected = random.Random(f"{seed}/{key}").choice(letters.replace(chosen, ""))
    total = sum(shares)
    return Problem(
        id=f"{GlobalOpinionTask.name}/{key}",
        question=text,
        answer=chosen,
        columns={
            "options": list(options),
            "probabilities": [share / total for share in shares],
            "chosen": chosen,
            "rejected": rejected,
        },
        population=population,
    )


def _ranking(problem: Problem) -> Ranking:
    responses = (problem.columns["chosen"], problem.columns["rejected"])
    return Ranking(problem=problem, responses=responses, ranks=(0, 1))


def _unrepeated(problems: Sequence[Problem]) -> list[Problem]:
    """The first of each: the same question with the same options would be the same problem twice."""
    return list({problem.id: problem for problem in reversed(problems)}.values())[::-1]


def _split(question: str) -> str:
    share = int(_digest(question.strip())[:12], 16) / 16**12
    return "validation" if share < HELD_OUT else "test" if share < 2 * HELD_OUT else "train"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
