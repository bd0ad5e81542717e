"""From log-probs to the loss of one micro-batch of an update, with what to log about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outscore.algorithms.choices import RatioLevel
from outscore.algorithms.rows import Algorithm
from outscore.objectives.aggregation import token_weights
from outscore.objectives.kl import kl_estimate
from outscore.objectives.preferences import Pairs, preference_loss, preference_metrics
from outscore.objectives.ratios import (
    bounded_exp,
    log_ratio,
    masked_importance_weights,
    stale_completions,
    truncated_importance_weights,
)
from outscore.objectives.surrogates import (
    capped_weights,
    clipped_surrogate,
    clipped_tokens,
    log_likelihood,
    soft_gate,
    soft_gate_weights,
    tv_masked_tokens,
)

TokenMean = tuple[Float[Tensor, ""], int]
"""A metric as (sum, count), over tokens or over pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerms:
    """The loss of one micro-batch. All tensors but `loss` are detached, and none has been read back from its device."""

    loss: Float[Tensor, ""]
    """To be minimised: this micro-batch's share of the batch's loss. Shares add up; nothing is left to divide by."""
    coefficients: Float[Tensor, " token"]
    """-d loss / d log policy of each token, weight included and entropy bonus left out: without that bonus, the loss
    has the gradient of -sum(coefficients * log policy). Divided by the token's weight it is DeepSeekMath's gradient
    coefficient."""
    parts: Mapping[str, Float[Tensor, ""]]
    """The summands of the loss (`policy`, `kl`, `entropy`), signs and coefficients included; they add up over
    micro-batches."""
    means: Mapping[str, TokenMean]
    """Metrics that average over tokens, or over pairs."""
    maxima: Mapping[str, Float[Tensor, ""]]
    """Metrics that are the largest value over tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tokens:
    """What is known of a micro-batch's tokens; all of it is constant while the policy is differentiated."""

    index: Int[Tensor, " token"]
    """The completion of each token."""
    weights: Float[Tensor, " token"]
    """How much each token counts."""
    lengths: Int[Tensor, " completion"]
    """Counted tokens of each completion in the whole batch."""
    anchor: Float[Tensor, " token"]
    """Log-probs of the trainer's policy when the update began."""
    advantages: Float[Tensor, " token"] | None
    """None for supervised fine-tuning."""
    ref: Float[Tensor, " token"] | None
    """Log-probs of the reference policy, if there is one."""
    sampler: Float[Tensor, " token"] | None
    """Log-probs under which the tokens were sampled, if known."""
    pairs: Pairs | None
    """The pairs of this micro-batch's completions, where preferences are given."""

    @property
    def num_indices(self) -> int:
        """How many completions `index` can name."""
        return self.lengths.numel()

    def log_ratio(self, numerator: Tensor, denominator: Tensor, level: RatioLevel) -> Tensor:
        """log(numerator / denominator) of each token or of its completion."""
        return log_ratio(numerator, denominator, self.index, level=level, num_completions=self.num_indices)

    def compared(self) -> tuple[Tensor, Tensor, Tensor, Pairs]:
        """What a loss of pairs takes beside the policy's log-probs."""
        assert self.ref is not None and self.pairs is not None
        return self.ref, self.index, self.lengths, self.pairs

    def base(self, row: Algorithm) -> Tensor:
        """Log-probs of what the policy is divided by."""
        if row.ratio_base == "anchor":
            return self.anchor
        assert self.sampler is not None
        return self.sampler


