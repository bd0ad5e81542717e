"""Opinions made here: a small stand-in for GlobalOpinionQA, in which what people of a country like is known exactly.

A question has a topic and four opinions, and the answer is the letter of the one that the country likes best:

    Japan on c: A)f B)a C)k D)e answer:

How much country g likes opinion o on topic t is drawn once: u_g(t, o) = sqrt(1 - d_g) c(t, o) + sqrt(d_g) e_g(t, o),
where c is shared by all, e_g is the country's own, both are standard normal, and d_g is how much the country differs.
So a country that is small and differs has little data to be understood by, and the others mislead about it.
"""

import random
import string
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from outscore.records import Demonstration, Problem, Ranking

SIZES = {"China": 309, "Egypt": 570, "India": 376, "Japan": 712, "Nigeria": 572}
"""Questions of each country in the paper's data (arXiv 2405.20304, section 5.2)."""
DIFFERENCES = {"China": 0.8, "Egypt": 0.6, "India": 0.4, "Japan": 0.2, "Nigeria": 0.2}
"""d_g: ours."""
HELD_OUT = 0.1
"""Share of each country's questions for validation, and as much again for the test."""
LETTERS = "ABCD"


class SyntheticOpinionTask:
    """Distinct questions to each country, in three splits of 80, 10 and 10 % that share none.

    `sizes` says how many questions each country has, `differences` by how much it differs from what is common (0 to 1);
    the countries of both must be the same. `num_topics` and `num_opinions` are how many there are, 26 at most;
    `held_out` is the split that is evaluated on. Training takes the 80 %; `num_eval` gives the other splits so many
    questions of each country instead of a tenth. `seed` draws opinions and questions. The columns of a problem are
    `chosen` and `rejected`, the letters of the best opinion and of a random other. ValueError where a country would
    have fewer than two questions in training or none held out, or there are not so many distinct ones.
    """

    name = "synthetic_opinions"
    characters: ClassVar[str] = string.ascii_lowercase + LETTERS

    def __init__(
        self,
        *,
        sizes: Mapping[str, int] | None = None,
        differences: Mapping[str, float] | None = None,
        num_topics: int = 6,
        num_opinions: int = 12,
        held_out: Literal["validation", "test"] = "validation",
        num_eval: int | None = None,
        seed: int = 0,
    ) -> None:
        sizes, differences = dict(sizes or SIZES), dict(differences or DIFFERENCES)
        _check(sizes, differences, num_topics, num_opinions, num_eval)
        self.special_strings = (*(f"{name} on " for name in sorted(sizes)), ": A)", " B)", " C)", " D)", " answer:")
        generator = random.Random(f"outscore opinions {seed}")
        topics, opinions = string.ascii_lowercase[:num_topics], string.ascii_lowercase[:num_opinions]
        keys = [(topic, opinion) for topic in topics for opinion in opinions]
        common = {key: generator.gauss(0.0, 1.0) for key in keys}
        train: list[Problem] = []
        others: dict[str, list[Problem]] = {"validation": [], "test": []}
        for name in sorted(sizes):
            share = differences[name]
            liking = {key: (1 - share) ** 0.5 * common[key] + share**0.5 * generator.gauss(0.0, 1.0) for key in keys}
            tenth = round(sizes[name] * HELD_OUT)
            kept, last = sizes[name] - 2 * tenth, tenth if num_eval is None else num_eval
            own = _problems(name, kept + 2 * last, liking, topics, opinions, generator)
            train += own[:kept]
            others["validation"] += own[kept : kept + last]
            others["test"] += own[kept + last :]
        for problems in (train, *others.values()):
            generator.shuffle(problems)
        self._train, self._eval = train, others[held_out]

    def train_problems(self) -> Sequence[Problem]:
        """Problems to train on."""
        return self._train

    def eval_problems(self) -> Sequence[Problem]:
        """Problems of the validation or test split."""
        return self._eval

    def demonstrations(self) -> Sequence[Demonstration]:
        """The best letter for each training problem."""
        return [Demonstration(problem=each, response=each.columns["chosen"]) for each in self._train]

    def train_rankings(self) -> Sequence[Ranking]:
        """The best letter above a random other, for each training problem."""
        return [_ranking(problem) for problem in self._train]

    def eval_rankings(self) -> Sequence[Ranking]:
        """The same for each held-out problem."""
        return [_ranking(problem) for problem in self._eval]


def _check(
    sizes: Mapping[str, int],
    differences: Mapping[str, float],
    num_topics: int,
    num_opinions: int,
    num_eval: int | None,
) -> None:
    where = f"task {SyntheticOpinionTask.name}"
    if set(sizes) != set(differences):
        raise ValueError(f"{where}: sizes are of {sorted(sizes)} and differences of {sorted(differences)}")
    for name, share in differences.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{where}: differences[{name!r}]={share!r} must be between 0 and 1")
    if not 1 <= num_topics <= 26 or not len(LETTERS) <= num_opinions <= 26:
        raise ValueError(
            f"{where}: num_topics={num_topics} must be between 1 and 26, num_opinions={num_opinions} between 4 and 26"
        )
    distinct = num_topics * num_opinions * (num_opinions - 1) * (num_opinions - 2) * (num_opinions - 3)
    if num_eval is not None and not 1 <= num_eval <= distinct // 8:
        raise ValueError(f"{where}: num_eval={num_eval} must be between 1 and {distinct // 8}")
    for name, size in sizes.items():
        if not 5 <= size <= distinct // 2:
            raise ValueError(
                f"{where}: sizes[{name!r}]={size} must be at least 5, which leaves some to train on and some held out, "
                f"and at most {distinct // 2}, half of the distinct questions"
            )


def _problems(
    name: str, size: int, liking: Mapping[tuple[str, str], float], topics: str, opinions: str, generator: random.Random
) -> list[Problem]:
    drawn: dict[str, Problem] = {}
    while len(drawn) < size:
        topic, shown = generator.choice(topics), generator.sample(opinions, len(LETTERS))
        chosen = LETTERS[max(range(len(shown)), key=lambda place: liking[topic, shown[place]])]
        rejected = generator.choice(LETTERS.replace(chosen, ""))
        listed = " ".join(f"{letter}){opinion}" for letter, opinion in zip(LETTERS, shown, strict=True))
        text = f"{name} on {topic}: {listed} answer:"
        drawn[text] = Problem(
            id=f"{SyntheticOpinionTask.name}/{name}/{topic}{''.join(shown)}",
            question=text,
            answer=chosen,
            columns={"chosen": chosen, "rejected": rejected},
            population=name,
        )
    return list(drawn.values())


def _ranking(problem: Problem) -> Ranking:
    responses = (problem.columns["chosen"], problem.columns["rejected"])
    return Ranking(problem=problem, responses=responses, ranks=(0, 1))
