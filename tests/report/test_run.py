"""The run directory: made at once, never overwritten, and cut back to a checkpoint byte for byte."""

import json
import math
import multiprocessing
from dataclasses import replace

import pytest
import yaml
from report.building import CONFIG, STAGES, evaluation, make_run, report, rows_of, take_step

from outscore.records import StepReport
from outscore.report import RunDirectory, StagePlan
from outscore.report.run import metrics_line


def snapshot(run):
    """Every file but those that hold the clock."""
    clock = {"timing.jsonl", "events.log"}
    found = {path.relative_to(run.path): path for path in run.path.rglob("*")}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file() and path.name not in clock}


def test_a_new_run_holds_its_config_and_stages(tmp_path):
    RunDirectory.create(tmp_path / "runs" / "a", config=CONFIG)
    again = RunDirectory.open(tmp_path / "runs" / "a")
    assert again.stages == STAGES
    assert again.config() == CONFIG == yaml.safe_load((tmp_path / "runs" / "a" / "config.yaml").read_text())
    assert again.metrics() == again.timings() == again.evaluations() == again.group_files() == again.checkpoints() == []


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_an_existing_run_is_never_overwritten(tmp_path, kind):
    there = tmp_path / "a"
    if kind == "directory":
        there.mkdir()
    (there / "notes" if kind == "directory" else there).write_text("precious")
    with pytest.raises(ValueError, match=r"already exists.*outscore resume.*another name, or remove it"):
        RunDirectory.create(there, config=CONFIG)
    assert (there / "notes" if kind == "directory" else there).read_text() == "precious"


def test_an_empty_directory_may_become_a_run(tmp_path):
    (tmp_path / "a").mkdir()
    assert RunDirectory.create(tmp_path / "a", config=CONFIG).config() == CONFIG


def test_what_is_no_run_is_refused_with_the_nearest_that_is(tmp_path):
    make_run(tmp_path / "demo-seed-1")
    with pytest.raises(ValueError, match=r"demo-seed-2 is not a run: it does not exist; did you mean .*demo-seed-1\?"):
        RunDirectory.open(tmp_path / "demo-seed-2")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"it has no run\.json"):
        RunDirectory.open(tmp_path / "other")
    (tmp_path / "demo-seed-1" / "run.json").write_text('{"format": 99, "stages": []}')
    with pytest.raises(ValueError, match="format 99 is newer"):
        RunDirectory.open(tmp_path / "demo-seed-1")


def test_stage_names_are_distinct_and_name_files(tmp_path):
    with pytest.raises(ValueError, match="no name twice"):
        RunDirectory.create(tmp_path / "a", config={"stages": [{"algorithm": "sft", "steps": 1}] * 2})
    with pytest.raises(ValueError, match="letters, digits"):
        StagePlan(name="../x", num_steps=1)


def test_metrics_round_trip_and_stand_in_a_fixed_order():
    values = {"reward": (0.1 + 0.2, 1.0), "entropy": (1.0, 3.0), "loss": (0.0, 0.0), "grad_norm": (math.inf, 1.0)}
    made = StepReport(step=3, policy_version=7, metrics=values, seconds={}, num_tokens=11)
    text = json.dumps(metrics_line("grpo", made), allow_nan=False)
    assert text == (
        '{"stage": "grpo", "step": 3, "policy_version": 7, "num_tokens": 11, '
        '"entropy": 0.3333333333333333, "grad_norm": null, "loss": null, "reward": 0.30000000000000004}'
    )
    assert json.loads(text)["reward"] == 0.1 + 0.2


def test_a_metric_may_not_pose_as_a_column():
    with pytest.raises(ValueError, match="metric 'step' has the name of a column"):
        metrics_line("grpo", report(1, step=3.0))