def policy_loss(
    policy_logprobs: Float[Tensor, " token"],
    *,
    algorithm: Algorithm,
    completion_index: Int[Tensor, " token"],
    completion_lengths: Int[Tensor, " completion"],
    num_completions: int,
    num_tokens: int,
    advantages: Float[Tensor, " token"] | None = None,
    anchor_logprobs: Float[Tensor, " token"] | None = None,
    sampler_logprobs: Float[Tensor, " token"] | None = None,
    ref_logprobs: Float[Tensor, " token"] | None = None,
    entropy: Float[Tensor, " token"] | None = None,
    pairs: Pairs | None = None,
    factors: Float[Tensor, " completion"] | None = None,
    completion_group: Int[Tensor, " completion"] | None = None,
    num_groups: int | None = None,
) -> LossTerms:
    """-sum over tokens of weight * (mismatch weight * mask * surrogate - kl_coef * KL + entropy_coef * entropy), or,
    where the surrogate is one of pairs, the sum over pairs of their weight and loss.

    Log-probs are in nats, flat, of counted completion tokens only. `completion_index` names each token's completion in
    `completion_lengths`, the counted tokens of each completion in the whole batch, and for `aggregation: prompt_mean`
    `completion_group` that completion's group. `num_completions`, `num_tokens` and `num_groups` count the whole batch:
    the shares of its micro-batches, however it is split, add up to its loss. Where a cell speaks of whole completions
    (`needs_whole_completions`), one must lie whole in one micro-batch, and so must both of a pair; `pairs` are those of
    the whole batch. `ref_logprobs` are the reference's, or the teacher's where `kl_to` says so. `anchor_logprobs=None`
    is the first update on fresh samples: the anchor is the policy itself and every ratio exactly 1. `ref_logprobs`,
    `sampler_logprobs` and `entropy` are reported on, and required when the algorithm uses them. `factors` multiply
    what each completion (of a pair, the better one) adds to the loss. Half precision is raised to float32. Raises
    ValueError when something required is missing or a completion is cut.
    """
    _check_inputs(algorithm, advantages, sampler_logprobs, ref_logprobs, entropy, pairs)
    _check_whole(algorithm, completion_index, completion_lengths)
    policy = _at_least_float32(policy_logprobs)
    weigh = partial(token_weights, aggregation=algorithm.aggregation, constant=algorithm.aggregation_constant)
    weigh = partial(weigh, num_completions=num_completions, num_tokens=num_tokens, num_groups=num_groups)
    weights = weigh(completion_index, completion_lengths, completion_group=completion_group, dtype=policy.dtype)
    weights = weights if factors is None else weights * factors.to(weights)[completion_index]
    tokens = _Tokens(
        index=completion_index,
        weights=weights,
        lengths=completion_lengths,
        anchor=_constant(policy if anchor_logprobs is None else anchor_logprobs),
        advantages=None if advantages is None else advantages.detach().to(policy.dtype),
        ref=None if ref_logprobs is None else _constant(ref_logprobs),
        sampler=None if sampler_logprobs is None else _constant(sampler_logprobs),
        pairs=_pairs_here(pairs, factors, _present(completion_index, completion_lengths), policy),
    )
    parts = _parts(policy, tokens, algorithm)
    if entropy is not None and algorithm.entropy_coef != 0.0:
        parts["entropy"] = -algorithm.entropy_coef * (weights * entropy).sum()
    means, maxima = _metrics(policy.detach(), tokens, entropy, algorithm)
    return LossTerms(
        loss=torch.stack(list(parts.values())).sum(),
        coefficients=_coefficients(policy, tokens, algorithm),
        parts={name: part.detach() for name, part in parts.items()},
        means=means,
        maxima=maxima,
    )


def add_loss_terms(micro_batches: Sequence[LossTerms]) -> dict[str, tuple[float, float]]:
    """The metrics of an update from those of its micro-batches, as name -> (sum, count); the value is sum / count.

    Parts of the loss become `loss/policy`, `loss/kl`, `loss/entropy` and their total `loss`, with count 1, as have
    maxima. This is where numbers leave the device, in one transfer.
    """
    names: list[tuple[str, str]] = []
    values: list[Tensor] = []
    counts: dict[str, float] = {}
    for terms in micro_batches:
        for name, part in terms.parts.items():
            names += [("add", f"loss/{name}"), ("add", "loss")]
            values += [part, part]
        for name, (total, count) in terms.means.items():
            names.append(("add", name))
            values.append(total)
            counts[name] = counts.get(name, 0.0) + count
        for name, largest in terms.maxima.items():
            names.append(("max", name))
            values.append(largest)
    reduced: dict[str, float] = {}
    for (how, name), value in zip(names, torch.stack(values).double().tolist() if values else [], strict=True):
        if how == "add":
            reduced[name] = reduced.get(name, 0.0) + value
        else:
            reduced[name] = max(reduced.get(name, value), value)
    return {name: (value, counts.get(name, 1.0)) for name, value in reduced.items()}


def _parts(policy: Tensor, tokens: _Tokens, row: Algorithm) -> dict[str, Tensor]:
    """The summands of the loss that are functions of the policy's log-probs."""
    if row.is_pairwise:
        return {"policy": preference_loss(policy, *tokens.compared(), row.pair_objective)}
    gain = _surrogate(policy, tokens, row)
    if row.mismatch_cap is not None:
        gain = _mismatch(tokens, row, row.mismatch_cap)[0] * gain
    if row.stale_threshold is not None:
        gain = gain.masked_fill(_stale(policy, tokens, row, row.stale_threshold), 0.0)
    parts = {"policy": -(tokens.weights * gain).sum()}
    if row.penalises_kl:
        target = tokens.anchor if row.kl_to == "anchor" else tokens.ref
        assert target is not None
        estimate = kl_estimate(tokens.log_ratio(policy, target, row.kl_level), estimator=row.kl_estimator)
        if row.kl_weighted:
            estimate = bounded_exp(tokens.log_ratio(policy, tokens.base(row), row.kl_level)) * estimate
        parts["kl"] = row.kl_coef * (tokens.weights * estimate).sum()
    return parts


