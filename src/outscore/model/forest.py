"""A forest of token segments: how sequences that begin alike share what they have in common.

The completions of a group share their prompt, prompts share their system text, and a policy that has grown sure of
itself writes the same beginnings again and again. What a token's hidden state depends on is its path from the root,
so equal beginnings are stored, and computed, once. That changes no number but by rounding: log-probs of shared tokens
are copies, and their gradients add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WORTH = 8
"""A branch is worth its join (see `outscore.model.attention`) if it saves one token for so many below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A run of tokens in a packed row that continues one parent.

    >>> Segment(start=45, length=12, parent=0)  # a completion of the prompt that is segment 0
    """

    start: int
    """Index of its first token in the row."""
    length: int
    """Number of tokens, at least 1."""
    parent: int
    """Index of the segment it continues, or -1 for a root."""


def segment_positions(segments: Sequence[Segment]) -> list[int]:
    """The position of every token of a row: a root starts at 0, a child where its parent ends."""
    ends: list[int] = []
    positions: list[int] = []
    for segment in segments:
        first = 0 if segment.parent < 0 else ends[segment.parent]
        ends.append(first + segment.length)
        positions.extend(range(first, first + segment.length))
    return positions


def subtree_ends(segments: Sequence[Segment]) -> list[int]:
    """For each segment of a forest laid out depth first, the index in the row where its subtree ends."""
    ends = [segment.start + segment.length for segment in segments]
    for index in range(len(segments) - 1, -1, -1):
        parent = segments[index].parent
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[index])
    return ends


def check_forest(segments: Sequence[Segment]) -> None:
    """Raise ValueError unless the segments tile a row depth first."""
    start, open_path = 0, [-1]
    for index, segment in enumerate(segments):
        if segment.length < 1 or segment.start != start:
            raise ValueError(f"segment {index} must start at {start} and hold at least one token, got {segment}")
        while open_path and open_path[-1] != segment.parent:
            open_path.pop()
        if not open_path:
            raise ValueError(f"segment {index} continues segment {segment.parent}, whose subtree is already closed")
        open_path.append(index)
        start += segment.length
    if not segments:
        raise ValueError("a row needs at least one segment")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixForest:
    """Sequences packed into one row, depth first, common beginnings once."""

    token_ids: list[int]
    """The row."""
    segments: tuple[Segment, ...]
    """Its forest."""
    places: list[list[int]]
    """For each sequence, the index in the row of each of its tokens."""


class PrefixCount:
    """Counts the different beginnings of the sequences that are added.

    >>> count = PrefixCount()
    >>> count.add((5, 6, 7))
    >>> count.add((5, 6, 8))
    >>> count.size
    4
    """

    def __init__(self) -> None:
        self._root: dict[int, Any] = {}
        self.size = 0

    def add(self, token_ids: Sequence[int]) -> None:
        """Add a sequence."""
        node = self._root
        for token_id in token_ids:
            if token_id not in node:
                node[token_id] = {}
                self.size += 1
            node = node[token_id]


def prefix_forest(sequences: Sequence[Sequence[int]], shared: Sequence[int] | None = None) -> PrefixForest:
    """Pack sequences so that those which begin alike share their beginning.

    A short beginning that many different tokens follow is repeated instead: joining all that follows to it would cost
    more than it saves (`WORTH`).

    Args:
        sequences: token ids, none empty.
        shared: for each sequence, how many of its first tokens are shared with all that begin alike whatever the
            cost: the length of its prompt. None for no such promise.

    >>> prefix_forest([(5, 6, 7), (5, 6, 8), (5, 6, 7)]).token_ids
    [5, 6, 7, 8]
    """
    if shared is None:
        shared = [0] * len(sequences)
    promised: dict[tuple[int, ...], int] = {}
    for sequence, length in zip(sequences, shared, strict=True):
        key = tuple(sequence)
        promised[key] = max(length, promised.get(key, 0))
    ordered = sorted(promised)
    token_ids: list[int] = []
    segments: list[Segment] = []
    places: dict[tuple[int, ...], list[int]] = {}
    # Runs of the ordered sequences that begin alike, the next one on top: first and last (exclusive), tokens already
    # laid out, the segment they end in, and where they are.
    runs: list[tuple[int, int, int, int, list[int]]] = _branches(ordered, 0, len(ordered), 0, 0, -1, [])
    while runs:
        first, last, start, parent, path = runs.pop()
        end = _common_length(ordered[first], ordered[last - 1], start)
        if first + 1 == last or _is_worth_sharing(ordered[first:last], start, end, promised):
            if end > start:
                segments.append(Segment(start=len(token_ids), length=end - start, parent=parent))
                path = [*path, *range(len(token_ids), len(token_ids) + end - start)]
                token_ids.extend(ordered[first][start:end])
                parent, start = len(segments) - 1, end
            if len(ordered[first]) == end:
                places[ordered[first]] = path
                first += 1
        runs += _branches(ordered, first, last, start, end, parent, path)
    return PrefixForest(
        token_ids=token_ids, segments=tuple(segments), places=[places[tuple(sequence)] for sequence in sequences]
    )


def _branches(
    ordered: Sequence[tuple[int, ...]], first: int, last: int, start: int, end: int, parent: int, path: list[int]
) -> list[tuple[int, int, int, int, list[int]]]:
    """Split sequences that agree up to `end` by what follows there; the first to be laid out comes last."""
    runs = []
    while first < last:
        following = ordered[first][end : end + 1]
        stop = first + 1
        while stop < last and ordered[stop][end : end + 1] == following:
            stop += 1
        runs.append((first, stop, start, parent, path))
        first = stop
    return runs[::-1]


def _common_length(one: Sequence[int], other: Sequence[int], start: int) -> int:
    """How far two sequences that agree up to `start` agree. In sorted order all between them agree that far too."""
    longest = min(len(one), len(other))
    for i in range(start, longest):
        if one[i] != other[i]:
            return i
    return longest


def _is_worth_sharing(
    run: Sequence[tuple[int, ...]], start: int, end: int, promised: dict[tuple[int, ...], int]
) -> bool:
    if start < min(promised[sequence] for sequence in run) <= end:
        return True
    below = sum(len(sequence) - end for sequence in run)
    return (end - start) * (len(run) - 1) * WORTH >= below
