"""Advantages of a batch of groups by the printed equations: loops and `math` only."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from outscore.objectives import Algorithm, GroupRewards, StepRewards

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
    )


def naive_advantages(groups: Sequence[Worth], row: Algorithm) -> list[list[float]]:
    """One list of numbers, one for each token, for each completion of the batch."""
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
            values = _compared(group.rewards, row)
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
