"""Which model a run stands for."""

from pathlib import Path
from typing import Any

import pytest
from report.building import evaluation

from outscore.model.tiny import tiny_model
from outscore.report import RunDirectory
from outscore.rollout import ScriptedSampler
from outscore.train import inspect
from outscore.train.inspect import Chat, find_model, target_recipe


def run_with(
    path: Path,
    *,
    saved: list[tuple[str, int]],
    greedy: dict[tuple[str, int], float],
    config: dict[str, Any] | None = None,
) -> RunDirectory:
    """A run of two stages with empty checkpoints at these places and evaluations of these values."""
    stages = [{"algorithm": "sft", "steps": 9}, {"algorithm": "grpo", "steps": 9}]
    run = RunDirectory.create(path, config={"stages": stages, **(config or {})})
    for stage, step in saved:
        run.checkpoint_path(stage, step).mkdir(parents=True)
    for (stage, step), value in greedy.items():
        run.append_evaluation(evaluation(f"{stage} {step}", stage, step, value))
    return run


@pytest.mark.parametrize(
    ("greedy", "expected"),
    [
        ({("sft", 9): 0.5, ("grpo", 3): 0.5, ("grpo", 9): 0.5}, ("grpo", 9)),  # equals: the latest
        ({("sft", 9): 1.0, ("grpo", 3): 0.5, ("grpo", 9): 0.25}, ("grpo", 3)),  # not the stage before
        ({("sft", 9): 0.5, ("grpo", 3): 0.25, ("grpo", 6): 1.0}, ("grpo", 3)),  # step 6 was not kept
    ],
)
def test_a_run_stands_for_the_best_checkpoint_of_its_last_stage(
    tmp_path: Path, greedy: dict[tuple[str, int], float], expected: tuple[str, int]
) -> None:
    run = run_with(tmp_path / "run", saved=[("sft", 9), ("grpo", 3), ("grpo", 9)], greedy=greedy)
    assert find_model(str(run.path)) == str(run.checkpoint_path(*expected))


def test_without_a_checkpoint_there_is_no_model(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", saved=[], greedy={("sft", 0): 0.5})
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        find_model(str(run.path))


CONFIG: dict[str, Any] = {
    "model": {"source": "org/base", "lora": {"rank": 4}, "trust_remote_code": True},
    "task": {"kind": "arithmetic", "num_train": 4, "num_eval": 2},
    "prompt": {"template": "Q{question}A"},
    "rewards": ["format_tags", "tag_answer"],
    "evaluation": {"correct": "tag_answer"},
    "stages": [{"algorithm": "grpo", "steps": 9, "sampling": {"max_new_tokens": 12}}],
    "trackers": ["wandb"],
    "found": {"precision": "fp32"},
}


def trained(path: Path) -> RunDirectory:
    return run_with(path, saved=[("grpo", 9)], greedy={("grpo", 9): 0.5}, config=CONFIG)


def test_a_run_and_its_checkpoints_are_used_with_the_run_s_own_settings(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    checkpoint = str(run.checkpoint_path("grpo", 9))
    for target in (str(run.path), checkpoint):
        found = target_recipe(target)
        assert (found.model.source, found.model.lora, found.model.trust_remote_code) == (checkpoint, None, True)
        assert found.prompt.template == "Q{question}A"
        assert found.task == CONFIG["task"] and found.rewards == ("format_tags", "tag_answer")
        assert found.trackers == ()


def test_another_task_or_reward_takes_the_place_of_the_run_s_and_nothing_else_changes(tmp_path: Path) -> None:
    target = str(trained(tmp_path / "run").path)
    found = target_recipe(target, task="reasoning_gym", overrides=["task.dataset=chain_sum"])
    assert found.task == {"kind": "reasoning_gym", "dataset": "chain_sum"}
    assert found.prompt.template == "Q{question}A" and found.model.trust_remote_code
    assert found.rewards == ("format_tags", "tag_answer")
    found = target_recipe(target, reward="last_number")
    assert found.rewards == ("last_number",) and found.evaluation.correct == ""


def test_a_model_of_no_run_takes_its_settings_from_the_command(tmp_path: Path) -> None:
    found = target_recipe(str(tmp_path), overrides=["model.allow_pickle=true", "prompt.system=Be brief"])
    assert (found.model.source, found.model.allow_pickle, found.prompt.system) == (str(tmp_path), True, "Be brief")


def test_a_run_is_talked_to_through_its_own_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path / "run")
    model, tokenizer = tiny_model("0123456789+-=QA", [], 0, hidden_size=16, num_layers=1, num_heads=2)
    model.save_pretrained(run.checkpoint_path("grpo", 9))
    tokenizer.save_pretrained(run.checkpoint_path("grpo", 9))
    asked: list[str] = []

    def scripted(policy: Any, rows: int) -> ScriptedSampler:
        return ScriptedSampler(lambda prompt, sample: asked.append(prompt.text) or "7", policy.tokenizer)

    monkeypatch.setattr(inspect, "make_sampler", scripted)
    chat = Chat(str(run.path), temperature=0.0, max_new_tokens=4)
    assert chat.answer("3+4=") == "7"
    with pytest.raises(ValueError, match=r"no token for '\?'.*a question it was trained on: '\d\d[+-]\d\d='"):
        chat.answer("3?4")
    assert chat.answer("5+2=") == "7"
    assert asked == ["Q3+4=A", "Q5+2=A"]
