"""Where the steps of `log_linear` lead: exact optima for fixed weights, and the saddle point of two populations."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from outscore.objectives.populations import trade_off
from outscore.studies.group_robust.log_linear import MarginLoss, PairData, feature_margins, margin_losses, margin_slopes

_MAX_NEWTON_STEPS = 200
_MAX_HALVINGS = 40
_NUM_BISECTIONS = 50
_GRADIENT = 1e-9
"""A norm of the gradient that counts as 0, in units of its norm at theta = 0."""


def fixed_weight_optimum(
    data: PairData,
    weights: Float[Tensor, "run population"],
    *,
    kind: MarginLoss,
    beta: float,
    start: Float[Tensor, "run feature"] | None = None,
) -> Float[Tensor, "run feature"]:
    """The theta that minimises sum_g w_g L_g, by Newton's method with step halving; theta = 0 is where it starts.

    Raises ValueError when a logistic loss has no finite minimiser (some theta puts every pair the right way round, so
    the loss falls for ever as theta grows), or the features do not determine theta.
    """
    on_pairs = weights @ data.averaging.mT
    params = weights.new_zeros(len(weights), data.differences.shape[-1]) if start is None else start

    def gradient_at(params: Tensor) -> Tensor:
        slopes = on_pairs * margin_slopes(feature_margins(data.differences, params), kind=kind, beta=beta)
        return (slopes.unsqueeze(-2) @ data.differences).squeeze(-2)

    def loss_at(params: Tensor) -> Tensor:
        losses = margin_losses(feature_margins(data.differences, params), kind=kind, beta=beta)
        return (on_pairs * losses).sum(-1)

    small = _GRADIENT * gradient_at(torch.zeros_like(params)).norm(dim=-1)
    for _ in range(_MAX_NEWTON_STEPS):
        gradient = gradient_at(params)
        if bool((gradient.norm(dim=-1) <= small).all()):
            break
        curvature = on_pairs * _curvatures(feature_margins(data.differences, params), kind=kind, beta=beta)
        hessian = (data.differences * curvature.unsqueeze(-1)).mT @ data.differences
        direction, info = torch.linalg.solve_ex(hessian, -gradient)
        if bool((info != 0).any()):
            raise ValueError("the pairs do not determine theta: their features lie in fewer dimensions than there are")
        params = params + _step_length(loss_at, params, direction, gradient) * direction
    margins = feature_margins(data.differences, params)
    apart = torch.where(on_pairs > 0, margins, torch.inf).amin(dim=-1) > 0
    if kind == "logistic" and bool(apart.any()):
        raise ValueError(
            f"run {int(apart.nonzero()[0])}: theta puts every pair right, so its loss has no finite optimum"
        )
    return params


def robust_optimum(
    data: PairData, *, kind: MarginLoss, beta: float, tradeoff: float | Float[Tensor, "run 1"] = 1.0
) -> tuple[Float[Tensor, "run feature"], Float[Tensor, "run population"]]:
    """theta and alpha at the saddle point of min over theta, max over alpha, of sum_g ((1 - chi)/2 + chi alpha_g) L_g.

    For TWO populations. The worth of alpha, min over theta of the sum, is concave in alpha, and its slope along alpha_0
    is chi (L_0 - L_1) at the minimiser, so bisection finds where it changes sign, or the end it is next to. No step
    size enters. Raises ValueError for another number of populations, and as `fixed_weight_optimum`.
    """
    if data.shares.numel() != 2:
        raise ValueError(f"there are {data.shares.numel()} populations; the saddle point is found for 2")
    low, high = torch.zeros(2, len(data.differences), 1, dtype=torch.float64).unbind()
    high = high + 1.0
    params = None
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        weights = torch.cat([middle, 1.0 - middle], dim=-1)
        mixed = trade_off(weights, torch.full_like(weights, 0.5), tradeoff)
        params = fixed_weight_optimum(data, mixed, kind=kind, beta=beta, start=params)
        losses = margin_losses(feature_margins(data.differences, params), kind=kind, beta=beta) @ data.averaging
        worse_off = (losses[:, :1] > losses[:, 1:]).expand_as(middle)
        low, high = torch.where(worse_off, middle, low), torch.where(worse_off, high, middle)
    assert params is not None
    return params, weights


def _curvatures(margins: Tensor, *, kind: MarginLoss, beta: float) -> Tensor:
    if kind == "logistic":
        chance = torch.sigmoid(beta * margins)
        return beta**2 * chance * (1.0 - chance)
    return torch.full_like(margins, 2.0)


def _step_length(loss_at: Callable[[Tensor], Tensor], params: Tensor, direction: Tensor, gradient: Tensor) -> Tensor:
    """For each run the largest of 1, 1/2, 1/4, … that lowers the loss enough (Armijo)."""
    before = loss_at(params)
    wanted = 1e-4 * (direction * gradient).sum(-1)
    # What rounding alone can do to a loss must not look like an ascent.
    rounding = 8 * torch.finfo(before.dtype).eps * before.abs()
    length = torch.ones(len(params), 1, dtype=params.dtype)
    for _ in range(_MAX_HALVINGS):
        enough = loss_at(params + length * direction) <= before + length.squeeze(-1) * wanted + rounding
        if bool(enough.all()):
            break
        length = torch.where(enough.unsqueeze(-1), length, length / 2)
    return length
