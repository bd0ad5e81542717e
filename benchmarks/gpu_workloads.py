"""The work for a GPU: models of the Qwen 2.5 architecture with random weights, and the CPU's workloads at larger sizes.

Random weights serve for speed: what a kernel takes does not depend on them. The architecture's numbers are those of
Qwen2.5-0.5B and -1.5B (arXiv 2412.15115, table 1).
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config
from workloads import ASKED, WORKLOADS, Workload, trial_of

from outscore.model.tiny import character_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What is measured with a model, and how each side is set for it."""

    config: dict[str, int]
    """The architecture."""
    trl_tokens: int
    """Tokens, padding included, of one backward pass of TRL; what fits beside their logits."""
    token_budget: int
    """Tokens of one backward pass of Outscore; 16,640 are two groups of `step`."""


_QWEN = {"vocab_size": 151_936, "num_key_value_heads": 2, "max_position_embeddings": 32_768}
SIZES = {
    "qwen-0.5b": Sizes(
        config=_QWEN
        | {"hidden_size": 896, "intermediate_size": 4_864, "num_hidden_layers": 24, "num_attention_heads": 14},
        trl_tokens=20_480,
        token_budget=16_640,
    ),
    "qwen-1.5b": Sizes(
        config=_QWEN
        | {"hidden_size": 1_536, "intermediate_size": 8_960, "num_hidden_layers": 28, "num_attention_heads": 12},
        trl_tokens=10_240,
        token_budget=16_640,
    ),
    "smoke": Sizes(
        config={
            "vocab_size": 64,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        },
        trl_tokens=32,
        token_budget=64,
    ),
}
"""By name."""


def _spread(shortest: int, longest: int, **shapes: Any) -> dict[str, Any]:
    return {"group_size": 16, "prompt_tokens": 128, "shortest": shortest, "longest": longest} | shapes


LARGE: Mapping[str, dict[str, Any]] = {
    "decoding": _spread(512, 512, kind="sampling", num_prompts=4),
    "step": _spread(512, 512, num_prompts=64, max_rows=1_024),
    "short": _spread(16, 128, num_prompts=16),
    "long-prompt": _spread(16, 128, num_prompts=8, prompt_tokens=2_048),
    "long-tail": _spread(32, 1_024, num_prompts=32),
    "sampling-32": _spread(64, 512, kind="sampling", num_prompts=2),
    "sampling-64": _spread(64, 512, kind="sampling", num_prompts=4),
    "sampling-128": _spread(64, 512, kind="sampling", num_prompts=8),
    "half-flat": _spread(16, 128, num_prompts=16, flat_groups=8),
}
"""What is measured with the two models: decoding and a step as the GPU's goals name them, all completions equally long,
and the CPU's workloads. `long-tail` has more completions than are decoded at once."""
SMALL: Mapping[str, dict[str, Any]] = {
    "decoding": _spread(12, 12, kind="sampling", num_prompts=2, group_size=2, prompt_tokens=4),
    "step": _spread(12, 12, num_prompts=2, group_size=2, prompt_tokens=4),
    "short": _spread(3, 12, num_prompts=2, group_size=2, prompt_tokens=4, max_rows=3),
}
"""Of the model `smoke`, which only tries whether everything runs, on any device."""
GOALS = {"step": "10 times TRL with `generate`, and 45 % of the peak on the 1.5B", "decoding": "60 % of the bandwidth"}


def _workload(name: str, sizes: Sizes, shapes: dict[str, Any]) -> Workload:
    fitting = sizes.trl_tokens // (shapes["prompt_tokens"] + shapes["longest"])
    together = min(1 << (fitting.bit_length() - 1), shapes["num_prompts"] * shapes["group_size"])  # a power of two
    return Workload(name=name, token_budget=sizes.token_budget, trl_batch=together, **shapes)


GPU_WORKLOADS = {
    (name := f"{kind}-{model}"): _workload(name, sizes, shapes)
    for model, sizes in SIZES.items()
    for kind, shapes in (SMALL if model == "smoke" else LARGE).items()
}
"""By name: kind and model."""


def workload_of(name: str) -> Workload:
    """A workload of either table, or the trial of one."""
    whole = (WORKLOADS | GPU_WORKLOADS)[name.removeprefix("trial:")]
    return trial_of(whole) if name.startswith("trial:") else whole


def asked_of(name: str) -> str:
    """What is asked for, in words; nothing of those that have no goal."""
    if name in ASKED:
        return f"{ASKED[name]:g} times"
    return next((GOALS[kind] for kind in GOALS if name in GPU_WORKLOADS and name.startswith(f"{kind}-")), "")


def random_model(directory: Path, name: str) -> Path:
    """A model of these sizes with random weights in bf16, made in a directory if it is not there."""
    if not (directory / "config.json").is_file():
        tokenizer = character_tokenizer(string.ascii_lowercase, [])
        config = Qwen2Config(
            **SIZES[name].config,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory
