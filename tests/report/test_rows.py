"""Group files: what goes in comes out, with any reader, and the same rows are the same bytes."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report.building import given_groups, rows_of, scored_group

from outscore.report.rows import completion_rows, given_rows, read_parquet, read_rewards, to_parquet


def many_rows():
    groups = [
        scored_group([0.5, None], slot=0),
        scored_group([1.5, 0.75], slot=1, problem="p/1", text="[red]x\x1b[31m"),
    ]
    return completion_rows(
        stage="grpo",
        step=12,
        groups=groups,
        advantages=[[0.0, None], [1.0, -1.0]],
        extracted=["277", None, "277", "3"],
        correct=[True, None, True, False],
        extra_columns={
            "num_digits": [3, None, 3, 1],
            "is_short": [True] * 4,
            "note": [None] * 4,
            "found": [[1], {}, "x", 2],
        },
    )


def test_rows_hold_what_the_records_held():
    rows = many_rows()
    assert [row.sample for row in rows] == [0, 1, 0, 1]
    assert [row.slot for row in rows] == [0, 0, 1, 1]
    assert [row.reward for row in rows] == [0.5, None, 1.5, 0.75]
    assert [row.advantage for row in rows] == [0.0, None, 1.0, -1.0]
    assert rows[1].failure == "answer: ZeroDivisionError: division by zero"
    assert rows[2].parts == {"format": 0.5, "answer": 1.0}
    assert (rows[2].question, rows[2].prompt, rows[2].answer) == ("325-28-20", "325-28-20=", "277")
    assert rows[3].extra["num_digits"] == 1


def test_what_is_written_is_read_back(tmp_path):
    rows = many_rows()
    path = tmp_path / "step.parquet"
    path.write_bytes(to_parquet(rows))
    back = read_parquet(path)
    for before, after in zip(rows, back, strict=True):
        for name in ("reward", "failure", "advantage", "response", "token_ids", "counts", "extracted", "correct"):
            assert getattr(after, name) == getattr(before, name)
        # Log-probs are kept in single precision.
        assert after.sampler_logprobs == tuple(float(np.float32(value)) for value in before.sampler_logprobs)
    # A reward that a failed completion never got is absent, and is no zero.
    assert back[1].parts == {"format": None, "answer": None}
    assert read_parquet(path, problem_id="p/1") == back[2:]
    assert read_rewards(path) == [(0, 0, 0.5), (0, 0, None), (1, 0, 1.5), (1, 0, 0.75)]


def test_given_completions_are_rows_without_what_sampling_and_scoring_say(tmp_path):
    pulls = [(0.25, 0.0, 0.25), (-0.5, -0.5), (0.5, 0.5)]
    rows = given_rows(stage="dpo", step=4, groups=given_groups(), coefficients=pulls)
    assert [(row.slot, row.sample, row.rank, row.response) for row in rows] == [
        (0, 0, None, "277"),
        (1, 0, 1, "2"),
        (1, 1, 0, "20"),
    ]
    path = tmp_path / "step.parquet"
    path.write_bytes(to_parquet(rows))
    assert read_parquet(path) == rows  # quarters and halves are exact in float32
    for row, pull in zip(rows, pulls, strict=True):
        assert row.was_given and (row.problem_id, row.population, row.prompt) == ("p/3", "adults", "7-5=")
        assert row.coefficients == pull and len(row.token_ids) == len(row.counts) == len(pull)
        assert (row.reward, row.advantage, row.finish, row.policy_version, row.sampler_logprobs) == (None,) * 5
    assert read_rewards(path) == [(0, 0, None), (1, 0, None), (1, 0, None)]
    assert not any(row.was_given for row in many_rows())
    assert pq.read_schema(path).types == pq.read_schema(_sampled_file(tmp_path)).types


def _sampled_file(folder):
    rows = completion_rows(stage="g", step=1, groups=[scored_group([None])], advantages=[[None]])
    (folder / "sampled.parquet").write_bytes(to_parquet(rows))
    return folder / "sampled.parquet"


def test_the_same_rows_are_the_same_bytes():
    assert to_parquet(many_rows()) == to_parquet(many_rows())
    assert to_parquet(many_rows()) != to_parquet(many_rows()[::-1])


def test_pandas_and_pyarrow_read_a_group_file(tmp_path):
    path = tmp_path / "step.parquet"
    path.write_bytes(to_parquet(many_rows()))
    frame = pd.read_parquet(path)
    assert len(frame) == 4
    assert frame["reward/answer"].tolist()[2:] == [1.0, 0.25]
    assert frame["token_ids"][0].tolist() == [5, 6, 2]
    schema = pq.read_schema(path)
    assert schema.field("token_ids").type == pa.list_(pa.field("element", pa.int32()))
    assert schema.field("sampler_logprobs").type == pa.list_(pa.field("element", pa.float32()))
    assert schema.field("extra/num_digits").type == pa.float64()
    assert schema.field("extra/is_short").type == pa.bool_()
    assert schema.field("extra/note").type == pa.string()
    assert frame["extra/found"].tolist() == ["[1]", "{}", "x", "2"]


def test_files_of_many_steps_read_as_one_table(tmp_path):
    for step in (1, 2):
        (tmp_path / f"step-{step:06d}.parquet").write_bytes(to_parquet(rows_of(step, [0.0, 1.0])))
    assert pd.read_parquet(tmp_path)["step"].tolist() == [1, 1, 2, 2]


def test_text_that_has_no_utf8_is_kept_as_an_escape(tmp_path):
    path = tmp_path / "step.parquet"
    path.write_bytes(to_parquet(rows_of(1, [0.0, 1.0], text="a\ud800b")))
    assert read_parquet(path)[0].response == "a\\ud800b"


def test_a_column_of_the_wrong_length_is_our_own_fault():
    with pytest.raises(AssertionError, match="4 values for 3 completions"):
        given_rows(stage="g", step=1, groups=given_groups(), coefficients=[None] * 4)
    with pytest.raises(AssertionError, match="1 values for 2 completions"):
        completion_rows(stage="g", step=1, groups=[scored_group([0.0, 1.0])], advantages=[[0.0, 0.0]], correct=[True])
