"""Preferences: from which of two completions was liked better to a loss (DPO, IPO, cDPO, reward models).

Each completion has one number u. For DPO and IPO it is the log-ratio of policy and reference, for a reward model its
score. With d = u_better - u_worse of a pair, and p the chance that the pair is the right way round,

    logistic   -p log sigmoid(beta d) - (1 - p) log sigmoid(-beta d)       DPO eq. 7; cDPO; Bradley-Terry with beta 1
    squared    p (d - 1/(2 beta))^2 + (1 - p) (d + 1/(2 beta))^2           IPO, arXiv 2310.12036 eq. 17

p is 1, or 1/2 for two completions that were liked equally, and `label_smoothing` e makes it p (1 - e) + (1 - p) e.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from outscore.algorithms.choices import PairObjective
from outscore.objectives.ratios import completion_sums

Ties = Literal["drop", "half"]
"""What a pair of equal rank says: nothing, or that either is the better one with chance 1/2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The pairs of a batch, by the numbers of their completions.

    >>> ranked_pairs([(0, 1, 1)], ties="half").labels.tolist()
    [1.0, 1.0, 0.5]
    """

    better: Int[Tensor, " pair"]
    """The completion that was liked better (of a tie, the first)."""
    worse: Int[Tensor, " pair"]
    """The other one."""
    labels: Float[Tensor, " pair"]
    """The chance that the pair is the right way round, as the data say: 1, or 1/2 for a tie."""
    weights: Float[Tensor, " pair"]
    """How much the pair counts; the weights of a batch add up to 1."""

    def to(self, like: Tensor) -> "Pairs":
        """The same on another tensor's device, in its dtype."""
        return Pairs(
            better=self.better.to(like.device),
            worse=self.worse.to(like.device),
            labels=self.labels.to(like),
            weights=self.weights.to(like),
        )

    def times(self, factors: Tensor) -> "Pairs":
        """The same with each weight multiplied by the factor of the pair's better completion."""
        return Pairs(
            better=self.better,
            worse=self.worse,
            labels=self.labels,
            weights=self.weights * factors.to(self.weights)[self.better],
        )

    def within(self, present: Tensor) -> "Pairs":
        """The pairs of the completions that are `present` (a truth value for each completion).

        Raises ValueError when only one side of a pair is there: its loss could not be computed.
        """
        here, there = present[self.better], present[self.worse]
        if bool((here != there).any()):
            which = int((here != there).nonzero()[0])
            raise ValueError(
                f"completions {int(self.better[which])} and {int(self.worse[which])} are a pair, and only one of them "
                "is in this micro-batch; pairs must lie whole in one"
            )
        return Pairs(
            better=self.better[here], worse=self.worse[here], labels=self.labels[here], weights=self.weights[here]
        )


def ranked_pairs(ranks: Sequence[Sequence[int]], *, ties: Ties) -> Pairs:
    """All pairs of each group, from the ranks of its completions (lower is better, equal is a tie).

    `ranks[group][completion]`; completions are numbered through all groups. A group counts once, however many pairs it
    has: each of its pairs weighs 1 / (groups * its pairs), which is InstructGPT's mean over C(K, 2) (arXiv 2203.02155,
    eq. 1). With `ties="drop"` a tie is no pair and is in no count: `D > G > A = B` has 5 pairs, not 6.

    Raises ValueError for a group without a pair.
    """
    better, worse, labels, weights = [], [], [], []
    first = 0
    for group, own in enumerate(ranks):
        pairs = [(i, j) for i, j in combinations(range(len(own)), 2) if ties == "half" or own[i] != own[j]]
        if not pairs:
            raise ValueError(f"group {group} with ranks {list(own)} has no pair to learn from (ties: {ties!r})")
        for i, j in pairs:
            high, low = (i, j) if own[i] <= own[j] else (j, i)
            better.append(first + high)
            worse.append(first + low)
            labels.append(0.5 if own[i] == own[j] else 1.0)
            weights.append(1.0 / (len(ranks) * len(pairs)))
        first += len(own)
    return Pairs(
        better=torch.tensor(better),
        worse=torch.tensor(worse),
        labels=torch.tensor(labels, dtype=torch.float64),
        weights=torch.tensor(weights, dtype=torch.float64),
    )


