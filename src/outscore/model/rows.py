"""Group rows: prompts and completions packed so that what they have in common is forwarded once.

This is the one place where targets are shifted: a completion's first token is predicted at its prompt's last token,
every later one at the token before it. Everything downstream speaks of flat `token` axes over the tokens that carry
loss.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from outscore.model.forest import PrefixCount, Segment, prefix_forest, ranges, segment_positions
from outscore.model.transfer import indices_on_device
from outscore.records import Completion


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingGroup:
    """A prompt with the completions that are to be trained on.

    >>> TrainingGroup(prompt_ids=(5, 6), completions=(c0, c1), completion_index=(0, 1))
    """

    prompt_ids: tuple[int, ...]
    """The prompt all completions share."""
    completions: tuple[Completion, ...]
    """The answers."""
    completion_index: tuple[int, ...]
    """For each completion its number in the batch: the index into per-completion tensors such as advantages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRows:
    """Packed token rows and where in them each loss-carrying token is predicted.

    In the `group_rows` layout there is one row, a forest of segments, and no padding: a prompt stands there once for
    its group, and so does every beginning that completions have in common, so that several loss-carrying tokens may
    share one prediction. In the `separate_rows` layout each completion has a row of its own, padded on the right, for
    models that cannot take a forest.
    """

    token_ids: Int[Tensor, "row slot"]
    """What the model reads."""
    positions: Int[Tensor, "row slot"]
    """Position of every token; a completion's positions continue its prompt's."""
    segments: tuple[Segment, ...]
    """The forest of the single row; empty in the `separate_rows` layout."""
    lengths: tuple[int, ...]
    """Tokens in each row; the rest of the row is padding."""
    sources: Int[Tensor, " prediction"]
    """For each prediction, the flat (row · slots + slot) index of the token at which it is made."""
    targets: Int[Tensor, " prediction"]
    """For each prediction, the token that came."""
    predictions: Int[Tensor, " token"]
    """For each loss-carrying token, its prediction."""
    completion_index: Int[Tensor, " token"]
    """The completion, by its number in the batch, that each loss-carrying token belongs to."""
    order: Int[Tensor, " token"]
    """The place of each loss-carrying token in the batch's flat token axis: completions in batch order, tokens in
    order."""

    ends: Int[Tensor, " completion"]
    """For each completion, the flat (row · slots + slot) index of its last token."""
    ended: Int[Tensor, " completion"]
    """The numbers of those completions in the batch."""

    @property
    def num_slots(self) -> int:
        """Tokens forwarded, padding included."""
        return self.token_ids.numel()


def split_groups(
    groups: Sequence[TrainingGroup], token_budget: int, *, whole: bool = False
) -> Iterator[list[TrainingGroup]]:
    """Fill micro-batches up to a token budget, keeping order; a group over budget continues in a row that repeats its
    prompt, unless groups are to stay `whole`.

    What completions of a group have in common counts once. What must stay together and is longer than the budget, a
    completion or a whole group, gets a micro-batch of its own: the budget bounds memory, it never drops data.
    """
    batch: list[TrainingGroup] = []
    used = 0
    for group in groups:
        for part, size in [(group, num_distinct_tokens(group))] if whole else _fit(group, token_budget):
            if batch and used + size > token_budget:
                yield batch
                batch, used = [], 0
            batch.append(part)
            used += size
    if batch:
        yield batch


def num_distinct_tokens(group: TrainingGroup) -> int:
    """Tokens that a group takes in a row: its prompt's, and its completions' different beginnings."""
    tree = PrefixCount()
    for completion in group.completions:
        tree.add(completion.token_ids)
    return len(group.prompt_ids) + tree.size


def _fit(group: TrainingGroup, token_budget: int) -> Iterator[tuple[TrainingGroup, int]]:
    """Parts of a group that fit the budget, each with the number of its different tokens."""
    first, tree = 0, PrefixCount()
    for i, completion in enumerate(group.completions):
        size = len(group.prompt_ids) + tree.size
        tree.add(completion.token_ids)
        if i > first and len(group.prompt_ids) + tree.size > token_budget:
            yield _part(group, first, i), size
            first, tree = i, PrefixCount()
            tree.add(completion.token_ids)
    yield _part(group, first, len(group.completions)), len(group.prompt_ids) + tree.size


