"""The live view at 80 columns, its plain-line form, and model text that stays text."""

import io
import itertools

import pytest
import rich.console
from report.building import evaluation, given_groups, report, rows_of
from rich.cells import cell_len

from outscore.report import Console, given_rows, views

METRICS = {"reward": 1.25, "accuracy": 0.625, "zero_variance": 0.125, "completion_length": 33.0, "lr": 1e-5}
METRICS |= {"reward_std": 0.5, "truncated": 0.0, "entropy": 0.5, "ref_kl": 1e-3, "clip_fraction_high": 0.01}
HOSTILE = "[red]x[/red] [link=http://e.vil]y[/link] \x1b[2J\x1b]0;owned\x07 \u202eabc\nlast"


def terminal(width=80, *, height=50, is_terminal=True, term="xterm-256color", color=None):
    return rich.console.Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=is_terminal,
        color_system=color,
        legacy_windows=False,
        _environ={"TERM": term},
    )


def rendered(renderable, width=80):
    out = terminal(width, is_terminal=False)
    out.print(renderable)
    return out.file.getvalue().splitlines()


def play(out, *, text="277", steps=6):
    console = Console(title="demo", rich_console=out, clock=itertools.count().__next__)
    console.stage_started("sft", 2)
    for step in (1, 2):
        console.step(report(step, loss=1.0 / step, lr=1e-3))
    console.stage_started("grpo", steps)
    for step in range(1, steps + 1):
        console.step(report(step, **METRICS), rows_of(step, [0.5, 1.5, None], text=text))
    evaluations = [evaluation("before SFT", "sft", 0, 0.01), evaluation("after GRPO", "grpo", steps, 0.93)]
    for found in evaluations:
        console.evaluation(found)
    console.close(evaluations)
    console.close()
    return out.file.getvalue()


def last_frame(output):
    return output[output.rindex("demo\n") :].splitlines()


def test_the_live_view_fits_80_columns_and_shows_what_matters():
    frame = last_frame(play(terminal()))
    assert all(cell_len(line) <= 80 for line in frame), [line for line in frame if cell_len(line) > 80]
    text = "\n".join(frame)
    for expected in ("6/6", "reward ", "accuracy ", "62.5 %", "▁", "zero_variance 12.5 %", "325-28-20", "gold: 277"):
        assert expected in text
    assert "failed" in text
    assert "answer: ZeroDivisionError" in text


def test_a_stage_without_rewards_shows_its_loss():
    out = terminal()
    console = Console(title="demo", rich_console=out, clock=itertools.count().__next__)
    console.stage_started("sft", 3)
    console.step(report(1, loss=2.5, lr=1e-3))
    frame = "\n".join(last_frame(out.file.getvalue()))
    assert "loss          2.500" in frame
    assert "reward" not in frame
    assert "0:06 left" in frame
    console.close()


def test_later_stages_are_named_and_no_time_is_promised_for_them():
    out = terminal()
    console = Console(title="demo", rich_console=out, clock=itertools.count().__next__)
    console.stage_started("sft", 3, later={"grpo": 160})
    console.step(report(1, loss=2.5))
    [row] = [line for line in last_frame(out.file.getvalue()) if line.startswith("grpo")]
    assert row.split()[-3:] == ["0/160", "to", "come"]
    console.stage_started("grpo", 160)
    assert "to come" not in "\n".join(last_frame(out.file.getvalue()))
    console.close()
    lines = terminal(is_terminal=False)
    console = Console(rich_console=lines)
    console.stage_started("sft", 3, later={"grpo": 160})
    console.step(report(1, loss=2.5))
    assert "sft 1/3  0:06 left, then grpo  loss 2.500" in lines.file.getvalue()


def test_a_stage_that_was_stopped_early_has_no_time_left():
    out = terminal()
    console = Console(title="demo", rich_console=out, clock=itertools.count().__next__)
    console.stage_started("grpo", 10)
    console.step(report(4, reward=1.0))
    assert "0:18 left" in "\n".join(last_frame(out.file.getvalue()))
    console.stage_ended()
    frame = "\n".join(last_frame(out.file.getvalue()))
    assert "4/10" in frame and "left" not in frame
    console.close()


def test_a_resumed_stage_goes_on_where_it_was():
    out = terminal()
    console = Console(title="demo", rich_console=out, clock=itertools.count().__next__)
    console.stage_started("grpo", 10, [{"reward": 0.0}, {"reward": 1.0}])
    console.step(report(3, reward=2.0))
    frame = "\n".join(last_frame(out.file.getvalue()))
    assert "3/10" in frame
    assert "▁▅█" in frame
    console.close()


