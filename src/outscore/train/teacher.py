"""The teacher of a stage: another model, whose log-probs of the policy's own samples the policy learns."""

from pathlib import Path

import torch

from outscore.config import Recipe
from outscore.model.policy import Policy
from outscore.report import RunDirectory
from outscore.stages import PolicySettings, StageSettings
from outscore.train.label_stage import last_checkpoint
from outscore.train.setup import load_policy


def load_teacher(recipe: Recipe, settings: StageSettings, policy: Policy, run: RunDirectory | None) -> Policy | None:
    """The stage's teacher in the policy's precision, frozen; None outside a run where it is a stage of that.

    Raises:
        ValueError: if it cannot be loaded, or does not read the tokens that the policy writes.
    """
    assert isinstance(settings, PolicySettings)
    if settings.teacher in [stage.label for stage in recipe.stages]:
        if run is None:
            return None
        source = last_checkpoint(run, settings.teacher)
    else:
        source = Path(settings.teacher).expanduser()
        source = max(source.glob("step-*/config.json"), default=source / "config.json").parent
    found = str(source) if source.exists() else settings.teacher
    # Adapters come with a checkpoint; recomputed activations are for training.
    own = recipe.model.model_copy(update={"source": found, "lora": None, "activation_checkpointing": False})
    teacher, _ = load_policy(own, None, recipe.seed, facts={"precision": "fp32"})
    torch.nn.Module.to(teacher.model, policy.compute_dtype)
    teacher.model.requires_grad_(False)
    if teacher.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ValueError(
            f"stage `{settings.label}`: teacher = {settings.teacher!r} has another tokenizer than the policy, and what "
            "it says of a token is about another one; distil into a model of the same family"
        )
    return teacher
