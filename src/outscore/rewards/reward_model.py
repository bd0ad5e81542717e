"""A reward model as a reward, which runs in the training process."""

from pathlib import Path

from outscore.rewards.contract import Reward

TOKEN_BUDGET = 16384
"""Tokens scored at once."""


def reward_model(*, path: str, token_budget: int = TOKEN_BUDGET, trust_remote_code: bool = False) -> Reward:
    """The score of a reward model in the directory `path`: a checkpoint of a stage `reward-model`, the directory of
    such a stage's checkpoints (the newest one is taken), or any causal sequence classifier with one label.

    ValueError if there is none, when the recipe is read; the weights are loaded when something is first scored. It runs
    in this process, where the accelerator is.
    """
    from outscore.rewards.model_based import ModelScorer  # and torch, which worker processes can do without

    directory = newest_checkpoint(Path(path).expanduser())
    scorer = ModelScorer(directory, token_budget=token_budget, trust_remote_code=trust_remote_code)
    return Reward(name="reward_model", function=scorer, isolate=False)


def newest_checkpoint(path: Path) -> Path:
    """The directory itself, or the newest `step-N` in it; ValueError where neither is a model."""
    if (path / "config.json").is_file():
        return path
    steps = sorted(each.parent for each in path.glob("step-*/config.json"))
    if not steps:
        raise ValueError(
            f"reward 'reward_model': path = {str(path)!r} is no model's directory (it has no config.json) and holds no "
            "checkpoint step-N; give that of a stage, such as runs/NAME/checkpoints/reward-model"
        )
    return steps[-1]
