"""Learning what a state is worth: the loss of a critic, and how well it predicts.

The estimates themselves (generalised advantage estimation, the clipped loss of a token) are in `returns`; from the
rewards of a batch to advantages and targets it goes in `batch`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from outscore.objectives.loss import LossTerms
from outscore.objectives.returns import clipped_value_loss


def critic_loss(
    values: Float[Tensor, " token"],
    anchor_values: Float[Tensor, " token"],
    returns: Float[Tensor, " token"],
    *,
    clip: float,
    num_tokens: int,
) -> LossTerms:
    """Sum over the tokens of a micro-batch of the clipped value loss (`clipped_value_loss`), over the tokens of the
    whole update: its share of the mean.

    The coefficients are -d loss / d value of each token. Metrics are means over tokens: `value_loss`, the share that
    the clip holds (`value_clip_fraction`), and the `returns` and `values` themselves.
    """
    values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    anchor_values, returns = anchor_values.to(values), returns.to(values)
    each, held = clipped_value_loss(values, anchor_values, returns, clip=clip)
    loss = each.sum() / num_tokens
    with torch.no_grad():
        # Where the clip holds, the value's own gradient is 0; elsewhere it is V - R.
        slopes = torch.where(held, torch.zeros_like(values), returns - values) / num_tokens
        means = {"value_loss": each, "value_clip_fraction": held, "returns": returns, "values": values}
        return LossTerms(
            loss=loss,
            coefficients=slopes,
            parts={},
            means={name: (of.detach().to(values.dtype).sum(), of.numel()) for name, of in means.items()},
            maxima={},
        )


def explained_variance(values: Float[Tensor, " token"], returns: Float[Tensor, " token"]) -> float:
    """1 - Var(R - V) / Var(R): 1 for a critic that knows, 0 for one no better than a constant, below for a worse one;
    NaN where returns do not vary."""
    spread = returns.double().var(correction=0) if returns.numel() else torch.zeros(())
    if not float(spread) > 0.0:
        return math.nan
    return 1.0 - float((returns - values).double().var(correction=0) / spread)
