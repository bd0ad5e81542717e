"""Tiny models of the architecture families Outscore promises, built from their config classes.

No download, and the same weights always. Each keeps what sets its family apart: grouped-query heads, query-key norms,
biases, sliding windows shorter than the rows of the tests, soft caps low enough to bite. No parameter stays at a
neutral value (a norm weight of 1, a bias of 0), so a forward pass that forgets one cannot agree with one that does not.

>>> @each_family
... def test_something(family: str) -> None:
...     model = build_family(family)
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCAB_SIZE = 64
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
SLIDING_WINDOW = 8

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    # Ten times the usual: attention and next-token distributions far from uniform, so that a wrong mask shows.
    "initializer_range": 0.2,
}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]


def _qwen2() -> PreTrainedConfig:
    return Qwen2Config(**{k: v for k, v in _SHAPE.items() if k != "head_dim"}, tie_word_embeddings=True)


def _gemma2() -> PreTrainedConfig:
    return Gemma2Config(
        **_SHAPE,
        query_pre_attn_scalar=8,
        sliding_window=SLIDING_WINDOW,
        layer_types=_ALTERNATING,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    )


def _gemma3() -> PreTrainedConfig:
    return Gemma3TextConfig(**_SHAPE, query_pre_attn_scalar=8, sliding_window=SLIDING_WINDOW, layer_types=_ALTERNATING)


FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SHAPE),
    "qwen2": _qwen2,
    "qwen3": lambda: Qwen3Config(**_SHAPE),
    "gemma": lambda: GemmaConfig(**_SHAPE),
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "mistral": lambda: MistralConfig(**_SHAPE, sliding_window=SLIDING_WINDOW),
}
"""Family name -> its tiny configuration."""

each_family = pytest.mark.parametrize("family", FAMILIES)
"""Runs a test once for each family; the test takes `family: str`."""


def build_family(
    family: str, *, seed: int = 0, attention: str = "eager", num_layers: int | None = None
) -> PreTrainedModel:
    """Build a family's tiny model: fp32, on the CPU, in evaluation mode, the same weights for the same seed.

    The caller owns it and may train it. `num_layers` below 3 cuts the stack. The global random state is left as it was.
    """
    config = FAMILIES[family]()
    if num_layers is not None:
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:num_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=torch.float32
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()
