"""From the rewards of a batch of groups to one advantage for each token: the cells that say what a completion is worth.

The statistics that span the batch (`scale: batch_std`, `batch_norm`) are those of all groups that are trained on at
once: a group that a refill replaced and a completion that could not be scored are in none of them, and how the batch is
then cut into updates and micro-batches changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from outscore.algorithms.choices import Baseline, Scale
from outscore.algorithms.rows import Algorithm
from outscore.objectives.advantages import group_advantages, is_zero_variance
from outscore.objectives.returns import gae, length_adaptive_lambda, suffix_sums, token_rewards, whiten
from outscore.objectives.shrinkage import shrunk_advantages


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRewards:
    """Rewards of the steps of a group's completions, each paid at the token that ends its step."""

    completion: Int[Tensor, " step"]
    """The completion each step belongs to, by its place in the group."""
    end: Int[Tensor, " step"]
    """Its last token, counted among the completion's loss-carrying tokens; -1 where the first of them comes later."""
    reward: Float[Tensor, " step"]
    """What it earned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRewards:
    """What is known of the worth of ONE group's completions."""

    rewards: Float[Tensor, " completion"]
    """The rewards that are compared, penalties taken off; any number where not valid."""
    valid: Bool[Tensor, " completion"]
    """Which completions could be scored."""
    num_tokens: Int[Tensor, " completion"]
    """Loss-carrying tokens of each completion; 0 for one that is compared but not trained on."""
    parts: Float[Tensor, "part completion"] | None = None
    """Each reward on its own, for `reward: parts`; NaN where it does not apply."""
    part_weights: Float[Tensor, " part"] | None = None
    """The weight of each part."""
    steps: StepRewards | None = None
    """For `supervision: process`."""
    token_costs: Float[Tensor, " token"] | None = None
    """For `kl_place: token_reward`: the KL cost of each loss-carrying token, its coefficient included."""
    values: Float[Tensor, " token"] | None = None
    """For `baseline: critic`: what the critic expects in the state in which each loss-carrying token is chosen."""


def process_advantages(
    steps: StepRewards,
    num_tokens: Int[Tensor, " completion"],
    *,
    baseline: Baseline,
    scale: Scale,
    eps: float,
    valid: Bool[Tensor, " completion"] | None = None,
) -> Float[Tensor, " token"]:
    """Advantages of the tokens of ONE group from rewards of steps (DeepSeekMath, arXiv 2402.03300, 4.1.3).

    All steps of all valid completions form one pool, in which rewards are compared as `group_advantages` compares those
    of completions; the advantage of a token is the sum of the normalised rewards of the steps that end at it or after.
    With one step for each completion it is outcome supervision.
    """
    among = None if valid is None else valid[steps.completion]
    worth = group_advantages(steps.reward, baseline=baseline, scale=scale, eps=eps, valid=among)
    first = num_tokens.cumsum(0) - num_tokens
    paid = (steps.end >= 0) & (num_tokens[steps.completion] > 0)
    tokens = worth.new_zeros(int(num_tokens.sum()))
    tokens = tokens.index_add(0, (first[steps.completion] + steps.end)[paid], worth[paid])
    return suffix_sums(tokens, num_tokens)


def part_advantages(group: GroupRewards, row: Algorithm) -> Float[Tensor, " completion"]:
    """Each reward compared within the group on its own, then summed with the weights (GDPO, arXiv 2601.05242).

    A part that does not apply to a completion says nothing for or against it.
    """
    assert group.parts is not None and group.part_weights is not None
    total = torch.zeros_like(group.rewards)
    for part, weight in zip(group.parts, group.part_weights.tolist(), strict=True):
        valid = group.valid & ~torch.isnan(part)
        total = total + weight * group_advantages(
            part.to(total.dtype), baseline=row.baseline, scale=row.scale, eps=row.advantage_eps, valid=valid
        )
    return total


