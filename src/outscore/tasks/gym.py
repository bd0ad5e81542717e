"""Any data set of `reasoning_gym` by its name: procedurally made problems with checkable answers.

reasoning_gym derives item i from seed + i, so neighbouring seeds share almost all their items. Evaluation therefore
draws from a seed far away, and what chance still makes equal is removed from the training set by its question.
"""

import importlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from outscore.inputs import nearest
from outscore.records import Demonstration, Problem

GYM_COLUMN = "reasoning_gym"
"""The column that tells the reward `gym` which data set with which options made the problem."""
EVAL_SEED_OFFSET = 1_000_000_007
"""Added to the seed for evaluation: far beyond any training index."""
_PATIENCE = 20  # how many times as many items as wanted are looked at for new questions


class GymTask:
    """Problems of one reasoning_gym data set; keyword options are that data set's own (`min_terms=2`).

    Training problems keep the generator's own distribution, repeats included; evaluation problems are distinct, and
    none has the question of a training problem. Columns: `metadata` as reasoning_gym gives it, and `reasoning_gym`.
    ValueError for an unknown data set or option (naming the nearest), or when there are too few distinct questions;
    ImportError without the package.

    >>> GymTask(dataset="chain_sum", num_train=2000, min_terms=2, max_terms=2, min_digits=1, max_digits=2)
    """

    def __init__(
        self, *, dataset: str, num_train: int = 2000, num_eval: int = 200, seed: int = 0, **options: Any
    ) -> None:
        for key, count in (("num_train", num_train), ("num_eval", num_eval)):
            if count < 1:
                raise ValueError(f"task reasoning_gym: {key}={count!r} must be at least 1")
        if "size" in options:
            raise ValueError(
                f"task reasoning_gym: size={options['size']!r} is not for recipes; use num_train and num_eval"
            )
        self.name = dataset
        self._dataset, self._options = dataset, options
        self._eval = self._take("eval", seed + EVAL_SEED_OFFSET, num_eval, forbidden=set(), distinct=True)
        held_out = {each.question for each in self._eval}
        self._train = self._take("train", seed, num_train, forbidden=held_out, distinct=False)

    def train_problems(self) -> Sequence[Problem]:
        """Problems to train on."""
        return self._train

    def eval_problems(self) -> Sequence[Problem]:
        """Distinct held-out problems."""
        return self._eval

    def demonstrations(self) -> Sequence[Demonstration]:
        """None: reasoning_gym has answers, not worked responses."""
        return ()

    def _take(self, split: str, seed: int, count: int, *, forbidden: set[Any], distinct: bool) -> list[Problem]:
        """The first `count` problems of `seed` whose question is not forbidden; ValueError if patience ends before."""
        problems: list[Problem] = []
        seen = set(forbidden)
        for problem in self._generate(split, seed, _PATIENCE * count):
            if problem.question in seen:
                continue
            if distinct:
                seen.add(problem.question)
            problems.append(problem)
            if len(problems) == count:
                return problems
        raise ValueError(
            f"task reasoning_gym: {self.name!r} gave {len(problems)} {split} problems in {_PATIENCE * count} tries, "
            f"num_{split}={count} were asked for: ask for fewer, or widen the data set's options"
        )

    def _generate(self, split: str, seed: int, size: int) -> Iterator[Problem]:
        source = gym_dataset(self._dataset, seed=seed, size=size, **self._options)
        origin = {"dataset": self._dataset, "options": self._options}
        for index in range(size):
            entry = source[index]
            yield Problem(
                id=f"{self.name}/{split}/{seed}/{index}",
                question=entry["question"],
                answer=None if entry["answer"] is None else str(entry["answer"]),
                columns={"metadata": entry["metadata"], GYM_COLUMN: origin},
            )


def gym_dataset(name: str, **options: Any) -> Any:
    """A reasoning_gym data set. ValueError for an unknown name or option, or one the data set refuses."""
    factory = _gym_factory()
    if name not in factory.DATASETS:
        raise ValueError(f"task reasoning_gym: no data set {name!r}{nearest(name, sorted(factory.DATASETS))}")
    fields = factory.DATASETS[name][1].__dataclass_fields__
    for key, value in options.items():
        if key not in fields:
            raise ValueError(
                f"task reasoning_gym: {name!r} has no option {key!r} (value {value!r}){nearest(key, sorted(fields))}"
            )
    try:
        return factory.create_dataset(name, **options)
    except (AssertionError, TypeError, ValueError) as error:
        # reasoning_gym checks its options with assertions; their text says what is wrong.
        given = {key: value for key, value in options.items() if key not in ("seed", "size")}
        raise ValueError(f"task reasoning_gym: {name!r} refuses the options {given}: {error}") from error


def _gym_factory() -> ModuleType:
    try:
        return importlib.import_module("reasoning_gym.factory")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "reasoning_gym":
            raise
        raise ImportError("reasoning_gym is not installed: pip install 'outscore[gym]'") from error
