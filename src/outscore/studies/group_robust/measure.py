"""One family of methods on one scenario: the published iterations, and the exact optimum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outscore.studies.group_robust.bandit import NUM_POPULATIONS, BanditData, policy_quality
from outscore.studies.group_robust.log_linear import (
    PairData,
    WeightRule,
    feature_margins,
    margin_losses,
    mirror_descent,
    robust_least_squares,
)
from outscore.studies.group_robust.log_linear_optimum import fixed_weight_optimum, robust_optimum
from outscore.studies.group_robust.settings import KIND, Family, Method, Steps

_NUM_RECORDS = 50
"""Points of a curve."""
METRICS = ("max_loss", "mean_loss", "max_error", "max_gap", "max_kl")
"""Of the validation pairs: the larger of the populations' losses, and the mean loss. In the test states: the largest
relative and absolute reward error, and KL, of a population."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one family of a figure came to."""

    methods: Sequence[Method]
    """Along the axis `method`."""
    steps: Int[Tensor, " record"]
    """Iterations at each record."""
    curves: dict[str, Float[Tensor, "record method seed"]]
    """METRICS along the published iterations."""
    weights: Float[Tensor, "record method seed population"]
    """alpha."""
    optimum: dict[str, Float[Tensor, "method seed"]]
    """METRICS at the exact optimum, which no step size touches."""


def measure(
    data: BanditData, methods: Sequence[Method], family: Family, steps: Steps, progress: Callable[[int], None]
) -> Found:
    """Run the methods, from the same theta in each seed, and follow them over the published iterations.

    `progress` is told the iteration now and then.
    """
    num_seeds, num_methods = len(data.initial), len(methods)
    pairs = PairData.of(data.train.repeat(num_methods, 1, 1), data.train_index)
    rule = WeightRule.stacked(*(_rule(method, pairs.shares, num_seeds, steps.weight_step) for method in methods))
    initial = data.initial.repeat(num_methods, 1)
    every = max(1, steps.num_steps // _NUM_RECORDS)
    if family == "DPO":
        way = mirror_descent(
            pairs,
            rule,
            initial,
            kind=KIND[family],
            beta=steps.beta,
            step_size=steps.step_size,
            num_steps=steps.num_steps,
            record_every=every,
            progress=progress,
        )
    else:
        way = robust_least_squares(pairs, rule, initial, beta=steps.beta, num_steps=steps.num_steps, record_every=every)
    shape = (len(way.steps), num_methods, num_seeds, -1)
    best = _optima(pairs, rule, family, steps.beta).reshape(shape[1:])
    return Found(
        methods=methods,
        steps=way.steps,
        curves=_metrics(way.params.reshape(shape), data, family, steps.beta),
        weights=way.weights.reshape(shape),
        optimum=_metrics(best, data, family, steps.beta),
    )


def _rule(method: Method, shares: Tensor, num_seeds: int, weight_step: float) -> WeightRule:
    if method.weighting == "robust":
        return WeightRule.robust(num_seeds, NUM_POPULATIONS, step_size=weight_step, tradeoff=method.chi)
    weights = shares if method.weighting == "plain" else torch.full_like(shares, 1.0 / NUM_POPULATIONS)
    return WeightRule.constant(weights.expand(num_seeds, -1))


def _optima(pairs: PairData, rule: WeightRule, family: Family, beta: float) -> Tensor:
    """Where every run leads: the minimiser for weights that stay, the saddle point for those that climb."""
    climbs = rule.step_size.squeeze(-1) > 0
    robust, fixed = (replace(pairs, differences=pairs.differences[runs]) for runs in (climbs, ~climbs))
    best = torch.empty(len(climbs), pairs.differences.shape[-1], dtype=torch.float64)
    best[climbs] = robust_optimum(robust, kind=KIND[family], beta=beta, tradeoff=rule.tradeoff[climbs])[0]
    best[~climbs] = fixed_weight_optimum(fixed, rule.initial[~climbs], kind=KIND[family], beta=beta)
    return best


def _metrics(params: Tensor, data: BanditData, family: Family, beta: float) -> dict[str, Tensor]:
    """METRICS of theta[..., seed, feature], by seed."""
    pairs = PairData.of(data.validation, data.validation_index)
    margins = feature_margins(pairs.differences.expand(*params.shape[:-2], -1, -1, -1), params)
    losses = margin_losses(margins, kind=KIND[family], beta=beta) @ pairs.averaging
    quality = policy_quality(params, data.test)
    return {
        "max_loss": losses.amax(dim=-1),
        "mean_loss": losses @ pairs.shares,
        "max_error": quality.reward_error.amax(dim=-1),
        "max_gap": quality.reward_gap.amax(dim=-1),
        "max_kl": quality.kl.amax(dim=-1),
    }


def mean_and_sem(values: Float[Tensor, "*any seed"]) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"]]:
    """Mean over seeds and its standard error (sample standard deviation / sqrt n)."""
    return values.mean(dim=-1), values.std(dim=-1) / values.shape[-1] ** 0.5