def is_silent(group: GroupRewards, row: Algorithm) -> bool:
    """Whether a group teaches nothing under this row: nothing in it differs, or without a baseline all is worth 0.

    What is only compared with the rest of the batch, or with what a critic expects, is never silent.
    """
    if row.baseline in ("critic", "shrunk_mean") or row.reward == "none":
        return False
    if row.baseline == "none" and row.batch_norm != "none":
        return False
    return not bool(_local(group, row).any())


def batch_advantages(groups: Sequence[GroupRewards], row: Algorithm) -> Float[Tensor, " token"]:
    """The advantage of every loss-carrying token of a batch, groups, completions and tokens in order, in float64.

        local    the row's baseline and scale, within the group: of totals, of each part, or of the pool of steps; with
                 `baseline: shrunk_mean` the group's mean is drawn towards the other groups' before
        batch    divided by the standard deviation of all rewards (`scale: batch_std`), then shifted and divided by
                 mean and standard deviation of all advantages, over completions or over tokens (`batch_norm`)
        critic   instead of both: generalised advantage estimation over the rewards of tokens (`baseline: critic`), each
                 paid its KL cost, the last one the completion's reward, or each step's last one its step's
        last     less the KL cost of this and later tokens (`kl_place: token_reward`), before the tokens' norm;
                 negative ones set to 0 where the row asks for it

    Standard deviations are the population's, and `advantage_eps` is added to each. A batch without any difference has
    advantage exactly 0. Tokens of completions that are not valid get 0 and enter no statistics.
    """
    valid = torch.cat([group.valid for group in groups])
    lengths = torch.cat([group.num_tokens for group in groups])
    counted = valid.repeat_interleave(lengths)
    local = _generalised(groups, row)[0] if row.has_critic else _compared(groups, row, valid, lengths)
    if row.batch_norm == "tokens":
        local = _normalised(local, counted, row.advantage_eps)
    elif row.batch_norm == "whiten" and not is_zero_variance(local, counted):
        local = local.masked_scatter(counted, whiten(local[counted]))
    elif row.batch_norm == "whiten":
        local = torch.zeros_like(local)
    if row.zero_negative:
        local = local.clamp(min=0.0)
    return torch.where(counted, local, torch.zeros_like(local))


def batch_returns(groups: Sequence[GroupRewards], row: Algorithm) -> Float[Tensor, " token"]:
    """What the critic is to expect at every loss-carrying token of a batch, in float64: its values now, and the
    generalised advantage with its own lambda (VC-PPO, arXiv 2503.01491), before anything is normalised. Tokens of
    completions that are not valid get the value itself: nothing is known that it should be."""
    valid = torch.cat([group.valid for group in groups])
    counted = valid.repeat_interleave(torch.cat([group.num_tokens for group in groups]))
    values = torch.cat([group.values.double() for group in groups if group.values is not None])
    return torch.where(counted, _generalised(groups, row)[1], values)


def shrunk(groups: Sequence[GroupRewards]) -> tuple[Float[Tensor, " completion"], Float[Tensor, " group"]]:
    """For `baseline: shrunk_mean`: the advantages of a batch's completions, and how certain each group's mean is."""
    rewards, valid = (torch.cat([getattr(group, name) for group in groups]) for name in ("rewards", "valid"))
    return shrunk_advantages(rewards, valid, [len(group.valid) for group in groups])


def _compared(groups: Sequence[GroupRewards], row: Algorithm, valid: Tensor, lengths: Tensor) -> Tensor:
    """Advantages of tokens where completions are compared as a whole, or by steps, less what KL is still to cost."""
    local = shrunk(groups)[0] if row.baseline == "shrunk_mean" else torch.cat([_local(group, row) for group in groups])
    if row.supervision == "outcome":
        if row.scale == "batch_std":
            local = _divided(local, torch.cat([group.rewards for group in groups])[valid].double(), row.advantage_eps)
        if row.batch_norm == "completions":
            local = _normalised(local, valid, row.advantage_eps)
        local = local.repeat_interleave(lengths)
    costs = _token_costs(groups, row)
    return local if costs is None else local - suffix_sums(costs, lengths)