def _part(group: TrainingGroup, first: int, last: int) -> TrainingGroup:
    return TrainingGroup(
        prompt_ids=group.prompt_ids,
        completions=group.completions[first:last],
        completion_index=group.completion_index[first:last],
    )


def flat_starts(completions: Sequence[Completion]) -> list[int]:
    """Where each completion of a batch begins on the flat axis of loss-carrying tokens, with the total at the end."""
    starts = [0]
    for completion in completions:
        starts.append(starts[-1] + sum(completion.counts))
    return starts


def group_rows(groups: Sequence[TrainingGroup], starts: Sequence[int], device: torch.device | str = "cpu") -> GroupRows:
    """Pack groups into one row: every prompt once, and once whatever else begins alike (see `prefix_forest`).

    Args:
        groups: the groups of one micro-batch.
        starts: `flat_starts` of all completions of the batch the groups come from.
        device: where the tensors go.
    """
    members = _members(groups)
    forest = prefix_forest(
        [(*group.prompt_ids, *group.completions[i].token_ids) for group, i in members],
        [len(group.prompt_ids) for group, _ in members],
    )
    token_ids, positions = np.array([forest.token_ids]), segment_positions(forest.segments)[None]
    index = _target_index(members, starts, forest.places())
    return _on_device(token_ids, positions, index, device, segments=forest.segments, lengths=(token_ids.size,))


def separate_rows(
    groups: Sequence[TrainingGroup], starts: Sequence[int], device: torch.device | str = "cpu"
) -> GroupRows:
    """One row for each completion, its prompt repeated, padded on the right: for models that cannot take group rows."""
    members = _members(groups)
    rows = [(*group.prompt_ids, *group.completions[i].token_ids) for group, i in members]
    lengths = tuple(len(row) for row in rows)
    shape = len(rows), max(lengths)
    places = ranges([number * shape[1] for number in range(len(rows))], lengths)
    token_ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    token_ids.flat[places] = np.fromiter(chain.from_iterable(rows), np.int64)
    positions.flat[places] = ranges([0] * len(rows), lengths)
    index = _target_index(members, starts, places)
    return _on_device(token_ids, positions, index, device, segments=(), lengths=lengths)


def _members(groups: Sequence[TrainingGroup]) -> list[tuple[TrainingGroup, int]]:
    return [(group, i) for group in groups for i in range(len(group.completions))]


def _target_index(
    members: Sequence[tuple[TrainingGroup, int]], starts: Sequence[int], places: Int64[np.ndarray, " place"]
) -> dict[str, Int64[np.ndarray, " _"]]:
    """Which token predicts which, the shift by one, given where each member's prompt and completion are: the fields of
    `GroupRows` that are flat."""
    completions = [group.completions[i] for group, i in members]
    numbers = np.array([group.completion_index[i] for group, i in members])
    lengths = np.array([len(completion.token_ids) for completion in completions])
    ends = np.cumsum([len(group.prompt_ids) for group, _ in members] + lengths)
    counts = np.fromiter(chain.from_iterable(completion.counts for completion in completions), bool)
    targets = np.fromiter(chain.from_iterable(completion.token_ids for completion in completions), np.int64)[counts]
    # The first at its prompt's last token, each later one at the token before it.
    sources = places[ranges(ends - lengths - 1, lengths)][counts]
    # Tokens that are predicted at the same place and are the same are one prediction, numbered as they come first.
    spread = targets.max(initial=0) - targets.min(initial=0) + 1
    _, first, same = np.unique(sources * spread + targets, return_index=True, return_inverse=True)
    seen = np.sort(first)
    return {
        "sources": sources[seen],
        "targets": targets[seen],
        "predictions": np.searchsorted(seen, first[same]),
        "completion_index": np.repeat(numbers, lengths)[counts],
        "order": ranges([starts[n] for n in numbers], [starts[n + 1] - starts[n] for n in numbers]),
        "ends": places[ends - 1],
        "ended": numbers,
    }


def _on_device(
    token_ids: Int64[np.ndarray, "row slot"],
    positions: Int64[np.ndarray, "row slot"],
    index: Mapping[str, Int64[np.ndarray, " _"]],
    device: torch.device | str,
    **shape: Any,
) -> GroupRows:
    arrays = {"token_ids": token_ids, "positions": positions, **index}
    moved: dict[str, Any] = dict(zip(arrays, indices_on_device(list(arrays.values()), device), strict=True))
    return GroupRows(**moved, **shape)
