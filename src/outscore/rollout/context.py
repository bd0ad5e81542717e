"""Attention while sampling: a group's prompt is stored once, and every live row attends to it and to its own tokens.

The two parts are joined exactly. Softmax over the union of prompt keys (p) and own keys (o) is

    out = out_o + σ(lse_p − lse_o) · (out_p − out_o),      σ the logistic function,

where out and lse are the output and the log-sum-exp of the scores of each part alone.

All live rows of a prompt are queries of one matrix product against that prompt's keys: a query head that shares its
key head with others (grouped-query attention) is one more query row. Prompts of similar length are batched in a block;
each has the same number of *seats* there, and a seat that no row needs repeats row 0 and is dropped afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from outscore.model.attention import TreeAttention
from outscore.model.forest import prefix_forest
from outscore.model.transfer import indices_on_device, on_device
from outscore.rollout.kv import KeyValueTable, compaction

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_SMALLEST_BLOCK = 64


def block_tokens(length: int) -> int:
    """Tokens that the block of a prompt has room for."""
    return max(_SMALLEST_BLOCK, 1 << (length - 1).bit_length())


@dataclass(kw_only=True, slots=True, eq=False)
class StoredPrompt:
    """Where the keys and values of a prompt are."""

    length: int
    """Its number of tokens."""
    block: "PromptBlock"
    """The block that holds it."""
    entry: int
    """Its entry there; changes when the block closes a gap."""


class PromptBlock:
    """The stored prompts whose lengths round up to the same power of two."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.table = KeyValueTable()
        self.prompts: list[StoredPrompt] = []

    def add(self, length: int) -> StoredPrompt:
        """Make a place for a prompt; its keys and values are written by a `PrefillContext`."""
        prompt = StoredPrompt(length=length, block=self, entry=len(self.prompts))
        self.prompts.append(prompt)
        if len(self.prompts) > self.table.num_entries:
            self.table.reserve(max(len(self.prompts), 2 * self.table.num_entries), self.num_tokens)
        return prompt

    def remove(self, prompt: StoredPrompt) -> None:
        """Drop a prompt; the last one takes its entry."""
        for source, target in compaction(len(self.prompts), [prompt.entry]):
            self.table.copy([source], [target])
            self.prompts[target] = self.prompts[source]
            self.prompts[target].entry = target
        self.prompts.pop()


class LiveRow(Protocol):
    """What attention needs to know of a row that is being sampled."""

    @property
    def prompt(self) -> StoredPrompt:
        """The prompt it continues."""
        ...

    @property
    def num_tokens(self) -> int:
        """Its own tokens so far, the one that is fed now included: at least 1."""
        ...


