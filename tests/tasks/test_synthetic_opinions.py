"""Opinions made here: sizes, splits, and that the better letter is the one a country likes."""

from collections import Counter, defaultdict

import pytest

from outscore.rewards import Rewards
from outscore.tasks import RankingTask, make_task, validate
from outscore.tasks.synthetic_opinions import DIFFERENCES, SIZES, SyntheticOpinionTask


def test_sizes_and_splits_are_the_papers() -> None:
    validation, test = SyntheticOpinionTask(), SyntheticOpinionTask(held_out="test")
    assert isinstance(validation, RankingTask)
    trained = Counter(problem.population for problem in validation.train_problems())
    held_out = [Counter(problem.population for problem in task.eval_problems()) for task in (validation, test)]
    for name, size in SIZES.items():
        tenth = round(size / 10)
        assert (trained[name], held_out[0][name], held_out[1][name]) == (size - 2 * tenth, tenth, tenth)
    splits = [validation.train_problems(), validation.eval_problems(), test.eval_problems()]
    asked = [problem.question for split in splits for problem in split]
    assert len(asked) == len(set(asked)) == sum(SIZES.values())
    assert test.train_problems() == validation.train_problems()


def test_every_country_has_one_order_of_opinions_for_a_topic() -> None:
    """What is chosen beats what is not: no two questions of a country contradict each other."""
    task = SyntheticOpinionTask(num_topics=2, num_opinions=5, sizes={"a": 60, "b": 60}, differences={"a": 1, "b": 0})
    beaten: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for problem in task.train_problems():
        topic = str(problem.question).split(" on ")[1][0]
        shown = dict(zip("ABCD", problem.id.rpartition("/")[2][1:], strict=True))
        for letter, opinion in shown.items():
            assert f"{letter}){opinion}" in str(problem.question)
            if letter != problem.answer:
                beaten[str(problem.population), topic].add((shown[str(problem.answer)], opinion))
        assert problem.columns["rejected"] in set("ABCD") - {problem.answer}
    for pairs in beaten.values():
        assert not {(low, high) for high, low in pairs} & pairs


def test_countries_that_differ_less_agree_more() -> None:
    task = SyntheticOpinionTask(sizes=dict.fromkeys("abc", 2000), differences={"a": 0.0, "b": 0.0, "c": 1.0})
    best: dict[str, dict[str, str]] = defaultdict(dict)
    for problem in task.train_problems():
        name, _, shown = problem.id.removeprefix("synthetic_opinions/").partition("/")
        best[name][shown[0] + "".join(sorted(shown[1:]))] = shown["ABCD".index(str(problem.answer)) + 1]

    def agreement(one: str, other: str) -> float:
        both = [key for key in best[one] if key in best[other]]
        assert len(both) > 100
        return sum(best[one][key] == best[other][key] for key in both) / len(both)

    assert agreement("a", "b") == 1.0
    assert agreement("a", "c") < 0.6


def test_the_answer_scores_full_and_a_reward_tells_it_from_others() -> None:
    task = make_task("synthetic_opinions", sizes={"a": 20, "b": 20}, differences={"a": 0.5, "b": 0.5}, num_eval=3)
    assert len(task.eval_problems()) == 6
    assert validate(task, Rewards([exact])).ok


def exact(completions: list[str], answer: list[str], **columns: object) -> list[float]:
    return [float(text.strip() == gold) for text, gold in zip(completions, answer, strict=True)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": {"a": 9}}, "sizes are of"),
        ({"sizes": {"a": 4}, "differences": {"a": 0.1}}, r"sizes\['a'\]=4 must be at least 5"),
        ({"differences": {**DIFFERENCES, "Japan": 1.5}}, r"differences\['Japan'\]=1.5 must be between 0 and 1"),
        ({"num_opinions": 3}, "num_opinions=3 between 4 and 26"),
        ({"num_eval": 0}, "num_eval=0 must be between 1"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task("synthetic_opinions", **options)