def test_the_clock_is_kept_apart_from_the_metrics(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    run.append_step("grpo", replace(report(1, reward=1.0), peak_bytes={"rss": 5 << 30}))
    assert set(run.metrics()[0]) == {"stage", "step", "policy_version", "num_tokens", "reward"}
    timing = run.timings("grpo")[0]
    assert timing["peak_bytes/rss"] == 5 << 30
    assert (timing["seconds"], timing["seconds/sample"], timing["seconds/update"]) == (3.0, 2.0, 1.0)
    assert timing["tokens_per_second"] == 20.0


def test_evaluations_round_trip(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    made = evaluation("before SFT", "sft", 0, 0.125)
    run.append_evaluation(made)
    assert run.evaluations() == [made]


def test_an_event_is_one_line_that_no_text_can_break(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    run.log("said\n\x1b[2Jhello")
    assert (tmp_path / "a" / "events.log").read_text().endswith("Z  said\\n\\x1b[2Jhello\n")


@pytest.mark.parametrize(("stage", "step"), [("sft", 1), ("sft", 2), ("grpo", 1), ("grpo", 3), ("grpo", 4)])
def test_truncated_is_what_a_run_stopped_there_would_be(tmp_path, stage, step):
    whole = make_run(tmp_path / "whole")
    stopped = RunDirectory.create(tmp_path / "stopped", config=CONFIG)
    order = [(plan.name, number) for plan in STAGES for number in range(1, plan.num_steps + 1)]
    for name, number in order[: order.index((stage, step)) + 1]:
        take_step(stopped, name, number)
    discarded = whole.truncate_after(stage, step)
    assert snapshot(whole) == snapshot(stopped)
    assert [line["step"] for line in whole.timings()] == [line["step"] for line in stopped.timings()]
    assert discarded.num_steps == len(order) - order.index((stage, step)) - 1


@pytest.mark.parametrize(("stage", "step"), [("sft", 1), ("grpo", 2)])
def test_truncated_and_continued_is_the_uninterrupted_run(tmp_path, stage, step):
    whole, resumed = make_run(tmp_path / "whole"), make_run(tmp_path / "resumed")
    # What a kill in the middle of the next step leaves behind.
    with open(resumed.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"stage": "grpo", "ste')
    (resumed.path / "groups" / "grpo" / ".tmp-step-000005.parquet").write_bytes(b"PAR1")
    (resumed.path / "checkpoints" / "grpo" / ".tmp-step-000005").mkdir()
    (resumed.path / ".tmp-config.yaml").write_text("x")
    resumed.truncate_after(stage, step)
    order = [(plan.name, number) for plan in STAGES for number in range(1, plan.num_steps + 1)]
    for name, number in order[order.index((stage, step)) + 1 :]:
        take_step(resumed, name, number)
    assert snapshot(resumed) == snapshot(whole)


def test_truncation_to_a_stages_beginning_keeps_its_evaluation_at_step_0(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    before = evaluation("before SFT", "sft", 0, 0.0)
    run.append_evaluation(before)
    take_step(run, "sft", 1)
    run.truncate_after("sft", 0)
    assert run.evaluations() == [before]
    assert run.metrics() == []
    run.truncate_after("sft", -1)
    assert run.evaluations() == []


def test_truncation_beyond_what_is_recorded_is_refused(tmp_path):
    run = make_run(tmp_path / "a")
    with pytest.raises(ValueError, match="does not reach step 9 of stage 'grpo'"):
        run.truncate_after("grpo", 9)
    with pytest.raises(ValueError, match="has no stage 'ppo'; it has sft, grpo"):
        run.truncate_after("ppo", 1)


def test_group_files_and_checkpoints_are_listed_in_the_order_of_steps(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    for step in (2, 10, 1, 1_000_000):
        run.write_groups("grpo", step, rows_of(step, [0.0, 1.0]))
    assert [item.step for item in run.group_files()] == [1, 2, 10, 1_000_000]
    assert run.group_files()[0].path.name == "step-000001.parquet"
    assert [(item.stage, item.step) for item in make_run(tmp_path / "b").checkpoints()] == [
        *[("sft", 1), ("sft", 2)],
        *[("grpo", step) for step in (1, 2, 3, 4)],
    ]


def hold(path, ready, done):
    """Hold the lock of a run until told, in another process."""
    with RunDirectory.open(path).lock():
        ready.set()
        done.wait(60)


def test_a_run_has_one_writer(tmp_path):
    run = make_run(tmp_path / "a")
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(run.path, ready, done))
    other.start()
    assert ready.wait(60)
    with pytest.raises(ValueError, match="being written by another process"), run.lock():
        pass
    # A kill leaves no lock behind.
    other.kill()
    other.join()
    with run.lock():
        pass
