"""How much memory a stage will need, counted before it runs, and how much the process has needed so far.

The counts are of what grows with the model and the recipe. Not in them: the interpreter with its libraries (about half
a GiB), and the attention scores of devices and architectures without a fused kernel.
"""

import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from outscore.model.logprobs import CHUNK_LOGITS
from outscore.model.policy import Policy
from outscore.objectives.algorithms import Algorithm
from outscore.stages import (
    OutcomeRewardModelSettings,
    PolicySettings,
    PreferenceSettings,
    RejectionSettings,
    SamplingStage,
    SftSettings,
    StageSettings,
    TextSettings,
    sampling_of,
)
from outscore.train.materials import Materials
from outscore.train.rejection import BLOCK
from outscore.train.setup import Workshop

LOGIT_ARRAYS = 4
"""Arrays of a chunk's logits alive at once: logits, log-probs, their product with probabilities, a gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderShape:
    """Widths of a decoder, in values per token."""

    num_layers: int
    """Depth."""
    hidden: int
    """The residual stream."""
    intermediate: int
    """The feed-forward network's inner layer."""
    query: int
    """Queries of all heads."""
    key_value: int
    """Keys of all key-value heads; values are as wide."""
    vocab: int
    """Logits."""


def state_bytes(
    num_parameters: int, num_trained: int, *, bytes_per_weight: int = 4, reference: bool = False
) -> dict[str, int]:
    """Bytes that one model holds throughout a stage, by what they are for.

    A trained fp32 weight costs 16 bytes (itself, its gradient, two moments), a frozen one 4; a trained bf16 weight 20:
    its fp32 master has gradient and moments, and it has a gradient of its own. Several models (a critic, a reward
    model) add up.

    Args:
        num_parameters: all weights.
        num_trained: those of them that are trained; 0 for a frozen model.
        bytes_per_weight: 4 where the model computes in fp32, 2 in bf16.
        reference: whether a copy of the trained weights is kept to compare with.
    """
    separate = bytes_per_weight < 4
    return {
        "weights": num_parameters * bytes_per_weight,
        "masters": 4 * num_trained if separate else 0,
        "gradients": (4 + bytes_per_weight if separate else 4) * num_trained,
        "optimizer": 8 * num_trained,
        "reference": bytes_per_weight * num_trained if reference else 0,
    }


def activation_bytes(shape: DecoderShape, num_tokens: int, *, bytes_per_value: int, recomputed: bool = False) -> int:
    """Bytes that the layers keep of `num_tokens` tokens for the backward pass.

    Per layer and token: both norms keep their input, the normalised input and their output; attention keeps queries,
    keys, values, its output and a copy of that for the projection; the gated network four inner values. With
    activations `recomputed`, every layer keeps its input, and only one at a time the rest.
    """
    layer = 6 * shape.hidden + 3 * shape.query + 2 * shape.key_value + 4 * shape.intermediate
    per_token = shape.num_layers * shape.hidden + layer if recomputed else shape.num_layers * layer
    return per_token * num_tokens * bytes_per_value


def logit_bytes(shape: DecoderShape, num_tokens: int) -> int:
    """Bytes of the chunk of logits in hand, which are fp32 whatever the model computes in."""
    return LOGIT_ARRAYS * 4 * min(num_tokens * shape.vocab, CHUNK_LOGITS)


def cache_bytes(shape: DecoderShape, num_tokens: int, *, bytes_per_value: int) -> int:
    """Bytes of the keys and values of so many tokens when sampling."""
    return 2 * shape.key_value * shape.num_layers * num_tokens * bytes_per_value


def stage_memory(
    workshop: Workshop, index: int, stage: StageSettings, row: Algorithm, *, recomputed: bool
) -> dict[str, int]:
    """Bytes at the peak of a stage, by what they are for.

    Training and sampling take turns: `activations` is the larger of what a micro-batch keeps, logits included, and of
    the sampler's keys and values.
    """
    policy = workshop.policy
    shape, size = decoder_shape(policy.config, policy.vocab_size), policy.compute_dtype.itemsize
    states = state_bytes(
        sum(parameter.numel() for parameter in policy.model.parameters()),
        sum(parameter.numel() for parameter in workshop.masters.parameters.values()),
        bytes_per_weight=size,
        reference=row.needs_reference,
    )
    if row.trains == "reward_model":  # a model of its own, beside the policy
        states["policy"] = sum(parameter.numel() * parameter.element_size() for parameter in policy.model.parameters())
    if row.has_critic:  # all of it is trained, also where the policy has adapters
        size_of_critic = num_scalar_parameters(policy)
        states["critic"] = sum(state_bytes(size_of_critic, size_of_critic, bytes_per_weight=size).values())
    if row.needs_teacher or (isinstance(stage, RejectionSettings) and stage.samples_another_model):
        # As if it were as large as the policy.
        states["teacher"] = sum(parameter.numel() for parameter in policy.model.parameters()) * size
    materials = workshop.materials[index]
    num_tokens = _micro_batch(workshop.policy, materials, stage)
    kept = activation_bytes(shape, num_tokens, bytes_per_value=size, recomputed=recomputed)
    kept += logit_bytes(shape, num_tokens)
    cached = cache_bytes(shape, _sampled_at_once(materials, stage), bytes_per_value=size)
    return {**states, "activations": max(kept, cached)}


