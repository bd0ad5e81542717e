"""The optimizer: AdamW over fp32 weights, its schedule, and the clip of the gradient norm."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outscore.stage_parts import OptimizerSettings


def learning_rate(settings: OptimizerSettings, update: int, num_updates: int) -> float:
    """The rate of an update: linear warm-up to the peak, then constant, linear or cosine to `final_fraction` of it.

    Args:
        settings: peak, warm-up and shape.
        update: 0 for the first update of the stage.
        num_updates: updates of the whole stage.
    """
    if update < settings.warmup_steps:
        return settings.lr * (update + 1) / (settings.warmup_steps + 1)
    if settings.schedule == "constant":
        return settings.lr
    progress = min((update - settings.warmup_steps) / max(num_updates - settings.warmup_steps, 1), 1.0)
    fall = progress if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
    return settings.lr * (1 - (1 - settings.final_fraction) * fall)


def make_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW in the fused kernel; weight decay on matrices only, never on norms and biases."""
    trained = list(parameters)
    matrices = [parameter for parameter in trained if parameter.dim() >= 2]
    vectors = [parameter for parameter in trained if parameter.dim() < 2]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
        if members
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


class NotFiniteError(FloatingPointError):
    """A gradient that is NaN or infinite."""

    def __init__(self, norm: float) -> None:
        super().__init__(f"the gradient norm is {norm}; the update was not applied")
        self.norm = norm


def take_step(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], lr: float, max_grad_norm: float
) -> Float[Tensor, ""]:
    """Clip the gradients to the norm, step at this rate, clear them; returns the norm before clipping.

    Raises:
        NotFiniteError: if the norm is not finite; the weights are untouched.
    """
    members = list(parameters)
    for parameter in members:
        if parameter.grad is None:
            # An update without gradient is still an update: the moments decay as they would had zeros been computed.
            parameter.grad = torch.zeros_like(parameter)
    norm = torch.nn.utils.clip_grad_norm_(members, max_grad_norm)
    if not torch.isfinite(norm):
        raise NotFiniteError(float(norm))
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.detach()
