"""Reward models as rewards, which run in the training process."""

from pathlib import Path
from typing import Literal

from outscore.rewards.contract import Reward

TOKEN_BUDGET = 16384
"""Tokens scored at once."""


def reward_model(
    *, path: str = "", stage: str = "", token_budget: int = TOKEN_BUDGET, trust_remote_code: bool = False
) -> Reward:
    """The score of a reward model in the directory `path`: a checkpoint of a stage `reward-model`, the directory of
    such a stage's checkpoints (the newest one is taken), or any causal sequence classifier with one label; or that of
    an earlier stage of this run.

    ValueError if there is none, when the recipe is read; the weights are loaded when something is first scored. It runs
    in this process, where the accelerator is.
    """
    from outscore.rewards.model_based import ModelScorer  # and torch, which worker processes can do without

    directory = _directory("reward_model", path, stage)
    scorer = ModelScorer(directory, stage=stage, token_budget=token_budget, trust_remote_code=trust_remote_code)
    return Reward(name="reward_model", function=scorer, isolate=False)


def process_reward_model(
    *,
    path: str = "",
    stage: str = "",
    score: Literal["min", "product", "last", "steps"] = "min",
    token_budget: int = TOKEN_BUDGET,
) -> Reward:
    """What a process reward model, trained by a stage `process-reward-model`, says of a completion: the smallest chance
    of its steps, their product, the last one, or for process supervision the chance of each step where it ends.

    `path` and `stage` as for `reward_model`. It reads the policy's own tokens, and so needs its tokenizer.
    """
    from outscore.rewards.process_model import StepScorer  # and torch, which worker processes can do without

    directory = _directory("process_reward_model", path, stage)
    scorer = StepScorer(directory, stage=stage, score=score, token_budget=token_budget)
    return Reward(name="process_reward_model", function=scorer, isolate=False)


def newest_checkpoint(path: Path, reward: str = "reward_model") -> Path:
    """The directory itself, or the newest `step-N` in it; ValueError where neither is a model."""
    if (path / "config.json").is_file():
        return path
    steps = sorted(each.parent for each in path.glob("step-*/config.json"))
    if not steps:
        raise ValueError(
            f"reward {reward!r}: path = {str(path)!r} is no model's directory (it has no config.json) and holds no "
            "checkpoint step-N; give that of a stage, such as runs/NAME/checkpoints/reward-model"
        )
    return steps[-1]


def _directory(reward: str, path: str, stage: str) -> Path | None:
    """Where the model is, if that is known already."""
    if bool(path) == bool(stage):
        raise ValueError(
            f"reward {reward!r}: give either path (a directory) or stage (of this run); path = {path!r}, "
            f"stage = {stage!r}"
        )
    return newest_checkpoint(Path(path).expanduser(), reward) if path else None