@pytest.mark.parametrize("out", [terminal(is_terminal=False), terminal(term="dumb")], ids=["no terminal", "TERM=dumb"])
def test_without_a_terminal_there_are_lines_and_no_escapes(out):
    text = play(out)
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0] == "sft: 2 steps"
    (line,) = [line for line in lines if line.startswith("grpo 1/6")]
    assert line.startswith("grpo 1/6  0:15 left  reward 1.250  accuracy 62.5 %  reward_std 0.500")
    # 3 s a step and a line every 5 s, beside the first and the last.
    assert [line.split()[1] for line in lines if line.startswith("grpo ") and "left" in line] == [
        *("1/6", "3/6", "5/6", "6/6")
    ]


@pytest.mark.parametrize("live", [True, False])
def test_model_text_is_shown_and_never_obeyed(live):
    out = terminal(200, is_terminal=live, color="standard" if live else None)
    text = play(out, text=HOSTILE)
    assert "[red]x[/red]" in text
    assert "\\x1b[2J\\x1b]0;owned\\x07" in text
    assert "\x1b[2J" not in text
    assert "\x1b]" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "\x1b[31mx" not in text


def test_a_group_at_80_columns_line_by_line():
    rows = rows_of(3, [0.5, 1.5], text="<answer>\n277\n</answer>")
    assert [line.rstrip() for line in rendered(views.group_view(rows, 80))] == [
        "grpo step 3 · p/0",
        "325-28-20   gold: 277",
        "response                                   answer  format  reward advant.  ended",
        "─" * 80,
        "<answer>\\n277\\n</answer>                    0.000   0.500   0.500   -0.50   stop",
        "<answer>\\n277\\n</answer>                    1.000   0.500   1.500   +0.50   stop",
    ]


def test_a_given_group_fits_80_columns():
    pulls = [(0.0,) * 3, (-1 / 3,) * 2, (1 / 3,) * 2]
    rows = given_rows(stage="dpo", step=1, groups=given_groups(), coefficients=pulls)[1:]
    assert [line.rstrip() for line in rendered(views.group_view(rows, 80))] == [
        "dpo step 1 · p/3",
        "7-5",
        "response                                                        rank mean coeff.",
        "─" * 80,
        "2                                                                  1    -3.3e-01",
        "20                                                                 0    +3.3e-01",
    ]


@pytest.mark.parametrize("text", ["数" * 300, "word " * 200, "x" * 1000, HOSTILE * 9, ""])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_group_never_overflows(text, width):
    rows = rows_of(3, [0.5] * 12, text=text, problem="q" * 200)
    lines = rendered(views.group_view(rows, width, max_rows=5), width)
    assert all(cell_len(line) <= width for line in lines)
    assert len(lines) <= 4 + 2 * 5 + 1
    assert lines[-1] == "… 7 more"


def test_the_table_of_evaluations_fits_80_columns_with_every_interval():
    found = evaluation("before supervised fine-tuning", "sft", 0, 0.93)
    full = dict.fromkeys(found.metrics, (0.88, 0.98))
    lines = rendered(views.evaluation_table([type(found)(**{**fields(found), "intervals": full})] * 3))
    assert all(cell_len(line) <= 80 for line in lines)
    assert lines[0].split() == ["200", "held-out", "greedy", "%", "pass@1", "%", "pass@8", "%", "maj@8", "%"]
    assert lines[2].split()[-2:] == ["93.0", "±5.0"]
    assert "…" not in "".join(lines[:1])


def test_the_table_of_evaluations_shows_pass_at_one_and_at_all_samples():
    found = evaluation("after grpo", "grpo", 3, 0.5)
    more = {**found.metrics, "pass@2": 0.6, "pass@4": 0.7}
    assert rendered(views.evaluation_table([type(found)(**{**fields(found), "metrics": more})])) == rendered(
        views.evaluation_table([found])
    )


def fields(found):
    return {name: getattr(found, name) for name in type(found).__dataclass_fields__}


def test_metrics_are_packed_whole():
    assert views.pack(["aa 1", "bb 2", "cc 3"], 11) == ["aa 1 · bb 2", "cc 3"]
    assert views.pack(["aaaa"], 2) == ["aaaa"]


def test_evaluation_metrics_stand_in_the_order_people_read_them():
    assert views.ordered({"reward", "maj@8", "pass@8", "pass@1", "greedy", "pass@16"}) == [
        *("greedy", "pass@1", "pass@8", "pass@16", "maj@8", "reward")
    ]