def _generalised(groups: Sequence[GroupRewards], row: Algorithm) -> tuple[Tensor, Tensor]:
    """Advantages of the policy and targets of the critic: GAE with gamma 1 over what each token is paid."""
    valid = torch.cat([group.valid for group in groups])
    lengths = torch.cat([group.num_tokens for group in groups])
    counted = valid.repeat_interleave(lengths)
    assert all(group.values is not None for group in groups)
    values = torch.cat([group.values.double() for group in groups if group.values is not None])
    costs = _token_costs(groups, row)
    costs = torch.zeros_like(values) if costs is None else costs
    if row.supervision == "process":
        paid = torch.cat([_paid_by_step(group) for group in groups]) - costs
    else:
        scores = torch.cat([group.rewards for group in groups]).double()
        paid = token_rewards(torch.where(valid, scores, torch.zeros_like(scores)), costs, lengths)
    if row.whiten_rewards and not is_zero_variance(paid, counted):
        paid = paid.masked_scatter(counted, whiten(paid[counted], shift_mean=False))
    lam: float | Tensor = row.gae_lambda
    if row.lambda_alpha is not None:
        lam = length_adaptive_lambda(lengths, alpha=row.lambda_alpha)
    actor = gae(paid, values, lengths, lam=lam)
    if row.critic_lambda is None:
        return actor, actor + values
    return actor, gae(paid, values, lengths, lam=row.critic_lambda) + values


def _paid_by_step(group: GroupRewards) -> Tensor:
    """What a group's tokens are paid where each step has a reward, as it is: the critic does the comparing."""
    assert group.steps is not None
    first = group.num_tokens.cumsum(0) - group.num_tokens
    steps = group.steps
    paid = (steps.end >= 0) & (group.num_tokens[steps.completion] > 0)
    tokens = torch.zeros(int(group.num_tokens.sum()), dtype=torch.float64)
    return tokens.index_add(0, (first[steps.completion] + steps.end)[paid], steps.reward.double()[paid])


def _token_costs(groups: Sequence[GroupRewards], row: Algorithm) -> Tensor | None:
    """The KL cost of every token, where tokens pay for themselves."""
    if row.kl_place != "token_reward" or not row.kl_coef > 0.0:
        return None
    costs = [group.token_costs for group in groups]
    assert all(cost is not None for cost in costs)
    return torch.cat([cost.double() for cost in costs if cost is not None])


def _local(group: GroupRewards, row: Algorithm) -> Tensor:
    """What the group alone says, in float64: of each completion, or with process supervision of each token."""
    if row.supervision == "process":
        assert group.steps is not None
        return process_advantages(
            StepRewards(completion=group.steps.completion, end=group.steps.end, reward=group.steps.reward.double()),
            group.num_tokens,
            baseline=row.baseline,
            scale=row.scale,
            eps=row.advantage_eps,
            valid=group.valid,
        )
    if row.reward == "none":
        return torch.zeros_like(group.rewards, dtype=torch.float64)
    if row.reward == "parts":
        return part_advantages(group, row).double()
    return group_advantages(
        group.rewards.double(),
        baseline=row.baseline,
        scale="none" if row.scale == "batch_std" else row.scale,
        eps=row.advantage_eps,
        valid=group.valid,
    )


def _divided(values: Tensor, rewards: Tensor, eps: float) -> Tensor:
    if is_zero_variance(rewards):
        return torch.zeros_like(values)
    return values / (rewards.std(correction=0) + eps)


def _normalised(values: Tensor, mask: Tensor, eps: float) -> Tensor:
    normalised = torch.zeros_like(values)
    counted = values[mask]
    if not is_zero_variance(counted):
        normalised[mask] = (counted - counted.mean()) / (counted.std(correction=0) + eps)
    return normalised
