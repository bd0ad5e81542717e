"""A ragged batch in two forms: nested Python lists for the oracles, flat tensors for the library."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from outscore.objectives import Algorithm, LossTerms, policy_loss

Ragged = list[list[float]]
"""One list of numbers, one for each token, for each completion."""


@dataclass(frozen=True, kw_only=True)
class RaggedBatch:
    """Completions of unequal lengths with the log-probs of all who have an opinion."""

    policy: Ragged
    """Of the policy now."""
    anchor: Ragged
    """Of the policy when the update began."""
    ref: Ragged
    """Of the reference."""
    sampler: Ragged
    """Of the sampler."""
    advantages: list[float]
    """One for each completion."""

    @property
    def lengths(self) -> list[int]:
        return [len(tokens) for tokens in self.policy]


def random_batch(lengths: Sequence[int], *, seed: int = 0, spread: float = 0.4) -> RaggedBatch:
    """Off-policy: anchor, reference and sampler differ from the policy by normal noise in nats."""
    draw = random.Random(seed)
    policy = [[-draw.expovariate(1.0) - 0.1 for _ in range(length)] for length in lengths]

    def near(spread: float) -> Ragged:
        return [[logprob + draw.gauss(0.0, spread) for logprob in tokens] for tokens in policy]

    return RaggedBatch(
        policy=policy,
        anchor=near(spread),
        ref=near(spread),
        sampler=near(spread),
        advantages=[draw.gauss(0.0, 1.0) for _ in lengths],
    )


def flat(values: Ragged) -> Tensor:
    return torch.tensor([value for tokens in values for value in tokens], dtype=torch.float64)


def index_of(lengths: Sequence[int]) -> Tensor:
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


def loss_arguments(batch: RaggedBatch) -> dict[str, Any]:
    """What `policy_loss` takes beside the policy's log-probs and the algorithm, in float64."""
    index = index_of(batch.lengths)
    return {
        "completion_index": index,
        "completion_lengths": torch.tensor(batch.lengths),
        "num_completions": len(batch.lengths),
        "num_tokens": sum(batch.lengths),
        "advantages": torch.tensor(batch.advantages, dtype=torch.float64)[index],
        "anchor_logprobs": flat(batch.anchor),
        "ref_logprobs": flat(batch.ref),
        "sampler_logprobs": flat(batch.sampler),
    }


def library_loss(batch: RaggedBatch, row: Algorithm, **overrides: Any) -> tuple[LossTerms, Tensor]:
    """The library's loss of the whole batch, and its gradient with respect to the policy's log-probs."""
    policy = flat(batch.policy).requires_grad_(True)
    terms = policy_loss(policy, algorithm=row, **(loss_arguments(batch) | overrides))
    (gradient,) = torch.autograd.grad(terms.loss, policy)
    return terms, gradient


def naive_loss(batch: RaggedBatch, row: Algorithm) -> float:
    """The same by the printed equations: loops and `math` only."""
    total = 0.0
    for i, policy in enumerate(batch.policy):
        anchor, ref, sampler, advantage = batch.anchor[i], batch.ref[i], batch.sampler[i], batch.advantages[i]
        for t in range(len(policy)):
            here = range(len(policy)) if row.ratio_level == "sequence" else [t]
            ratio = math.exp(sum(policy[s] - anchor[s] for s in here))
            ref_over_policy = math.exp(sum(ref[s] - policy[s] for s in here))
            mismatch = math.exp(sum(anchor[s] - sampler[s] for s in here))
            if row.surrogate == "clipped":
                kept = min(max(ratio, 1 - row.clip_low), 1 + row.clip_high)
                gain = min(ratio * advantage, kept * advantage)
            else:
                gain = advantage * policy[t]
            if row.mismatch_cap is not None:
                gain *= min(mismatch, row.mismatch_cap)
            if row.kl_place == "loss":
                estimates = {
                    "k1": -math.log(ref_over_policy),
                    "k2": math.log(ref_over_policy) ** 2 / 2,
                    "k3": ref_over_policy - math.log(ref_over_policy) - 1,
                }
                gain -= row.kl_coef * estimates[row.kl_estimator]
            denominators = {
                "completion_mean": len(batch.policy) * len(policy),
                "token_mean": sum(batch.lengths),
                "constant": len(batch.policy) * (row.aggregation_constant or 0),
            }
            total -= gain / denominators[row.aggregation]
    return total


def finite_differences(function: Callable[[RaggedBatch], float], batch: RaggedBatch, step: float = 1e-5) -> Tensor:
    """Central differences of a function of the batch with respect to each of the policy's log-probs."""
    slopes = []
    for i, tokens in enumerate(batch.policy):
        for t in range(len(tokens)):
            ends = []
            for shift in (step, -step):
                moved = [list(row) for row in batch.policy]
                moved[i][t] += shift
                ends.append(function(replace(batch, policy=moved)))
            slopes.append((ends[0] - ends[1]) / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64)
