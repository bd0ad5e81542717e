"""Models as rewards: a reward model or several, and how likely a text is to a language model. They run in the training
process, where the accelerator is, and their weights are loaded when something is first scored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from outscore.rewards.contract import Part, Reward, RewardFunction

TOKEN_BUDGET = 16384
"""Tokens scored at once."""


def reward_model(
    *,
    path: str | Sequence[str] = "",
    stage: str | Sequence[str] = "",
    part: Part = "all",
    token_budget: int = TOKEN_BUDGET,
    trust_remote_code: bool = False,
) -> Reward:
    """The score of a reward model.

    The model is in the directory `path`: a checkpoint of a stage `reward-model`, the directory of such a stage's
    checkpoints (the newest one is taken), or any causal sequence classifier with one label. ValueError if there is
    none: rewards are made before a run's first step. In the rewards of a stage it may be that of an earlier `stage` of
    the same run instead. With `part: final` it reads what follows the chain of thought only, as R1's helpfulness reward
    does.

    Several paths, or stages, are an ensemble: the mean of their scores, whose population standard deviation is how
    unsure the reward is (the shaping key `uncertainty` takes some of it off).
    """
    from outscore.rewards.model_based import Ensemble, ModelScorer  # and torch, which worker processes can do without

    paths, stages = ([each] if isinstance(each, str) else list(each) for each in (path, stage))
    for key, given in (("path", paths), ("stage", stages)):
        if not given:
            raise ValueError(f"reward 'reward_model': {key} = [] names no model; give one, or several")
    several = max(len(paths), len(stages))
    paths += [""] * (several - len(paths))
    stages += [""] * (several - len(stages))
    scorers = [
        ModelScorer(
            _directory("reward_model", where, name),
            stage=name,
            part=part,
            token_budget=token_budget,
            trust_remote_code=trust_remote_code,
        )
        for where, name in zip(paths, stages, strict=True)
    ]
    function: RewardFunction = scorers[0] if several == 1 else Ensemble(scorers)
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
