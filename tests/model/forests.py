"""Forests of segments, and attention over them the slow way: a dense mask, made token by token."""

import torch
from torch import Tensor

from outscore.model.attention import TreeAttention
from outscore.model.forest import Segment, segment_positions


def forest(*shapes: tuple[int, int]) -> list[Segment]:
    """Segments from (length, parent), laid end to end."""
    segments, start = [], 0
    for length, parent in shapes:
        segments.append(Segment(start=start, length=length, parent=parent))
        start += length
    return segments


GROUPS = forest((5, -1), (3, 0), (7, 0), (1, 0), (4, -1), (6, 4), (2, 4))
"""Two prompts of unequal length with ragged completions."""
BRANCHING = forest((4, -1), (3, 0), (2, 1), (5, 1), (1, 0), (6, -1))
"""A completion that branches in the middle, and a root without children."""
MANY = forest((9, -1), *[(n, 0) for n in (1, 2, 3, 5, 8, 13, 21, 34)])
"""Lengths that fall into different batches."""
DEEP = forest((40, -1), (3, 0), (6, 1), (2, 2), (5, 2), (4, 1), (7, 0), (2, 6), (3, 6), (9, -1), (2, 9), (2, 9))
"""Small trees below a trunk, and a small one of its own."""


def visible(segments: list[Segment], window: int | None) -> Tensor:
    """The dense mask, token by token: own segment up to oneself, all of every ancestor, positions within the window."""
    owner = [i for i, segment in enumerate(segments) for _ in range(segment.length)]
    positions = segment_positions(segments).tolist()
    ancestors = []
    for i in range(len(segments)):
        line, parent = {i}, segments[i].parent
        while parent >= 0:
            line.add(parent)
            parent = segments[parent].parent
        ancestors.append(line)
    mask = torch.zeros(len(owner), len(owner), dtype=torch.bool)
    for q in range(len(owner)):
        for k in range(q + 1):
            near = window is None or positions[q] - positions[k] < window
            mask[q, k] = owner[k] in ancestors[owner[q]] and near
    return mask


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Softmax over all scores that the mask shows."""
    key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], 1) for states in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def states(segments: list[Segment], dim: int = 8) -> list[Tensor]:
    """Queries of four heads, and keys and values of two, in float64."""
    tokens = sum(segment.length for segment in segments)
    shapes = [(1, heads, tokens, dim) for heads in (4, 2, 2)]
    return [(2 * torch.randn(shape, dtype=torch.float64)).requires_grad_() for shape in shapes]


def assert_as_dense(segments: list[Segment], window: int | None, softcap: float | None) -> None:
    """Tree attention, however it is computed now, gives the output and the gradients of a dense mask."""
    inputs, tree = states(segments), TreeAttention(segments)
    out = tree.attend(torch.nn.Identity(), *inputs, scaling=0.4, sliding_window=window, softcap=softcap)
    expected = dense(*inputs, visible(segments, window), 0.4, softcap)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(out)
    for own, oracle in zip(
        torch.autograd.grad((out * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(own, oracle, rtol=0, atol=1e-11)
