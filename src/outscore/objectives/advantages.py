"""What each completion of a group is worth, measured against its own group."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from outscore.algorithms.choices import Baseline, Scale

_ROUNDING_UNITS = 4.0
"""Rewards closer than this many units in the last place of the largest are one reward, computed in two orders."""


def _checked_valid(rewards: Float[Tensor, " completion"], valid: Bool[Tensor, " completion"] | None) -> Tensor:
    """The mask of completions that take part; ValueError when one of those has no finite reward."""
    mask = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    bad = mask & ~torch.isfinite(rewards)
    if bool(bad.any()):
        where = int(bad.nonzero()[0])
        raise ValueError(
            f"rewards[{where}] is {float(rewards[where])}; rewards must be finite. "
            "Mark a completion that could not be scored as not valid instead."
        )
    return mask


def is_zero_variance(rewards: Float[Tensor, " completion"], valid: Bool[Tensor, " completion"] | None = None) -> bool:
    """Whether a group carries no comparison: fewer than two valid completions, or all valid rewards equal.

    Equal means equal up to four units in the last place of the rewards' own dtype, so that 0.1 + 0.2 and 0.3 are one
    reward. Raises ValueError when a valid reward is NaN or infinite.
    """
    scored = rewards[_checked_valid(rewards, valid)]
    if scored.numel() < 2:
        return True
    tolerance = _ROUNDING_UNITS * torch.finfo(rewards.dtype).eps * scored.abs().max()
    return bool(scored.max() - scored.min() <= tolerance)


def group_advantages(
    rewards: Float[Tensor, " completion"],
    *,
    baseline: Baseline,
    scale: Scale,
    eps: float,
    valid: Bool[Tensor, " completion"] | None = None,
) -> Float[Tensor, " completion"]:
    """Advantages of the completions of ONE group: (reward - baseline) / (standard deviation, or mean, + eps).

    DeepSeekMath (arXiv 2402.03300, 4.1.2) with `baseline="group_mean"`; leave-one-out is RLOO (arXiv 2402.14740);
    division by the mean, for rewards that are never negative, is MaxRL (arXiv 2602.02710). The standard deviation is
    always taken about the group mean. Statistics are computed in float64 and returned in the
    rewards' dtype.

    A group without variance (`is_zero_variance`) gets exactly 0 everywhere, as does a completion that is not valid;
    the latter is left out of the statistics and may hold any reward. With `baseline="none"` and `scale="none"` nothing
    is compared: the advantage of a valid completion is its reward, whatever its group (rejection sampling: reward 1 or
    0).

    Raises ValueError when a valid reward is NaN or infinite, or is negative where the scale is the mean; and for
    "batch_std", "shrunk_mean" and "critic", which need more than one group's rewards (`batch_advantages`).
    """
    if scale == "batch_std" or baseline in ("critic", "shrunk_mean"):
        which = f"scale={scale!r}" if scale == "batch_std" else f"baseline={baseline!r}"
        raise ValueError(f"{which} needs more than the rewards of one group: use batch_advantages")
    mask = _checked_valid(rewards, valid)
    if baseline == "none" and scale == "none":
        return torch.where(mask, rewards, torch.zeros_like(rewards))
    advantages = torch.zeros_like(rewards)
    if is_zero_variance(rewards, mask):
        return advantages
    scored = rewards[mask].double()
    centred = scored - scored.mean()
    num_scored = scored.numel()
    if baseline == "group_mean":
        difference = centred
    elif baseline == "leave_one_out":
        # r_i - mean_{j != i} r_j = (r_i - mean) n / (n - 1)
        difference = centred * (num_scored / (num_scored - 1))
    else:
        difference = scored
    if scale == "mean":
        if bool((scored < 0).any()):
            raise ValueError(
                f"scale='mean' needs rewards that are never negative, got {float(scored.min())}; use 'population_std'"
            )
        difference = difference / (scored.mean() + eps)
    elif scale != "none":
        num_degrees = num_scored if scale == "population_std" else num_scored - 1
        difference = difference / ((centred.square().sum() / num_degrees).sqrt() + eps)
    advantages[mask] = difference.to(rewards.dtype)
    return advantages
