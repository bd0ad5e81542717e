"""Best-first search of the tree of steps: against enumeration of all paths, and by hand."""

import math
import random
from typing import Any

import pytest
from train.building import prompt_of, tiny_policy
from train.test_search import PARAMS, Sevens, search_of

from outscore.model.steps import decoder
from outscore.records import Prompt
from outscore.rewards import Rewards
from outscore.rollout import ScriptedSampler, make_sampler
from outscore.train.evaluate import Judge
from outscore.train.growing import Grower

Path = tuple[int, ...]
WIDTH = 3


class World:
    """For each problem a tree of steps, digits with a space between: at every beginning sample i says i and goes on,
    and the guide gives the step a random chance. Answers have one to four steps."""

    separators = (" ",)

    def __init__(self, how: str, num_problems: int = 6) -> None:
        self.how = how
        policy = tiny_policy()
        self.prompts = [prompt_of(policy, f"{number}=", "7", number) for number in range(num_problems)]
        self.decode = decoder(policy.tokenizer)
        self.sampler = ScriptedSampler(self.say, policy.tokenizer)
        self.asked: list[tuple[int, Path]] = []

    def ends(self, problem: int, path: Path) -> bool:
        return len(path) == 4 or (len(path) > 0 and random.Random(f"end {problem} {path}").random() < 0.25)

    def worth(self, problem: int, path: Path) -> float:
        chances = [random.Random(f"{problem} {path[: k + 1]}").random() for k in range(len(path))]
        return math.prod(chances) if self.how == "product" else min(chances, default=0.0)

    def scores(self, given: Any) -> list[float]:
        texts = [(prompt, self.decode(ids)) for prompt, ids in given]
        return [self.worth(int(prompt.text[:-1]), tuple(map(int, text.split()))) for prompt, text in texts]

    def say(self, prompt: Prompt, sample: int) -> str:
        problem, begun = prompt.text.split("=")
        path = tuple(map(int, begun.split()))
        if sample == 0:
            self.asked.append((int(problem), path))
        said = [sample]
        while not self.ends(int(problem), (*path, *said)):
            said.append(0)
        return " ".join(map(str, said))

    def all_paths(self, problem: int, path: Path = ()) -> list[Path]:
        """All beginnings and answers, in any order."""
        if self.ends(problem, path):
            return [path]
        return [path] + [each for i in range(WIDTH) for each in self.all_paths(problem, (*path, i))]

    @property
    def grower(self) -> Grower:
        return Grower(
            prompts=self.prompts,
            sampler=self.sampler,
            guide=self,
            decode=self.decode,
            params=PARAMS,
            seed=0,
            width=WIDTH,
        )


@pytest.mark.parametrize("how", ["product", "min"])
def test_the_best_path_of_all_is_found_and_nothing_is_continued_that_could_not_hold_it(how: str) -> None:
    """No beginning can lead above its own score, by smallest and by product. So the first answer that is the best leaf
    is the best of the whole tree, and what was continued on the way is all that scored more, and nothing that scored
    less."""
    world = World(how)
    [(_, answers, _)] = world.grower.trees([100])
    for problem, own in enumerate(answers):
        paths = world.all_paths(problem)
        best = max(world.worth(problem, path) for path in paths if world.ends(problem, path))
        found = tuple(map(int, world.decode(own[0].token_ids).split()))
        assert world.worth(problem, found) == own[0].score == best and world.ends(problem, found)
        continued = [path for number, path in world.asked if number == problem]
        assert len(set(continued)) == len(continued) < sum(not world.ends(problem, path) for path in paths)
        for path in paths:
            if path == () or world.worth(problem, path) > best:
                assert path in continued
            elif world.worth(problem, path) < best:
                assert path not in continued


def test_a_larger_budget_continues_the_tree_of_a_smaller_one() -> None:
    together, sizes = World("product"), (1, 2, 5)
    rows = list(together.grower.trees(sizes))
    assert rows == [row for size in sizes for row in World("product").grower.trees([size])]
    continued = [path for number, path in together.asked if number == 0]
    assert continued[0] == () and rows[0][2] < rows[1][2] < rows[2][2]


CHANCES = {"1": 0.6, "2": 0.5, "1 1": 0.2, "1 2": 0.3, "2 1": 0.4, "2 2": 0.45, "2 2 1": 0.35, "2 2 2": 0.1}
"""The tree of the example; "1 1", "2 1" and those of three steps are answers."""


class Table:
    separators = (" ",)

    def scores(self, given: Any) -> list[float]:
        decode = decoder(tiny_policy().tokenizer)
        return [CHANCES[decode(ids).strip()] for _, ids in given]


def _says(prompt: Prompt, sample: int) -> str:
    begun = prompt.text.split("=")[1]
    step = str(sample + 1)
    return step if (begun + step) in ("1 1", "2 1") or begun == "2 2 " else f"{step} 1"


def is_21(completions: list[str]) -> list[float]:
    return [float(text == "2 1") for text in completions]


def test_accuracy_against_budget_by_hand() -> None:
    """1: the root is continued, `1 ` leads and is sampled to its end. 2: `1 ` is continued, `2 ` leads and ends as
    `2 1`. 3: `2 ` is continued, `2 2 ` leads, and ends below `2 1`. 4: it is continued; `2 1` is the best leaf. More
    is not spent."""
    sampler = ScriptedSampler(_says, tiny_policy().tokenizer)
    search = search_of(
        sampler,
        Table(),
        width=2,
        rewards=Rewards([is_21]),
        judge=Judge(reward_name="is_21", extract=lambda text: text),
    )
    found = [
        [search.decode(answer.token_ids) for answer in answers[0]]
        for _, answers, _ in search.grower.trees([1, 2, 3, 4])
    ]
    assert found == [["1 1"], ["2 1", "1 1"], ["2 1", "2 2 1", "1 1"], ["2 1", "2 2 1", "1 1", "2 2 2"]]
    rows = search.run(["tree"], [9, 1, 2, 3, 4])
    # A step, and an end with its stop token, has two tokens: four in each round, two for a sample to the end.
    assert [(row.budget, row.accuracy.value, row.tokens) for row in rows] == [
        (1, 0.0, 4 + 2),
        (2, 1.0, 8 + 2),
        (3, 1.0, 12 + 2),
        (4, 1.0, 16),
        (9, 1.0, 16),
    ]


def test_of_equals_the_longer_is_continued_and_an_answer_comes_before_a_beginning() -> None:
    class Indifferent(Table):
        def scores(self, given: Any) -> list[float]:
            return [0.5 for _ in given]

    begun: list[str] = []

    def say(prompt: Prompt, sample: int) -> str:
        begun.append(prompt.text.split("=")[1])
        return "7" if begun[-1].count(" ") == 2 and sample else "7 7" if sample else "1 1"

    search = search_of(ScriptedSampler(say, tiny_policy().tokenizer), Indifferent(), width=2)
    [(_, answers, _)] = search.grower.trees([50])
    assert begun[::4] == ["", "1 ", "1 1 "]
    assert [search.decode(own[0].token_ids) for own in answers] == ["1 1 7", "1 1 7"]


def test_answers_keep_to_the_limit_with_a_real_sampler() -> None:
    search = search_of(make_sampler(tiny_policy(), 8), Sevens(), width=2)
    for _, answers, tokens in search.grower.trees([1, 3]):
        assert tokens > 0
        for own in answers:
            assert own and all(len(each.token_ids) <= 12 and each.finish is not None for each in own)
