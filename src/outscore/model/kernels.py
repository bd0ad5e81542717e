"""Which kernel attends a forest: decided by the device, and on a GPU by trying.

`flash` is the CPU's fused kernel, `flex` the GPU's (`outscore.model.flex`), and `plain` tensor operations, which any
device has and which keep their scores for the backward pass.
"""

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from outscore.model.flex import FlexTree, visibility
from outscore.model.forest import Segment

Kernel = Literal["flash", "flex", "plain"]

FORCED: Kernel | None = None
"""A kernel to take whatever the device is, for tests and measurements; None leaves the choice to `kernel_for`."""

SMALLEST_DIM = 16
"""The GPU's matrix units take no narrower operands."""

TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 5e-3}
"""Type -> the largest relative difference, in the norm, taken for rounding (fp32 products may be in TF32). A wrong mask
moves outputs and gradients by their own size."""

FAULTS = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, ImportError, OSError)
"""What is raised where a kernel cannot be: by PyTorch's compiler and Triton's, or for want of Triton or of a C compiler
(`subprocess.SubprocessError` beside them)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """What a kernel is compiled for."""

    device: torch.device
    """Where."""
    dtype: torch.dtype
    """The type of queries, keys and values."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key-value heads, which divide them."""
    dim: int
    """Width of a query and a key."""
    value_dim: int
    """Width of a value."""
    softcap: float | None
    """The soft cap of scores, if there is one."""
    windowed: bool
    """Whether a window hides some scores of long rows; rows that it does not outrun need the kernel without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelProbe:
    """What was found when a kernel was looked for."""

    kernel: Kernel
    """The kernel to use."""
    reason: str
    """Why, in a sentence, for the run's report."""


def kernel_for(query: Tensor, key: Tensor, value: Tensor, window: int | None, softcap: float | None) -> Kernel:
    """The kernel for these states [row, head, token, dim]; the first call for heads of a shape on a GPU tries it."""
    if FORCED is not None:
        return FORCED
    heads = Heads(
        device=query.device,
        dtype=query.dtype,
        num_heads=query.shape[1],
        num_kv_heads=key.shape[1],
        dim=query.shape[3],
        value_dim=value.shape[3],
        softcap=softcap,
        windowed=window is not None,
    )
    return probe_kernel(heads).kernel


def heads_of(config: Any, device: torch.device, dtype: torch.dtype) -> Heads:
    """The heads of a model by its Hugging Face configuration, those with a window where some of its layers have one."""
    num_heads = int(config.num_attention_heads)
    dim = int(getattr(config, "head_dim", None) or config.hidden_size // num_heads)
    return Heads(
        device=device,
        dtype=dtype,
        num_heads=num_heads,
        num_kv_heads=int(getattr(config, "num_key_value_heads", None) or num_heads),
        dim=dim,
        value_dim=dim,
        softcap=getattr(config, "attn_logit_softcapping", None),
        windowed=getattr(config, "sliding_window", None) is not None
        and "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"]),
    )


def fits(heads: Heads) -> bool:
    """Whether the fused kernel of the device is made for such heads; on a GPU it may still fail to compile."""
    if heads.device.type == "cpu":
        return heads.softcap is None and heads.dim == heads.value_dim
    return heads.dtype in TOLERANCE and min(heads.dim, heads.value_dim) >= SMALLEST_DIM


@cache
def probe_kernel(heads: Heads) -> KernelProbe:
    """Choose; on a GPU the fused kernel must compile there, and give a small forest's output and gradients."""
    if heads.device.type == "cpu":
        return KernelProbe(kernel="flash" if fits(heads) else "plain", reason="")
    if not fits(heads):
        what = f"{heads.dtype} and heads of {min(heads.dim, heads.value_dim)}"
        reason = f"no fused kernel for {what} (needs at most 32 bits, and {SMALLEST_DIM})"
        return KernelProbe(kernel="plain", reason=f"attention in plain tensor operations: {reason}")
    try:
        # In a thread of its own: no mode and no hook of the caller's (inference, checkpointing) reaches in there.
        with ThreadPoolExecutor(1) as thread:
            difference = thread.submit(try_flex, heads).result()
    except (*FAULTS, subprocess.SubprocessError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        reason = f"FlexAttention failed here ({type(error).__name__}: {first})"
        return KernelProbe(kernel="plain", reason=f"attention in plain tensor operations: {reason}")
    if not difference <= TOLERANCE[heads.dtype]:
        reason = f"FlexAttention differs by {difference:.1e}, more than rounding ({TOLERANCE[heads.dtype]:.0e})"
        return KernelProbe(kernel="plain", reason=f"attention in plain tensor operations: {reason}")
    return KernelProbe(kernel="flex", reason=f"attention by FlexAttention (differs by {difference:.1e} from dense)")


def try_flex(heads: Heads) -> float:
    """FlexAttention on a prompt with two completions and three blocks, in every kernel that such heads will need: the
    largest relative difference from all scores in fp32, in the norm."""
    sizes = [(0, 150, -1), (150, 60, 0), (210, 95, 0)]
    segments = [Segment(start=start, length=length, parent=parent) for start, length, parent in sizes]
    return max(_try_window(segments, heads, window) for window in ((None, 100) if heads.windowed else (None,)))


def _try_window(segments: Sequence[Segment], heads: Heads, window: int | None) -> float:
    """The difference of the output and its gradients, and of the output where there are none, as when log-probs are
    compared and when prompts are read: to a compiler these are cases of their own."""
    tree = FlexTree(segments, heads.device)
    scaling, generator = heads.dim**-0.5, torch.Generator().manual_seed(0)
    shapes = [(heads.num_heads, heads.dim), (heads.num_kv_heads, heads.dim), (heads.num_kv_heads, heads.value_dim)]
    drawn = [torch.randn(1, number, tree.num_tokens, dim, generator=generator) for number, dim in shapes]
    given = [each.to(heads.device, heads.dtype).requires_grad_() for each in drawn]
    exact = [each.detach().float().requires_grad_() for each in given]

    places = torch.arange(tree.num_tokens, device=heads.device)
    none = places.new_zeros(())
    sees = visibility(tree.seen_until, tree.positions, window)(none, none, places[:, None], places)
    keys, values = (each.repeat_interleave(heads.num_heads // heads.num_kv_heads, 1) for each in exact[1:])
    scores = exact[0] @ keys.transpose(-1, -2) * scaling
    if heads.softcap is not None:
        scores = heads.softcap * torch.tanh(scores / heads.softcap)
    expected = (scores.masked_fill(~sees, -torch.inf).softmax(-1) @ values).transpose(1, 2)
    weights = torch.randn(expected.shape, generator=generator).to(heads.device)
    how: dict[str, Any] = {"scaling": scaling, "window": window, "softcap": heads.softcap}
    out = tree.attend(*given, **how)
    found = [out, *torch.autograd.grad((out.float() * weights).sum(), given)]
    wanted = [expected, *torch.autograd.grad((expected * weights).sum(), exact)]
    for without_gradients in (torch.no_grad, torch.inference_mode):
        with without_gradients():
            own = FlexTree(segments, heads.device)  # its indices are tensors of that mode too
            found.append(own.attend(*(each.detach().clone() for each in given), **how))
            wanted.append(expected)
    with torch.no_grad():
        differences = [(ours.float() - other).norm() / other.norm() for ours, other in zip(found, wanted, strict=True)]
        return float(torch.stack(differences).max())
