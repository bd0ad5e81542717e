"""Which number format to compute in, and the fp32 master weights that go with it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16"]

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The torch dtype of each precision."""

MIN_SPEEDUP = 1.3
"""bf16 costs accuracy, so it must be clearly faster: some CPUs emulate it, and are slower with it."""

TimeGemm = Callable[[torch.device, torch.dtype, tuple[int, int, int]], float]
"""(device, dtype, (tokens, inputs, outputs)) -> seconds for one product; what the probe measures with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionProbe:
    """What to compute in, and why; belongs in the run's config, so that a resumed run keeps its choice.

    >>> PrecisionProbe(precision="bf16", seconds={"fp32": 0.008, "bf16": 0.002}, reason="bf16 is 4.0x as fast as fp32")
    """

    precision: Precision
    """The decision."""
    seconds: Mapping[str, float]
    """Best time of the probe's products in each precision; empty when nothing had to be measured."""
    reason: str
    """The decision in words."""


def probe_precision(
    device: torch.device | str,
    *,
    hidden_size: int = 576,
    intermediate_size: int = 1536,
    time_gemm: TimeGemm | None = None,
) -> PrecisionProbe:
    """Decide between fp32 and bf16 on a device.

    A CUDA device that supports bf16 in hardware gets it. Elsewhere products of a small model's shapes are timed (about
    a second): a training row, and a decoding batch, which is bound by memory; bf16 must be `MIN_SPEEDUP` times as
    fast on their sum. The defaults are the sizes of SmolLM2-135M; a run takes these whatever its own model is.
    """
    device = torch.device(device)
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        reason = f"{torch.cuda.get_device_name(device)} {'supports' if supported else 'does not support'} bf16"
        return PrecisionProbe(precision="bf16" if supported else "fp32", seconds={}, reason=reason)
    measure = time_gemm or seconds_per_gemm
    shapes = [(rows, *pair) for rows in (512, 32) for pair in _projections(hidden_size, intermediate_size)]
    try:
        seconds = {name: sum(measure(device, dtype, shape) for shape in shapes) for name, dtype in DTYPES.items()}
    except (RuntimeError, TypeError, NotImplementedError) as error:
        # Torch raises one of these for a product the device lacks; fp32 exists everywhere, so it was bf16.
        return PrecisionProbe(precision="fp32", seconds={}, reason=f"{device.type} has no bf16 products: {error}")
    return decide(seconds["fp32"], seconds["bf16"])


def decide(fp32_seconds: float, bf16_seconds: float) -> PrecisionProbe:
    """bf16 if it is at least `MIN_SPEEDUP` times as fast, else fp32.

    >>> decide(2.0, 1.0).precision, decide(1.0, 1.0).precision
    ('bf16', 'fp32')
    """
    speedup = fp32_seconds / bf16_seconds
    reason = f"bf16 is {speedup:.1f}x as fast as fp32 in a probe of matrix products (needed: {MIN_SPEEDUP}x)"
    return PrecisionProbe(
        precision="bf16" if speedup >= MIN_SPEEDUP else "fp32",
        seconds={"fp32": fp32_seconds, "bf16": bf16_seconds},
        reason=reason,
    )


def seconds_per_gemm(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> float:
    """Seconds for x @ Wᵀ with x of (tokens, inputs) and W of (outputs, inputs): the fastest of 8, after 2 to warm up.

    The fastest, because whatever else runs on the machine can only make a product slower.
    """
    num_tokens, num_inputs, num_outputs = shape
    x = torch.ones(num_tokens, num_inputs, device=device, dtype=dtype)
    weight = torch.ones(num_outputs, num_inputs, device=device, dtype=dtype)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        product = torch.nn.functional.linear(x, weight)
        product[0, 0].item()  # waits for an asynchronous device
        times.append(time.perf_counter() - began)
    return min(times[2:])


def _projections(hidden_size: int, intermediate_size: int) -> list[tuple[int, int]]:
    """(inputs, outputs) of the products in a layer: attention's, and the feed-forward's up and down."""
    return [(hidden_size, hidden_size), (hidden_size, intermediate_size), (intermediate_size, hidden_size)]


class MasterWeights:
    """The fp32 weights an optimizer steps on, beside a model that computes in a shorter format.

    In bf16 an update below 1/256 of a weight is rounded away, which at RL's learning rates is nearly every update; so
    the optimizer owns fp32 copies, and the model holds their rounding. Where the model computes in fp32 (or fp64) the
    masters *are* its parameters and every method but `state_dict` does nothing. Only parameters that require gradients
    at the start have masters.

        masters = MasterWeights(model, torch.bfloat16)        # casts the model's parameters
        optimizer = AdamW(masters.parameters.values())
        for micro_batch in batch:
            loss(micro_batch).backward(); masters.gather_gradients()
        optimizer.step(); masters.copy_back(); masters.zero_grad()
    """

    def __init__(self, model: nn.Module, compute_dtype: torch.dtype) -> None:
        """Take masters of the weights as they are now, then cast the parameters (not the buffers) to `compute_dtype`.

        Buffers stay as they are: rotary frequencies in bf16 would misplace late tokens. A shared (tied) parameter has
        one master, under its first name.
        """
        self._model: dict[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.separate: bool = torch.finfo(compute_dtype).bits < 32
        """Whether the masters are other tensors than the model's parameters."""
        self.parameters: dict[str, nn.Parameter] = self._model
        """Name -> what the optimizer steps on."""
        if self.separate:
            self.parameters = {n: nn.Parameter(p.detach().float().clone()) for n, p in self._model.items()}
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(compute_dtype)

    @torch.no_grad()
    def gather_gradients(self) -> None:
        """Add the model's gradients to the masters' in fp32 and clear them; for after each micro-batch's backward."""
        if not self.separate:
            return
        for name, parameter in self._model.items():
            if parameter.grad is None:
                continue
            master = self.parameters[name]
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    @torch.no_grad()
    def copy_back(self) -> None:
        """Round the masters into the model; call after the optimizer's step."""
        if self.separate:
            for name, parameter in self._model.items():
                parameter.copy_(self.parameters[name])

    def zero_grad(self) -> None:
        """Drop all gradients, of masters and model."""
        for parameter in [*self._model.values(), *self.parameters.values()]:
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> weights of the optimizer's side, sharing memory with them."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take these weights into masters and model; ValueError when names or shapes are not exactly the model's."""
        if state.keys() != self.parameters.keys():
            differing = sorted(state.keys() ^ self.parameters.keys())
            raise ValueError(
                f"master weights and model differ in {len(differing)} parameters, the first {differing[0]!r}"
            )
        for name, master in self.parameters.items():
            if state[name].shape != master.shape:
                expected, got = tuple(master.shape), tuple(state[name].shape)
                raise ValueError(f"master weight {name!r} has shape {got}, but the model needs {expected}")
        for name, master in self.parameters.items():
            master.copy_(state[name])
        self.copy_back()
