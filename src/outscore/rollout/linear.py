"""Matrix products of a few rows with large weights, as decoding needs them.

MKL multiplies a few rows by a weight, x Wᵀ, at less than half the speed of the same product the other way round, W xᵀ:
the weight then is the large operand that it blocks for. From about 48 rows on there is no difference.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

FEW_ROWS = 48
"""Up to so many rows the product is turned round."""


@contextmanager
def turned_round(model: nn.Module) -> Iterator[None]:
    """Inside the block, the model's linear layers multiply a few rows the faster way: fp32 on a CPU with MKL.

    The result then is a transposed product, a view whose rows are not runs of memory.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear and _gains(module.weight)]
    for layer in layers:
        layer.forward = partial(_multiply, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _gains(weight: Tensor) -> bool:
    return weight.dtype is torch.float32 and weight.device.type == "cpu" and torch.backends.mkl.is_available()


def _multiply(layer: nn.Linear, rows: Float[Tensor, "*axes size"]) -> Float[Tensor, "*axes new_size"]:
    if rows.numel() > FEW_ROWS * rows.shape[-1]:
        return functional.linear(rows, layer.weight, layer.bias)
    out = torch.mm(layer.weight, rows.reshape(-1, rows.shape[-1]).t()).t().reshape(*rows.shape[:-1], -1)
    return out if layer.bias is None else out + layer.bias
