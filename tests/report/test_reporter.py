"""The reporter: disk before screen, alarms once, and the same files whoever watches."""

import io

import rich.console
from report.building import CONFIG, evaluation, report, rows_of

from outscore.report import Console, Reporter, RunDirectory


class Told:
    """A tracker that remembers."""

    def __init__(self):
        self.values, self.closed = [], False

    def log(self, stage, step, values):
        self.values.append((stage, step, dict(values)))

    def close(self):
        self.closed = True


def drive(run, reporter, first=1):
    reporter.stage_started("grpo", 4)
    for step in range(first, 5):
        rows = rows_of(step, [0.0, 0.0]) + rows_of(step, [0.0, 1.0], attempt=1, problem="p/9")
        reporter.step(report(step, reward=0.5, grad_norm=float("nan") if step > 2 else 1.0), rows)
    reporter.evaluation(evaluation("after GRPO", "grpo", 4, 0.5))
    reporter.close(run.evaluations())


def test_a_step_is_on_disk_on_screen_and_with_the_trackers(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    out, told = rich.console.Console(file=io.StringIO(), width=80), Told()
    drive(run, Reporter(run, console=Console(rich_console=out), trackers=[told]))
    text = out.file.getvalue()
    assert [line["step"] for line in run.metrics("grpo")] == [1, 2, 3, 4]
    assert len(run.group_files()) == 4
    assert told.values[0] == (
        "grpo",
        1,
        {"reward": 0.5, "grad_norm": 1.0, "seconds/sample": 2.0, "seconds/update": 1.0},
    )
    # What is not finite is left out, not sent as something else.
    assert "grad_norm" not in told.values[2][2]
    assert told.values[-1][2]["eval/pass@1"] == 0.5
    assert told.closed
    # Of a slot that was refilled the last attempt is the one to show.
    assert "p/9" in text
    assert "p/0" not in text
    assert "200 held-out" in text
    assert "weights 1e7c8a1c726e…" in text


def test_an_alarm_is_told_once_on_screen_and_in_the_log(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    out = rich.console.Console(file=io.StringIO(), width=80)
    drive(run, Reporter(run, console=Console(rich_console=out)))
    assert out.file.getvalue().count("grad_norm is nan") == 1
    assert (run.path / "events.log").read_text().count("alarm: grad_norm is nan") == 1


def test_the_files_do_not_depend_on_who_watches(tmp_path):
    watched = RunDirectory.create(tmp_path / "a", config=CONFIG)
    alone = RunDirectory.create(tmp_path / "b", config=CONFIG)
    out = rich.console.Console(file=io.StringIO(), width=80)
    drive(watched, Reporter(watched, console=Console(rich_console=out), trackers=[Told()]))
    drive(alone, Reporter(alone))
    for name in ("metrics.jsonl", "evals.jsonl", "groups/grpo/step-000003.parquet"):
        assert (watched.path / name).read_bytes() == (alone.path / name).read_bytes()


def test_a_failed_step_raises_its_alarm_and_is_not_recorded(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    reporter = Reporter(run)
    reporter.stage_started("grpo", 4)
    said = reporter.failed(1, {"grad_norm": float("inf")})
    assert said == "grad_norm is inf. Lower the learning rate, or set precision: fp32."
    assert f"alarm: {said}" in (run.path / "events.log").read_text()
    assert run.metrics() == []


def test_the_console_is_told_which_stages_follow(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    out = rich.console.Console(file=io.StringIO(), width=80)
    reporter = Reporter(run, console=Console(rich_console=out))
    reporter.stage_started("sft", 2)
    reporter.step(report(1, loss=1.0))
    reporter.stage_ended("ended early")
    assert "left, then grpo" in out.file.getvalue() and "sft: ended early" in out.file.getvalue()
    assert "sft: ended early" in (run.path / "events.log").read_text()
