"""Which model a run stands for."""

from pathlib import Path

import pytest

from outscore.report import Evaluation, RunDirectory, StagePlan
from outscore.train.inspect import find_model


def run_with(path: Path, *, saved: list[tuple[str, int]], greedy: dict[tuple[str, int], float]) -> RunDirectory:
    """A run of two stages with empty checkpoints at these places and evaluations of these values."""
    stages = [StagePlan(name="sft", num_steps=9), StagePlan(name="grpo", num_steps=9)]
    run = RunDirectory.create(path, config={}, stages=stages)
    for stage, step in saved:
        run.checkpoint_path(stage, step).mkdir(parents=True)
    for (stage, step), value in greedy.items():
        run.append_evaluation(
            Evaluation(
                label=f"{stage} {step}",
                stage=stage,
                step=step,
                policy_version=step,
                num_problems=4,
                samples=1,
                metrics={"greedy": value},
            )
        )
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
    with pytest.raises(ValueError, match="no sound checkpoint yet"):
        find_model(str(run.path))
