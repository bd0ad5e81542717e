"""`outscore show` on a run made by hand."""

import io
import json
import re
from dataclasses import replace

import pytest
import rich.console
from report.building import CONFIG, WEIGHTS, given_groups, make_run, rows_of
from rich.cells import cell_len

from outscore.model.tiny import tiny_model
from outscore.report import RunDirectory, given_rows, show_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "hand")


def shown(run, **options):
    out = rich.console.Console(file=io.StringIO(), width=80)
    data = show_run(run.path, console=out, **options)
    return data, out.file.getvalue()


def test_the_summary_holds_stages_curves_evaluations_and_the_best(run):
    data, text = shown(run)
    assert data["config"] == CONFIG
    assert [(stage["name"], stage["steps_done"], stage["seconds"]) for stage in data["stages"]] == [
        ("sft", 2, 6.0),
        ("grpo", 4, 12.0),
    ]
    assert data["stages"][0]["curves"] == {"loss": [1.0, 0.5]}
    assert data["stages"][1]["curves"]["reward"] == [0.625, 0.75, 0.875, 1.0]
    assert data["best"]["metric"] == "greedy"
    assert (data["best"]["stage"], data["best"]["step"]) == ("grpo", 4)
    assert len(data["checkpoints"]) == 6
    assert "grpo: finished" in data["events"][-1]
    assert data["weights_sha256"] == WEIGHTS
    for expected in (
        "weights 1e7c8a1c726e…",
        "grpo  4/4 steps, 0:12",
        "▁▃▆█",
        "best by greedy: grpo step 4",
        "checkpoints/grpo/step-000004",
    ):
        assert expected in text
    # The path itself may be longer than the screen and is never cut.
    assert all(cell_len(line) <= 80 for line in text.splitlines()[4:])


def test_the_summary_of_one_stage_leaves_the_others_out(run):
    data, text = shown(run, stage="sft")
    assert [stage["name"] for stage in data["stages"]] == ["sft"]
    assert [(found["stage"], found["step"]) for found in data["evaluations"]] == [("sft", 1), ("sft", 2)]
    assert (data["best"]["stage"], len(data["checkpoints"])) == ("sft", 2)
    assert "sft  2/2 steps" in text and "grpo  4/4" not in text
    with pytest.raises(ValueError, match=r"'nope': .* has sft, grpo"):
        shown(run, stage="nope")


def test_json_is_the_same_data(run):
    data, text = shown(run, as_json=True)
    assert json.loads(text) == json.loads(json.dumps(data))


def steps_and_slots(data):
    return [(group[0]["step"], group[0]["slot"]) for group in data["groups"]]