def num_scalar_parameters(policy: Policy) -> int:
    """Weights of a copy of the policy, adapters merged, with a scalar head."""
    backbone = policy.base.base_model.named_parameters()
    return sum(weight.numel() for name, weight in backbone if "lora_" not in name) + int(policy.config.hidden_size)


def decoder_shape(config: Any, vocab_size: int) -> DecoderShape:
    """The shape that a Hugging Face text configuration describes; what it leaves out has the usual proportions."""
    heads = int(config.num_attention_heads)
    hidden = int(config.hidden_size)
    dim = getattr(config, "head_dim", None) or hidden // heads
    return DecoderShape(
        num_layers=int(config.num_hidden_layers),
        hidden=hidden,
        intermediate=getattr(config, "intermediate_size", None) or 4 * hidden,
        query=heads * dim,
        key_value=(getattr(config, "num_key_value_heads", None) or heads) * dim,
        vocab=vocab_size,
    )


def in_words(parts: Mapping[str, int]) -> str:
    """The sum in GiB, and what it is made of.

    >>> in_words({"weights": 3 << 30, "masters": 0, "gradients": 1 << 29})
    'about 3.50 GiB: weights 3.00, gradients 0.50'
    """
    listed = ", ".join(f"{name} {count / 2**30:.2f}" for name, count in parts.items() if count)
    return f"about {sum(parts.values()) / 2**30:.2f} GiB: {listed}"


def device_bytes(device: torch.device) -> int:
    """All the memory that a device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_bytes() -> dict[str, int]:
    """The most memory the process has held so far: `rss`, and `cuda` (allocated by tensors) where there is a GPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"rss": peak if sys.platform == "darwin" else peak * 1024}  # Linux counts in KiB, macOS in bytes
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.max_memory_allocated()
    return found


def _micro_batch(policy: Policy, materials: Materials, stage: StageSettings) -> int:
    """The most tokens forwarded at once: what the budget allows, or all that an update has."""
    if isinstance(stage, SftSettings | TextSettings):
        sizes = [len(g.prompt.token_ids) + len(g.completion.token_ids) for g in materials.demonstrations]
        return max(min(stage.token_budget, stage.batch_size * max(sizes)), *sizes)
    if isinstance(stage, PreferenceSettings):
        # A group stays whole; without shared beginnings, which is the most it can take.
        grouped = policy.layout == "group_rows"
        sizes = [
            len(g.prompt.token_ids) * (1 if grouped else len(g.completions))
            + sum(len(c.token_ids) for c in g.completions)
            for g in materials.rankings
        ]
        return max(min(stage.token_budget, stage.batch_size * max(sizes)), *sizes)
    if isinstance(stage, OutcomeRewardModelSettings):
        given = [len(g.prompt.token_ids) + len(g.completion.token_ids) for g in materials.labelled]
        sampled = _longest_prompt(materials) + stage.sample.sampling.max_new_tokens if stage.sample else 0
        longest = max(*given, sampled, 1)
        return max(min(stage.token_budget, stage.batch_size * longest), longest)
    if isinstance(stage, RejectionSettings):
        longest = _longest_prompt(materials) + stage.sampling.max_new_tokens
        return max(min(stage.token_budget, stage.batch_size * longest), longest)
    assert isinstance(stage, PolicySettings)
    prompt, new = _longest_prompt(materials), stage.sampling.max_new_tokens
    groups = -(-stage.prompts_per_step // stage.minibatches)
    texts = [1 + len(piece.completion.token_ids) for piece in materials.texts]
    beside = max(min(stage.token_budget, stage.ptx.batch_size * max(texts)), *texts) if stage.ptx and texts else 0
    if policy.layout == "group_rows":
        return max(min(stage.token_budget, groups * (prompt + stage.group_size * new)), prompt + new, beside)
    # The budget counts a prompt once; rows of their own repeat it.
    rows = min(groups * stage.group_size, max((stage.token_budget - prompt) // new, 1))
    return max(rows * (prompt + new), beside)


def _sampled_at_once(materials: Materials, stage: StageSettings) -> int:
    sampling = sampling_of(stage)
    if sampling is None:
        return 0
    num_prompts = stage.prompts_per_step if isinstance(stage, PolicySettings) else BLOCK
    size = stage.sample.group_size if isinstance(stage, OutcomeRewardModelSettings) and stage.sample else 1
    size = stage.group_size if isinstance(stage, SamplingStage) else size
    rows = min(sampling.max_rows, num_prompts * size)
    prompts = -(-rows // size) * _longest_prompt(materials)
    return prompts + rows * sampling.max_new_tokens


def _longest_prompt(materials: Materials) -> int:
    return max(len(prompt.token_ids) for prompt in materials.train_prompts)
