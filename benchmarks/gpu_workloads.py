"""The work for a GPU: models of the Qwen 2.5 architecture with random weights, and steps of many long completions.

Random weights serve for speed: what a kernel takes does not depend on them. The architecture's numbers are those of
Qwen2.5-0.5B and -1.5B (arXiv 2412.15115, table 1).
"""

import string
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config
from workloads import Workload

from outscore.model.tiny import character_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What is measured with a model, and how each side is set for it."""

    config: dict[str, int]
    """The architecture."""
    trl_batch: int
    """Completions of one backward pass of TRL; what fits beside their logits."""
    token_budget: int
    """Tokens of one backward pass of Outscore."""


_QWEN = {"vocab_size": 151_936, "num_key_value_heads": 2, "max_position_embeddings": 32_768}
SIZES = {
    "qwen-0.5b": Sizes(
        config=_QWEN
        | {"hidden_size": 896, "intermediate_size": 4_864, "num_hidden_layers": 24, "num_attention_heads": 14},
        trl_batch=32,
        token_budget=16_384,
    ),
    "qwen-1.5b": Sizes(
        config=_QWEN
        | {"hidden_size": 1_536, "intermediate_size": 8_960, "num_hidden_layers": 28, "num_attention_heads": 12},
        trl_batch=16,
        token_budget=16_384,
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
        trl_batch=2,
        token_budget=64,
    ),
}
"""By name."""


def _workloads(model: str, sizes: Sizes, shapes: dict[str, int]) -> list[Workload]:
    rows, length = shapes["decoded"], {"shortest": shapes["length"], "longest": shapes["length"]}
    group, prompt = shapes["group_size"], shapes["prompt_tokens"]
    return [
        Workload(
            name=f"decoding-{model}",
            kind="sampling",
            num_prompts=rows // group,
            group_size=group,
            prompt_tokens=prompt,
            max_rows=rows,
            **length,
        ),
        Workload(
            name=f"step-{model}",
            num_prompts=shapes["num_prompts"],
            group_size=group,
            prompt_tokens=prompt,
            max_rows=shapes["num_prompts"] * group,
            token_budget=sizes.token_budget,
            trl_batch=sizes.trl_batch,
            **length,
        ),
    ]


LARGE = {"num_prompts": 64, "group_size": 16, "prompt_tokens": 128, "length": 512, "decoded": 64}
SMALL = {"num_prompts": 2, "group_size": 2, "prompt_tokens": 4, "length": 12, "decoded": 4}
GPU_WORKLOADS = {
    workload.name: workload
    for model, sizes in SIZES.items()
    for workload in _workloads(model, sizes, SMALL if model == "smoke" else LARGE)
}
"""By name: decoding alone, and a step, of each model; those of the model `smoke` only try whether everything runs, on
any device. All completions of one are equally long, and the end token is not drawn: continuous batching has no other
way to be told."""


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
