"""Low-rank adapters (LoRA) through peft, inside the model itself: the reference model is the adapter switched off.

Adapters go in by transformers' own `add_adapter`, so the model stays the `PreTrainedModel` it was; the rest of Outscore
does not see them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from outscore.inputs import nearest

ADAPTER_NAME = "default"


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] = (),
    seed: int = 0,
) -> PreTrainedModel:
    """Add LoRA (Hu et al. 2021): each target weight W becomes W + (alpha / rank) B A, with A and B alone trainable.

    B begins at 0, so the model computes what it did. A depends on `seed` alone. `targets` are the last names of
    modules, such as `q_proj`; empty means all linear layers but the output head. Dropout other than 0 makes policy and
    sampler differ, and group rows inexact. Works in place and returns the model. ValueError for a target the model does
    not have, ImportError without `outscore[lora]`.
    """
    peft = require_peft()
    if has_adapters(model):
        raise ValueError("the model has a LoRA adapter already: merge it first")
    if rank < 1 or not 0.0 <= dropout < 1.0:
        raise ValueError(f"LoRA needs rank >= 1 and 0 <= dropout < 1, not rank={rank}, dropout={dropout}")
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_resolve_targets(model, targets), bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config, ADAPTER_NAME)
    return model


def load_lora(model: PreTrainedModel, directory: Path, *, trainable: bool = False) -> PreTrainedModel:
    """Put the adapter that `model.save_pretrained(directory)` wrote into its base model, in place.

    ValueError when the directory holds none, or one that lacks weights for this model or has others.
    """
    peft = require_peft()
    if not (directory / "adapter_config.json").is_file():
        raise ValueError(f"{directory} has no adapter_config.json, so it holds no LoRA adapter")
    # Not by transformers' `load_adapter`: a model it has loaded into saves its merged weights under peft's names.
    model.add_adapter(peft.PeftConfig.from_pretrained(str(directory)), ADAPTER_NAME)
    stored = load_file(directory / "adapter_model.safetensors")
    state = {name.removeprefix("base_model.model."): tensor for name, tensor in stored.items()}
    expected = set(peft.get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME))
    if expected != state.keys():
        differing = sorted(expected ^ state.keys())
        raise ValueError(
            f"the adapter in {directory} is of another model: {len(differing)} weights, as {differing[0]!r}"
        )
    peft.set_peft_model_state_dict(model, state, adapter_name=ADAPTER_NAME)
    for parameter in trainable_parameters(model).values():
        parameter.requires_grad_(trainable)
    return model


def has_adapters(model: nn.Module) -> bool:
    """Whether the model has LoRA layers in it."""
    return bool(_adapter_layers(model))


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, for those that training changes."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Add each adapter's update to its weight and take the adapters out, in place; all parameters are trainable again.

    In the model's dtype: merge in fp32, or the update is rounded to the weight's format. ValueError when an adapter
    holds NaN or infinity, and for a model without adapters.
    """
    layers = _adapter_layers(model)
    if not layers:
        raise ValueError("the model has no adapters to merge")
    for name, layer in layers.items():
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    model._hf_peft_config_loaded = False
    del model.peft_config
    model.requires_grad_(True)
    return model


def _adapter_layers(model: nn.Module) -> dict[str, Any]:
    """Name -> peft layer; empty where peft is not installed, for then nobody can have added one."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return {}
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def _resolve_targets(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """The last names of the modules to adapt, sorted; ValueError names the nearest for one that does not exist."""
    head = model.get_output_embeddings()
    linear = {
        n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head
    }
    if not targets:
        return sorted(linear)
    for target in targets:
        if target not in linear:
            raise ValueError(
                f"LoRA target {target!r} is no linear layer of this model{nearest(target, sorted(linear))}"
            )
    return sorted(set(targets))


def require_peft() -> Any:
    """The peft package; ImportError names the extra."""
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs `pip install 'outscore[lora]'`") from error
    return peft
