"""The GlobalOpinionQA loader on a sample written for it, in the published form and as plain data."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from outscore.rewards import Rewards
from outscore.tasks import RankingTask, Task, make_task, validate
from outscore.tasks.opinions import POPULATIONS, GlobalOpinionTask, prompt_text

TWO = ("Japan", "Nigeria")


def row(number: int, **changes: object) -> dict[str, object]:
    """A row as the published data have it: options and selections are Python source."""
    selections = {"Japan": [0.2, 0.5, 0.3], "Nigeria": [0.6, 0.4, 0.0], "Peru": [0.1, 0.1, 0.8]}
    values: dict[str, object] = {
        "question": f"How good is thing number {number}?",
        "selections": f"defaultdict(<class 'list'>, {selections!r})",
        "options": "['Very good', 'Not good', 'DK/Refused']",
        "source": "made up",
    }
    return values | changes


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return written(tmp_path / "opinions.jsonl", [row(number) for number in range(60)])


def test_the_prompt_is_the_papers() -> None:
    assert (
        prompt_text("China", "Do you like rain?", ["Yes", "No"])
        == "Opinion of people in China on: Do you like rain? Please select the best response: A) Yes, B) No"
    )
    assert "on: I like rain. Please" in prompt_text("China", " I like rain ", ["Yes", "No"])


def test_a_problem_is_a_question_and_a_country(sample: Path) -> None:
    task = GlobalOpinionTask(path=sample, populations=TWO)
    assert isinstance(task, Task)
    problems = [*task.train_problems(), *task.eval_problems()]
    for problem in problems:
        # 0.5 of Japan says B, 0.6 of Nigeria A
        assert problem.answer == {"Japan": "B", "Nigeria": "A"}[str(problem.population)]
        assert problem.columns["chosen"] == problem.answer
        assert problem.columns["rejected"] in set("ABC") - {problem.answer}
        assert str(problem.question).startswith(f"Opinion of people in {problem.population} on: How good is thing")
        assert str(problem.question).endswith("A) Very good, B) Not good, C) DK/Refused")
    assert len({problem.id for problem in problems}) == len(problems)
    shown = task.demonstrations()
    assert [each.problem for each in shown] == list(task.train_problems())
    assert all(each.response == each.problem.answer for each in shown)


def test_a_preference_sets_the_chosen_letter_above_the_rejected_one(sample: Path) -> None:
    task = GlobalOpinionTask(path=sample, populations=TWO)
    assert isinstance(task, RankingTask)
    for rankings, problems in (
        (task.train_rankings(), task.train_problems()),
        (task.eval_rankings(), task.eval_problems()),
    ):
        assert [each.problem for each in rankings] == list(problems)
        assert {each.ranks for each in rankings} == {(0, 1)}
        assert [each.responses for each in rankings] == [(p.answer, p.columns["rejected"]) for p in problems]


def test_every_other_letter_is_rejected_now_and_then_and_always_the_same_one(sample: Path) -> None:
    first, again, other = (GlobalOpinionTask(path=sample, populations=TWO, seed=seed) for seed in (0, 0, 1))
    assert first.train_problems() == again.train_problems()
    drawn = Counter(p.columns["rejected"] for p in first.train_problems() if p.population == "Japan")
    assert set(drawn) == {"A", "C"}
    assert first.train_problems() != other.train_problems()


def test_a_question_is_in_one_split_for_all_countries(sample: Path) -> None:
    tasks = {kind: GlobalOpinionTask(path=sample, populations=TWO, held_out=kind) for kind in ("validation", "test")}  # type: ignore[arg-type]
    sets = {
        "train": tasks["test"].train_problems(),
        "validation": tasks["validation"].eval_problems(),
        "test": tasks["test"].eval_problems(),
    }
    asked = {kind: {str(p.question).partition(" on: ")[2] for p in problems} for kind, problems in sets.items()}
    assert sum(map(len, asked.values())) == len(set.union(*asked.values())) == 60
    assert all(len(problems) == 2 * len(asked[kind]) for kind, problems in sets.items())
    assert 36 <= len(asked["train"]) <= 57


def test_plain_lists_and_mappings_are_read_too(tmp_path: Path, sample: Path) -> None:
    selections = {"Japan": [2, 5, 3], "Nigeria": [6, 4, 0]}
    plain = [row(n, selections=selections, options=["Very good", "Not good", "DK/Refused"]) for n in range(60)]
    found = GlobalOpinionTask(path=written(tmp_path / "plain.jsonl", plain), populations=TWO)
    published = GlobalOpinionTask(path=sample, populations=TWO)
    assert [p.id for p in found.train_problems()] == [p.id for p in published.train_problems()]
    assert found.train_problems()[0].columns["probabilities"] == pytest.approx([0.2, 0.5, 0.3])


def test_csv_is_read(tmp_path: Path, sample: Path) -> None:
    path = tmp_path / "opinions.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row(0)))
        writer.writeheader()
        writer.writerows(row(number) for number in range(60))
    found = make_task("global_opinions", path=str(path), populations=list(TWO))
    assert list(found.train_problems()) == list(GlobalOpinionTask(path=sample, populations=TWO).train_problems())


def test_answers_that_say_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [row(number) for number in range(60)]
    rows += [
        row(100, selections="defaultdict(<class 'list'>, {'Japan': [0.0, 0.0, 0.0], 'Nigeria': []})"),
        row(101, options="['only one']", selections="{'Japan': [1.0]}"),
        row(102, question="", selections="{'Japan': [0.5, 0.4, 0.1]}"),
        row(103, selections="{'Japan': [0.5, 0.5]}"),
        row(104, selections="{'Peru': [0.5, 0.4, 0.1]}"),
        row(105, options=None, selections=None),
        row(3),  # the same question again
    ]
    task = GlobalOpinionTask(path=written(tmp_path / "some.jsonl", rows), populations=TWO)
    assert task.num_left_out == 5
    everything = [*task.train_problems(), *task.eval_problems()]
    assert not [p for p in everything if "number 10" in str(p.question) and "number 10?" not in str(p.question)]
    assert len({p.id for p in everything}) == len(everything)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": "['a', 'b'"}, "'options' is neither data nor a Python literal"),
        ({"selections": "__import__('os').getcwd()"}, "'selections' is neither data nor a Python literal"),
        ({"options": "{'a': 1}"}, "'options' must be a list"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = written(tmp_path / "bad.jsonl", [row(0), row(1, **changes)])
    with pytest.raises(ValueError, match=f"bad.jsonl:2: {message}"):
        GlobalOpinionTask(path=path, populations=TWO)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    bad = {key if key != "selections" else "selection": value for key, value in row(0).items()}
    with pytest.raises(ValueError, match="no column 'selections'; did you mean `selection`"):
        GlobalOpinionTask(path=written(tmp_path / "bad.jsonl", [bad]), populations=TWO)


def test_populations_are_checked(tmp_path: Path, sample: Path) -> None:
    with pytest.raises(ValueError, match="nobody of population 'Nigerria' was asked; did you mean `Nigeria`"):
        GlobalOpinionTask(path=sample, populations=("Japan", "Nigerria"))
    with pytest.raises(ValueError, match="'Egypt' was asked"):
        GlobalOpinionTask(path=sample)
    with pytest.raises(ValueError, match="must be one or more different names"):
        GlobalOpinionTask(path=sample, populations=("Japan", "Japan"))
    few = written(tmp_path / "few.jsonl", [row(0)])
    with pytest.raises(ValueError, match=r"'Japan' has \d problems in the split"):
        GlobalOpinionTask(path=few, populations=TWO)
    assert len(POPULATIONS) == 5


def test_gold_letters_score_full_and_garbage_less(sample: Path) -> None:
    reward = {"name": "answer_exact", "form": "text"}
    check = validate(GlobalOpinionTask(path=sample, populations=TWO), Rewards([reward]))
    assert check.ok and check.num_problems > 16, check.complaints
