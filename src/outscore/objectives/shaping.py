"""What is taken off a reward before it is compared."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def overlong_penalty(
    lengths: Int[Tensor, " completion"], *, limit: int, buffer: int, dtype: torch.dtype = torch.float64
) -> Float[Tensor, " completion"]:
    """DAPO's soft overlong punishment as a cost: 0 up to limit - buffer tokens, then in a line up to 1 at the limit.

    arXiv 2503.14476, eq. 13, with the sign of a cost; DAPO has a limit of 20480 tokens and a buffer of 4096. Lengths
    count the stop token. Raises ValueError unless 0 < buffer <= limit.
    """
    if not 0 < buffer <= limit:
        raise ValueError(f"overlong_buffer={buffer}: must be from 1 to the limit of {limit} tokens")
    return ((lengths.to(dtype) - (limit - buffer)) / buffer).clamp(0.0, 1.0)
