"""The presets that learn from what is given: for each one loop with its numbers in it, written from the equation that
`outscore algorithms` prints and that stands above it here."""

import math
from collections.abc import Callable, Iterator

from oracles.literal import LiteralBatch, Said, log_ratio, mean, sigma


def pretrain(b: LiteralBatch) -> Said:
    """1/T sum_t log pi(x_t | x_<t)"""
    return Said(loss=-mean([logprob for own in b.policy for logprob in own]))


def sft(b: LiteralBatch) -> Said:
    """1/sum|o| sum_t log pi(o_t)"""
    total = 0.0
    for i in b.completions:
        for t in b.tokens(i):
            total += 1 / b.num_tokens * b.policy[i][t]
    return Said(loss=-total)


def rft(b: LiteralBatch) -> Said:
    """1/sum|o| sum_t I(o) log pi(o_t), o ~ pi as the stage found it"""
    total, num_tokens = 0.0, 0
    for i in b.completions:
        if b.right[i]:
            total += sum(b.policy[i])
            num_tokens += len(b.policy[i])
    return Said(loss=-total / num_tokens)


def dpo(b: LiteralBatch) -> Said:
    """log sigma(beta h), h = log pi(w)/ref(w) - log pi(l)/ref(l)"""
    return _over_pairs(b, lambda good, bad: -math.log(sigma(0.1 * _h(b, good, bad))))


def dpo_mean(b: LiteralBatch) -> Said:
    """log sigma(beta h), h = log pi(w)/ref(w) / |w| - log pi(l)/ref(l) / |l|"""

    def loss(good: int, bad: int) -> float:
        h = log_ratio(b.policy, b.ref, good) / len(b.policy[good])
        h -= log_ratio(b.policy, b.ref, bad) / len(b.policy[bad])
        return -math.log(sigma(2 * h))

    return _over_pairs(b, loss)


def cdpo(b: LiteralBatch) -> Said:
    """(1-eps) log sigma(beta h) + eps log sigma(-beta h)"""

    def loss(good: int, bad: int) -> float:
        return -0.9 * math.log(sigma(0.1 * _h(b, good, bad))) - 0.1 * math.log(sigma(-0.1 * _h(b, good, bad)))

    return _over_pairs(b, loss)


def ipo(b: LiteralBatch) -> Said:
    """-(h - 1/(2 beta))^2"""
    return _over_pairs(b, lambda good, bad: (_h(b, good, bad) - 1 / (2 * 0.1)) ** 2)


def reward_model(b: LiteralBatch) -> Said:
    """log sigma(score(w) - score(l)), the mean over the pairs of a ranking"""
    return _over_pairs(b, lambda good, bad: -math.log(sigma(b.scores[good][-1] - b.scores[bad][-1])))


def process_reward_model(b: LiteralBatch) -> Said:
    """y_t log sigma(score_t) + (1 - y_t) log sigma(-score_t), the mean over all steps t of the batch"""
    steps = [(i, t) for i in b.completions for t in b.tokens(i)]
    return Said(loss=-mean([_chance(b.scores[i][t], b.labels[i][t]) for i, t in steps]))


def outcome_reward_model(b: LiteralBatch) -> Said:
    """y log sigma(score) + (1 - y) log sigma(-score), the mean over completions"""
    return Said(loss=-mean([_chance(b.scores[i][-1], b.labels[i][-1]) for i in b.completions]))


def _chance(score: float, label: float) -> float:
    return label * math.log(sigma(score)) + (1 - label) * math.log(sigma(-score))


def _h(b: LiteralBatch, good: int, bad: int) -> float:
    return log_ratio(b.policy, b.ref, good) - log_ratio(b.policy, b.ref, bad)


def _pairs(b: LiteralBatch, group: list[int]) -> Iterator[tuple[int, int]]:
    """(better, worse) of each two completions of a group that are not liked equally."""
    return ((i, j) for i in group for j in group if b.ranks[i] < b.ranks[j])


def _over_pairs(b: LiteralBatch, loss: Callable[[int, int], float]) -> Said:
    """The mean over groups of the mean over a group's pairs (InstructGPT, eq. 1)."""
    return Said(loss=mean([mean([loss(good, bad) for good, bad in _pairs(b, group)]) for group in b.groups]))


GIVEN = {
    "pretrain": pretrain,
    "sft": sft,
    "rft": rft,
    "dpo": dpo,
    "dpo-mean": dpo_mean,
    "cdpo": cdpo,
    "ipo": ipo,
    "reward-model": reward_model,
    "process-reward-model": process_reward_model,
    "outcome-reward-model": outcome_reward_model,
}
"""The loop of each preset."""
