"""What the loops of `literal_sampled` and `literal_given` are made of: one batch as nested Python lists, and the words
that equations use. No torch, no row of the table: an equation's numbers stand in its loop."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Ragged = list[list[float]]
"""One list of numbers, one for each token, for each completion."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What an equation says of a batch."""

    loss: float
    """What is to be minimised."""
    advantages: Ragged | None = None
    """Of each token; None where nothing is compared."""
    returns: Ragged | None = None
    """What a critic is to expect at each token."""
    critic_loss: float | None = None
    """What the critic is to minimise."""


@dataclass(frozen=True, kw_only=True)
class LiteralBatch:
    """Three groups, completions numbered through, with the log-probs of all who have an opinion."""

    groups: list[list[int]]
    """The completions of each group."""
    policy: Ragged
    """Of the policy now."""
    still: Ragged
    """The same under a stop-gradient: it stays when `policy` is moved to find a slope."""
    anchor: Ragged
    """Of the policy when the update began."""
    ref: Ragged
    """Of the reference."""
    teacher: Ragged
    """Of the teacher."""
    sampler: Ragged
    """Of the sampler, mu."""
    parts: list[list[float]]
    """parts[completion][reward], weighted 1 and 0.4."""
    right: list[bool]
    """Whether the completion's answer is right."""
    ranks: list[int]
    """The place of each completion in its group's ranking; a tie is no pair."""
    values_before: Ragged
    """What a critic expected before the step's updates."""
    values: Ragged
    """What it expects now."""
    scores: Ragged
    """What a reward model says at each token."""
    labels: Ragged
    """The chance that what ends at each token is right."""

    @property
    def completions(self) -> range:
        """The number of each completion."""
        return range(len(self.policy))

    @property
    def num_completions(self) -> int:
        """Completions of the batch, N."""
        return len(self.policy)

    @property
    def num_tokens(self) -> int:
        """Tokens of the batch."""
        return sum(len(own) for own in self.policy)

    @property
    def rewards(self) -> list[float]:
        """The weighted total of each completion."""
        return [own[0] + 0.4 * own[1] for own in self.parts]

    def tokens(self, i: int) -> range:
        """The places of a completion's tokens."""
        return range(len(self.policy[i]))

    def group_of(self, i: int) -> list[int]:
        """The completions of the group that a completion is of."""
        return next(group for group in self.groups if i in group)


def literal_batch() -> LiteralBatch:
    """Lengths from 1 to 29; off-policy, and for some completions so far that every bound has something to do."""
    lengths, draw = [3, 29, 1, 5, 2, 6, 4, 3, 2], random.Random(4)
    policy = [[-draw.expovariate(1.0) - 0.1 for _ in range(length)] for length in lengths]

    def near(spread: float) -> Ragged:
        return [[logprob + draw.gauss(0.0, spread) for logprob in tokens] for tokens in policy]

    anchor, sampler = near(0.3), near(0.3)
    # The ratio of the whole long answer is above 11, and that of one token above 5.
    anchor[1] = [logprob - 0.15 for logprob in anchor[1]]
    anchor[3][2] = policy[3][2] - 2.1
    # Probabilities that rose (a good answer's) and fell (a bad one's) by a little less and a little more than 0.15.
    for i, t, move in ((1, 2, 0.14), (1, 3, 0.16), (3, 0, -0.14), (3, 1, -0.16)):
        policy[i][t] = -0.6
        sampler[i][t] = math.log(math.exp(-0.6) - move)
    # Bad answers that the policy has left behind by a little less and a little more than 0.1 a token.
    for i, gap in ((0, 0.09), (5, 0.11)):
        now = mean([a - p for a, p in zip(anchor[i], policy[i], strict=True)])
        anchor[i] = [logprob - now + gap for logprob in anchor[i]]
    values = [[draw.gauss(0.5, 0.3) for _ in range(length)] for length in lengths]
    return LiteralBatch(
        groups=[[0, 1, 2, 3], [4, 5, 6], [7, 8]],
        policy=policy,
        still=[list(tokens) for tokens in policy],
        anchor=anchor,
        ref=near(0.4),
        teacher=near(0.4),
        sampler=sampler,
        parts=[[0, 0.5], [1, 1], [1, 0], [0, 1], [1, 0.5], [0, 0], [1, 1], [0, 0], [0, 0]],
        right=[False, True, True, False, True, False, False, False, True],
        ranks=[2, 0, 1, 2, 1, 0, 2, 0, 1],
        values_before=values,
        values=[[value + draw.gauss(0.0, 0.3) for value in own] for own in values],
        scores=near(1.0),
        labels=[[draw.choice([0.0, 0.25, 1.0]) for _ in range(length)] for length in lengths],
    )


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)


def std(values: Sequence[float]) -> float:
    """Their population standard deviation."""
    return math.sqrt(mean([(value - mean(values)) ** 2 for value in values]))


def clip(value: float, low: float, high: float) -> float:
    """The value, held between two bounds."""
    return min(max(value, low), high)


def sigma(value: float) -> float:
    """1 / (1 + exp(-value))."""
    return 1 / (1 + math.exp(-value))


def in_groups(batch: LiteralBatch, values: list[float], worth: Callable[[list[float]], list[float]]) -> list[float]:
    """What `worth` makes of the values of each group on its own."""
    found = [0.0] * len(values)
    for group in batch.groups:
        for i, value in zip(group, worth([values[i] for i in group]), strict=True):
            found[i] = value
    return found


def less_mean(rewards: list[float]) -> list[float]:
    """r - mean of the group."""
    return [reward - mean(rewards) for reward in rewards]


def standardised(rewards: list[float]) -> list[float]:
    """(r - mean) / (std + 1e-6)."""
    return [(reward - mean(rewards)) / (std(rewards) + 1e-6) for reward in rewards]


def of_tokens(batch: LiteralBatch, advantages: list[float]) -> Ragged:
    """A completion's advantage is that of each of its tokens."""
    return [[advantages[i] for _ in batch.tokens(i)] for i in batch.completions]


def ratio(numerator: Ragged, denominator: Ragged, i: int, t: int) -> float:
    """Of a token."""
    return math.exp(numerator[i][t] - denominator[i][t])


def log_ratio(numerator: Ragged, denominator: Ragged, i: int) -> float:
    """log of the ratio of a whole completion: the sum over its tokens."""
    return sum(n - d for n, d in zip(numerator[i], denominator[i], strict=True))


def k3(x: float) -> float:
    """DeepSeekMath eq. 4, with x = log(pi / ref)."""
    return math.exp(-x) - 1 + x


def clipped(rho: float, advantage: float, low: float, high: float) -> float:
    """min(rho A, clip(rho, low, high) A)."""
    return min(rho * advantage, clip(rho, low, high) * advantage)