def test_best_and_worst_rank_groups_by_mean_reward(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    for step, rewards in ((1, [0.0, 1.0]), (2, [0.0, 0.0]), (3, [1.0, 1.0]), (4, [None, 0.25])):
        run.write_groups("grpo", step, rows_of(step, rewards))
    # Means 0.5, 0, 1 and, over what could be scored, 0.25.
    assert steps_and_slots(shown(run, best=True)[0]) == [(3, 0), (1, 0), (4, 0)]
    assert steps_and_slots(shown(run, worst=True)[0]) == [(2, 0), (4, 0), (1, 0)]
    with pytest.raises(ValueError, match="one at a time"):
        show_run(run.path, best=True, worst=True)


def test_a_step_shows_its_groups(run):
    data, text = shown(run, step=2)
    assert steps_and_slots(data) == [(2, 0), (2, 1)]
    assert "grpo step 2 · p/1" in text
    assert data["groups"][0][0]["response"] == "277"
    with pytest.raises(ValueError, match=r"step 9: .*groups of steps 1 to 4"):
        shown(run, step=9)
    with pytest.raises(ValueError, match="no groups in stage 'sft'"):
        shown(run, step=1, stage="sft")
    with pytest.raises(ValueError, match="has sft, grpo"):
        shown(run, step=1, stage="ppo")


def test_one_prompt_across_steps(run):
    data, _ = shown(run, prompt="p/1")
    assert steps_and_slots(data) == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert [group[0]["reward"] for group in data["groups"]] == [0.75, 1.0, 1.25, 1.5]
    assert steps_and_slots(shown(run, prompt="p/1", best=True)[0])[0] == (4, 1)
    with pytest.raises(ValueError, match=r"'p/7' is not in these groups; the nearest that are: p/"):
        shown(run, prompt="p/7")


def test_a_run_in_progress_can_be_looked_at(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    assert shown(run)[0]["stages"][1]["steps_done"] == 0
    with pytest.raises(ValueError, match="no groups yet"):
        shown(run, best=True)
    run = make_run(tmp_path / "b")
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"stage": "grpo", "step": 5, "rew')
    (run.path / "groups" / "grpo" / ".tmp-step-000005.parquet").write_bytes(b"PAR1 half")
    data, _ = shown(run, best=True)
    assert data["stages"][1]["steps_done"] == 4


def test_text_of_a_model_stays_text(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    run.write_groups("grpo", 1, rows_of(1, [0.0, 1.0], text="[bold]x[/bold] \x1b[2J"))
    _, text = shown(run, step=1)
    assert "[bold]x[/bold] \\x1b[2J" in text
    assert "\x1b" not in text


def test_a_completion_is_shown_token_by_token_with_the_coefficient_that_was_applied(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    row, left_out = rows_of(1, [1.5, None])
    row = replace(row, coefficients=(0.0125, -3e-4, 0.0), step_ends=(0, 2), step_rewards=(0.5, 1.0))
    run.write_groups("grpo", 1, [row, replace(left_out, counts=(True, False, True))])
    data, text = shown(run, step=1, sample=0)
    assert [[shown_row["sample"] for shown_row in group] for group in data["groups"]] == [[0]]
    assert data["groups"][0][0]["coefficients"] == pytest.approx(row.coefficients, rel=1e-6)
    lines = [line.split() for line in text.splitlines()]
    assert ["0", "#5", "-0.100", "+1.250e-02", "0.5"] in lines
    assert ["1", "#6", "-0.250", "-3.000e-04"] in lines
    assert ["2", "#2", "-0.333", "0", "1"] in lines
    assert "reward 1.5, advantage +0.5000" in text
    _, text = shown(run, step=1, sample=1)
    assert "not scored, left out of training" in text
    assert ["0", "#5", "-0.100", "–"] in [line.split() for line in text.splitlines()]
    with pytest.raises(ValueError, match="sample 2: these groups have completions 0 to 1"):
        shown(run, step=1, sample=2)
    with pytest.raises(ValueError, match="sample 0: say of which groups: step, best, worst or prompt"):
        shown(run, sample=0)


def test_given_completions_are_shown_with_their_ranks_and_coefficients(tmp_path):
    run = RunDirectory.create(tmp_path / "a", config=CONFIG)
    pulls = [(0.25, 0.0, 0.125), (-0.5, -0.5), (0.5, 0.5)]
    run.write_groups("sft", 1, given_rows(stage="sft", step=1, groups=given_groups(), coefficients=pulls))
    data, text = shown(run, step=1)
    assert [[row["rank"] for row in group] for group in data["groups"]] == [[None], [1, 0]]
    lines = [line.split() for line in text.splitlines()]
    assert ["response", "mean", "coeff."] in lines and ["277", "+1.9e-01"] in lines  # 3/16: the mean of two tokens
    assert ["response", "rank", "mean", "coeff."] in lines
    assert ["2", "1", "-5.0e-01"] in lines and ["20", "0", "+5.0e-01"] in lines
    data, text = shown(run, step=1, sample=0)
    lines = [line.split() for line in text.splitlines()]
    assert "completion 0 of p/3: given" in text and "completion 0 of p/3: given, rank 1" in text
    assert ["1", "#6", "–"] in lines and ["2", "#2", "+1.250e-01"] in lines and ["0", "#5", "-5.000e-01"] in lines
    for asked in ({"best": True}, {"worst": True, "prompt": "p/3"}):
        with pytest.raises(ValueError, match="no completion here has one"):
            shown(run, **asked)
    run.write_groups("grpo", 1, rows_of(1, [0.0, 1.0], problem="p/3"))
    for asked in ({"worst": True}, {"worst": True, "prompt": "p/3"}):
        assert [[row["stage"] for row in group] for group in shown(run, **asked)[0]["groups"]] == [["grpo"] * 2]


def test_tokens_are_decoded_with_the_newest_checkpoints_tokenizer(tmp_path):
    _, tokenizer = tiny_model("0123456789", [], 0, hidden_size=16, num_layers=1, num_heads=2)
    run = make_run(tmp_path / "b")
    tokenizer.save_pretrained(run.checkpoints()[-1].path)
    _, text = shown(run, step=2, sample=0)
    expected = [tokenizer.decode([token]) for token in (5, 6, 2)]
    assert [line.split()[1] for line in text.splitlines() if re.match(r" +\d ", line)][:3] == expected
