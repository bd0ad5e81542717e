"""Ratios of two policies on the tokens of ragged completions, held flat along one token axis.

`completion_index[token]` says which completion a token belongs to; nothing is padded.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RatioLevel = Literal["token", "sequence"]
"""Whether a ratio belongs to one token (DeepSeekMath) or to the whole completion (DeepSeek-R1, eq. 1)."""

EXP_LIMIT = 20.0
"""Exponents up to here (a ratio of 4.9e8) are exact; beyond, `exp` goes on along its tangent, so nothing overflows."""


def bounded_exp(exponent: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """exp(x) for x <= 20 and its tangent at 20 beyond: finite, increasing, with a gradient that never dies as a
    clamp's does."""
    capped = exponent.clamp(max=EXP_LIMIT)
    return torch.exp(capped) * (1.0 + (exponent - capped))


def bounded_expm1(exponent: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """`bounded_exp(x) - 1` without cancellation near 0."""
    capped = exponent.clamp(max=EXP_LIMIT)
    return torch.expm1(capped) + torch.exp(capped) * (exponent - capped)


def completion_sums(
    values: Float[Tensor, " token"], completion_index: Int[Tensor, " token"], num_completions: int
) -> Float[Tensor, " completion"]:
    """The sum of per-token values over each completion; 0 for a completion without tokens here."""
    return values.new_zeros(num_completions).index_add(0, completion_index, values)


def log_ratio(
    numerator_logprobs: Float[Tensor, " token"],
    denominator_logprobs: Float[Tensor, " token"],
    completion_index: Int[Tensor, " token"],
    *,
    level: RatioLevel,
    num_completions: int,
) -> Float[Tensor, " token"]:
    """log(numerator / denominator) for each token, in nats.

    `level="token"` is the difference of the log-probs. `level="sequence"` is its SUM over the completion, repeated on
    each of its tokens: the ratio of the probabilities of the whole answers. Averaged over a completion's tokens it
    counts once, so aggregation "completion_mean" makes it DeepSeek-R1's equation exactly. All tokens of a completion
    must be present.
    """
    difference = numerator_logprobs - denominator_logprobs
    if level == "token":
        return difference
    return completion_sums(difference, completion_index, num_completions)[completion_index]


def truncated_importance_weights(
    mismatch_log_ratio: Float[Tensor, " token"], *, cap: float
) -> tuple[Float[Tensor, " token"], Bool[Tensor, " token"]]:
    """min(anchor / sampler, cap) without gradient, and where the cap acted (TIS).

    It corrects for a sampler whose probabilities differ from the trainer's own: other kernels, other precision, or
    top-k and top-p, under which `sampler_logprobs` are those of the renormalised distribution.
    """
    ratio = bounded_exp(mismatch_log_ratio.detach())
    return ratio.clamp(max=cap), ratio > cap
