"""One's own data: columns mapped, rows held out, and every fault named with file, line and what there is."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from outscore.rewards import Rewards
from outscore.tasks import DataTask, make_task, validate
from outscore.tasks.data import _given

ROWS = [{"question": f"{n}+1=", "answer": n + 1, "level": n % 3} for n in range(100)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def jsonl(tmp_path):
    return write_jsonl(tmp_path / "sums.jsonl", ROWS)


def problems(task):
    return {problem.question: problem for problem in (*task.train_problems(), *task.eval_problems())}


def test_questions_answers_and_other_columns_arrive(jsonl):
    task = make_task("data", path=str(jsonl))
    found = problems(task)
    assert task.name == "sums"
    assert set(found) == {row["question"] for row in ROWS}
    assert found["7+1="].answer == "8"
    assert found["7+1="].columns == {"level": 1}
    assert validate(task, Rewards(["last_number"])).ok


def as_json(path):
    path.write_text(json.dumps(ROWS))


def as_wrapped_json(path):
    path.write_text(json.dumps({"version": 1, "data": ROWS}))


def as_csv(path):
    lines = [f'"{row["question"]}",{row["answer"]},{row["level"]}' for row in ROWS]
    path.write_text("\n".join(["question,answer,level", *lines]) + "\n", encoding="utf-8-sig")


def as_parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    ("ending", "write"), [("json", as_json), ("json", as_wrapped_json), ("csv", as_csv), ("parquet", as_parquet)]
)
def test_every_format_holds_the_same_problems(ending, write, jsonl, tmp_path):
    other = tmp_path / f"same.{ending}"
    write(other)
    expected = problems(DataTask(path=jsonl))
    found = problems(DataTask(path=other))
    assert {question: problem.answer for question, problem in found.items()} == {
        question: problem.answer for question, problem in expected.items()
    }
    assert {int(problem.columns["level"]) for problem in found.values()} == {0, 1, 2}


def test_mapped_columns_keep_their_own_names_for_rewards(tmp_path):
    rows = [
        {"prompt": "1+1=", "solution": "so #### 2", "work": "1+1=2", "key": 5, "who": "de"},
        {"prompt": "1+2="} | {"solution": "so #### 3", "work": None, "key": 6, "who": None},
    ]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    task = DataTask(
        path=path,
        question="prompt",
        answer="solution",
        answer_after="####",
        demonstration="work",
        id="key",
        population="who",
        eval_fraction=0,
    )
    first, second = task.train_problems()
    assert (first.id, first.question, first.answer, first.population) == ("d/5", "1+1=", "2", "de")
    assert (second.answer, second.population) == ("3", None)
    assert first.columns == rows[0]
    [demonstration] = task.demonstrations()
    assert (demonstration.problem, demonstration.response) == (first, "1+1=2")
    assert task.eval_problems() == []


def test_chat_messages_become_the_question_and_a_closing_answer_the_demonstration(tmp_path):
    user, assistant = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    path = write_jsonl(
        tmp_path / "chat.jsonl", [{"messages": [user, assistant]}, {"messages": [user, assistant, user]}]
    )
    task = DataTask(path=path, eval_fraction=0)
    assert [problem.question for problem in task.train_problems()] == [(user,), (user, assistant, user)]
    assert [(each.problem.question, each.response) for each in task.demonstrations()] == [((user,), "hello")]


def test_a_question_column_may_hold_messages(tmp_path):
    user = {"role": "user", "content": "hi"}
    task = DataTask(path=write_jsonl(tmp_path / "d.jsonl", [{"prompt": [user]}]), question="prompt", eval_fraction=0)
    assert task.train_problems()[0].question == (user,)


def test_a_row_s_side_does_not_depend_on_the_other_rows(tmp_path, jsonl):
    whole = DataTask(path=jsonl, eval_fraction=0.3)
    half = DataTask(path=write_jsonl(tmp_path / "sums.jsonl", ROWS[::-1][:50]), eval_fraction=0.3)
    held_out = {problem.id for problem in whole.eval_problems()}
    assert 15 <= len(held_out) <= 45  # 30 expected, 3.3 standard deviations either way
    assert {problem.id for problem in half.eval_problems()} == held_out & {
        problem.id for problem in problems(half).values()
    }


@pytest.mark.parametrize("options", [{}, {"id": "key"}], ids=["by question", "by id"])
def test_a_row_s_side_does_not_depend_on_where_the_rows_lie(tmp_path, options):
    rows = [{**row, "key": f"k{number}"} for number, row in enumerate(ROWS)]
    named = [DataTask(path=write_jsonl(tmp_path / name, rows), **options) for name in ("one.jsonl", "two.jsonl")]
    given = [DataTask(rows=rows, **options), DataTask(path=tmp_path / "one.jsonl", name="mine", **options)]
    held_out = [{problem.question for problem in task.eval_problems()} for task in (*named, *given)]
    assert held_out.count(held_out[0]) == 4 and 1 <= len(held_out[0]) < 30


def test_rows_with_the_same_question_fall_on_the_same_side_under_ids_of_their_own(tmp_path):
    rows = [{"question": str(n % 10), "answer": n} for n in range(40)]
    task = DataTask(path=write_jsonl(tmp_path / "d.jsonl", rows), eval_fraction=0.4)
    train, held_out = task.train_problems(), task.eval_problems()
    assert len(train) + len(held_out) == 40
    assert {each.question for each in train}.isdisjoint(each.question for each in held_out)
    assert len({each.id for each in (*train, *held_out)}) == 40


def test_training_rows_whose_question_is_held_out_are_left_out(tmp_path, jsonl):
    held_out = write_jsonl(tmp_path / "test.jsonl", [*ROWS[:5], {"question": "new", "answer": 0}])
    task = DataTask(path=jsonl, eval_path=held_out)
    assert (len(task.train_problems()), len(task.eval_problems()), task.num_left_out) == (95, 6, 5)


@pytest.mark.parametrize("options", [{"path": "sums.jsonl", "eval_fraction": 1}, {"eval_path": "sums.jsonl"}])
def test_a_task_can_be_there_to_be_evaluated_on_alone(jsonl, monkeypatch, options):
    monkeypatch.chdir(jsonl.parent)
    task = make_task("data", **options)
    assert (task.name, len(task.eval_problems()), list(task.train_problems())) == ("sums", 100, [])
    assert len({problem.id for problem in task.eval_problems()}) == 100
    assert len(make_task("data", **options, num_eval=7).eval_problems()) == 7


def test_a_single_row_cannot_be_held_out_and_trained_on(tmp_path):
    with pytest.raises(ValueError, match="no training row of 'd' is left"):
        DataTask(path=write_jsonl(tmp_path / "d.jsonl", ROWS[:1]))


def test_at_least_one_row_is_held_out_of_a_small_file(tmp_path):
    for count in (2, 3, 5):
        task = DataTask(path=write_jsonl(tmp_path / "d.jsonl", ROWS[:count]), eval_fraction=0.01)
        assert (len(task.train_problems()), len(task.eval_problems())) == (count - 1, 1)


def test_counts_limit_both_sides(jsonl):
    task = DataTask(path=jsonl, num_train=7, num_eval=3, eval_fraction=0.2)
    assert (len(task.train_problems()), len(task.eval_problems())) == (7, 3)


BAD_FILES = {
    "bad JSON": ("d.jsonl", '{"question": "a"}\n\n{"question": \n', r"d\.jsonl:3: bad JSON: Expecting value"),
    "bad JSON file": ("d.json", '[{"question": "a"},\n{"question" "b"}]', r"d\.json:2: bad JSON: Expecting ':'"),
    "no object": ("d.jsonl", '{"question": "a"}\n[1]\n', r"d\.jsonl:2: must be an object with columns, not list"),
    "no list": ("d.json", '"a"', r"d\.json: must hold a list of objects"),
    "empty": ("d.jsonl", "\n\n", r"d\.jsonl: the data set is empty"),
    "empty CSV": ("d.csv", "question,answer\n", r"d\.csv: the data set is empty"),
    "ragged CSV": ("d.csv", "question,answer\na,1\nb\n", r"d\.csv:3: the row has not the header's 2 fields"),
    "long CSV": ("d.csv", "question,answer\na,1,2\n", r"d\.csv:2: the row has not the header's 2 fields"),
    "bad CSV": ("d.csv", 'question,answer\n"a"b,1\n', r"d\.csv:2: bad CSV"),
    "no Parquet": ("d.parquet", "not parquet", r"d\.parquet: not a readable Parquet file"),
    "unknown ending": ("d.txt", "a", r"d\.txt: files end in \.jsonl.*, not '\.txt'"),
    "missing column": (
        "d.jsonl",
        '{"query": "a", "gold": 1}',
        r"d\.jsonl:1: no column 'question' \(for question\); "
        r"present: 'query', 'gold'",
    ),
    "missing in a row": (
        "d.jsonl",
        '{"question": "a"}\n{"q": "b"}',
        r"d\.jsonl:2: the row has no 'question'.*it has: 'q'",
    ),
    "no text": ("d.jsonl", '{"question": 3}', r"d\.jsonl:1: 'question' must be text or a list of messages, not 3"),
    "bad message": ("d.jsonl", '{"messages": [{"role": "user"}]}', r"d\.jsonl:1: 'messages' must be messages such as"),
    "only an answer": ("d.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', "nothing before it"),
    "odd answer": (
        "d.jsonl",
        '{"question": "a", "answer": [1]}',
        r"d\.jsonl:1: 'answer' must be text or a number, not list",
    ),
    "reserved": ("d.jsonl", '{"question": "a", "completions": 1}', r"the column 'completions' must be renamed"),
    "one row": ("d.jsonl", '{"question": "a"}', r"no training row of 'd' is left"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named_with_their_line(case, tmp_path):
    name, content, complaint = BAD_FILES[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=complaint):
        DataTask(path=tmp_path / name)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(ValueError, match=r"d\.jsonl: not UTF-8 text"):
        DataTask(path=tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "give either path .* or hub"),
        ({"path": "sums.jsonl", "hub": "a/b"}, "give either path .* or hub"),
        ({"path": "sumz.jsonl"}, r"no such file; did you mean `sums.jsonl`\?"),
        ({"path": "nowhere/sums.jsonl"}, "there is no directory nowhere"),
        ({"path": "sums.jsonl", "eval_split": "test"}, "eval_split='test' is for hub"),
        ({"path": "sums.jsonl", "eval_fraction": 1.5}, r"eval_fraction=1\.5 must be from 0 to 1"),
        ({"path": "sums.jsonl", "eval_path": "sums.jsonl"}, "no training row .* is left .*give eval_path alone"),
        ({"path": "sums.jsonl", "num_eval": 0}, "num_eval=0 must be at least 1"),
        ({"path": "sums.jsonl", "question": "question", "messages": "m"}, "exclude each other"),
        (
            {"path": "sums.jsonl", "answer": "gold"},
            r"no column 'gold' \(for answer\); present: 'question', 'answer', 'level'",
        ),
        ({"path": "sums.jsonl", "answer_after": "####"}, r"sums\.jsonl:1: 'answer' has no '####' in it: '1'"),
        ({"path": "sums.jsonl", "id": "level"}, r"sums\.jsonl:4: the id 0 is already that of sums\.jsonl:1"),
    ],
)
def test_impossible_options_are_named(options, complaint, jsonl, monkeypatch):
    monkeypatch.chdir(jsonl.parent)
    with pytest.raises(ValueError, match=complaint):
        DataTask(**options)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"train": ROWS}, "rows must be a task or one mapping a problem.*several splits"),
        (7, "got int"),
        ("rows.jsonl", "got str"),
        (["question"], r"rows\[0\] is str 'question'"),
        ([], "rows is empty"),
    ],
)
def test_what_a_script_hands_over_and_is_no_rows_is_refused_with_what_is_wanted(given, part):
    with pytest.raises(ValueError, match=part):
        _given(given)


def test_a_column_that_a_row_leaves_out_is_an_empty_one(tmp_path):
    """So that a prompt template which names it says so, and does not write its name."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "1", "context": "c"}\n{"question": "b", "answer": "2"}\n')
    task = make_task("data", path=str(path), eval_fraction=0)
    assert [problem.columns for problem in task.train_problems()] == [{"context": "c"}, {"context": None}]
