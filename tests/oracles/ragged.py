"""A ragged batch in two forms: nested Python lists for the oracles, flat tensors for the library."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from outscore.algorithms.rows import Algorithm
from outscore.objectives.loss import LossTerms, policy_loss

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
        "completion_group": torch.tensor([group_of(i) for i in range(len(batch.lengths))]),
        "num_groups": 1 + group_of(len(batch.lengths) - 1),
        "advantages": torch.tensor(batch.advantages, dtype=torch.float64)[index],
        "anchor_logprobs": flat(batch.anchor),
        "ref_logprobs": flat(batch.ref),
        "sampler_logprobs": flat(batch.sampler),
    }


def group_of(completion: int) -> int:
    """Groups of two."""
    return completion // 2


def library_loss(batch: RaggedBatch, row: Algorithm, **overrides: Any) -> tuple[LossTerms, Tensor]:
    """The library's loss of the whole batch, and its gradient with respect to the policy's log-probs."""
    policy = flat(batch.policy).requires_grad_(True)
    terms = policy_loss(policy, algorithm=row, **(loss_arguments(batch) | overrides))
    (gradient,) = torch.autograd.grad(terms.loss, policy)
    return terms, gradient


def naive_loss(batch: RaggedBatch, row: Algorithm, held: RaggedBatch | None = None) -> float:
    """The same by the printed equations: loops and `math` only.

    What the equations put under a stop-gradient is taken from `held`, so that differences of this function's values are
    the gradient that is meant.
    """
    held = held or batch
    total = 0.0
    for i, policy in enumerate(batch.policy):
        for t in range(len(policy)):
            gain = _naive_gain(batch, held, i, t, row)
            if row.mismatch_cap is not None:
                weight = math.exp(_log_ratio(batch.anchor[i], batch.sampler[i], t, row.mismatch_level))
                inside = row.mismatch_floor <= weight <= row.mismatch_cap
                gain *= min(weight, row.mismatch_cap) if row.mismatch_mode == "truncate" else weight * inside
            if row.stale_threshold is not None and batch.advantages[i] < 0:
                gap = _log_ratio(_base(held, row)[i], held.policy[i], t, "sequence_mean")
                gain *= gap <= row.stale_threshold
            if row.kl_place == "loss":
                gain -= row.kl_coef * _naive_kl(batch, i, t, row)
            of_group = [own for j, own in enumerate(batch.lengths) if group_of(j) == group_of(i)]
            denominators = {
                "completion_mean": len(batch.policy) * len(policy),
                "token_mean": sum(batch.lengths),
                "prompt_mean": (1 + group_of(len(batch.policy) - 1)) * sum(of_group),
                "constant": len(batch.policy) * (row.aggregation_constant or 0),
            }
            total -= gain / denominators[row.aggregation]
    return total


def _base(batch: RaggedBatch, row: Algorithm) -> Ragged:
    return batch.anchor if row.ratio_base == "anchor" else batch.sampler


def _log_ratio(numerator: list[float], denominator: list[float], t: int, level: str) -> float:
    gaps = [n - d for n, d in zip(numerator, denominator, strict=True)]
    return {"token": gaps[t], "sequence": sum(gaps)}.get(level, sum(gaps) / len(gaps))


def _naive_gain(batch: RaggedBatch, held: RaggedBatch, i: int, t: int, row: Algorithm) -> float:
    policy, base, advantage = batch.policy[i], _base(batch, row)[i], batch.advantages[i]
    log_pi = _log_ratio(policy, [0.0] * len(policy), t, row.ratio_level)
    ratio = math.exp(_log_ratio(policy, base, t, row.ratio_level))
    ratio_held = math.exp(_log_ratio(held.policy[i], base, t, row.ratio_level))
    if row.ratio_level == "sequence_mean_token":
        log_pi = _log_ratio(held.policy[i], [0.0] * len(policy), t, row.ratio_level) + policy[t] - held.policy[i][t]
        ratio = ratio_held * math.exp(policy[t] - held.policy[i][t])
    low, high = 1 - row.clip_low, 1 + row.clip_high
    if row.surrogate == "clipped":
        return min(ratio * advantage, min(max(ratio, low), high) * advantage)
    if row.surrogate == "capped_weight":
        return min(max(ratio_held, low), high) * advantage * log_pi
    if row.surrogate == "soft_gate":
        tau = row.gate_positive if advantage > 0 else row.gate_negative
        return 4 / tau / (1 + math.exp(-tau * (ratio - 1))) * advantage
    if row.surrogate == "tv_masked":
        rise = math.exp(held.policy[i][t]) - math.exp(base[t])
        dropped = (advantage > 0 and rise > row.clip_high) or (advantage < 0 and -rise > row.clip_low)
        return 0.0 if dropped else ratio * advantage
    return advantage * log_pi


def _naive_kl(batch: RaggedBatch, i: int, t: int, row: Algorithm) -> float:
    target = batch.anchor[i] if row.kl_to == "anchor" else batch.ref[i]
    x = _log_ratio(batch.policy[i], target, t, row.kl_level)
    estimate = {"k1": x, "k2": x**2 / 2, "k3": math.exp(-x) - 1 + x}[row.kl_estimator]
    if row.kl_weighted:
        estimate *= math.exp(_log_ratio(batch.policy[i], _base(batch, row)[i], t, row.kl_level))
    return estimate


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
