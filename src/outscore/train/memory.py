"""What memory things take, counted from shapes, and how much the process has needed so far.

`outscore.train.plan` puts these counts together for the phases of a stage. They are of tensors: what the interpreter
and its libraries take is measured, not counted.
"""

import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from outscore.model.logprobs import chunk_tokens
from outscore.model.policy import Policy

LOGIT_ARRAYS = 4
"""Arrays of a chunk's logits alive at once in the backward pass: log-probs, probabilities, a gradient and the next."""
EVALUATED_ARRAYS = 3
"""The same without a backward pass: log-probs, probabilities and their product."""
DRAWN_ARRAYS = 3
"""The same when sampling: logits, weights, and what a filter or the head's own type takes."""


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
    num_heads: int
    """Query heads: as many scores has a pair of tokens."""
    vocab: int
    """Logits."""


def state_bytes(
    num_parameters: int, num_trained: int, *, bytes_per_weight: int = 4, reference: bool = False
) -> dict[str, int]:
    """Bytes that one model holds when it is trained, by what they are for.

    A trained fp32 weight costs 16 bytes (itself, its gradient, two moments), a frozen one 4; a trained bf16 weight 20:
    its fp32 master has gradient and moments, and it has a gradient of its own. Several models (a critic, a reward
    model) add up, but for gradients, of which one model at a time has any.

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

    Per layer and token: both norms keep their input, in fp32 at least, the normalised input and their output; attention
    keeps queries, keys, values, its output, a copy of that for the projection and a log-sum-exp for each head; the
    gated network four inner values. With activations `recomputed`, every layer keeps its input, and only one at a time
    the rest.
    """
    norms = 2 * shape.hidden * (max(bytes_per_value, 4) + 2 * bytes_per_value)
    inner = 3 * shape.query + 2 * shape.key_value + 4 * shape.intermediate
    layer = norms + inner * bytes_per_value + 4 * shape.num_heads
    kept = shape.num_layers * shape.hidden * bytes_per_value + layer if recomputed else shape.num_layers * layer
    return kept * num_tokens


def score_bytes(shape: DecoderShape, num_pairs: int, *, recomputed: bool = False) -> int:
    """Bytes of attention scores that are kept for the backward pass where no fused kernel does without them: scores and
    weights in fp32, for every head and pair of tokens (see `outscore.model.attention.TreeAttention.num_pairs`)."""
    return 2 * 4 * shape.num_heads * num_pairs * (1 if recomputed else shape.num_layers)


def working_bytes(shape: DecoderShape, num_tokens: int, *, bytes_per_value: int) -> int:
    """Bytes that one layer needs of `num_tokens` tokens while it computes: its input and the normalised input, beside
    either the gated network's inner values or attention's states, rotated and gathered."""
    inner = max(3 * shape.intermediate, 5 * shape.query + 6 * shape.key_value)
    return (2 * shape.hidden + inner) * num_tokens * bytes_per_value


def logit_bytes(shape: DecoderShape, num_tokens: int, device: torch.device, *, arrays: int = LOGIT_ARRAYS) -> int:
    """Bytes of the chunk of logits in hand, which are fp32 whatever the model computes in."""
    return arrays * 4 * min(num_tokens, chunk_tokens(shape.vocab, device)) * shape.vocab


def cache_bytes(shape: DecoderShape, num_tokens: int, *, bytes_per_value: int) -> int:
    """Bytes of the keys and values of so many tokens when sampling."""
    return 2 * shape.key_value * shape.num_layers * num_tokens * bytes_per_value


def scalar_sizes(policy: Policy) -> list[int]:
    """Weights of each tensor of a copy of the policy, adapters merged, with a scalar head."""
    backbone = policy.base.base_model.named_parameters()
    return [*(weight.numel() for name, weight in backbone if "lora_" not in name), int(policy.config.hidden_size)]


def num_scalar_parameters(policy: Policy) -> int:
    """Weights of a copy of the policy, adapters merged, with a scalar head."""
    return sum(scalar_sizes(policy))


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
        num_heads=heads,
        vocab=vocab_size,
    )


def in_words(parts: Mapping[str, int]) -> str:
    """The sum in the unit that suits it, and what it is made of.

    >>> in_words({"weights": 3 << 30, "masters": 0, "gradients": 1 << 29})
    'about 3.50 GiB: weights 3.00, gradients 0.50'
    """
    unit, divisor = unit_of(total := sum(parts.values()))
    sizes = {name: f"{count / divisor:.2f}" for name, count in parts.items()}
    listed = ", ".join(f"{name} {size}" for name, size in sizes.items() if size != "0.00")
    return f"about {total / divisor:.2f} {unit}: {listed}"


def unit_of(count: int) -> tuple[str, int]:
    """The unit that suits a number of bytes, and how many it has."""
    return ("GiB", 1 << 30) if count >= 1 << 30 else ("MiB", 1 << 20)


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


def resident_bytes() -> int:
    """The memory the process holds now; where the system does not say (it is not Linux), the most it has held."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return peak_bytes()["rss"]
