"""How much each token counts: the weights that make a sum over tokens the objective's average.

Every denominator is a count over the whole batch, handed in. The sum over micro-batches, rows or ranks is then the same
number however the tokens are split.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outscore.algorithms.choices import Aggregation


def token_weights(
    completion_index: Int[Tensor, " token"],
    completion_lengths: Int[Tensor, " completion"],
    *,
    aggregation: Aggregation,
    num_completions: int,
    num_tokens: int,
    constant: int | None = None,
    completion_group: Int[Tensor, " completion"] | None = None,
    num_groups: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " token"]:
    """The weight of each token in the objective.

        completion_mean   1 / (num_completions * |o|)         DeepSeekMath eq. 3
        completion_sum    1 / num_completions                 the log-prob of a whole completion
        token_mean        1 / num_tokens                      DAPO, arXiv 2503.14476
        prompt_mean       1 / (num_groups * sum|o| of group)  ScaleRL, arXiv 2510.13786
        constant          1 / (num_completions * constant)    Dr. GRPO, arXiv 2503.20783

    `completion_lengths[completion]` is |o|, the completion's counted tokens in the whole batch, also when only some of
    them are in this micro-batch. `num_completions` and `num_tokens` count the whole batch, over all ranks and
    micro-batches. `completion_group` is the number of each completion's group, and `num_groups` counts those of the
    whole batch; only "prompt_mean" needs them. Raises ValueError when a denominator is not positive, or when "constant"
    or "prompt_mean" is asked for without what it needs.
    """
    if num_completions < 1 or num_tokens < 1:
        raise ValueError(f"num_completions={num_completions}, num_tokens={num_tokens}: a batch has at least 1 of each")
    if aggregation == "completion_mean":
        return 1.0 / (num_completions * completion_lengths[completion_index].to(dtype))
    if aggregation == "prompt_mean":
        if completion_group is None or num_groups is None or num_groups < 1:
            raise ValueError(f"aggregation 'prompt_mean' needs completion_group and num_groups, found {num_groups}")
        of_groups = completion_lengths.new_zeros(completion_lengths.numel()).index_add(
            0, completion_group, completion_lengths
        )
        return 1.0 / (num_groups * of_groups[completion_group][completion_index].to(dtype))
    if aggregation == "completion_sum":
        denominator = num_completions
    elif aggregation == "token_mean":
        denominator = num_tokens
    elif constant is None or constant < 1:
        raise ValueError(
            f"aggregation_constant={constant}: aggregation 'constant' needs a length of at least 1, "
            "usually max_new_tokens"
        )
    else:
        denominator = num_completions * constant
    return torch.full_like(completion_index, 1.0 / denominator, dtype=dtype)