def completion_log_ratios(
    policy_logprobs: Float[Tensor, " token"],
    ref_logprobs: Float[Tensor, " token"],
    completion_index: Int[Tensor, " token"],
    completion_lengths: Int[Tensor, " completion"],
    *,
    per_token: bool,
) -> Float[Tensor, " completion"]:
    """log(policy / reference) of each completion in nats: the sum over its tokens (Rafailov), or their mean
    (DeepSeekMath's DPO divides by |o|)."""
    sums = completion_sums(policy_logprobs - ref_logprobs, completion_index, completion_lengths.numel())
    return sums / completion_lengths.clamp(min=1) if per_token else sums


def pair_losses(
    differences: Float[Tensor, " pair"], labels: Float[Tensor, " pair"], objective: PairObjective
) -> Float[Tensor, " pair"]:
    """The loss of each pair from d, the number of its better completion less that of its worse one.

    At d = 0 it is log 2 or 1/(4 beta^2). Its slope is beta (sigmoid(beta d) - p) or 2 (d - (2 p - 1) / (2 beta)), so
    it is smallest where sigmoid(beta d) = p, or where d = (2 p - 1) / (2 beta).
    """
    beta, smoothing = objective.beta, objective.label_smoothing
    right = labels * (1.0 - smoothing) + (1.0 - labels) * smoothing
    if objective.kind == "logistic":
        return right * softplus(-beta * differences) + (1.0 - right) * softplus(beta * differences)
    target = 1.0 / (2.0 * beta)
    return right * (differences - target).square() + (1.0 - right) * (differences + target).square()


def pair_accuracy(differences: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """1 where the better completion has the larger number, 0 where it has the smaller, 1/2 where they are equal."""
    return (torch.sign(differences) + 1.0) / 2.0


def preference_loss(
    policy_logprobs: Float[Tensor, " token"],
    ref_logprobs: Float[Tensor, " token"],
    completion_index: Int[Tensor, " token"],
    completion_lengths: Int[Tensor, " completion"],
    pairs: Pairs,
    objective: PairObjective,
) -> Float[Tensor, ""]:
    """Sum over the pairs of weight * loss, of the log-ratios of their completions.

    -d loss / d log policy of a token is the pair's weight times minus its slope (`pair_losses`), over |o| where
    log-ratios are means, added for the better completion and subtracted for the worse: DeepSeekMath's gradient
    coefficient, with the sigmoid of the whole log-ratios, and with the beta in front, that its table leaves out.
    """
    ratios = completion_log_ratios(
        policy_logprobs, ref_logprobs, completion_index, completion_lengths, per_token=objective.per_token
    )
    losses = pair_losses(ratios[pairs.better] - ratios[pairs.worse], pairs.labels, objective)
    return (pairs.weights * losses).sum()


def preference_metrics(
    policy_logprobs: Float[Tensor, " token"],
    ref_logprobs: Float[Tensor, " token"],
    completion_index: Int[Tensor, " token"],
    completion_lengths: Int[Tensor, " completion"],
    pairs: Pairs,
    objective: PairObjective,
) -> dict[str, Float[Tensor, " pair"]]:
    """What to report, a value for each pair that is no tie; docs/algorithms/dpo.md explains them.

    The implicit reward of a completion is beta times its log-ratio (Rafailov et al. eq. 5, up to what depends on the
    prompt alone).
    """
    strict = pairs.labels != 0.5
    better, worse = pairs.better[strict], pairs.worse[strict]
    ratios = completion_log_ratios(
        policy_logprobs, ref_logprobs, completion_index, completion_lengths, per_token=objective.per_token
    )
    rewards = objective.beta * ratios
    logprobs = completion_sums(policy_logprobs, completion_index, completion_lengths.numel())
    return {
        "preference_accuracy": pair_accuracy(rewards[better] - rewards[worse]),
        "margin": rewards[better] - rewards[worse],
        "chosen_reward": rewards[better],
        "rejected_reward": rewards[worse],
        "chosen_logprob": logprobs[better],
        "rejected_logprob": logprobs[worse],
    }
