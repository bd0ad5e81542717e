"""What a GPU cannot do faster: read what a decoding step reads, and multiply what an update multiplies.

Both are counted from the architecture. A decoding step reads every weight once, the keys and values of each live row's
own tokens, and those of each prompt once for its group: no implementation that computes the step reads less. An update
multiplies each different token with every weight, once forward and twice backward, and queries with the keys they see.
"""

import torch
from device import now
from transformers import PreTrainedConfig
from workloads import Workload

BF16 = 2  # bytes


def num_weights(config: PreTrainedConfig) -> tuple[int, int]:
    """Weights of all layers' products, and of the head."""
    dim = config.hidden_size // config.num_attention_heads
    key_value = config.num_key_value_heads * dim
    attention = config.hidden_size * (2 * config.hidden_size + 2 * key_value)
    layers = config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
    return layers, config.hidden_size * config.vocab_size


def decoding_bytes(config: PreTrainedConfig, work: Workload) -> int:
    """Bytes that are read to decode all completions side by side in bf16; the first token comes with the prompt."""
    layers, head = num_weights(config)
    dim = config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * dim
    steps = work.longest - 1
    own = work.num_completions * steps * (steps + 1) // 2  # the t-th step reads t tokens of each row
    prompts = work.num_prompts * work.prompt_tokens * steps
    return BF16 * (steps * (layers + head) + per_token * (own + prompts))


def update_flops(config: PreTrainedConfig, work: Workload) -> int:
    """Floating-point operations of forward and backward pass over all groups, with nothing computed twice."""
    layers, head = num_weights(config)
    prompt, length, group = work.prompt_tokens, work.longest, work.group_size
    pairs = prompt * (prompt + 1) // 2 + group * (length * (length + 1) // 2 + length * prompt)
    attention = 2 * config.num_hidden_layers * config.hidden_size * pairs  # scores, and weights times values
    tokens = prompt + group * length
    return work.num_prompts * 6 * (layers * tokens + head * group * length + attention)


def bandwidth(device: torch.device, num_bytes: int = 1 << 32) -> float:
    """Bytes a second that a copy reads and writes: the fastest of eight."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(8):
        started = now()
        target.copy_(source)
        seconds.append(now() - started)
    return 2 * num_bytes / min(seconds)
