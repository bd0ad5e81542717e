"""The synthetic two-population bandit of arXiv 2405.20304 (appendix D.1 and D.2; the paper's code where it is silent).

A state x is uniform on the unit square, an action y one of 8, and the reward of population g is <phi(x, y, g), theta_g>
with c(y) = y/8 + 1, theta_0 = (1, 3, 1, 3) and theta_1 = (3, 1, 3, 1). Three feature maps, for j = 0, 1:

    swapped   phi_2j, phi_2j+1 = c cos(pi x_j), sin(pi x_j)/c for g = 0, the other way round for g = 1
    same      the former for both
    flipped   the former for g = 0; c sin(pi x_j), cos(pi x_j)/c for g = 1

Under `swapped` both populations have the same reward, since theta and phi are permuted together, yet no shared theta
gives it to both.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

FeatureMap = Literal["swapped", "same", "flipped"]
"""How the features of the two populations differ."""

NUM_ACTIONS = 8
NUM_POPULATIONS = 2
REWARD_PARAMS = torch.tensor([[1.0, 3.0, 1.0, 3.0], [3.0, 1.0, 3.0, 1.0]], dtype=torch.float64)
"""theta_g, a row for each population."""
FIRST_SEED = 2021
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 300, 1000, 1000
INITIAL_HIGH = 5.0
"""theta starts uniform on [0, 5]^4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """How preferences are gathered.

    >>> SCENARIOS["uneven-imbalanced"].train_counts
    (60, 240)
    """

    name: str
    """As users write it."""
    uneven: bool
    """Whether population 0 compares neighbouring actions (hard) and population 1 actions 4 apart (easy), or both any
    two different actions."""
    train_counts: tuple[int, int]
    """Training pairs of each population."""

    @property
    def is_balanced(self) -> bool:
        """Whether the populations have as many pairs: importance sampling then changes nothing."""
        return self.train_counts[0] == self.train_counts[1]


SCENARIOS = {
    row.name: row
    for row in (
        Scenario(name="even-imbalanced", uneven=False, train_counts=(60, 240)),
        Scenario(name="uneven-balanced", uneven=True, train_counts=(150, 150)),
        Scenario(name="uneven-imbalanced", uneven=True, train_counts=(60, 240)),
    )
}
"""The paper's scenarios by name."""


@dataclass(frozen=True, kw_only=True)
class BanditData:
    """What the seeds drew: pairs to train and validate on, states to test on, and where theta starts."""

    train: Float[Tensor, "seed pair feature"]
    """phi(x, better) - phi(x, worse) of the training pairs."""
    train_index: Int[Tensor, " pair"]
    """The population of each training pair."""
    validation: Float[Tensor, "seed held_out_pair feature"]
    """The same of the validation pairs, drawn as the training pairs, but half of each population."""
    validation_index: Int[Tensor, " held_out_pair"]
    """The population of each validation pair."""
    test: Float[Tensor, "seed population state action feature"]
    """phi of every action, for both populations, in the test states."""
    initial: Float[Tensor, "seed feature"]
    """theta at the start."""


@dataclass(frozen=True, kw_only=True)
class PolicyQuality:
    """How good policies are in the test states; the axis `run` is any."""

    reward_error: Float[Tensor, "*run seed population"]
    """(best - reached)/best, of the mean true reward of the most likely action: what the paper's code plots."""
    reward_gap: Float[Tensor, "*run seed population"]
    """best - reached: what the paper's text defines."""
    kl: Float[Tensor, "*run seed population"]
    """Mean KL(softmax(true reward) || policy), in nats."""


def features(states: Float[Tensor, "*state 2"], population: int, kind: FeatureMap) -> Float[Tensor, "*state action 4"]:
    """phi(x, y, g) of every action y in the given states."""
    c = (1.0 + torch.arange(NUM_ACTIONS, dtype=torch.float64) / NUM_ACTIONS).unsqueeze(-1)
    angles = math.pi * states.double().unsqueeze(-2)
    cosine, sine = angles.cos(), angles.sin()
    if population == 0 or kind == "same":
        pair = (c * cosine, sine / c)
    elif kind == "swapped":
        pair = (sine / c, c * cosine)
    else:
        pair = (c * sine, cosine / c)
    return torch.stack(pair, dim=-1).flatten(-2)


def rewards(states: Float[Tensor, "*state 2"], population: int, kind: FeatureMap) -> Float[Tensor, "*state action"]:
    """The true reward of every action."""
    return features(states, population, kind) @ REWARD_PARAMS[population]


