"""Several tasks as one: each problem knows the part it is of, so that rewards and reports can tell them apart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any, TypeVar

from outscore.records import Demonstration, Problem, Ranking
from outscore.tasks.base import CorpusTask, RankingTask, Task

DOMAIN = "domain"
"""The data column that names a problem's part."""

Item = TypeVar("Item")


class MixtureTask:
    """The union of tasks. Problems get the column `domain` (and that population, if they have none), and ids that begin
    with it. Training data stand one part after the other; held-out ones take turns, so that the first so many are of
    all parts. ValueError where two parts have one name.

    Args:
        parts: the tasks by name.
    """

    name = "mixture"

    def __init__(self, parts: Mapping[str, Task]) -> None:
        self.parts = dict(parts)

    def train_problems(self) -> Sequence[Problem]:
        """The training problems of all parts."""
        return [_of(name, each) for name, task in self.parts.items() for each in task.train_problems()]

    def eval_problems(self) -> Sequence[Problem]:
        """The held-out problems of all parts, in turn."""
        return _in_turn([_of(name, each) for each in task.eval_problems()] for name, task in self.parts.items())

    def demonstrations(self) -> Sequence[Demonstration]:
        """The demonstrations of all parts."""
        return [
            replace(each, problem=_of(name, each.problem))
            for name, task in self.parts.items()
            for each in task.demonstrations()
        ]

    def train_rankings(self) -> Sequence[Ranking]:
        """The preferences of all parts."""
        return list(chain.from_iterable(self._rankings(name, held_out=False) for name in self.parts))

    def eval_rankings(self) -> Sequence[Ranking]:
        """The held-out preferences of all parts, in turn."""
        return _in_turn(self._rankings(name, held_out=True) for name in self.parts)

    def train_texts(self) -> Sequence[str]:
        """The plain texts of all parts."""
        return [text for task in self.parts.values() if isinstance(task, CorpusTask) for text in task.train_texts()]

    def eval_texts(self) -> Sequence[str]:
        """The held-out texts of all parts, in turn."""
        return _in_turn(task.eval_texts() for task in self.parts.values() if isinstance(task, CorpusTask))

    @property
    def special_strings(self) -> tuple[str, ...]:
        """Strings that deserve a token each, of all parts."""
        each = (getattr(task, "special_strings", ()) for task in self.parts.values())
        return tuple(dict.fromkeys(chain.from_iterable(each)))

    def _rankings(self, name: str, *, held_out: bool) -> list[Ranking]:
        task = self.parts[name]
        if not isinstance(task, RankingTask):
            return []
        rankings = task.eval_rankings() if held_out else task.train_rankings()
        return [replace(each, problem=_of(name, each.problem)) for each in rankings]


def mixture(*, parts: Sequence[Mapping[str, Any]]) -> MixtureTask:
    """A mixture as a recipe gives it: `parts` are tasks as everywhere, each with a `domain` of its own.

    Raises:
        ValueError: for a part without `kind` or `domain`, and for a name given twice.

    >>> mixture(parts=[{"domain": "sums", "kind": "arithmetic"}, {"domain": "more", "kind": "arithmetic", "digits": 3}])
    """
    from outscore.tasks.registry import make_task  # which knows this kind of task, too

    tasks: dict[str, Task] = {}
    for number, part in enumerate(parts, start=1):
        given = dict(part) if isinstance(part, Mapping) else {}
        domain = given.pop(DOMAIN, None)
        if not isinstance(domain, str) or not domain or "kind" not in given:
            raise ValueError(
                f"task mixture: part {number} is {part!r}; each needs a `{DOMAIN}`, its name, and a `kind`, as in "
                "{domain: sums, kind: arithmetic}"
            )
        if domain in tasks:
            raise ValueError(f"task mixture: two parts have the {DOMAIN} {domain!r}")
        tasks[domain] = make_task(**given)
    if not tasks:
        raise ValueError("task mixture: parts = [] has no task; give at least one")
    return MixtureTask(tasks)


def _of(name: str, problem: Problem) -> Problem:
    """The problem as one of a part."""
    return replace(
        problem,
        id=f"{name}/{problem.id}",
        columns={**problem.columns, DOMAIN: name},
        population=problem.population if problem.population is not None else name,
    )


def _in_turn(sequences: Iterable[Sequence[Item]]) -> list[Item]:
    """One of each, then the next of each, until all are through."""
    missing = object()
    turns = zip_longest(*sequences, fillvalue=missing)
    return [item for turn in turns for item in turn if item is not missing]  # type: ignore[misc]  # no item is `missing`
