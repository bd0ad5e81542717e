"""Several tasks as one, in which each is a population: domains of problems, of their own sizes and difficulties."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, TypeVar

from outscore.records import Demonstration, Problem, Ranking
from outscore.tasks.base import CorpusTask, RankingTask, Task, question_text

DOMAIN = "domain"
"""The data column that names a problem's part."""

Item = TypeVar("Item")


class MixtureTask:
    """The problems, demonstrations, preferences and texts of several tasks, each under the name of its part.

    A part's name is the population of its problems, stands in their data column `domain` and before their ids. Held-out
    problems, preferences on them and texts take turns, so that the first of them are of all parts; training examples
    keep the order of the parts. What has the question of a problem held out in any part, or is a text held out in any,
    is left out of training.

    >>> MixtureTask({"sums": ArithmeticTask(operations=["+"]), "differences": ArithmeticTask(operations=["-"])})
    """

    name = "mixture"

    def __init__(self, parts: Mapping[str, Task]) -> None:
        if len(parts) < 2:
            raise ValueError(f"task {self.name}: parts has {len(parts)} tasks; a mixture has two or more")
        self._parts = dict(parts)
        self._held_out = {question_text(problem) for task in parts.values() for problem in task.eval_problems()}
        strings = (text for task in parts.values() for text in getattr(task, "special_strings", ()))
        self.special_strings = tuple(dict.fromkeys(strings))
        known = [getattr(task, "characters", None) for task in parts.values()]
        if all(known):
            self.characters = "".join(sorted(set("".join(map(str, known)))))

    def train_problems(self) -> Sequence[Problem]:
        """Problems to train on, part by part."""
        return [problem for problem in self._every(lambda task: task.train_problems(), _of) if self._trains(problem)]

    def eval_problems(self) -> Sequence[Problem]:
        """Held-out problems; the parts take turns."""
        return self._in_turn(lambda task: task.eval_problems(), _of)

    def demonstrations(self) -> Sequence[Demonstration]:
        """Responses to imitate, part by part."""
        every = self._every(lambda task: task.demonstrations(), _with_problem)
        return [each for each in every if self._trains(each.problem)]

    def train_rankings(self) -> Sequence[Ranking]:
        """Preferences to train on, of the parts that have them."""
        every = self._every(lambda task: task.train_rankings() if isinstance(task, RankingTask) else [], _with_problem)
        return [each for each in every if self._trains(each.problem)]

    def eval_rankings(self) -> Sequence[Ranking]:
        """Preferences on held-out problems; the parts take turns."""
        return self._in_turn(lambda task: task.eval_rankings() if isinstance(task, RankingTask) else [], _with_problem)

    def train_texts(self) -> Sequence[str]:
        """Plain texts, of the parts that have them."""
        held_out = set(self.eval_texts())
        every = self._every(lambda task: task.train_texts() if isinstance(task, CorpusTask) else [], _unnamed)
        return [text for text in every if text not in held_out]

    def eval_texts(self) -> Sequence[str]:
        """Held-out texts; the parts take turns."""
        return self._in_turn(lambda task: task.eval_texts() if isinstance(task, CorpusTask) else [], _unnamed)

    def _trains(self, problem: Problem) -> bool:
        return question_text(problem) not in self._held_out

    def _every(self, take: Callable[[Any], Iterable[Item]], named: Callable[[Item, str], Item]) -> list[Item]:
        return [named(each, name) for name, task in self._parts.items() for each in take(task)]

    def _in_turn(self, take: Callable[[Any], Iterable[Item]], named: Callable[[Item, str], Item]) -> list[Item]:
        columns = [[named(each, name) for each in take(task)] for name, task in self._parts.items()]
        return [each for turn in zip_longest(*columns) for each in turn if each is not None]


def _of(problem: Problem, name: str) -> Problem:
    return replace(problem, id=f"{name}/{problem.id}", columns={**problem.columns, DOMAIN: name}, population=name)


def _with_problem(item: Any, name: str) -> Any:
    return replace(item, problem=_of(item.problem, name))


def _unnamed(text: str, name: str) -> str:
    return text