def _surrogate(policy: Tensor, tokens: _Tokens, row: Algorithm) -> Tensor:
    """What is maximised on each token, before weights."""
    if row.surrogate == "log_likelihood":
        return log_likelihood(_at_level(policy, tokens, row), tokens.advantages)
    assert tokens.advantages is not None
    ratio = tokens.log_ratio(policy, tokens.base(row), row.ratio_level)
    if row.surrogate == "clipped":
        return clipped_surrogate(ratio, tokens.advantages, clip_low=row.clip_low, clip_high=row.clip_high)
    if row.surrogate == "soft_gate":
        return soft_gate(ratio, tokens.advantages, positive=row.gate_positive, negative=row.gate_negative)
    if row.surrogate == "capped_weight":
        weights = capped_weights(ratio, clip_low=row.clip_low, clip_high=row.clip_high)[0]
        return log_likelihood(_at_level(policy, tokens, row), weights * tokens.advantages)
    low, high = _cut(policy, tokens, row)
    return (bounded_exp(ratio) * tokens.advantages).masked_fill(low | high, 0.0)


def _at_level(policy: Tensor, tokens: _Tokens, row: Algorithm) -> Tensor:
    """log policy of each token or of its completion."""
    return policy if row.ratio_level == "token" else tokens.log_ratio(policy, torch.zeros_like(policy), row.ratio_level)


def _cut(policy: Tensor, tokens: _Tokens, row: Algorithm) -> tuple[Tensor, Tensor]:
    """The tokens on which the surrogate's lower and upper bound acts."""
    assert tokens.advantages is not None
    if row.surrogate == "tv_masked":
        return tv_masked_tokens(
            policy, tokens.base(row), tokens.advantages, clip_low=row.clip_low, clip_high=row.clip_high
        )
    ratio = tokens.log_ratio(policy, tokens.base(row), row.ratio_level)
    if row.surrogate == "capped_weight":
        return capped_weights(ratio, clip_low=row.clip_low, clip_high=row.clip_high)[1:]
    return clipped_tokens(ratio, tokens.advantages, clip_low=row.clip_low, clip_high=row.clip_high)


def _mismatch(tokens: _Tokens, row: Algorithm, cap: float) -> tuple[Tensor, Tensor]:
    """The mismatch weight of each token, and where a bound acted."""
    assert tokens.sampler is not None
    ratio = tokens.log_ratio(tokens.anchor, tokens.sampler, row.mismatch_level)
    if row.mismatch_mode == "mask":
        return masked_importance_weights(ratio, floor=row.mismatch_floor, cap=cap)
    return truncated_importance_weights(ratio, cap=cap)


def _stale(policy: Tensor, tokens: _Tokens, row: Algorithm, threshold: float) -> Tensor:
    """The tokens of bad completions that the policy has left behind."""
    assert tokens.advantages is not None
    return stale_completions(
        tokens.base(row),
        policy,
        tokens.advantages,
        tokens.index,
        threshold=threshold,
        num_completions=tokens.num_indices,
    )


def _coefficients(policy: Tensor, tokens: _Tokens, row: Algorithm) -> Tensor:
    """-d loss / d log policy, with the log-probs taken as free variables: no walk through the model."""
    with torch.enable_grad():
        leaf = policy.detach().requires_grad_(True)
        total = torch.stack(list(_parts(leaf, tokens, row).values())).sum()
        (gradient,) = torch.autograd.grad(total, leaf)
    return -gradient


