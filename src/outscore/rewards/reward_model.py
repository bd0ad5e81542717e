"""Models as rewards: a reward model or several, and how likely a text is to a language model. They run in the training
process, where the accelerator is, and their weights are loaded when something is first scored."""

from collections.abc import Sequence
from pathlib import Path

from outscore.rewards.contract import Reward, RewardFunction

TOKEN_BUDGET = 16384
"""Tokens scored at once."""


def reward_model(
    *, path: str | Sequence[str], token_budget: int = TOKEN_BUDGET, trust_remote_code: bool = False
) -> Reward:
    """The score of a reward model in the directory `path`: a checkpoint of a stage `reward-model`, the directory of
    such a stage's checkpoints (the newest one is taken), or any causal sequence classifier with one label.

    Several paths are an ensemble: the mean of their scores, whose population standard deviation is how unsure the
    reward is (the shaping key `uncertainty` takes some of it off). ValueError if one is not there, when the recipe is
    read.
    """
    from outscore.rewards.model_based import Ensemble, ModelScorer  # and torch, which worker processes can do without

    paths = [path] if isinstance(path, str) else list(path)
    if not paths:
        raise ValueError("reward 'reward_model': path = [] names no model; give a directory, or several")
    directories = [newest_checkpoint(Path(each).expanduser()) for each in paths]
    scorers = [
        ModelScorer(each, token_budget=token_budget, trust_remote_code=trust_remote_code) for each in directories
    ]
    function: RewardFunction = scorers[0] if len(scorers) == 1 else Ensemble(scorers)
    return Reward(name="reward_model", function=function, isolate=False)


def perplexity(*, path: str = "", token_budget: int = TOKEN_BUDGET, trust_remote_code: bool = False) -> Reward:
    """How likely the completion is after its prompt: 1 / perplexity = exp(mean log-prob of its tokens), from 0 to 1; 0
    for an empty one. The metric `perplexity` is the mean of the perplexities themselves.

    Likely to whom: the model that the run began with, which is the reference of its first stage, or the one in `path`,
    a directory, a .gguf file or a hub id. ValueError where the run begins with a model built from scratch and no path
    is given.
    """
    from outscore.rewards.likelihood import Likelihood  # and torch

    scorer = Likelihood(path, token_budget=token_budget, trust_remote_code=trust_remote_code)
    return Reward(name="perplexity", function=scorer, isolate=False, bind=scorer.bind)


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
