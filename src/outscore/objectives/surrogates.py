"""What is maximised on each token."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from outscore.objectives.ratios import bounded_exp


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


def capped_weights(
    policy_log_ratio: Float[Tensor, " token"], *, clip_low: float, clip_high: float
) -> tuple[Float[Tensor, " token"], Bool[Tensor, " token"], Bool[Tensor, " token"]]:
    """clip(ratio, 1 - clip_low, 1 + clip_high) without gradient, and where it was raised, and lowered.

    Times the advantage it is CISPO's coefficient of log pi (MiniMax-M1, arXiv 2506.13585, 3.1): unlike a clip, a cap
    takes the gradient of no token away.
    """
    ratio = bounded_exp(policy_log_ratio.detach())
    return ratio.clamp(1.0 - clip_low, 1.0 + clip_high), ratio < 1.0 - clip_low, ratio > 1.0 + clip_high


def tv_masked_tokens(
    policy_logprobs: Float[Tensor, " token"],
    base_logprobs: Float[Tensor, " token"],
    advantages: Float[Tensor, " token"],
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Bool[Tensor, " token"], Bool[Tensor, " token"]]:
    """The tokens that DPPO drops (arXiv 2602.04879, Binary-TV): below (A < 0 and base - policy > clip_low), above
    (A > 0 and policy - base > clip_high), in differences of PROBABILITIES.

    |policy - base| of the sampled token is the total variation between the two distributions once all other tokens are
    taken as one.
    """
    gain = bounded_exp(policy_logprobs.detach()) - bounded_exp(base_logprobs.detach())
    return (advantages < 0) & (-gain > clip_low), (advantages > 0) & (gain > clip_high)


def soft_gate(
    policy_log_ratio: Float[Tensor, " token"],
    advantages: Float[Tensor, " token"],
    *,
    positive: float,
    negative: float,
) -> Float[Tensor, " token"]:
    """(4 / tau) sigmoid(tau (ratio - 1)) A, tau = `positive` where A > 0, else `negative` (SAPO, arXiv 2511.20347).

    Its gradient is `soft_gate_weights` * ratio * A * d log policy: all of it on-policy, less and less on either side.
    """
    temperature = _temperature(policy_log_ratio, advantages, positive, negative)
    return 4.0 / temperature * torch.sigmoid(temperature * (bounded_exp(policy_log_ratio) - 1.0)) * advantages


def soft_gate_weights(
    policy_log_ratio: Float[Tensor, " token"],
    advantages: Float[Tensor, " token"],
    *,
    positive: float,
    negative: float,
) -> Float[Tensor, " token"]:
    """4 p (1 - p), p = sigmoid(tau (ratio - 1)): the share of a token's gradient that the soft gate lets through."""
    temperature = _temperature(policy_log_ratio, advantages, positive, negative)
    passed = torch.sigmoid(temperature * (bounded_exp(policy_log_ratio) - 1.0))
    return 4.0 * passed * (1.0 - passed)


def _temperature(like: Tensor, advantages: Tensor, positive: float, negative: float) -> Tensor:
    return torch.where(advantages > 0, torch.full_like(like, positive), torch.full_like(like, negative)).detach()