def draw_pairs(
    rng: np.random.Generator, count: int, population: int, *, uneven: bool
) -> tuple[Float[Tensor, "pair 2"], Int[Tensor, "pair 2"]]:
    """States, and two different actions in each.

    The first is uniform. The second: uniform among the others; or, uneven, a neighbour for population 0 (at either end
    the only one there is) and the action 4 further, modulo 8, for population 1.
    """
    states = torch.from_numpy(rng.uniform(size=(count, 2)))
    first = rng.integers(NUM_ACTIONS, size=count)
    if not uneven:
        second = (first + rng.integers(1, NUM_ACTIONS, size=count)) % NUM_ACTIONS
    elif population == 0:
        second = first + rng.choice([-1, 1], size=count)
        second = np.where((second < 0) | (second >= NUM_ACTIONS), 2 * first - second, second)
    else:
        second = (first + NUM_ACTIONS // 2) % NUM_ACTIONS
    return states, torch.from_numpy(np.stack([first, second], axis=-1))


def preference_differences(
    states: Float[Tensor, "pair 2"], actions: Int[Tensor, "pair 2"], population: int, kind: FeatureMap
) -> Float[Tensor, "pair 4"]:
    """phi(x, better) - phi(x, worse), better being the action of higher true reward; of equals, the second."""
    pairs = torch.arange(len(states)).unsqueeze(-1)
    chosen = features(states, population, kind)[pairs, actions]
    reward = rewards(states, population, kind).gather(-1, actions)
    sign = torch.where(reward[:, 0] > reward[:, 1], 1.0, -1.0).double()
    return sign.unsqueeze(-1) * (chosen[:, 0] - chosen[:, 1])


def draw(scenario: Scenario, kind: FeatureMap, num_seeds: int) -> BanditData:
    """The data of seeds 2021, 2022, …; each seed has a generator of its own."""
    half = NUM_VALIDATION // 2
    parts: list[tuple[Tensor, ...]] = []
    for seed in range(FIRST_SEED, FIRST_SEED + num_seeds):
        rng = np.random.default_rng(seed)
        initial = torch.from_numpy(rng.uniform(0.0, INITIAL_HIGH, size=REWARD_PARAMS.shape[-1]))
        train = _pairs(rng, scenario, kind, scenario.train_counts)
        validation = _pairs(rng, scenario, kind, (half, half))
        states = torch.from_numpy(rng.uniform(size=(NUM_TEST, 2)))
        test = torch.stack([features(states, population, kind) for population in range(NUM_POPULATIONS)])
        parts.append((initial, train, validation, test))
    initials, trains, validations, tests = (torch.stack(column) for column in zip(*parts, strict=True))
    return BanditData(
        train=trains,
        train_index=_index(scenario.train_counts),
        validation=validations,
        validation_index=_index((half, half)),
        test=tests,
        initial=initials,
    )


def policy_quality(params: Float[Tensor, "*run seed 4"], test: Float[Tensor, "seed 2 state 8 4"]) -> PolicyQuality:
    """Reward error and KL of the policies theta, by seed and population."""
    truth = torch.einsum("sgxyf,gf->sgxy", test, REWARD_PARAMS)
    best = truth.amax(dim=-1).mean(dim=-1)
    target = torch.log_softmax(truth, dim=-1)
    errors, gaps, divergences = [], [], []
    for row in params.reshape(-1, *params.shape[-2:]):
        logits = torch.einsum("sgxyf,sf->sgxy", test, row)
        reached = truth.gather(-1, logits.argmax(dim=-1, keepdim=True)).squeeze(-1).mean(dim=-1)
        gaps.append(best - reached)
        errors.append((best - reached) / best)
        divergences.append((target.exp() * (target - torch.log_softmax(logits, dim=-1))).sum(dim=-1).mean(dim=-1))
    shape = (*params.shape[:-1], NUM_POPULATIONS)
    stacked = [torch.stack(values).reshape(shape) for values in (errors, gaps, divergences)]
    return PolicyQuality(reward_error=stacked[0], reward_gap=stacked[1], kl=stacked[2])


def _pairs(rng: np.random.Generator, scenario: Scenario, kind: FeatureMap, counts: tuple[int, int]) -> Tensor:
    blocks = []
    for population, count in enumerate(counts):
        states, actions = draw_pairs(rng, count, population, uneven=scenario.uneven)
        blocks.append(preference_differences(states, actions, population, kind))
    return torch.cat(blocks)


def _index(counts: tuple[int, int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(NUM_POPULATIONS), torch.tensor(counts))
