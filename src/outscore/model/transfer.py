"""Index tensors made on the host, on the device, without waiting for what the device is doing."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def on_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on the device. From pinned memory: from any other CUDA may wait for itself first."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def indices_on_device(arrays: Sequence[Int[np.ndarray, "..."]], device: torch.device | str) -> list[Tensor]:
    """Arrays of the host as tensors on the device, in one transfer; on a CPU they are the arrays themselves."""
    if torch.device(device).type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    flat = on_device(torch.from_numpy(np.concatenate([array.ravel() for array in arrays])), device)
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
