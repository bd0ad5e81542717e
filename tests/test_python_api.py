"""The same from Python, and the pieces alone."""

import runpy
from pathlib import Path
from statistics import mean

import pytest
import yaml

import outscore
from outscore.train.inspect import evaluate_target
from outscore.train.objects import with_objects

EXAMPLES = Path(__file__).parents[1] / "examples"

MODEL = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
STAGE = {
    "algorithm": "grpo",
    "steps": 2,
    "prompts_per_step": 2,
    "group_size": 4,
    "sampling": {"max_new_tokens": 4},
    "cells": {"kl_coef": 0.0},
}
ROWS = [{"question": f"{a}+1=", "answer": str(a + 1), "level": a} for a in range(30)]


def test_rows_and_functions_make_a_run_that_resumes(tmp_path: Path) -> None:
    seen = []

    def shorter(completions, answer, level, **columns):
        seen.extend(level)
        return [-len(text) / 4 for text in completions]

    recipe = {"model": MODEL, "stages": [STAGE], "evaluation": {"samples": 1}}
    rewards = [shorter, {"name": "format_tags", "weight": 0.4, "reward": 2.0}]
    result = outscore.run_recipe(recipe, tmp_path / "run", task=ROWS, rewards=rewards)
    assert result.finished and result.checkpoint is not None
    assert set(seen) <= set(range(30)) and seen
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["rewards"] == [{"kind": "python", "name": "shorter", "weight": 1.0}, rewards[1]]
    with pytest.raises(ValueError, match="task=…, rewards=…"):
        outscore.resume(tmp_path / "run")
    with pytest.raises(ValueError, match=r"own rewards \(shorter\)"):
        outscore.resume(tmp_path / "run", task=ROWS)
    with pytest.raises(ValueError, match=r"the rewards shorter × 1, format_tags × 0.4, and is given last_number × 1:"):
        outscore.resume(tmp_path / "run", task=ROWS, rewards=[last_number])
    assert outscore.resume(tmp_path / "run", task=ROWS, rewards=rewards).finished


def test_a_task_goes_by_kind_or_mapping_and_what_is_neither_is_refused() -> None:
    recipe = {"model": MODEL, "stages": [STAGE], "task": {"kind": "programs"}, "rewards": ["last_number"]}
    for task in ("arithmetic", {"kind": "arithmetic", "num_train": 7}):
        found, own_task, _ = with_objects(recipe, task, None)
        assert own_task is None and found.task == ({"kind": task} if isinstance(task, str) else task)
    with pytest.raises(ValueError, match="`kind` is missing"):
        with_objects(recipe, {"num_train": 7}, None)
    with pytest.raises(ValueError, match="task = 7 must be a kind of task"):
        with_objects(recipe, 7, None)
    for rewards in (last_number, "last_number", {"name": "last_number"}):
        with pytest.raises(ValueError, match=r"rewards = .*last_number.* must be a list of rewards, also where"):
            with_objects(recipe, None, rewards)
    with pytest.raises(ValueError, match=r"recipe = 7 must be a recipe, .* or the path of its file"):
        with_objects(7, None, None)


def test_a_run_with_objects_is_evaluated_with_them_again_and_exported(tmp_path: Path) -> None:
    def never(completions, **columns):
        return [0.0] * len(completions)

    def always(completions, **columns):
        return [1.0] * len(completions)

    recipe = {"model": MODEL, "stages": [{**STAGE, "steps": 1}], "evaluation": {"problems": 3, "samples": 2}}
    path = outscore.run_recipe(recipe, tmp_path / "run", task=ROWS, rewards=[never]).path
    assert outscore.evaluate(path, task=ROWS, rewards=[never]).metrics["greedy"] == 0.0
    other = outscore.evaluate(path, task=ROWS, rewards=[always], overrides=["evaluation.samples=4"])
    assert (other.metrics["greedy"], other.metrics["pass@2"]) == (1.0, 1.0)
    with pytest.raises(ValueError, match=r"own task and rewards \(never\): .*evaluate\(target, task=…, rewards=…\)"):
        outscore.evaluate(path)
    exported = outscore.export_model(path, tmp_path / "model")
    plain = outscore.evaluate(exported, task=ROWS, rewards=[always], overrides=["evaluation.samples=1"])
    assert set(plain.metrics) == {"greedy"}
    with pytest.raises(ValueError, match=r"model is no run: say what to evaluate on with task=… or recipe=…"):
        outscore.evaluate(exported)
    # A command cannot name objects: it says all at once what to give instead.
    with pytest.raises(ValueError, match=r"task and rewards \(never\), .*give --task KIND and --reward NAME"):
        evaluate_target(str(path))
    with pytest.raises(ValueError, match=r"own rewards \(never\), .*: give --reward NAME \(or file.py:function\), or"):
        evaluate_target(str(path), task="arithmetic")


def test_a_model_of_ones_own_is_a_policy_with_the_tokens_that_end_its_answers() -> None:
    settings = outscore.ModelSettings.model_validate(MODEL)
    policy, _ = outscore.load_policy(settings, outscore.make_task("data", rows=ROWS), seed=0)
    stops = outscore.stop_token_ids(policy.model, policy.tokenizer)
    assert stops == {policy.tokenizer.eos_token_id}
    assert outscore.Policy(policy.model, policy.tokenizer, stop_token_ids=stops).stop_token_ids == stops


def last_number(completions):
    """Named like a built-in reward, and not it."""
    return [0.0] * len(completions)


def test_what_a_file_can_name_stays_as_given_and_a_function_is_never_taken_for_a_built_in() -> None:
    specs = ["tag_answer", {"name": "format_tags", "weight": 0.4, "reward": 2.0}, {"name": last_number, "weight": 3}]
    recipe, _, made = with_objects({"task": {"kind": "arithmetic"}, "stages": [STAGE]}, None, specs)
    assert recipe.rewards == (*specs[:2], {"kind": "python", "name": "last_number", "weight": 3.0})
    assert made is not None and [reward.weight for reward in made.rewards] == [1.0, 0.4, 3.0]
    with pytest.raises(ValueError, match="'last_number' was given from Python"):
        outscore.Rewards(recipe.rewards)


class Rows:
    """Rows that can be iterated over and are no sequence, as a Hugging Face data set is."""

    def __iter__(self):
        return iter(ROWS)


def test_whatever_is_iterated_into_mappings_is_a_task() -> None:
    recipe = {"rewards": ["last_number"], "stages": [STAGE]}
    expected = outscore.make_task("data", rows=ROWS).train_problems()
    for rows in (Rows(), tuple(ROWS), (row for row in ROWS)):
        _, task, _ = with_objects(recipe, rows, None)
        assert task is not None and task.train_problems() == expected


def test_a_hugging_face_data_set_is_a_task() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    _, task, _ = with_objects({"rewards": ["last_number"], "stages": [STAGE]}, data, None)
    assert task is not None and task.train_problems() == outscore.make_task("data", rows=ROWS).train_problems()


@pytest.mark.learning
def test_the_pieces_make_a_loop_of_ones_own_that_learns() -> None:
    curve = runpy.run_path(str(EXAMPLES / "own_loop.py"))["train"]()
    first, last = mean(curve[:10]), mean(curve[-10:])
    assert first < 0.2 and last > first + 0.3
