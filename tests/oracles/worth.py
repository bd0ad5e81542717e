"""Advantages of a batch of groups by the printed equations: loops and `math` only."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from outscore.algorithms.rows import Algorithm
from outscore.objectives.batch import GroupRewards, StepRewards

Steps = list[tuple[int, float]]
"""(last token, reward) of each step of a completion."""


@dataclass(frozen=True, kw_only=True)
class Worth:
    """A group's completions as nested lists."""

    parts: list[list[float]]
    """parts[completion][part]; the total is their weighted sum."""
    weights: list[float]
    """The weight of each part."""
    steps: list[Steps]
    """Of each completion."""
    costs: list[list[float]]
    """KL cost of each token of each completion."""
    values: list[list[float]]
    """What a critic expects at each token of each completion."""

    @property
    def rewards(self) -> list[float]:
        return [sum(w * r for w, r in zip(self.weights, own, strict=True)) for own in self.parts]

    @property
    def lengths(self) -> list[int]:
        return [len(own) for own in self.costs]

    def tensors(self, *, valid: Sequence[bool] | None = None) -> GroupRewards:
        """What the library takes."""
        flat = [(i, end, reward) for i, own in enumerate(self.steps) for end, reward in own]
        ends = StepRewards(
            completion=torch.tensor([i for i, _, _ in flat]),
            end=torch.tensor([end for _, end, _ in flat]),
            reward=torch.tensor([reward for _, _, reward in flat], dtype=torch.float64),
        )
        return GroupRewards(
            rewards=torch.tensor(self.rewards, dtype=torch.float64),
            valid=torch.tensor(valid or [True] * len(self.parts)),
            num_tokens=torch.tensor(self.lengths),
            parts=torch.tensor(self.parts, dtype=torch.float64).T,
            part_weights=torch.tensor(self.weights, dtype=torch.float64),
            steps=ends,
            token_costs=torch.tensor([cost for own in self.costs for cost in own], dtype=torch.float64),
            values=torch.tensor([value for own in self.values for value in own], dtype=torch.float64),
        )


def random_worth(lengths: Sequence[int], *, seed: int = 0) -> Worth:
    """Two parts that are 0 or 1 or a half, one to three steps a completion, small costs."""
    draw = random.Random(seed)
    steps: list[Steps] = []
    for length in lengths:
        ends = sorted(draw.sample(range(length), min(length, draw.randint(1, 3))))
        steps.append([(end, draw.choice([0.0, 0.5, 1.0])) for end in ends])
    return Worth(
        parts=[[float(draw.randint(0, 1)), draw.choice([0.0, 0.5, 1.0])] for _ in lengths],
        weights=[1.0, 0.4],
        steps=steps,
        costs=[[draw.gauss(0.0, 0.05) for _ in range(length)] for length in lengths],
        values=[[draw.gauss(0.5, 0.3) for _ in range(length)] for length in lengths],
    )


def naive_advantages(groups: Sequence[Worth], row: Algorithm) -> list[list[float]]:
    """One list of numbers, one for each token, for each completion of the batch."""
    if row.baseline == "critic":
        return _whitened(naive_gae(groups, row)[0], row)
    table: list[list[float]] = []
    all_rewards = [reward for group in groups for reward in group.rewards]
    for group in groups:
        if row.supervision == "process":
            pool = _compared([reward for own in group.steps for _, reward in own], row)
            for length, own in zip(group.lengths, group.steps, strict=True):
                mine, pool = pool[: len(own)], pool[len(own) :]
                worth = [(end, value) for (end, _), value in zip(own, mine, strict=True)]
                table.append([sum(value for end, value in worth if end >= t) for t in range(length)])
            continue
        if row.reward == "none":
            values = [0.0] * len(group.lengths)
        elif row.reward == "parts":
            columns = [_compared([own[k] for own in group.parts], row) for k in range(len(group.weights))]
            values = [
                sum(w * column[i] for w, column in zip(group.weights, columns, strict=True))
                for i in range(len(group.parts))
            ]
        else:
            values = _shrunk(groups, group) if row.baseline == "shrunk_mean" else _compared(group.rewards, row)
            if row.scale == "batch_std":
                values = [value / (_std(all_rewards) + row.advantage_eps) for value in values]
        table += [[value] * length for value, length in zip(values, group.lengths, strict=True)]
    if row.batch_norm == "completions":
        values = [own[0] for own in table]
        mean, std = sum(values) / len(values), _std(values)
        table = [[(own[0] - mean) / (std + row.advantage_eps)] * len(own) for own in table]
    if row.kl_place == "token_reward":
        costs = [own for group in groups for own in group.costs]
        table = [[value - sum(cost[t:]) for t, value in enumerate(own)] for own, cost in zip(table, costs, strict=True)]
    if row.batch_norm == "tokens":
        tokens = [value for own in table for value in own]
        mean, std = sum(tokens) / len(tokens), _std(tokens)
        table = [[(value - mean) / (std + row.advantage_eps) for value in own] for own in table]
    return [[max(value, 0.0) for value in own] for own in table] if row.zero_negative else table


