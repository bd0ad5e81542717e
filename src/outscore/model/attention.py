"""Exact attention over a forest of segments packed into one row.

A row is a forest laid out depth first: a prompt is a root, its completions are children, and a token sees its own
segment up to itself and the whole of every ancestor segment. A dense mask over such a row costs (G·L)²; here the work
is G·L²: each segment attends to itself causally, and the slice of tokens below a segment attends to that segment in
one piece. A subtree of a few tokens is cheaper in one piece of its own, under a mask. The pieces are joined by
log-sum-exp,

    lse = logaddexp(lse_a, lse_b),   out = out_a · exp(lse_a − lse) + out_b · exp(lse_b − lse),

which is exact: softmax over the union of keys. In the backward pass every piece uses the *joined* output and
log-sum-exp, because p = exp(score − lse) and δ = Σ dout · out are those of the whole row of scores.

Sliding windows count *positions*, not row indices: a completion's first token is one position after its prompt's last
token, however far apart the two lie in the row.

So on a CPU, and in plain tensor operations; on a GPU one fused kernel does the same (`outscore.model.flex`), and
`outscore.model.kernels` says which is taken.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from outscore.model import kernels
from outscore.model.flex import FlexTree
from outscore.model.forest import Segment, check_forest, padded_runs, segment_positions, subtree_ends
from outscore.model.transfer import indices_on_device

ATTENTION_NAME = "outscore"
"""The name under which the attention function is registered with transformers."""

SMALL_SUBTREE = 128
"""Tokens of a subtree that is attended in one piece, under a mask."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class AttentionContext(Protocol):
    """What attention means for one forward pass. A context owns the keys and values it must remember."""

    def attend(
        self,
        module: nn.Module,
        query: Float[Tensor, "row head token dim"],
        key: Float[Tensor, "row kv_head token dim"],
        value: Float[Tensor, "row kv_head token dim"],
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Float[Tensor, "row token head dim"]:
        """Attend with the queries, keys and values of the *new* tokens; `module.layer_idx` tells the layer."""
        ...


def _context_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    context: AttentionContext,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = context.attend(module, query, key, value, scaling=scale, sliding_window=sliding_window, softcap=softcap)
    return out, None


# No mask function beside it: a context knows who sees whom, and transformers then makes no mask. With one they would
# first look whether positions restart, and wait for a GPU in every forward pass.
AttentionInterface.register(ATTENTION_NAME, _context_attention)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """A batch of equally shaped attention problems: queries of some tokens against keys of others."""

    query_index: Int[Tensor, "problem query"]
    key_index: Int[Tensor, "problem key"]
    kept: Int[Tensor, " kept"] | None
    """Which of the flattened (problem, query) slots are real tokens; the others pad ragged ones. None if all are."""
    tokens: Int[Tensor, " kept"]
    """The row index of each kept slot; no token occurs twice."""
    branching: bool | None
    """Whether the problems are subtrees, which need a mask, or single segments; None where all keys are ancestors."""


class TreeAttention:
    """Attention of one packed row [1, token]: every token sees its own segment up to itself and all its ancestors.

    Args:
        segments: the forest, depth first: a parent comes before its children, and a subtree is one contiguous slice.
        device: where the index tensors live.

    Raises:
        ValueError: if the segments do not tile a row depth first.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device | str = "cpu") -> None:
        check_forest(segments)
        self.segments = tuple(segments)
        self.device = torch.device(device)
        self.num_tokens = sum(segment.length for segment in segments)
        self._ends = subtree_ends(segments)
        # A token is seen from itself to the end of its segment's subtree.
        seen_until = np.repeat(self._ends, [segment.length for segment in segments])
        self.positions, self._seen_until = indices_on_device([segment_positions(segments), seen_until], self.device)
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor | None] = {}

    @cached_property
    def _flex(self) -> FlexTree:
        return FlexTree(self.segments, self.device)

    @cached_property
    def _own(self) -> tuple[_Piece, ...]:
        return tuple(self._own_pieces(self._small_subtrees()))

    @cached_property
    def _cross(self) -> tuple[_Piece, ...]:
        return tuple(self._cross_pieces(self._small_subtrees()))

    def _small_subtrees(self) -> list[bool]:
        """For each segment, whether it lies in a subtree that is one problem: the largest that are small."""
        whole: list[bool] = []
        for segment, end in zip(self.segments, self._ends, strict=True):
            inherits = segment.parent >= 0 and whole[segment.parent]
            whole.append(inherits or end - segment.start <= SMALL_SUBTREE)
        return whole

    def _piece(self, queries: list[range], keys: list[range], branching: bool | None) -> _Piece:
        (padded, is_real), (key_places, _) = padded_runs(queries), padded_runs(keys)
        kept = np.flatnonzero(is_real)
        arrays = [padded, key_places, kept, padded.ravel()[kept]]
        query_index, key_index, kept_index, tokens = indices_on_device(arrays, self.device)
        return _Piece(
            query_index=query_index,
            key_index=key_index,
            kept=kept_index if len(kept) < padded.size else None,
            tokens=tokens,
            branching=branching,
        )

    def _own_pieces(self, whole: Sequence[bool]) -> Iterator[_Piece]:
        # Padding a causal problem on the right changes nothing for its real queries, so problems of similar length
        # share a batch.
        buckets: dict[tuple[bool, int], list[range]] = defaultdict(list)
        for index, segment in enumerate(self.segments):
            if segment.parent >= 0 and whole[segment.parent]:
                continue
            run = range(segment.start, self._ends[index] if whole[index] else segment.start + segment.length)
            buckets[len(run) > segment.length, _bucket(len(run))].append(run)
        for (branching, _), runs in sorted(buckets.items()):
            yield self._piece(runs, runs, branching)

    def _cross_pieces(self, whole: Sequence[bool]) -> Iterator[_Piece]:
        # Keys are never padded (that would need a mask): only segments of the same length share a batch, and of the
        # same depth, so that no token occurs twice in a piece.
        depth: list[int] = []
        buckets: dict[tuple[int, int, int], tuple[list[range], list[range]]] = defaultdict(lambda: ([], []))
        for index, segment in enumerate(self.segments):
            depth.append(0 if segment.parent < 0 else depth[segment.parent] + 1)
            below = range(segment.start + segment.length, self._ends[index])
            if below and not whole[index]:
                queries, keys = buckets[depth[index], segment.length, _bucket(len(below))]
                queries.append(below)
                keys.append(range(segment.start, segment.start + segment.length))
        for _, (queries, keys) in sorted(buckets.items()):
            yield self._piece(queries, keys, branching=None)

    @property
    def num_pairs(self) -> int:
        """Pairs of a query and a key whose score is computed, padding and what causality hides included; each costs
        2 · dim multiply-adds a head."""
        return sum(piece.query_index.numel() * piece.key_index.shape[1] for piece in self.pieces())

    def pieces(self) -> tuple[_Piece, ...]:
        """All pieces; together the own pieces come first and cover every token once."""
        return self._own + self._cross

    def mask(self, number: int, window: int | None, dtype: torch.dtype) -> Float[Tensor, "problem 1 query key"] | None:
        """The additive mask of a piece, or None when causality alone decides (no branches, and no window or one that
        no token can outrun)."""
        cache_key = (number, window, dtype)
        if cache_key not in self._masks:
            self._masks[cache_key] = self._mask(self.pieces()[number], window, dtype)
        return self._masks[cache_key]

    def _mask(self, piece: _Piece, window: int | None, dtype: torch.dtype) -> Tensor | None:
        if window is not None:
            distance = self.positions[piece.query_index][:, :, None] - self.positions[piece.key_index][:, None, :]
            if int(distance.max()) < window:
                window = None
        if window is None and not piece.branching:
            return None
        visible = torch.ones(*piece.query_index.shape, piece.key_index.shape[1], dtype=torch.bool, device=self.device)
        if piece.branching is not None:
            visible.tril_()
        if piece.branching:
            visible &= piece.query_index[:, :, None] < self._seen_until[piece.key_index][:, None, :]
        if window is not None:
            visible &= distance < window
        return torch.zeros(visible.shape, dtype=dtype, device=self.device).masked_fill_(~visible, -torch.inf)[:, None]

    def attend(
        self,
        module: nn.Module,
        query: Float[Tensor, "1 head token dim"],
        key: Float[Tensor, "1 kv_head token dim"],
        value: Float[Tensor, "1 kv_head token dim"],
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Float[Tensor, "1 token head dim"]:
        """Attend over the forest; see `AttentionContext.attend`."""
        kernel = kernels.kernel_for(query, key, value, sliding_window, softcap)
        if kernel == "flex":
            return self._flex.attend(query, key, value, scaling=scaling, window=sliding_window, softcap=softcap)
        # Token first, as projections lay it out in memory: picking a token then copies one run of memory.
        queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
        if kernel == "flash":
            out: Tensor = _FlashTree.apply(  # type: ignore[no-untyped-call]
                queries, keys, values, self, scaling, sliding_window
            )
        else:
            out = _plain_tree(queries, keys, values, self, scaling, sliding_window, softcap)
        return out[None]


def _bucket(length: int) -> int:
    """Lengths that share a batch: padding wastes at most a third of it."""
    exponent = max(length.bit_length() - 2, 2)
    return -(-length // (1 << exponent)) << exponent


def _gather(
    states: Float[Tensor, "token head dim"], index: Int[Tensor, "problem slot"]
) -> Float[Tensor, "problem head slot dim"]:
    picked = states.index_select(0, index.flatten())
    return picked.view(*index.shape, *states.shape[1:]).transpose(1, 2)


def _keep(states: Float[Tensor, "problem head query dim"], piece: _Piece) -> Float[Tensor, "kept head dim"]:
    """The real tokens of a piece."""
    slots = states.transpose(1, 2).flatten(0, 1)
    return slots if piece.kept is None else slots.index_select(0, piece.kept)


def _add(sums: Float[Tensor, "token head dim"], tokens: Int[Tensor, " kept"], terms: Tensor) -> None:
    """sums[tokens] += terms, where no token occurs twice: `index_add_` is far slower because it allows that."""
    sums.index_copy_(0, tokens, sums.index_select(0, tokens).add_(terms))


def _repeat_heads(states: Float[Tensor, "token kv_head dim"], repeat: int) -> Float[Tensor, "token head dim"]:
    return states[:, :, None].expand(-1, -1, repeat, -1).flatten(1, 2)


class _FlashTree(torch.autograd.Function):
    """The tree by the CPU flash kernel, which returns the log-sum-exp that joining needs."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "token head dim"],
        key: Float[Tensor, "token kv_head dim"],
        value: Float[Tensor, "token kv_head dim"],
        tree: TreeAttention,
        scaling: float,
        window: int | None,
    ) -> Float[Tensor, "token head dim"]:
        wide = torch.promote_types(query.dtype, torch.float32)
        # Rounded once, when all pieces are joined; where none are, as the kernel rounds.
        out = query.new_empty(query.shape, dtype=wide if tree._cross else query.dtype)
        lse = query.new_empty((*query.shape[:2], 1), dtype=wide)
        for number, piece in enumerate(tree.pieces()):
            mask = tree.mask(number, window, query.dtype)
            piece_out, piece_lse = _flash(
                _gather(query, piece.query_index),
                _gather(key, piece.key_index),
                _gather(value, piece.key_index),
                0.0,
                piece.branching is not None and mask is None,
                attn_mask=mask,
                scale=scaling,
            )
            if mask is not None:
                # A query that sees no key of this piece has an empty sum; the kernel reports 0 where log 0 is meant.
                piece_lse = piece_lse.masked_fill(torch.isneginf(mask).all(-1), -torch.inf)
            kept_out, kept_lse = _keep(piece_out, piece), _keep(piece_lse[..., None], piece)
            if number >= len(tree._own):
                before = lse.index_select(0, piece.tokens)
                joined = torch.logaddexp(before, kept_lse)
                old, new = torch.exp(before - joined), torch.exp(kept_lse - joined)
                kept_out = out.index_select(0, piece.tokens) * old + kept_out * new
                kept_lse = joined
            out.index_copy_(0, piece.tokens, kept_out.to(out.dtype))
            lse.index_copy_(0, piece.tokens, kept_lse)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.tree, ctx.scaling, ctx.window = tree, scaling, window
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Float[Tensor, "token head dim"]) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        tree: TreeAttention = ctx.tree
        repeat = query.shape[1] // key.shape[1]
        key, value = _repeat_heads(key, repeat), _repeat_heads(value, repeat)  # the backward kernel wants them alike
        grads = query.new_empty(query.shape), query.new_empty(query.shape), query.new_empty(query.shape)
        for number, piece in enumerate(tree.pieces()):
            mask = tree.mask(number, ctx.window, query.dtype)
            piece_lse = lse.index_select(0, piece.tokens)
            if piece.kept is not None:
                # A padding slot must carry no gradient: its weights are exp(score - huge) = 0.
                slots = lse.new_full((piece.query_index.numel(), *lse.shape[1:]), 1e30)
                piece_lse = slots.index_copy_(0, piece.kept, piece_lse)
            piece_grads = _flash_backward(
                _gather(grad_out, piece.query_index),
                _gather(query, piece.query_index),
                _gather(key, piece.key_index),
                _gather(value, piece.key_index),
                _gather(out, piece.query_index),
                piece_lse.unflatten(0, piece.query_index.shape)[..., 0].transpose(1, 2),
                0.0,
                piece.branching is not None and mask is None,
                attn_mask=mask,
                scale=ctx.scaling,
            )
            # The own pieces come first and cover every token once, as queries and as keys.
            if number < len(tree._own):
                for grad, piece_grad in zip(grads, piece_grads, strict=True):
                    grad.index_copy_(0, piece.tokens, _keep(piece_grad, piece))
                continue
            _add(grads[0], piece.tokens, _keep(piece_grads[0], piece))
            for grad, piece_grad in zip(grads[1:], piece_grads[1:], strict=True):
                _add(grad, piece.key_index.flatten(), piece_grad.transpose(1, 2).flatten(0, 1))
        summed = [grad.unflatten(1, (-1, repeat)).sum(2) for grad in grads[1:]]
        return (grads[0], *summed, None, None, None)


