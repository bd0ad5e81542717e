"""A forest of token segments: how sequences that begin alike share what they have in common.

The completions of a group share their prompt, prompts share their system text, and a policy that has grown sure of
itself writes the same beginnings again and again. What a token's hidden state depends on is its path from the root,
so equal beginnings are stored, and computed, once. That changes no number but by rounding: log-probs of shared tokens
are copies, and their gradients add up.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Bool, Int64

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


def ranges(starts: Sequence[int] | np.ndarray, lengths: Sequence[int] | np.ndarray) -> Int64[np.ndarray, " place"]:
    """Runs of numbers, one after the other.

    >>> ranges([5, 2], [3, 2]).tolist()
    [5, 6, 7, 2, 3]
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    offsets = np.repeat(np.asarray(starts, dtype=np.int64) - ends + lengths, lengths)
    places: Int64[np.ndarray, " place"] = np.arange(len(offsets)) + offsets
    return places


def padded_runs(runs: Sequence[range]) -> tuple[Int64[np.ndarray, "run slot"], Bool[np.ndarray, "run slot"]]:
    """Runs of places as rows, the shorter ones padded by their first; and which slots are no padding."""
    starts, lengths = np.array([(run.start, len(run)) for run in runs]).T
    slots = np.arange(lengths.max())
    is_real = slots < lengths[:, None]
    return starts[:, None] + np.where(is_real, slots, 0), is_real


def segment_positions(segments: Sequence[Segment]) -> Int64[np.ndarray, " token"]:
    """The position of every token of a row: a root starts at 0, a child where its parent ends."""
    firsts: list[int] = []
    for segment in segments:
        parent = segment.parent
        firsts.append(0 if parent < 0 else firsts[parent] + segments[parent].length)
    return ranges(firsts, [segment.length for segment in segments])


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
    paths: list[list[int]]
    """For each sequence, the segments that it runs through, the root first."""

    def places(self) -> Int64[np.ndarray, " token"]:
        """The index in the row of each token of each sequence, one sequence after the other."""
        starts = np.array([segment.start for segment in self.segments])
        lengths = np.array([segment.length for segment in self.segments])
        passed = np.fromiter(chain.from_iterable(self.paths), np.int64)
        return ranges(starts[passed], lengths[passed])


class PrefixCount:
    """Counts the different beginnings of the sequences that are added.

    >>> count = PrefixCount()
    >>> count.add((5, 6, 7))
    >>> count.add((5, 6, 8))
    >>> count.size
    4
    """

    def __init__(self) -> None:
        self._ordered: list[tuple[int, ...]] = []
        self.size = 0

    def add(self, token_ids: tuple[int, ...]) -> None:
        """Add a sequence. In sorted order it has most in common with one of its neighbours."""
        place = bisect_left(self._ordered, token_ids)
        neighbours = self._ordered[max(place - 1, 0) : place + 1]
        common = max((_common_length(token_ids, other, 0) for other in neighbours), default=0)
        self.size += len(token_ids) - common
        self._ordered.insert(place, token_ids)


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
    paths: dict[tuple[int, ...], list[int]] = {}
    # Runs of the ordered sequences that begin alike, the next one on top: first and last (exclusive), how many of their
    # tokens are laid out, and in which segments.
    runs: list[tuple[int, int, int, list[int]]] = _branches(ordered, 0, len(ordered), 0, 0, [])
    while runs:
        first, last, start, path = runs.pop()
        alone = first + 1 == last
        end = len(ordered[first]) if alone else _common_length(ordered[first], ordered[last - 1], start)
        if alone or _is_worth_sharing(ordered[first:last], start, end, promised):
            if end > start:
                parent = path[-1] if path else -1
                path = [*path, len(segments)]
                segments.append(Segment(start=len(token_ids), length=end - start, parent=parent))
                token_ids.extend(ordered[first][start:end])
                start = end
            if len(ordered[first]) == end:
                paths[ordered[first]] = path
                first += 1
        runs += _branches(ordered, first, last, start, end, path)
    return PrefixForest(
        token_ids=token_ids, segments=tuple(segments), paths=[paths[tuple(sequence)] for sequence in sequences]
    )


def _branches(
    ordered: Sequence[tuple[int, ...]], first: int, last: int, start: int, end: int, path: list[int]
) -> list[tuple[int, int, int, list[int]]]:
    """Split sequences that agree up to `end` by what follows there; the first to be laid out comes last."""
    runs = []
    while first < last:
        following = ordered[first][end : end + 1]
        stop = first + 1
        while stop < last and ordered[stop][end : end + 1] == following:
            stop += 1
        runs.append((first, stop, start, path))
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