class PrefillContext:
    """Attention over several prompts packed in one row, storing their keys and values on the way.

    Args:
        prompts: where each prompt goes.
        token_ids: the prompts. What they have in common stands in the row once.
        device: where the model is.
    """

    def __init__(
        self, prompts: Sequence[StoredPrompt], token_ids: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        forest = prefix_forest(token_ids)
        lengths = [len(own) for own in token_ids]
        places = forest.places()
        arrays = [np.array([forest.token_ids]), places, places[np.cumsum(lengths) - 1]]
        self.token_ids, all_places, self.last_tokens = indices_on_device(arrays, device)
        self._prompts, self._places = prompts, all_places.split(lengths)
        self._tree = TreeAttention(forest.segments, device)
        self.positions = self._tree.positions[None]

    def attend(
        self,
        module: nn.Module,
        query: Float[Tensor, "1 head token dim"],
        key: Float[Tensor, "1 kv_head token dim"],
        value: Float[Tensor, "1 kv_head token value_dim"],
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Float[Tensor, "1 token head value_dim"]:
        """See `outscore.model.attention.AttentionContext`."""
        layer = cast(int, module.layer_idx)
        for prompt, places in zip(self._prompts, self._places, strict=True):
            states = (part[0].index_select(1, places) for part in (key, value))
            prompt.block.table.write(layer, prompt.entry, *states)
        return self._tree.attend(
            module, query, key, value, scaling=scaling, sliding_window=sliding_window, softcap=softcap
        )


class _BlockStep:
    """One block's part in decoding some rows' next tokens, of which there are at most `num_tokens`."""

    def __init__(
        self,
        block: PromptBlock,
        taken: list[list[int]],
        rows: Sequence[LiveRow],
        num_tokens: int,
        device: torch.device,
    ) -> None:
        self.table = block.table
        self.taken = taken  # for each prompt, the rows that continue it
        self.num_prompts, self.num_seats = len(taken), max(map(len, taken))
        self.rows = [row for own in taken for row in (*own, *([0] * (self.num_seats - len(own))))]  # for each seat
        self.lengths = [prompt.length for prompt in block.prompts]
        self.longest = max(self.lengths)
        # The farthest a live row of the block gets from the start of its prompt: no window this wide hides anything.
        own = (rows[row] for places in taken for row in places)
        self._reach = max(row.prompt.length + row.num_tokens for row in own) + num_tokens - 1
        self._device = device
        self._biases: dict[tuple[int | None, int, torch.dtype], Tensor | None] = {}

    def begin_token(self, positions: Int64[Tensor, " row"]) -> None:
        """Go on to the rows' next token, given where it stands: a window moves with it."""
        self._positions = positions
        self._biases = {key: bias for key, bias in self._biases.items() if key[0] is None}

    def bias(
        self, window: int | None, num_shared: int, dtype: torch.dtype
    ) -> Float[Tensor, "prompt 1 #query token"] | None:
        """What hides the end of shorter prompts and what lies beyond the window of each row; None if nothing is
        hidden. `num_shared` query heads share a key head."""
        window = None if window is None or self._reach <= window else window
        key = (window, num_shared, dtype)
        if key not in self._biases:
            self._biases[key] = self._make_bias(window, num_shared, dtype)
        return self._biases[key]

    @cached_property
    def _places(self) -> Int64[Tensor, " token"]:
        return torch.arange(self.longest, device=self._device)

    @cached_property
    def _there(self) -> Bool[Tensor, "prompt 1 token"]:
        lengths = on_device(torch.tensor(self.lengths), self._device)
        return (self._places < lengths[:, None])[:, None]

    @cached_property
    def _seats(self) -> Int64[Tensor, "prompt seat"]:
        return on_device(torch.tensor(self.rows), self._device).view(self.num_prompts, self.num_seats)

    def _make_bias(self, window: int | None, num_shared: int, dtype: torch.dtype) -> Tensor | None:
        if window is None and min(self.lengths) == self.longest:
            return None
        visible = self._there
        if window is not None:
            positions = self._positions[self._seats][..., None]
            visible = (visible & (positions - self._places < window)).repeat_interleave(num_shared, 1)
        return _additive(visible, dtype)[:, None]

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "seat kv_head shared dim"],
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> tuple[Float[Tensor, "seat kv_head shared value_dim"], Float[Tensor, "seat kv_head shared"]]:
        """All seats against the prompts they belong to: output and log-sum-exp."""
        _, heads, shared, dim = query.shape
        grid = (self.num_prompts, self.num_seats, heads, shared)
        folded = query.view(*grid, dim).transpose(1, 2).reshape(self.num_prompts, heads, -1, dim)
        keys, values = (states[: self.num_prompts, :, : self.longest] for states in self.table.layer(layer))
        out, lse = _attend_part(folded, keys, values, scaling, softcap, self.bias(window, shared, query.dtype))
        out = out.unflatten(2, (self.num_seats, shared)).transpose(1, 2).flatten(0, 1)
        return out, lse.unflatten(2, (self.num_seats, shared)).transpose(1, 2).flatten(0, 1)


class DecodeContext:
    """Attention of one new token for each live row, all in one packed row [1, row].

    Args:
        max_rows: the most rows that are ever live.
        max_tokens: the most tokens a row ever has.
        device: where the model is.
    """

    def __init__(self, max_rows: int, max_tokens: int, device: torch.device) -> None:
        self.blocks: dict[int, PromptBlock] = {}
        self._own = KeyValueTable()
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self._device = device

    def add_prompt(self, length: int) -> StoredPrompt:
        """Make a place for a prompt."""
        size = block_tokens(length)
        return self.blocks.setdefault(size, PromptBlock(size)).add(length)

    def remove_prompt(self, prompt: StoredPrompt) -> None:
        """Drop a prompt no row continues any more, and its memory once its block is empty."""
        prompt.block.remove(prompt)
        if not prompt.block.prompts:
            del self.blocks[prompt.block.num_tokens]

    def copy_rows(self, copies: Sequence[tuple[int, int]]) -> None:
        """Rows go, or branch, to other places: (from, to) pairs; no place is both."""
        if copies:
            self._make_room(max(target for _, target in copies) + 1, 0)
            self._own.copy(*zip(*copies, strict=True))

    def _make_room(self, num_rows: int, num_tokens: int) -> None:
        """Storage doubles: it grows with the rows and tokens there are, not with those there might be."""
        own = self._own
        if num_rows > own.num_entries or num_tokens > own.num_tokens:
            own.reserve(
                own.num_entries if num_rows <= own.num_entries else min(2 * num_rows, self._max_rows),
                own.num_tokens if num_tokens <= own.num_tokens else min(max(2 * num_tokens, 32), self._max_tokens),
            )

    def begin(self, rows: Sequence[LiveRow], num_tokens: int = 1) -> None:
        """Prepare to attend for these rows, in this order, and for so many of their next tokens.

        There is room for all of them then, and their places are attended to from the first token on, hidden until they
        are written: between tokens nothing changes but `positions`, which are counted on the device. What hides keys is
        made by the first token that needs it, as far as it does not move with them.
        """
        counts = [row.num_tokens for row in rows]
        self._longest = max(counts) + num_tokens - 1
        self._make_room(len(rows), self._longest)
        self._equal = min(counts) == self._longest
        self._counts = on_device(torch.tensor(counts), self._device)
        self._begins = on_device(torch.tensor([row.prompt.length for row in rows]), self._device)
        self._entries = torch.arange(len(rows), device=self._device)
        self._seat(rows, num_tokens)

    def positions(self) -> Int64[Tensor, "1 row"]:
        """Where the token stands that the rows are fed now. To be asked for once for each token, before it is fed."""
        self._at = self._counts - 1
        positions = self._begins + self._at
        self._own_biases: dict[tuple[int | None, torch.dtype], Tensor | None] = {}
        for step in self._steps:
            step.begin_token(positions)
        return positions[None]

    def advance(self) -> None:
        """Go on to the next token of every row."""
        self._counts.add_(1)

    def _seat(self, rows: Sequence[LiveRow], num_tokens: int) -> None:
        seats: dict[int, list[list[int]]] = {size: [[] for _ in block.prompts] for size, block in self.blocks.items()}
        for index, row in enumerate(rows):
            seats[row.prompt.block.num_tokens][row.prompt.entry].append(index)
        self._steps = [
            _BlockStep(self.blocks[size], seats[size], rows, num_tokens, self._device)
            for size in seats
            if any(seats[size])
        ]
        seat_rows = [row for step in self._steps for row in step.rows]
        self._seat_rows: Tensor | None = None
        if seat_rows != list(range(len(rows))):
            row_seats, first = [0] * len(rows), 0
            for step in self._steps:
                for place, taken in enumerate(step.taken):
                    for seat, index in enumerate(taken, first + place * step.num_seats):
                        row_seats[index] = seat
                first += len(step.rows)
            self._seat_rows = on_device(torch.tensor(seat_rows), self._device)
            self._row_seats = on_device(torch.tensor(row_seats), self._device)

    def _own_bias(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "row 1 1 token"] | None:
        window = None if window is None or self._longest <= window else window
        if window is None and self._equal:
            return None
        if (window, dtype) not in self._own_biases:
            places = torch.arange(self._longest, device=self._device)
            visible = places < self._counts[:, None]
            if window is not None:
                visible &= self._at[:, None] - places < window
            self._own_biases[window, dtype] = _additive(visible, dtype)[:, None, None]
        return self._own_biases[window, dtype]

    def attend(
        self,
        module: nn.Module,
        query: Float[Tensor, "1 head row dim"],
        key: Float[Tensor, "1 kv_head row dim"],
        value: Float[Tensor, "1 kv_head row value_dim"],
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Float[Tensor, "1 row head value_dim"]:
        """See `outscore.model.attention.AttentionContext`; the tokens here are the rows given to `begin`."""
        layer = cast(int, module.layer_idx)
        num_rows, num_heads = query.shape[2], key.shape[1]
        # The kernels read runs of memory: a query may come as a transposed product (`outscore.rollout.linear`).
        grouped = query[0].transpose(0, 1).contiguous().unflatten(1, (num_heads, -1))
        keys, values = self._own.append(layer, self._entries, self._at, key[0], value[0])
        own, own_lse = _attend_part(
            grouped,
            keys[:num_rows, :, : self._longest],
            values[:num_rows, :, : self._longest],
            scaling,
            softcap,
            self._own_bias(sliding_window, query.dtype),
        )
        prompt, prompt_lse = self._attend_prompts(layer, grouped, scaling, sliding_window, softcap)
        weight = torch.sigmoid(prompt_lse - own_lse)[..., None]
        out = torch.lerp(own.to(weight.dtype), prompt.to(weight.dtype), weight)
        return out.to(query.dtype).flatten(1, 2)[None]

    def _attend_prompts(
        self, layer: int, query: Tensor, scaling: float, window: int | None, softcap: float | None
    ) -> tuple[Float[Tensor, "row kv_head shared value_dim"], Float[Tensor, "row kv_head shared"]]:
        seated = query if self._seat_rows is None else query.index_select(0, self._seat_rows)
        sizes = [len(step.rows) for step in self._steps]
        parts = [
            step.attend(layer, queries, scaling, window, softcap)
            for step, queries in zip(self._steps, seated.split(sizes), strict=True)
        ]
        out, lse = parts[0] if len(parts) == 1 else (torch.cat(column) for column in zip(*parts, strict=True))
        if self._seat_rows is None:
            return out, lse
        return out.index_select(0, self._row_seats), lse.index_select(0, self._row_seats)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, else so low that the weight is exactly 0 beside any real score, yet finite: a part whose keys
    are all hidden then has a log-sum-exp that is merely very low, and weight 0 in the join, with no NaN on the way."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(
        ~visible, torch.finfo(dtype).min / 2
    )


def _attend_part(
    query: Float[Tensor, "problem head query dim"],
    key: Float[Tensor, "problem head token dim"],
    value: Float[Tensor, "problem head token value_dim"],
    scaling: float,
    softcap: float | None,
    bias: Float[Tensor, "problem 1 #query token"] | None,
) -> tuple[Float[Tensor, "problem head query value_dim"], Float[Tensor, "problem head query"]]:
    """Attention over some keys, with the log-sum-exp of the scores (fp32 at least) that joining it to others needs."""
    if query.device.type == "cpu" and softcap is None and query.shape[-1] == value.shape[-1]:
        out, lse = _flash(query, key, value, 0.0, False, attn_mask=bias, scale=scaling)
        return out, lse
    scores = (query @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    lse = torch.logsumexp(scores, -1, keepdim=True)
    return torch.exp(scores - lse).to(value.dtype) @ value, lse[..., 0]
