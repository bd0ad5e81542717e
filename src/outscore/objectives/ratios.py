"""Ratios of two policies on the tokens of ragged completions, held flat along one token axis.

`completion_index[token]` says which completion a token belongs to; nothing is padded.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from outscore.algorithms.choices import RatioLevel

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

        token                 the difference of the log-probs
        sequence              its SUM over the completion, repeated on each of its tokens: the ratio of whole answers
        sequence_mean         its MEAN over the completion, repeated: the geometric mean (GSPO, arXiv 2507.18071, eq. 7)
        sequence_mean_token   the same value, with the gradient of the token's own log-prob (GSPO-token, eq. 14)

    Averaged over a completion's tokens a repeated value counts once, so aggregation "completion_mean" makes "sequence"
    DeepSeek-R1's equation and "sequence_mean" GSPO's exactly. But for "token", all tokens of a completion must be
    present.
    """
    difference = numerator_logprobs - denominator_logprobs
    if level == "token":
        return difference
    total = completion_sums(difference, completion_index, num_completions)[completion_index]
    if level == "sequence":
        return total
    lengths = completion_sums(torch.ones_like(difference), completion_index, num_completions)
    mean = total / lengths[completion_index]
    return mean if level == "sequence_mean" else mean.detach() + difference - difference.detach()


def truncated_importance_weights(
    mismatch_log_ratio: Float[Tensor, " token"], *, cap: float
) -> tuple[Float[Tensor, " token"], Bool[Tensor, " token"]]:
    """min(anchor / sampler, cap) without gradient, and where the cap acted (truncated importance sampling, TIS).

    It corrects for a sampler whose probabilities differ from the trainer's own: other kernels, other precision, or
    top-k and top-p, under which `sampler_logprobs` are those of the renormalised distribution.
    """
    ratio = bounded_exp(mismatch_log_ratio.detach())
    return ratio.clamp(max=cap), ratio > cap


def masked_importance_weights(
    mismatch_log_ratio: Float[Tensor, " token"], *, floor: float, cap: float
) -> tuple[Float[Tensor, " token"], Bool[Tensor, " token"]]:
    """anchor / sampler without gradient where it lies in [floor, cap], else 0, and where it does not (masked).

    With floor 0 this is masked importance sampling (MIS), with a floor IcePop, which also drops what the trainer finds
    much less likely than the sampler did.
    """
    ratio = bounded_exp(mismatch_log_ratio.detach())
    out = (ratio < floor) | (ratio > cap)
    return torch.where(out, torch.zeros_like(ratio), ratio), out


def stale_completions(
    base_logprobs: Float[Tensor, " token"],
    policy_logprobs: Float[Tensor, " token"],
    advantages: Float[Tensor, " token"],
    completion_index: Int[Tensor, " token"],
    *,
    threshold: float,
    num_completions: int,
) -> Bool[Tensor, " token"]:
    """The tokens with A < 0 in completions whose mean of log(base / policy) over their tokens exceeds `threshold`.

    DeepSeek-V3.2's off-policy sequence mask (arXiv 2512.02556): bad answers that the policy has left behind teach
    nothing about it and are dropped, good ones stay. A constant: no gradient. All tokens of a completion must be
    present.
    """
    gap = log_ratio(
        base_logprobs.detach(),
        policy_logprobs.detach(),
        completion_index,
        level="sequence_mean",
        num_completions=num_completions,
    )
    return (advantages < 0) & (gap > threshold)
