"""The forest by FlexAttention: one fused kernel for a packed row, which skips blocks of scores that nobody sees.

A key is seen from its own token to the end of its segment's subtree, so

    q sees k  ⇔  k ≤ q < seen_until[k]  and  position[q] − position[k] < window.

That is the mask of single scores. The kernel asks it only in blocks of `BLOCK` × `BLOCK` scores that hide some, takes
those that hide none as they are, and never reads those that hide all: `visible_blocks` says which are which, from
token × block comparisons and exactly. Work stays G·L², and no score is kept for the backward pass.

Rows are padded to whole blocks by a root of their own: PyTorch's kernels then know that no block sticks out, and a row
of another length needs no other kernel.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from outscore.model.forest import Segment, segment_positions, subtree_ends
from outscore.model.transfer import indices_on_device

BLOCK = 128
"""Tokens of a block: what PyTorch's kernels are tuned for."""

MAX_KERNELS = 64
"""Compilations after which a process gives up with an error: a kernel for each shape of heads, with and without a
window, a soft cap and gradients, and none for a length. (PyTorch's own limit is 8, and beyond it rows would silently be
attended with all their scores in memory.)"""

Visibility = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) -> whether the query sees the key, of tensors of indices."""


class FlexTree:
    """A packed row as FlexAttention wants it: padded to whole blocks, with the blocks that are to be computed.

    Args:
        segments: the forest, depth first.
        device: where queries and keys will be.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.num_tokens = sum(segment.length for segment in segments)
        # One block alone would be a kernel of its own: compilers take a size of 1 for a constant.
        self.padding = max(-(-self.num_tokens // BLOCK), 2) * BLOCK - self.num_tokens
        if self.padding:
            segments = [*segments, Segment(start=self.num_tokens, length=self.padding, parent=-1)]
        positions = segment_positions(segments)
        self._reach = int(positions.max()) + 1  # no window this wide hides anything
        seen_until = np.repeat(subtree_ends(segments), [segment.length for segment in segments])
        indices = (array.astype(np.int32) for array in (seen_until, positions))
        self.seen_until, self.positions = indices_on_device(list(indices), device)
        self._masks: dict[int | None, BlockMask] = {}

    def mask(self, window: int | None) -> BlockMask:
        """Who sees whom, made once for each window."""
        window = None if window is None or window >= self._reach else window
        if window not in self._masks:
            self._masks[window] = block_mask(self.seen_until, self.positions, window)
        return self._masks[window]

    def attend(
        self,
        query: Float[Tensor, "1 head token dim"],
        key: Float[Tensor, "1 kv_head token dim"],
        value: Float[Tensor, "1 kv_head token value_dim"],
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Float[Tensor, "1 token head value_dim"]:
        """Attend over the forest; differentiable. See `outscore.model.attention.AttentionContext.attend`."""
        # Runs of memory either way: rows that need no padding are then no case of their own to a compiler.
        states = (
            pad(each, (0, 0, 0, self.padding)) if self.padding else each.contiguous() for each in (query, key, value)
        )
        # Constants of a kernel are compiled into it: PyTorch cannot take scale or soft cap for symbols.
        with torch._dynamo.config.patch(specialize_float=True, recompile_limit=MAX_KERNELS):
            out: Tensor = compiled()(*states, self.mask(window), scaling, softcap)
        return out[:, :, : self.num_tokens].transpose(1, 2)


def block_mask(seen_until: Int[Tensor, " token"], positions: Int[Tensor, " token"], window: int | None) -> BlockMask:
    """The mask of a row of whole blocks, in PyTorch's form: lists of blocks for each block of queries, and a function
    for single scores where a block hides some."""
    some, every = visible_blocks(seen_until, positions, window)
    num_tokens = len(positions)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every),
        *_listed(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=visibility(seen_until, positions, window),
        seq_lengths=(num_tokens, num_tokens),
    )


def visibility(seen_until: Int[Tensor, " token"], positions: Int[Tensor, " token"], window: int | None) -> Visibility:
    """Who sees whom. What it closes over are tensors alone: a number would be compiled into a kernel."""

    @no_type_check  # what is compiled is not to be wrapped
    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < seen_until[key])

    if window is None:
        return cast(Visibility, sees)
    outrun = positions - window  # a query's window begins behind this position

    @no_type_check
    def sees_near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < seen_until[key]) & (positions[key] > outrun[query])

    return cast(Visibility, sees_near)


def visible_blocks(
    seen_until: Int[Tensor, " token"], positions: Int[Tensor, " token"], window: int | None
) -> tuple[Bool[Tensor, "query_block key_block"], Bool[Tensor, "query_block key_block"]]:
    """Which blocks show some score, and which show every one.

    In a block of queries those that see a key, were there no window, are a run of tokens, `first` to before `last`: it
    begins with the key itself, or with the block. Of a run the query at the lowest position sees farthest back.
    """
    keys = torch.arange(len(positions), dtype=torch.int32, device=positions.device)[:, None]
    begins = keys[::BLOCK, 0]
    first, last = torch.maximum(keys, begins), torch.minimum(seen_until[:, None], begins + BLOCK)
    some, every = last > first, last - first == BLOCK
    if window is not None:
        in_blocks = positions.view(-1, BLOCK)
        lowest_so_far = in_blocks.cummin(1).values.flatten()  # of the tokens of its block up to each
        near = lowest_so_far[(last - 1).clamp_min(0).long()] - positions[:, None] < window
        some &= near | (first == keys)  # a key sees itself in any window
        farthest = in_blocks.amax(1) - in_blocks.amin(1).repeat_interleave(BLOCK)[:, None]
        every &= farthest < window
    return some.unflatten(0, (-1, BLOCK)).any(1).t(), every.unflatten(0, (-1, BLOCK)).all(1).t()


def _listed(
    blocks: Bool[Tensor, "query_block key_block"],
) -> tuple[Int[Tensor, "1 1 query_block"], Int[Tensor, "1 1 query_block key_block"]]:
    """How many blocks each block of queries has, and their numbers, followed by those that it does not have. Both
    contiguous, which the kernels take for granted."""
    numbers = blocks.int().argsort(dim=1, descending=True, stable=True).int().contiguous()
    return blocks.sum(1, dtype=torch.int32)[None, None], numbers[None, None]


@no_type_check
def attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float, softcap: float | None) -> Tensor:
    """What is compiled."""
    torch._check(query.shape[2] % BLOCK == 0)  # the kernel need not look for an edge within a block

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    score_mod = None if softcap is None else capped
    return flex_attention(query, key, value, score_mod, mask, scale=scaling, enable_gqa=True)


@cache
def compiled() -> Callable[..., Any]:
    """`attend` as a fused kernel for rows of any length; without `fullgraph` a failure would be silent, and slow."""
    return torch.compile(attend, dynamic=True, fullgraph=True)
