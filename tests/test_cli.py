"""The command as a user meets it: help, errors without tracebacks, and a whole project from `init` on."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from outscore.algorithms.rows import algorithm
from outscore.cli import app
from outscore.model.load import load_model
from outscore.model.tiny import tiny_model

RECIPE = """\
name: micro
model: {source: tiny, tiny: {hidden_size: 16, num_layers: 1, num_heads: 2}, precision: fp32}
task: {kind: arithmetic, num_train: 8, num_eval: 4, num_demonstrations: 4}
rewards: [format_tags, tag_answer]
stages:
  - {algorithm: sft, steps: 1, batch_size: 2}
  - {algorithm: grpo, steps: 1, prompts_per_step: 2, group_size: 2, sampling: {max_new_tokens: 4}}
evaluation: {problems: 4, samples: 2}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "micro.yaml").write_text(RECIPE)
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return result.output.replace("\n", " ")


@pytest.mark.parametrize("command", ["demo", "train", "resume", "check", "eval", "show", "chat", "fetch", "export"])
def test_help_teaches(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and len(result.output) > 200


def test_the_example_of_eval_names_the_data_set_as_the_task_does() -> None:
    # The task `reasoning_gym` calls it `dataset`; a `task.name=` would be refused.
    assert "task.dataset=chain_sum" in run("eval", "--help").output


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_names_the_run_that_can_be_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outscore.train.run.run_recipe", _interrupted)
    monkeypatch.setattr("outscore.train.run.resume", _interrupted)
    assert "stopped before the run began" in run("train", "micro.yaml").output
    for kept in (folder / "runs" / "micro", folder / "own"):
        kept.mkdir(parents=True)
        (kept / "run.json").write_text("{}")
    for asked, named in ((("train", "micro.yaml"), "runs/micro"), (("resume", "own"), "own")):
        stopped = run(*asked)
        assert stopped.exit_code == 130
        assert f"`outscore resume {named}`" in stopped.output


def test_ctrl_c_in_a_command_without_a_run_says_nothing_of_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outscore.train.inspect.evaluate_target", _interrupted)
    monkeypatch.setattr("outscore.train.check.check_recipe", _interrupted)
    monkeypatch.setattr("outscore.train.inspect.Chat", _interrupted)
    for asked in (("eval", "model"), ("check", "micro.yaml"), ("chat", "model")):
        stopped = run(*asked)
        assert stopped.exit_code == 130
        assert "resume" not in stopped.output and "Traceback" not in stopped.output


def test_a_check_that_ends_with_an_error_says_what_it_had_found(folder: Path) -> None:
    impossible = ("model={source: some/where, precision: fp32}", "prompt.template=chat")
    model, tokenizer = tiny_model("0123456789+-*= ?()", [], 0, hidden_size=16, num_layers=1, num_heads=2)
    model.save_pretrained(folder / "some" / "where")
    tokenizer.save_pretrained(folder / "some" / "where")
    message = refused("check", "micro.yaml", *impossible)
    assert "stage sft" in message and "no chat template" in message
    found = json.loads(run("check", "micro.yaml", *impossible, "--json").stdout)
    assert [each["what"] for each in found] == ["stage sft", "stage grpo", "error"]
    assert found[-1]["status"] == "fail" and "no chat template" in found[-1]["detail"]


@pytest.mark.parametrize("arguments", [(), ("show",), ("eval",)])
def test_help_names_no_type_for_what_takes_no_value(arguments: tuple[str, ...]) -> None:
    assert "bool" not in run(*arguments, "--help").output


def test_a_mistyped_key_names_the_nearest(folder: Path) -> None:
    assert "did you mean `group_size`?" in refused("train", "micro.yaml", "stages.grpo.group_sise=4")
    assert not (folder / "runs").exists()


def test_a_target_that_is_nowhere_is_said_to_be_so_before_anything_else(folder: Path) -> None:
    said = refused("eval", "nowhere")
    assert "nowhere is not a run: it does not exist (the working directory is " in said
    assert "For a model on a hub, say what to evaluate on with --task KIND or --recipe FILE" in said


def test_a_traceback_is_printed_where_the_environment_asks_for_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTSCORE_TRACEBACK", "1")
    said = run("train", "micor.yaml").output
    assert "Traceback (most recent call last)" in said and "load_recipe" in said and "did you mean" in said


def test_errors_found_before_any_work(folder: Path) -> None:
    assert "did you mean `micro.yaml`?" in refused("train", "micor.yaml")
    assert "did you mean `grpo`" in refused("train", "micro.yaml", "stages.1.algorithm=grop")
    assert "clip_high" in refused("train", "micro.yaml", "stages.grpo.cells.clip_hihg=0.3")
    assert "tag_answer" in refused("train", "micro.yaml", "rewards=[tag_anser]")
    assert "evaluation.correct" in refused("train", "micro.yaml", "evaluation.correct=nothing")
    assert "no chat template" in refused("train", "micro.yaml", "prompt.template=chat").replace("has no", "no")
    too_long = refused("train", "micro.yaml", "stages.grpo.sampling.max_new_tokens=600")
    assert "the model's context holds 512" in too_long and "sampling.max_new_tokens = 600 must not" in too_long
    assert "num_train = 'abc' must be a valid integer" in refused("train", "micro.yaml", "task.num_train=abc")
    assert "not valid YAML" in refused("train", "micro.yaml", "rewards=[tag_anser")
    assert "'warm up' names files" in refused("check", "micro.yaml", "stages.sft.name=warm up")
    assert not (folder / "runs").exists()


def test_a_whole_run_and_what_can_be_done_with_it(folder: Path) -> None:
    result = run("train", "micro.yaml", "--run", "one")
    assert result.exit_code == 0, result.output
    assert "already exists and is not overwritten" in refused("train", "micro.yaml", "--run", "one")
    assert "is not a run" in refused("show", "two")

    shown = run("show", "one", "--json")
    assert json.loads(shown.stdout)["evaluations"]
    evaluated = run("eval", "one", "--json")
    assert evaluated.exit_code == 0, evaluated.output
    weights = json.loads(evaluated.stdout)["weights_sha256"]
    parts = {"part/format_tags", "part/tag_answer"}
    assert set(json.loads(evaluated.stdout)["metrics"]) == {"greedy", "pass@1", "pass@2", "maj@2", "reward", *parts}

    assert run("export", "one", "model").exit_code == 0
    assert (folder / "model" / "model.safetensors").is_file()
    assert load_model(folder / "model").sha256 == weights
    assert f"weights {weights[:12]}…" in run("eval", "model", "--task", "arithmetic", "evaluation.problems=2").output
    assert "say what to evaluate on" in refused("eval", "model")
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(3)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = ("--task", "data", "--json", "evaluation.samples=1", "evaluation.max_new_tokens=2")
    whole = run("eval", "model", *few, "task.eval_path=t.jsonl")
    assert json.loads(whole.stdout)["num_problems"] == 30 and not whole.stderr
    part = run("eval", "model", *few, "task.path=t.jsonl", "task.eval_fraction=0.3", "evaluation.problems=2")
    assert json.loads(part.stdout)["num_problems"] == 2
    assert "rows are left out as training data" in part.stderr and "evaluation.problems=" in part.stderr

    resumed = run("resume", "one")
    assert resumed.exit_code == 0


def test_check_passes_a_sound_recipe_and_reports_as_data(folder: Path) -> None:
    result = run("check", "micro.yaml", "--json")
    assert result.exit_code == 0, result.output
    findings = {finding["what"]: finding for finding in json.loads(result.stdout)}
    assert "gold answers score full" in findings["task"]["detail"]
    assert findings["layout"]["status"] == "ok"
    assert {"prompts", "stop tokens", "memory", "rewards", "lengths", "correct"} <= set(findings)
    # Four tokens are too few for any answer, but the SFT stage has yet to teach one.
    for what in ("rewards", "lengths"):
        assert findings[what]["status"] == "ok" and "before supervised fine-tuning" in findings[what]["detail"]


def test_check_warns_where_no_answer_can_be_correct(folder: Path) -> None:
    (folder / "mine.py").write_text("def half(completions, **columns):\n    return [0.5 for _ in completions]\n")
    result = run("check", "micro.yaml", "rewards=[mine.py:half, format_tags]", "--json")
    findings = {finding["what"]: finding for finding in json.loads(result.stdout)}
    assert findings["correct"]["status"] == "warn" and "correct by half" in findings["correct"]["detail"]
    assert findings["task"]["status"] == "warn"


def test_a_reward_that_raises_names_itself_the_prompt_and_the_completion(folder: Path) -> None:
    (folder / "mine.py").write_text("def broken(completions, **columns):\n    return [1 / 0 for _ in completions]\n")
    message = refused("train", "micro.yaml", "rewards=[mine.py:broken]", "evaluation.problems=0")
    assert "broken" in message and "ZeroDivisionError" in message and "arithmetic/" in message


def test_init_makes_a_project_that_checks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("init", "project").exit_code == 0
    assert "already exists" in refused("init", "project")
    monkeypatch.chdir(folder / "project")
    result = run("check", "recipe.yaml")
    assert result.exit_code == 0, result.output
    quick = ["stages.sft.steps=1", "stages.grpo.steps=1", "evaluation.problems=2", "evaluation.samples=2"]
    trained = run("train", "recipe.yaml", *quick)
    assert trained.exit_code == 0, trained.output
    assert (folder / "project" / "runs" / "my-run" / "metrics.jsonl").is_file()


def test_the_table_of_algorithms_prints(folder: Path) -> None:
    names = {row["name"] for row in json.loads(run("algorithms", "--json").stdout)}
    assert {"sft", "grpo", "grpo-r1", "dr-grpo"} <= names
    text = run("algorithms").stdout
    assert all(re.search(rf"^{re.escape(name)} ", text, re.MULTILINE) for name in names)
    assert max(map(len, text.splitlines())) <= 80


def data_of(name: str):
    return json.loads(run("algorithms", name, "--json").stdout)


def test_one_algorithm_shows_its_equation_its_source_and_the_cells_that_are_read(folder: Path) -> None:
    text = run("algorithms", "deepseek-v3.2").stdout
    assert "rho_t k3_t" in text and "arXiv 2512.02556" in text and "left out, or ours:" in text
    assert re.search(r"^\*kl_weighted +True", text, re.MULTILINE)
    assert re.search(r"^ surrogate +clipped", text, re.MULTILINE)
    # What nothing reads in this row is named, and no more.
    grpo = run("algorithms", "grpo").stdout
    shown, _, unread = grpo.partition("no effect in this row: ")
    assert all(cell in unread for cell in ("gate_positive", "gae_lambda", "label_smoothing", "mismatch_mode"))
    assert all(cell not in shown for cell in ("gate_positive", "gae_lambda", "label_smoothing", "mismatch_mode"))
    assert all(re.search(rf"^ {cell} ", shown, re.MULTILINE) for cell in ("clip_low", "kl_coef", "mismatch_cap"))
    assert all(cell in shown + unread for cell in data_of("grpo")["cells"] if cell != "name")
    data = json.loads(run("algorithms", "dapo", "--json").stdout)
    assert data["cells"]["clip_high"] == 0.28 and data["paper"].startswith("DAPO, arXiv 2503.14476")
    assert data["stage_defaults"] == {"refills": 10, "overlong_buffer": 51}
    wrong = run("algorithms", "gpro")
    assert wrong.exit_code == 1 and "did you mean `grpo`?" in wrong.output


def test_an_infinite_cell_is_printed_as_a_recipe_writes_it(folder: Path) -> None:
    """JSON has no infinity, and null is another value of some cells."""

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    rows = {row["name"]: row for row in json.loads(run("algorithms", "--json").stdout, parse_constant=refuse)}
    one = json.loads(run("algorithms", "cispo", "--json").stdout, parse_constant=refuse)["cells"]
    assert rows["cispo"] == one and one["clip_low"] == ".inf" and rows["grpo"]["clip_low"] == 0.2
    assert algorithm("cispo", clip_low=yaml.safe_load(one["clip_low"])) == algorithm("cispo")
    assert re.search(r"^\*clip_low +\.inf", run("algorithms", "cispo").stdout, re.MULTILINE)


def test_chat_answers_and_ends_on_an_empty_line(folder: Path) -> None:
    assert run("train", "micro.yaml", "--run", "one", "evaluation.problems=0").exit_code == 0
    result = CliRunner().invoke(app, ["chat", "one", "--max-new-tokens", "3"], input="who?\n12+34=\n\n")
    assert result.exit_code == 0, result.output
    assert "no token for 'w'" in result.output and "a question it was trained on: '" in result.output
    assert result.output.count("you>") == 3
