"""A file of completions scored at the shell and from Python, against numbers worked by hand."""

import json

import pytest
from typer.testing import CliRunner

from outscore.cli import app
from outscore.report.spread import histogram
from outscore.train.score import Spread, score_file, spreads

ROWS = [
    {"question": "2+2=", "answer": 4, "completion": "2+2=4. It is 4."},
    {"question": "3+4=", "answer": 7, "completion": "3+4=8"},
    {"question": "2+2=", "answer": 4, "completion": "2+2=5"},
    {"question": "What?", "answer": None, "completion": "4"},
]


@pytest.fixture
def path(tmp_path):
    return written(tmp_path, ROWS)


def written(tmp_path, rows):
    file = tmp_path / "completions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_rows_are_scored_in_the_order_of_the_file(path):
    rows, _ = score_file(path, ["last_number", "{name: equations_hold, weight: 0.5}"])
    assert [row.parts["last_number"] for row in rows] == [1.0, 0.0, 0.0, None]
    assert [row.parts["equations_hold"] for row in rows] == [1.0, 0.0, 0.0, 0.0]
    assert [row.total for row in rows] == [1.5, 0.0, 0.0, 0.0]
    assert rows[1].where == f"{path}:2"


def test_a_completion_that_cannot_be_scored_is_a_row_with_a_reason(path):
    rows, _ = score_file(path, ["last_number"])
    assert rows[3].total is None and "does not apply" in rows[3].failure
    [found] = spreads(rows, ["last_number"])
    assert found.summary() == {
        "count": 3,
        "without": 1,
        "mean": pytest.approx(1 / 3),
        "std": pytest.approx((2 / 9) ** 0.5),
        "min": 0.0,
        "median": 0.0,
        "max": 1.0,
    }


def test_rows_with_one_question_are_a_group(tmp_path):
    rows = [{"prompt": q, "response": r, "token_ids": [1] * len(r)} for q, r in (("a", "x"), ("b", "x"), ("a", "xxx"))]
    found, _ = score_file(written(tmp_path, rows), ["{name: target_length, target: 3, within: 2, normalise: group}"])
    assert [row.total for row in found] == [-1.0, 0.0, 1.0]


def test_rows_that_differ_in_a_column_are_no_group_unless_they_say_so(tmp_path):
    (tmp_path / "mine.py").write_text("def mine(completions, tests):\n    return [float(test) for test in tests]\n")
    rows = [{"question": "q", "answer": "a", "completion": "c", "tests": n} for n in (1, 2, 2)]
    found, _ = score_file(written(tmp_path, rows), [f"{tmp_path}/mine.py:mine"])
    assert [row.total for row in found] == [1.0, 2.0, 2.0]


def test_columns_reach_the_rewards_where_they_are_the_same_in_a_group(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def mine(completions, level, other=None, **_):\n    return [n if other is None else -1 for n in level]\n"
    )
    rows = [{"id": "p", "question": "a", "completion": "x", "level": 3, "other": n} for n in range(2)]
    found, _ = score_file(written(tmp_path, rows), [f"{tmp_path}/mine.py:mine"])
    assert [row.total for row in found] == [3.0, 3.0]


def test_what_is_missing_is_named(tmp_path, path):
    with pytest.raises(ValueError, match="reward 'soft_overlong' asks for the tokens; give a column completion_ids or"):
        score_file(path, ["{name: soft_overlong, max_length: 4, cache: 2}"])
    with pytest.raises(ValueError, match="needs one of the columns completion, response, text"):
        score_file(written(tmp_path, [{"question": "a", "answer": "b"}]), ["fluency"])
    with pytest.raises(ValueError, match=r"completions.jsonl:1: completion = 3 must be text"):
        score_file(written(tmp_path, [{"completion": 3}]), ["fluency"])
    with pytest.raises(ValueError, match="there is no reward 'flueny'; did you mean `fluency`"):
        score_file(path, ["flueny"])


def test_bins_are_of_equal_width_and_hold_every_value():
    values = tuple(float(n) for n in range(21))
    bins = Spread(name="r", values=values, num_without=0).histogram(10)
    assert [(low, high) for low, high, _ in bins] == [(2.0 * n, 2.0 * n + 2) for n in range(10)]
    assert [count for *_, count in bins] == [2] * 9 + [3]
    assert Spread(name="r", values=(1.0, 0.0, 1.0), num_without=0).histogram(10) == [(0.0, 0.0, 1), (1.0, 1.0, 2)]
    assert Spread(name="r", values=(), num_without=2).histogram(10) == []


def test_bars_are_as_long_as_their_share():
    lines = [line.plain for line in histogram("r", [(0.0, 0.5, 10), (0.5, 1.0, 5), (1.0, 1.5, 0)], 40)]
    assert max(map(len, lines)) <= 40
    assert [line.count("█") for line in lines[1:]] == [18, 9, 0]


def test_the_command_prints_a_table_and_histograms(path):
    done = CliRunner(env={"COLUMNS": "80"}).invoke(
        app, ["score", "--reward", "equations_hold", "--reward", "fluency", "--data", str(path)]
    )
    assert done.exit_code == 0, done.output
    assert all(word in done.output for word in ("equations_hold", "fluency", "total", "mean", "█"))
    assert max(map(len, done.output.splitlines())) <= 80


def test_the_command_prints_every_score_as_data(path):
    done = CliRunner().invoke(app, ["score", "--reward", "last_number", "--data", str(path), "--json"])
    said = json.loads(done.output)
    assert [row["total"] for row in said["rows"]] == [1.0, 0.0, 0.0, None]
    assert said["summary"]["last_number"]["count"] == 3


def test_the_command_says_what_is_wrong_and_that_nothing_was_scored(tmp_path, path):
    missing = CliRunner().invoke(app, ["score", "--reward", "fluency", "--data", str(tmp_path / "none.jsonl")])
    assert missing.exit_code == 1
    rows = [{"question": "a", "completion": "b", "answer": None}]
    nothing = CliRunner().invoke(app, ["score", "--reward", "last_number", "--data", str(written(tmp_path, rows))])
    assert nothing.exit_code == 1 and "1 could not be scored, the first:" in nothing.output
