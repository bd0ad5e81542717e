"""What is maximised on each token."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from outscore.objectives.ratios import bounded_exp

Surrogate = Literal["clipped", "log_likelihood", "logistic", "squared"]
"""PPO's clipped ratio times the advantage, the log-likelihood times a coefficient, or, of pairs, what
`outscore.objectives.preferences` has."""


def clipped_surrogate(
    policy_log_ratio: Float[Tensor, " token"],
    advantages: Float[Tensor, " token"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, " token"]:
    """min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A), to be maximised (PPO, arXiv 1707.06347).

    ratio = exp(policy_log_ratio) = policy / anchor, per token or per completion. Its gradient is 0 exactly where
    `clipped_tokens` says so, and ratio * A * d log policy elsewhere.
    """
    ratio = bounded_exp(policy_log_ratio)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def clipped_tokens(
    policy_log_ratio: Float[Tensor, " token"],
    advantages: Float[Tensor, " token"],
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Bool[Tensor, " token"], Bool[Tensor, " token"]]:
    """The tokens whose gradient the clip removes: below (A < 0, ratio < 1 - clip_low), above (A > 0, ratio > 1 +
    clip_high)."""
    ratio = bounded_exp(policy_log_ratio)
    return (advantages < 0) & (ratio < 1.0 - clip_low), (advantages > 0) & (ratio > 1.0 + clip_high)


def log_likelihood(
    policy_logprobs: Float[Tensor, " token"], coefficients: Float[Tensor, " token"] | None = None
) -> Float[Tensor, " token"]:
    """coefficient * log policy, to be maximised; the coefficient is 1 if None is given (supervised fine-tuning)."""
    return policy_logprobs if coefficients is None else coefficients * policy_logprobs
