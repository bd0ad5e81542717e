"""Group rows: prompts and completions packed so that what they have in common is forwarded once.

This is the one place where targets are shifted: a completion's first token is predicted at its prompt's last token,
every later one at the token before it. Everything downstream speaks of flat `token` axes over the tokens that carry
loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from outscore.model.forest import PrefixCount, Segment, prefix_forest, segment_positions
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
    members = [(group, i) for group in groups for i in range(len(group.completions))]
    forest = prefix_forest(
        [(*group.prompt_ids, *group.completions[i].token_ids) for group, i in members],
        [len(group.prompt_ids) for group, _ in members],
    )
    index = _TargetIndex(starts)
    for (group, i), places in zip(members, forest.places, strict=True):
        index.add(group.completion_index[i], group.completions[i], places[len(group.prompt_ids) - 1 :])
    return index.rows([forest.token_ids], [segment_positions(forest.segments)], forest.segments, device)


def separate_rows(
    groups: Sequence[TrainingGroup], starts: Sequence[int], device: torch.device | str = "cpu"
) -> GroupRows:
    """One row for each completion, its prompt repeated, padded on the right: for models that cannot take group rows."""
    members = [(group, i) for group in groups for i in range(len(group.completions))]
    rows = [[*group.prompt_ids, *group.completions[i].token_ids] for group, i in members]
    width = max(map(len, rows))
    index = _TargetIndex(starts)
    for number, ((group, i), row) in enumerate(zip(members, rows, strict=True)):
        places = range(number * width + len(group.prompt_ids) - 1, number * width + len(row))
        index.add(group.completion_index[i], group.completions[i], places)
    return index.rows(rows, [list(range(len(row))) for row in rows], (), device)


class _TargetIndex:
    """Collects which token predicts which: the shift by one."""

    def __init__(self, starts: Sequence[int]) -> None:
        self.starts = starts
        self.predictions: dict[tuple[int, int], int] = {}
        self.tokens: list[int] = []
        self.numbers: list[int] = []
        self.order: list[int] = []
        self.ends: list[int] = []
        self.ended: list[int] = []

    def add(self, number: int, completion: Completion, places: Sequence[int]) -> None:
        """Add a completion, given where its prompt's last token and its own tokens are."""
        self.ends.append(places[-1])
        self.ended.append(number)
        place = self.starts[number]
        for source, token, counts in zip(places, completion.token_ids, completion.counts, strict=False):
            if counts:
                self.tokens.append(self.predictions.setdefault((source, token), len(self.predictions)))
                self.numbers.append(number)
                self.order.append(place)
                place += 1

    def rows(
        self,
        ids: list[list[int]],
        positions: list[list[int]],
        segments: tuple[Segment, ...],
        device: torch.device | str,
    ) -> GroupRows:
        width = max(len(row) for row in ids)

        def padded(rows: list[list[int]]) -> Tensor:
            return torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], device=device)

        def flat(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return GroupRows(
            token_ids=padded(ids),
            positions=padded(positions),
            segments=segments,
            lengths=tuple(len(row) for row in ids),
            sources=flat([source for source, _ in self.predictions]),
            targets=flat([token for _, token in self.predictions]),
            predictions=flat(self.tokens),
            completion_index=flat(self.numbers),
            order=flat(self.order),
            ends=flat(self.ends),
            ended=flat(self.ended),
        )
