"""The optimizer: AdamW over fp32 weights, its schedule, and the clip of the gradient norm."""

import math
from collections.abc import Iterable
from typing import Any

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


SMALLEST_8BIT, BLOCK_8BIT = 4096, 256
"""bitsandbytes keeps moments of smaller tensors in fp32, and has a scale in fp32 for each block of others."""


def require_8bit(where: str) -> Any:
    """bitsandbytes, for optimizer states in 8 bits.

    Raises:
        ValueError: naming `where` they are asked for, if there is no GPU: they have no CPU kernel.
        ImportError: if it is not installed.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            f"{where}: optimizer.states = '8bit' needs a CUDA GPU, and there is none here; leave it out, or train "
            "adapters (model.lora), which have moments for themselves alone"
        )
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError("optimizer.states = '8bit' needs `pip install 'outscore[bits]'`") from error
    return bitsandbytes


def moment_bytes(sizes: Iterable[int], states: str) -> int:
    """Bytes of both moments of tensors of so many weights."""
    return sum(
        2 * (size + 4 * -(-size // BLOCK_8BIT)) if states == "8bit" and size >= SMALLEST_8BIT else 8 * size
        for size in sizes
    )


def make_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW in a fused kernel; weight decay on matrices only, never on norms and biases."""
    trained = list(parameters)
    matrices = [parameter for parameter in trained if parameter.dim() >= 2]
    vectors = [parameter for parameter in trained if parameter.dim() < 2]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
        if members
    ]
    common: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    if settings.states == "8bit":
        made: torch.optim.Optimizer = require_8bit("optimizer").optim.AdamW8bit(groups, **common)
        return made
    return torch.optim.AdamW(groups, fused=True, **common)


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
