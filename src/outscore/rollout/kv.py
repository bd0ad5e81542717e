"""Storage for attention keys and values that grows with what is live and stays gap-free."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from outscore.model.transfer import on_device


class KeyValueTable:
    """The keys and values of some sequences, layer by layer: [entry, kv_head, token, dim].

    Live entries are the first ones; whoever removes an entry moves the last one into its place. Shapes and type of a
    layer are those of the first keys and values written to it, so layers may differ. Unwritten places hold zeros:
    uninitialised numbers could be NaN, and weight 0 times NaN is NaN.
    """

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.num_entries = 0
        self.num_tokens = 0

    def reserve(self, num_entries: int, num_tokens: int) -> None:
        """Make room for so many entries of so many tokens. Callers ask in doubling steps; what is stored stays."""
        if num_entries <= self.num_entries and num_tokens <= self.num_tokens:
            return
        self.num_entries = max(num_entries, self.num_entries)
        self.num_tokens = max(num_tokens, self.num_tokens)
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = self._grown(keys), self._grown(values)

    def _grown(self, states: Tensor) -> Tensor:
        entries, heads, tokens, dim = states.shape
        grown = states.new_zeros(self.num_entries, heads, self.num_tokens, dim)
        grown[:entries, :, :tokens] = states
        return grown

    def layer(
        self, layer: int
    ) -> tuple[Float[Tensor, "entry kv_head token dim"], Float[Tensor, "entry kv_head token value_dim"]]:
        """A layer's storage, once something was written to it."""
        return self._layers[layer]

    def _opened(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._layers:
            keys, values = (
                states.new_zeros(self.num_entries, states.shape[0], self.num_tokens, states.shape[2])
                for states in (key, value)
            )
            self._layers[layer] = keys, values
        return self._layers[layer]

    def write(
        self,
        layer: int,
        entry: int,
        key: Float[Tensor, "kv_head token dim"],
        value: Float[Tensor, "kv_head token value_dim"],
    ) -> None:
        """Store one sequence from its first token on."""
        keys, values = self._opened(layer, key, value)
        keys[entry, :, : key.shape[1]] = key
        values[entry, :, : value.shape[1]] = value

    def append(
        self,
        layer: int,
        entries: Int64[Tensor, " entry"],
        at: Int64[Tensor, " entry"],
        key: Float[Tensor, "kv_head entry dim"],
        value: Float[Tensor, "kv_head entry value_dim"],
    ) -> tuple[Tensor, Tensor]:
        """Store one token in each of some entries, at its token place there. Returns the layer's storage."""
        keys, values = self._opened(layer, key, value)
        keys[entries, :, at] = key.transpose(0, 1)
        values[entries, :, at] = value.transpose(0, 1)
        return keys, values

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy entries over others; no target is also a source."""
        stored = [states for layer in self._layers.values() for states in layer]
        if stored:
            source_index, target_index = on_device(torch.tensor([sources, targets]), stored[0].device)
            for states in stored:
                states.index_copy_(0, target_index, states.index_select(0, source_index))


def compaction(num_entries: int, removed: Sequence[int]) -> list[tuple[int, int]]:
    """How entries move so that the live ones come first again: (source, target) pairs.

    Each hole is filled by the entry that is last at that moment, from the highest hole down, so few entries move.

    >>> compaction(6, [1, 4])
    [(5, 1)]
    """
    order = list(range(num_entries))
    for hole in sorted(removed, reverse=True):
        last = order.pop()
        if hole < len(order):
            order[hole] = last
    return [(source, target) for target, source in enumerate(order) if source != target]