def naive_gae(groups: Sequence[Worth], row: Algorithm) -> tuple[list[list[float]], list[list[float]]]:
    """A_t = sum over l of lambda^l delta_(t+l), and the critic's targets, a sum for every token of every completion."""
    paid = []
    for group in groups:
        for own, cost, reward in zip(group.steps, group.costs, group.rewards, strict=True):
            taxed = row.kl_coef > 0 and row.kl_place == "token_reward"
            earned = [-c if taxed else 0.0 for c in cost]
            for end, worth in own if row.supervision == "process" else [(len(cost) - 1, reward)]:
                earned[end] += worth
            paid.append(earned)
    if row.whiten_rewards:
        tokens = [reward for own in paid for reward in own]
        mean, root = sum(tokens) / len(tokens), math.sqrt(_std(tokens) ** 2 + 1e-8)
        paid = [[(reward - mean) / root + mean for reward in own] for own in paid]
    actor, targets = [], []
    for rewards, values in zip(paid, (own for group in groups for own in group.values), strict=True):
        length = len(rewards)
        delta = [rewards[t] + (values[t + 1] if t + 1 < length else 0.0) - values[t] for t in range(length)]
        lam = row.gae_lambda
        if row.lambda_alpha is not None:
            lam = max(1 - 1 / (row.lambda_alpha * length), 0.0)
        critic = row.gae_lambda if row.critic_lambda is None else row.critic_lambda
        actor.append([sum(lam ** (s - t) * delta[s] for s in range(t, length)) for t in range(length)])
        targets.append([values[t] + sum(critic ** (s - t) * delta[s] for s in range(t, length)) for t in range(length)])
    return actor, targets


def _whitened(table: list[list[float]], row: Algorithm) -> list[list[float]]:
    if row.batch_norm != "none":
        tokens = [value for own in table for value in own]
        mean, variance = sum(tokens) / len(tokens), _std(tokens) ** 2
        root = math.sqrt(variance + 1e-8) if row.batch_norm == "whiten" else math.sqrt(variance) + row.advantage_eps
        table = [[(value - mean) / root for value in own] for own in table]
    return [[max(value, 0.0) for value in own] for own in table] if row.zero_negative else table


def _shrunk(groups: Sequence[Worth], group: Worth) -> list[float]:
    """Against the posterior mean of what the prompt earns, by the completion's siblings and the other groups alone."""
    others = [each.rewards for each in groups if each is not group]
    means = [sum(own) / len(own) for own in others]
    middle = sum(means) / len(means)
    within = sum((r - mean) ** 2 for own, mean in zip(others, means, strict=True) for r in own)
    within /= sum(len(own) - 1 for own in others)
    spread = sum((mean - middle) ** 2 for mean in means) / (len(means) - 1)
    between = max(spread - within * sum(1 / len(own) for own in others) / len(others), 0.0)
    values, count = [], len(group.rewards) - 1
    for reward in group.rewards:
        rest = (sum(group.rewards) - reward) / count
        # Precisions: of the mean of the siblings count / within, of the prior 1 / between.
        posterior = (count / within * rest + middle / between) / (count / within + 1 / between) if between else middle
        values.append(reward - posterior)
    return values


def _compared(rewards: list[float], row: Algorithm) -> list[float]:
    if row.baseline == row.scale == "none":
        return rewards
    count, mean = len(rewards), sum(rewards) / len(rewards)
    if max(rewards) == min(rewards):
        return [0.0] * count
    centred = {
        "group_mean": [reward - mean for reward in rewards],
        "leave_one_out": [reward - (sum(rewards) - reward) / (count - 1) for reward in rewards],
        "none": rewards,
    }[row.baseline]
    if row.scale in ("none", "batch_std"):
        return centred
    scale = {
        "mean": mean,
        "population_std": _std(rewards),
        "sample_std": _std(rewards) * math.sqrt(count / (count - 1)),
    }
    return [value / (scale[row.scale] + row.advantage_eps) for value in centred]


def _std(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
