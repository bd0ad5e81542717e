"""Log-probs and entropy of the tokens that carry loss, without ever holding rows × tokens × vocab."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from outscore.model.attention import TreeAttention
from outscore.model.policy import Policy
from outscore.model.rows import GroupRows
from outscore.model.transfer import on_device

CHUNK_LOGITS = 1 << 24
"""Logits held at a time (64 MiB in fp32), at least."""

MEMORY_SHARE = 128
"""A GPU holds so many times the logits of a chunk: 1 GiB of them on one with 141 GB. For each chunk it reads the head
three times and adds up its gradient, in the model's own type: the fewer, the faster, and the less is rounded."""


def chunk_tokens(vocab_size: int, device: torch.device) -> int:
    """Tokens whose logits are held at a time."""
    num_logits = CHUNK_LOGITS
    if device.type == "cuda":
        share = torch.cuda.get_device_properties(device).total_memory // (4 * MEMORY_SHARE)
        num_logits = max(num_logits, 1 << (share.bit_length() - 1))
    return max(num_logits // vocab_size, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """What the policy says of each loss-carrying token of a micro-batch, in the order of `GroupRows.order`."""

    logprobs: Float[Tensor, " token"]
    """log π(token | everything before it), at the sampling temperature."""
    entropy: Float[Tensor, " token"]
    """Entropy in nats of the distribution the token was drawn from."""
    states: Float[Tensor, "prediction hidden"]
    """The last hidden states that tokens are predicted from; that of a token is `states[rows.predictions]`."""


def token_logprobs(policy: Policy, rows: GroupRows, *, temperature: float = 1.0) -> TokenLogprobs:
    """Forward the rows and evaluate their loss-carrying tokens; differentiable.

    Completions that begin alike share tokens, and so predictions: their log-probs are one number, to which the
    gradients of all of them add up. The head runs in chunks that are recomputed in the backward pass, so that memory
    grows with the chunk and not with tokens × vocab.

    Args:
        policy: the model.
        rows: packed by `group_rows` or `separate_rows`, as the policy's layout asks.
        temperature: divides the logits, as it did when the completions were sampled; greedy sampling (0) counts as 1.
    """
    predicting = row_hidden(policy, rows).index_select(0, rows.sources)
    chunk = chunk_tokens(policy.vocab_size, policy.device)
    pieces = [
        cast(
            tuple[Tensor, Tensor], checkpoint(_evaluate, policy, part, targets, temperature or 1.0, use_reentrant=False)
        )
        for part, targets in zip(predicting.split(chunk), rows.targets.split(chunk), strict=True)
    ]
    logprobs, entropy = (torch.cat(column) for column in zip(*pieces, strict=True))
    return TokenLogprobs(
        logprobs=logprobs.index_select(0, rows.predictions),
        entropy=entropy.index_select(0, rows.predictions),
        states=predicting,
    )


def row_hidden(policy: Policy, rows: GroupRows) -> Float[Tensor, "slot hidden"]:
    """The last hidden states of all rows, one after the other."""
    if policy.layout == "group_rows":
        tree = TreeAttention(rows.segments, rows.token_ids.device)
        hidden = policy.hidden(rows.token_ids, rows.positions, tree)
    else:
        lengths = on_device(torch.tensor(rows.lengths), rows.token_ids.device)
        mask = torch.arange(rows.token_ids.shape[1], device=lengths.device) < lengths[:, None]
        hidden = policy.padded_hidden(rows.token_ids, mask.long())
    return hidden.flatten(0, 1)


def _evaluate(
    policy: Policy, hidden: Float[Tensor, "token hidden"], targets: Int[Tensor, " token"], temperature: float
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    all_logprobs = (policy.logits(hidden) / temperature).log_softmax(-1)
    entropy = -(all_logprobs.exp() * all_logprobs).sum(-1)
    return all_logprobs.gather(-1, targets[:, None])[:, 0], entropy