@torch.no_grad()
def _metrics(
    policy: Tensor, tokens: _Tokens, entropy: Tensor | None, row: Algorithm
) -> tuple[dict[str, TokenMean], dict[str, Tensor]]:
    """What an update is watched by; docs/algorithms/metrics.md explains each. KLs and `ratio_max` are per token at any
    level."""
    per_token: dict[str, Tensor] = {"nll": -policy}
    maxima: dict[str, Tensor] = {}
    if row.is_off_policy:
        assert tokens.advantages is not None
        base = tokens.base(row)
        if row.surrogate == "soft_gate":
            per_token["gate"] = soft_gate_weights(
                tokens.log_ratio(policy, base, row.ratio_level),
                tokens.advantages,
                positive=row.gate_positive,
                negative=row.gate_negative,
            )
        else:
            low, high = _cut(policy, tokens, row)
            per_token |= {"clip_fraction_low": low, "clip_fraction_high": high}
        # Samples are the base's, so k3 of base / policy estimates KL(base || policy).
        per_token["approx_kl"] = kl_estimate(base - policy, estimator="k3")
        maxima["ratio_max"] = _largest(bounded_exp(policy - base))
    if row.stale_threshold is not None:
        per_token["stale_masked"] = _stale(policy, tokens, row, row.stale_threshold)
    if row.is_pairwise and tokens.ref is not None:
        # The completions are nobody's samples; were they the reference's, this would be KL(reference || policy).
        per_token["forward_kl"] = kl_estimate(tokens.ref - policy, estimator="k3")
    elif tokens.ref is not None:
        whose = "teacher_kl" if row.needs_teacher else "ref_kl"
        per_token[whose] = kl_estimate(policy - tokens.ref, estimator="k3")
    if tokens.sampler is not None:
        per_token["sampler_kl"] = kl_estimate(tokens.sampler - tokens.anchor, estimator="k3")
        maxima["mismatch_max"] = _largest((tokens.sampler - tokens.anchor).abs())
        if row.mismatch_cap is not None:
            weights, bounded = _mismatch(tokens, row, row.mismatch_cap)
            acted = "mismatch_capped" if row.mismatch_mode == "truncate" else "mismatch_masked"
            per_token |= {"mismatch_weight": weights, acted: bounded}
    if entropy is not None:
        per_token["entropy"] = entropy
    of_pairs = preference_metrics(policy, *tokens.compared(), row.pair_objective) if row.is_pairwise else {}
    means = {name: (value.to(policy.dtype).sum(), value.numel()) for name, value in (per_token | of_pairs).items()}
    return means, maxima


def _pairs_here(pairs: Pairs | None, factors: Tensor | None, present: Tensor, like: Tensor) -> Pairs | None:
    """The pairs of the completions that are present, with the weights that the loss gives them."""
    here = None if pairs is None else pairs.to(like).within(present)
    return here if here is None or factors is None else here.times(factors)


def _present(completion_index: Tensor, completion_lengths: Tensor) -> Tensor:
    """For each completion whether tokens of it are here."""
    return torch.bincount(completion_index, minlength=completion_lengths.numel()) > 0


def _check_inputs(
    row: Algorithm,
    advantages: Tensor | None,
    sampler: Tensor | None,
    ref: Tensor | None,
    entropy: Tensor | None,
    pairs: Pairs | None,
) -> None:
    """ValueError naming what the algorithm uses and was not given."""
    compares = row.is_off_policy or row.stale_threshold is not None
    needs_ref = row.needs_reference or row.needs_teacher
    samples = f"ratio_base={row.ratio_base!r}" if row.mismatch_cap is None else f"mismatch_cap={row.mismatch_cap}"
    required = {
        "advantages": (advantages, compares, f"surrogate={row.surrogate!r}"),
        "sampler_logprobs": (sampler, row.needs_sampler, samples),
        "ref_logprobs": (ref, row.kl_place == "loss" and needs_ref, f"kl_coef={row.kl_coef}"),
        "pairs": (pairs, row.is_pairwise, f"surrogate={row.surrogate!r}"),
        "entropy": (entropy, row.entropy_coef != 0.0, f"entropy_coef={row.entropy_coef}"),
    }
    for name, (given, needed, cell) in required.items():
        if needed and given is None:
            raise ValueError(f"algorithm {row.name!r} with {cell} needs {name}, which is None")


def _check_whole(row: Algorithm, completion_index: Tensor, completion_lengths: Tensor) -> None:
    """ValueError when a completion's tokens are only partly here, and its ratio would be that of a fragment."""
    if not row.needs_whole_completions:
        return
    present = torch.bincount(completion_index, minlength=completion_lengths.numel())
    cut = (present > 0) & (present != completion_lengths)
    if bool(cut.any()):
        which = int(cut.nonzero()[0])
        raise ValueError(
            f"completion {which} has {int(completion_lengths[which])} tokens but {int(present[which])} are in this "
            "micro-batch; the row's levels need completions whole"
        )


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _constant(logprobs: Tensor) -> Tensor:
    return _at_least_float32(logprobs.detach())


def _largest(values: Tensor) -> Tensor:
    return values.max() if values.numel() else values.new_zeros(())
