"""Algorithm 1 of DeepSeekMath over stages: the reference is the policy as an iteration begins, and the reward model is
trained on with the policy's samples and a tenth of what it saw before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from outscore.config import parse_recipe
from outscore.report import RunDirectory
from outscore.report.rows import read_parquet
from outscore.train.run import resume, run_recipe

RM = {
    **{"algorithm": "outcome-reward-model", "steps": 2, "batch_size": 4, "optimizer": {"lr": 1e-3}},
    "sample": {"num_prompts": 6, "group_size": 3, "held_out": 0.2, "sampling": {"max_new_tokens": 8}},
}
GRPO = {
    **{"algorithm": "grpo", "steps": 2, "prompts_per_step": 2, "group_size": 3, "optimizer": {"lr": 1e-2}},
    **{"sampling": {"max_new_tokens": 8}},
}


def iteration(number: int) -> list[dict[str, Any]]:
    continues = {"continues": f"rm-{number - 1}"} if number > 1 else {}
    return [
        {**RM, "name": f"rm-{number}", **continues},
        {**GRPO, "name": f"grpo-{number}", "rewards": [{"name": "reward_model", "stage": f"rm-{number}"}]},
    ]


RECIPE: dict[str, Any] = {
    "seed": 1,
    "model": {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"},
    "task": {"kind": "arithmetic", "num_train": 12, "num_eval": 4, "num_demonstrations": 8},
    "stages": [*iteration(1), *iteration(2)],
    "evaluation": {"problems": 0},
    "scoring": {"isolate": False},
}


def even(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text) % 2 == 0) for text in completions]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    path = tmp_path_factory.mktemp("runs") / "iterative"
    run_recipe(RECIPE, path, rewards=[even])
    return RunDirectory.open(path)


def weights(run: RunDirectory, stage: str, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint_path(stage, 2) / file)


def test_the_reference_is_the_policy_as_each_iteration_found_it(finished: RunDirectory) -> None:
    reference, before = weights(finished, "grpo-2", "reference.safetensors"), weights(finished, "grpo-1")
    assert reference.keys() >= before.keys()
    assert all(torch.equal(reference[name], value) for name, value in before.items())
    # At the first step of an iteration policy and reference are one.
    assert [finished.metrics(stage)[0]["ref_kl"] for stage in ("grpo-1", "grpo-2")] == pytest.approx([0, 0], abs=1e-9)


def test_the_rewards_of_an_iteration_are_those_of_its_own_model(finished: RunDirectory) -> None:
    from outscore.rewards.model_based import ModelScorer

    for number in (1, 2):
        scorer = ModelScorer(finished.checkpoint_path(f"rm-{number}", 2))
        rows = [
            row for item in finished.group_files() if item.stage == f"grpo-{number}" for row in read_parquet(item.path)
        ]
        said = scorer(
            prompts=[row.question for row in rows],
            rendered_prompts=[row.prompt for row in rows],
            completions=[row.response for row in rows],
        )
        assert [row.reward for row in rows] == pytest.approx(said, abs=1e-5)


def test_the_reward_model_goes_on_with_the_policys_samples_and_a_replay(finished: RunDirectory) -> None:
    rows = read_parquet(finished.groups_path("rm-2", 0))
    assert {row.policy_version for row in rows} == {2}  # of the policy that the first iteration left
    log = (finished.path / "events.log").read_text()
    # 15 of 18 samples are trained on; a tenth of 17 is what was there before.
    assert "rm-1: 15 completions with 15 labels to train on (0 replayed" in log
    assert "rm-2: 17 completions with 17 labels to train on (2 replayed" in log
    moved = [
        max(float((a[name] - b[name]).abs().max()) for name in a)
        for a, b in [(weights(finished, "rm-1"), weights(finished, "rm-2"))]
    ]
    assert 0 < moved[0] <= 2 * 2 * 1e-3  # two steps of Adam from where the first model ended


def test_an_iteration_resumes_exactly(finished: RunDirectory, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished.path, tmp_path / "again")
    again = RunDirectory.open(tmp_path / "again")
    for stage in ("rm-2", "grpo-2"):
        shutil.rmtree(again.path / "checkpoints" / stage)
    resume(again.path, rewards=[even])
    for name in ("metrics.jsonl", "checkpoints/grpo-2/step-000002/model.safetensors"):
        assert (finished.path / name).read_bytes() == (again.path / name).read_bytes(), name


def test_reward_models_of_stages_that_are_not_there_are_refused() -> None:
    grpo = {**GRPO, "rewards": [{"name": "reward_model", "stage": "rm-2"}]}
    with pytest.raises(ValueError, match=r"its reward's stage = 'rm-2' is no earlier stage .* did you mean `rm-1`"):
        parse_recipe({**RECIPE, "rewards": ["tag_answer"], "stages": [iteration(1)[0], grpo]})
    with pytest.raises(ValueError, match="names a reward model that this run trains, and the run's rewards score"):
        parse_recipe({**RECIPE, "rewards": [{"name": "reward_model", "stage": "rm-1"}]})
