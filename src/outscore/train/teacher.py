"""Another model that a stage names: a teacher, whose log-probs of the policy's own samples the policy learns, or one
whose samples it learns."""

import torch

from outscore.config import Recipe
from outscore.model.policy import Policy
from outscore.report import RunDirectory
from outscore.stages import PolicySettings, StageSettings
from outscore.train.label_stage import last_checkpoint
from outscore.train.named_models import newest_in
from outscore.train.setup import load_policy


def load_teacher(recipe: Recipe, settings: StageSettings, policy: Policy, run: RunDirectory | None) -> Policy | None:
    """The stage's teacher in the policy's precision, frozen; None outside a run where it is a stage of that.

    Raises:
        ValueError: if it cannot be loaded, or does not read the tokens that the policy writes.
    """
    assert isinstance(settings, PolicySettings)
    if settings.teacher not in [stage.label for stage in recipe.stages]:
        return load_other(recipe, settings, "teacher", settings.teacher, policy)
    if run is None:
        return None
    return load_other(recipe, settings, "teacher", str(last_checkpoint(run, settings.teacher)), policy)


def load_other(recipe: Recipe, settings: StageSettings, key: str, place: str, policy: Policy) -> Policy:
    """The model at a place that a key of a stage names, in the policy's precision, frozen. It may be larger than the
    policy, or smaller.

    Raises:
        ValueError: naming stage and key, if it cannot be loaded, or its tokens are not the policy's.
    """
    where = f"stage `{settings.label}`: {key} = {place!r}"
    source = newest_in(place)
    found = str(source) if source.exists() else place
    # Adapters come with a checkpoint; recomputed activations are for training.
    own = recipe.model.model_copy(update={"source": found, "lora": None, "activation_checkpointing": False})
    try:
        other, _ = load_policy(own, None, recipe.seed, facts={"precision": "fp32"})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    torch.nn.Module.to(other.model, policy.compute_dtype)
    other.model.requires_grad_(False)
    if other.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ValueError(
            f"{where} has another tokenizer than the policy, and what it says of a token is about another one; distil "
            "into a model of the same family"
        )
    return other
