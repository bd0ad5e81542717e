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
    own = sum(length * (length - 1) // 2 for length in work.lengths())  # its t-th step reads t of its tokens
    prompts = sum(work.prompt_tokens * (max(group) - 1) for group in _groups(work))
    return BF16 * ((work.longest - 1) * (layers + head) + per_token * (own + prompts))


def update_flops(config: PreTrainedConfig, work: Workload) -> int:
    """Floating-point operations of forward and backward pass over all groups with contrast, nothing computed twice."""
    layers, head = num_weights(config)
    prompt, total = work.prompt_tokens, 0
    for group in _groups(work)[: work.num_prompts - work.flat_groups]:
        pairs = prompt * (prompt + 1) // 2 + sum(length * (length + 1) // 2 + length * prompt for length in group)
        attention = 2 * config.num_hidden_layers * config.hidden_size * pairs  # scores, and weights times values
        total += 6 * (layers * (prompt + sum(group)) + head * sum(group) + attention)
    return total


def counted_limits(config: PreTrainedConfig, work: Workload, bandwidth: float, peak: float) -> dict[str, float]:
    """Seconds of sampling, and for a step of log-probs and backward, at so many bytes and operations a second."""
    limits = {"bandwidth": bandwidth, "peak": peak, "sample": decoding_bytes(config, work) / bandwidth}
    return limits if work.kind == "sampling" else limits | {"backward": update_flops(config, work) / peak}


def _groups(work: Workload) -> list[list[int]]:
    """Lengths of the completions of each prompt."""
    lengths, size = work.lengths(), work.group_size
    return [lengths[start : start + size] for start in range(0, len(lengths), size)]


def bandwidth(device: torch.device, num_bytes: int = 1 << 32) -> float:
    """Bytes a second that a copy reads and writes: the fastest of eight."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(8):
        started = now()
        target.copy_(source)
        seconds.append(now() - started)
    del source, target
    if device.type == "cuda":
        torch.cuda.empty_cache()  # else they would be held while the sides run
    return 2 * num_bytes / min(seconds)
