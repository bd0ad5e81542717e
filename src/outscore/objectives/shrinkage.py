"""A baseline that knows how sure it is: a group's mean, drawn towards that of the other groups by how uncertain it is.

What a prompt's completions earn in expectation is known only by the few that were sampled. Take it for normal among
prompts, with mean m and variance tau^2, and a completion's reward for normal about it with variance sigma^2. Then the
mean of n completions has posterior

    kappa * mean + (1 - kappa) * m,   kappa = n tau^2 / (n tau^2 + sigma^2)

and kappa, between 0 and 1, is how certain the mean is: the share of its variance among prompts that is not luck. As a
baseline it has the smaller error, by more the fewer completions a group has (Zeng et al., arXiv 2511.03710, whose
two-level leave-one-out this follows; sigma^2 and tau^2 are estimated as in the analysis of variance).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from outscore.objectives.advantages import group_advantages, is_zero_variance


def shrunk_advantages(
    rewards: Float[Tensor, " completion"], valid: Bool[Tensor, " completion"], sizes: Sequence[int]
) -> tuple[Float[Tensor, " completion"], Float[Tensor, " group"]]:
    """Advantages of the completions of a batch of groups of these sizes, one after another, and how certain each
    group's mean is; in float64.

        A_i = r_i - [kappa * mean of the group's other completions + (1 - kappa) * mean of the other groups' means]

    with n - 1 for n in kappa, and m, tau^2 and sigma^2 by the *other* groups. So nothing in the baseline of a
    completion depends on it, and the gradient is unbiased. sigma^2 is the variance within those groups, pooled;
    tau^2 the variance of their means (/(k - 1)) less what sigma^2 explains of it, and at least 0. Where fewer than two
    other groups have rewards, or these show no variance at all, the group speaks for itself: kappa is 1.

    A completion alone in its group is compared with the other groups; alone in the batch, with nothing: 0. Completions
    that are not valid get 0 and enter nothing; a group without a valid one has certainty NaN. A batch in which all
    valid rewards are equal has advantage exactly 0.
    """
    known = [own[kept].double() for own, kept in zip(rewards.split(list(sizes)), valid.split(list(sizes)), strict=True)]
    counts = torch.tensor([len(own) for own in known], dtype=torch.float64)
    means = torch.stack([own.mean() for own in known])  # NaN for a group without rewards
    squares = torch.stack([(own - own.mean()).square().sum() for own in known])
    advantages = torch.zeros(len(rewards), dtype=torch.float64)
    certainties, compared = torch.full_like(means, torch.nan), []
    for group, own in enumerate(known):
        others = counts > 0
        others[group] = False
        if len(own):
            certainties[group] = _certainty(len(own) - 1, counts[others], means[others], squares[others])
        elsewhere = own - means[others].mean() if bool(others.any()) else torch.zeros_like(own)
        here = group_advantages(own, baseline="leave_one_out", scale="none", eps=0.0)
        compared.append(certainties[group] * here + (1.0 - certainties[group]) * elsewhere)
    if not is_zero_variance(torch.cat(known)):
        advantages[valid] = torch.cat(compared)
    return advantages, certainties


def _certainty(num_rest: int, counts: Tensor, means: Tensor, squares: Tensor) -> float:
    """kappa for the mean of `num_rest` completions, by numbers, means and sums of squares of other groups."""
    if num_rest == 0:
        return 0.0
    num_degrees = float((counts - 1).sum())
    if len(means) < 2 or num_degrees == 0.0:
        return 1.0
    within = float(squares.sum()) / num_degrees
    between = max(float(means.var(correction=1)) - within * float((1 / counts).mean()), 0.0)
    total = num_rest * between + within
    return num_rest * between / total if total > 0.0 else 1.0
