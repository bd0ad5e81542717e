"""A CUDA graph without CUDA: the operators of a step are recorded, and run again on the same tensors.

As in a graph, the host's part is left out of a replay: whatever Python computed, decided or made a tensor of when the
step was recorded stays as it was.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from outscore.rollout.graphs import Graphs

LOOKS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "lift_fresh"}
"""Operators that wait for the device: they read a number, have an output whose size is one, or bring one there."""


class Operators(TorchDispatchMode):
    """What was run, in order, with what came out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Run all of it again. Tensors that were there before are the same memory; those that it made are made anew."""
        made: dict[int, Tensor] = {}
        for func, args, kwargs, out in self.calls:
            given = tree_map_only(Tensor, lambda tensor: made.get(id(tensor), tensor), (args, kwargs))
            again = func(*given[0], **given[1])
            for before, now in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(before, Tensor):
                    made[id(before)] = now


class OperatorGraphs(Graphs):
    """Records on a CPU. Recording runs the step there, so the first replay does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.num_replayed = 0

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        with Operators() as operators:
            step()
        names = {func.overloadpacket.__name__ for func, *_ in operators.calls}
        assert not names & LOOKS, names & LOOKS
        assert not any(_picks_by_mask(func, args) for func, args, *_ in operators.calls)
        self.num_recorded += 1
        has_run = True

        def replay() -> None:
            nonlocal has_run
            if not has_run:
                operators.replay()
                self.num_replayed += 1
            has_run = False

        return replay


def _picks_by_mask(func: Any, args: tuple[Any, ...]) -> bool:
    if func.overloadpacket.__name__ not in ("index", "index_put", "index_put_"):
        return False
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])
