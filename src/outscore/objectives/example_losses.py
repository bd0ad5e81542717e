"""What each completion adds to a loss, by itself: what populations are compared by before their weights are known."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outscore.algorithms.rows import Algorithm
from outscore.objectives.aggregation import token_weights
from outscore.objectives.preferences import Pairs, completion_log_ratios, pair_losses


def example_losses(
    policy_logprobs: Float[Tensor, " token"],
    *,
    algorithm: Algorithm,
    completion_index: Int[Tensor, " token"],
    completion_lengths: Int[Tensor, " completion"],
    num_completions: int,
    num_tokens: int,
    ref_logprobs: Float[Tensor, " token"] | None = None,
    pairs: Pairs | None = None,
) -> Float[Tensor, "2 completion"]:
    """[0, i]: the share of completion i in the loss of a batch, no population weighted; [1, i]: its share in the
    batch, so that over all completions the first add up to the loss and the second to 1.

    For demonstrations the negative log-likelihood in the row's aggregation, for pairs their loss, which stands at the
    better completion. Arguments are those of `policy_loss`, and so are the counts, of the whole batch; completions
    whose tokens are not here have 0. What else a row has in its loss (a KL) is in neither. Carries no gradient.
    """
    policy = policy_logprobs.detach().float() if policy_logprobs.dtype in _HALF else policy_logprobs.detach()
    if pairs is not None:
        assert ref_logprobs is not None
        present = torch.bincount(completion_index, minlength=completion_lengths.numel()) > 0
        objective = algorithm.pair_objective
        ratios = completion_log_ratios(
            policy, ref_logprobs.detach(), completion_index, completion_lengths, per_token=objective.per_token
        )
        here = pairs.to(ratios).within(present)
        losses = pair_losses(ratios[here.better] - ratios[here.worse], here.labels, objective)
        return spread_pairs(losses, here, completion_lengths.numel())
    weights = token_weights(
        completion_index,
        completion_lengths,
        aggregation=algorithm.aggregation,
        num_completions=num_completions,
        num_tokens=num_tokens,
        constant=algorithm.aggregation_constant,
        dtype=policy.dtype,
    )
    both = torch.stack([-weights * policy, weights])
    return policy.new_zeros(2, completion_lengths.numel()).index_add(1, completion_index, both)


def spread_pairs(losses: Float[Tensor, " pair"], pairs: Pairs, num_completions: int) -> Float[Tensor, "2 completion"]:
    """Losses of pairs as `example_losses` returns them: weight times loss, and the weight, at the better completion."""
    both = torch.stack([pairs.weights * losses, pairs.weights]).detach()
    return both.new_zeros(2, num_completions).index_add(1, pairs.better, both)


_HALF = (torch.bfloat16, torch.float16)