def _plain_tree(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: TreeAttention,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Float[Tensor, "token head dim"]:
    """The same sum in plain tensor operations under autograd: any device, and soft-capped scores (Gemma 2)."""
    repeat = query.shape[1] // key.shape[1]
    key, value = _repeat_heads(key, repeat), _repeat_heads(value, repeat)
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = query.new_zeros(*query.shape[:2], value.shape[-1], dtype=dtype)
    lse = torch.full_like(out[..., :1], -torch.inf)
    for number, piece in enumerate(tree.pieces()):
        scores = (_gather(query, piece.query_index) @ _gather(key, piece.key_index).transpose(-1, -2)).to(
            out.dtype
        ) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        mask = tree.mask(number, window, out.dtype)
        if mask is None and piece.branching is not None:
            width = scores.shape[-1]
            mask = torch.full((width, width), -torch.inf, device=scores.device, dtype=scores.dtype).triu(1)
        # A query that sees no key of this piece has an empty sum, log 0, without passing -inf − -inf through autograd.
        blind = scores.new_zeros(scores.shape[-2], dtype=torch.bool)
        if mask is not None:
            blind = torch.isneginf(mask).all(-1)
            scores = (scores + mask).masked_fill(blind[..., None], 0.0)
        piece_lse = torch.logsumexp(scores, -1)
        weights = torch.exp(scores - piece_lse[..., None])
        piece_lse = piece_lse.masked_fill(blind, -torch.inf)
        kept_out = _keep(weights @ _gather(value, piece.key_index).to(out.dtype), piece)
        kept_lse = _keep(piece_lse[..., None], piece)
        before = lse.index_select(0, piece.tokens)
        joined = torch.logaddexp(before, kept_lse)
        update = out.index_select(0, piece.tokens) * torch.exp(before - joined) + kept_out * torch.exp(
            kept_lse - joined
        )
        out, lse = out.index_copy(0, piece.tokens, update), lse.index_copy(0, piece.tokens, joined)
    return out.to(query.dtype)
