"""What follows a token: sums over the rest of its completion, returns, and generalised advantage estimation.

Ragged as everywhere: flat token axes, here in ORDER: completion after completion, tokens in the order they were drawn,
`completion_lengths[completion]` of each.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ADAPTIVE_KL_LIMIT = 0.2
"""The proportional error of the adaptive KL controller is clipped to this on either side."""


def suffix_sums(
    values: Float[Tensor, " token"],
    completion_lengths: Int[Tensor, " completion"],
    *,
    decay: float | Float[Tensor, " completion"] = 1.0,
) -> Float[Tensor, " token"]:
    """y_t = x_t + decay * y_{t+1} within each completion: what is left to come, with `decay` for all or for each.

    Raises ValueError when the lengths do not add up to the number of values.
    """
    rows, mask = _padded(values, completion_lengths)
    factor = torch.as_tensor(decay, dtype=values.dtype, device=values.device)
    rest = torch.zeros_like(rows[:, 0]) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    columns = []
    for t in reversed(range(rows.shape[1])):
        # Beyond a completion's end x is 0 and so is y, so that its last token starts from nothing.
        rest = rows[:, t] + factor * rest
        columns.append(rest)
    return torch.stack(columns[::-1], dim=1)[mask] if columns else values.clone()


def token_rewards(
    scores: Float[Tensor, " completion"],
    penalties: Float[Tensor, " token"],
    completion_lengths: Int[Tensor, " completion"],
) -> Float[Tensor, " token"]:
    """r_t = -penalty_t, plus the score at the last token: PPO's reward (DeepSeekMath, eq. 2).

    `penalties` are KL costs, their coefficient included. A completion without tokens earns nothing.
    """
    rewards = -penalties
    ends = completion_lengths.cumsum(0) - 1
    some = completion_lengths > 0
    return rewards.index_add(0, ends[some], scores[some].to(rewards.dtype))


def gae(
    rewards: Float[Tensor, " token"],
    values: Float[Tensor, " token"],
    completion_lengths: Int[Tensor, " completion"],
    *,
    gamma: float = 1.0,
    lam: float | Float[Tensor, " completion"] = 0.95,
    last_values: Float[Tensor, " completion"] | None = None,
) -> Float[Tensor, " token"]:
    """Generalised advantage estimates A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t.

    GAE, arXiv 1506.02438, eq. 16. `values[t]` is V of the state in which token t is chosen. Beyond a completion's last
    token V is `last_values` (0 if None: the answer has ended), which one that was cut off may bootstrap from. Actor and
    critic may use a lambda each (VC-PPO, arXiv 2503.01491): the critic's targets are `gae(..., lam=its own) + values`.
    `lam` may differ between completions (`length_adaptive_lambda`).
    """
    rows, mask = _padded(values, completion_lengths)
    following = torch.cat([rows[:, 1:], rows.new_zeros(rows.shape[0], 1)], dim=1)[:, : rows.shape[1]]
    if last_values is not None:
        some = completion_lengths > 0
        following[some, completion_lengths[some] - 1] = last_values[some].to(rows.dtype)
    delta = rewards + gamma * following[mask] - values
    return suffix_sums(delta, completion_lengths, decay=gamma * lam)


def length_adaptive_lambda(
    completion_lengths: Int[Tensor, " completion"], *, alpha: float = 0.05
) -> Float[Tensor, " completion"]:
    """VAPO's lambda for the policy, 1 - 1 / (alpha length), at least 0 (arXiv 2504.05118): 0.8 at 100, 0.98 at 1000.

    The sum of the weights lambda^l is then alpha times the length, whatever that is. Raises ValueError when alpha is
    not positive.
    """
    if not alpha > 0.0:
        raise ValueError(f"alpha={alpha}: must be above 0; VAPO uses 0.05")
    return (1.0 - 1.0 / (alpha * completion_lengths.double().clamp(min=1.0))).clamp(min=0.0)


def clipped_value_loss(
    values: Float[Tensor, " token"],
    anchor_values: Float[Tensor, " token"],
    returns: Float[Tensor, " token"],
    *,
    clip: float,
) -> tuple[Float[Tensor, " token"], Bool[Tensor, " token"]]:
    """1/2 max((V - R)^2, (clip(V, V_anchor - clip, V_anchor + clip) - R)^2) of each token, and where the clip took the
    gradient.

    Of PPO's reference implementation; `anchor_values` are those when the step's updates began, with which the returns
    were computed. An infinite clip is none.
    """
    limited = torch.minimum(torch.maximum(values, anchor_values - clip), anchor_values + clip)
    free, held = (values - returns).square(), (limited - returns).square()
    return 0.5 * torch.maximum(free, held), (held > free) & (limited != values)


def whiten(values: Float[Tensor, " *shape"], *, shift_mean: bool = True, eps: float = 1e-8) -> Float[Tensor, " *shape"]:
    """(x - mean) / sqrt(var + eps) with the POPULATION variance; without `shift_mean` the mean is added back.

    As in OpenAI's RLHF code: rewards are whitened without shift, advantages with it. Nothing gives nothing.
    """
    if not values.numel():
        return values.clone()
    mean, variance = values.mean(), values.var(correction=0)
    whitened = (values - mean) * torch.rsqrt(variance + eps)
    return whitened if shift_mean else whitened + mean


def adaptive_kl_coef(
    coef: float, *, measured_kl: float, target: float = 6.0, num_samples: int, horizon: int = 10_000
) -> float:
    """The KL coefficient after `num_samples` completions whose mean KL was `measured_kl`, in nats per completion.

    coef (1 + e n / horizon) with e = clip(measured / target - 1, -0.2, 0.2) (Ziegler et al., arXiv 1909.08593, 2.2;
    there 0.15 to begin with, target 6, horizon 10000). Raises ValueError when target or horizon is not positive.
    """
    if not target > 0.0 or horizon < 1:
        raise ValueError(f"target={target}, horizon={horizon}: both must be above 0")
    error = min(max(measured_kl / target - 1.0, -ADAPTIVE_KL_LIMIT), ADAPTIVE_KL_LIMIT)
    return coef * (1.0 + error * num_samples / horizon)


def _padded(
    values: Float[Tensor, " token"], completion_lengths: Int[Tensor, " completion"]
) -> tuple[Float[Tensor, "completion longest"], Bool[Tensor, "completion longest"]]:
    """The values with a row for each completion, 0 beyond its end, and where there are values."""
    if int(completion_lengths.sum()) != values.numel():
        raise ValueError(
            f"completion_lengths add up to {int(completion_lengths.sum())}, but there are {values.numel()}"
        )
    longest = int(completion_lengths.max()) if completion_lengths.numel() else 0
    mask = torch.arange(longest, device=values.device)[None] < completion_lengths[:, None]
    rows = values.new_zeros(mask.shape)
    rows[mask] = values
    return rows, mask
