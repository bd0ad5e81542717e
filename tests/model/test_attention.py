"""Tree attention against dense masks and plain softmax, the slow way that needs no log-sum-exp."""

import pytest
import torch
from model.forests import BRANCHING, DEEP, GROUPS, MANY, assert_as_dense, forest, states
from torch import Tensor

from outscore.model import attention
from outscore.model.attention import TreeAttention, _plain_tree
from outscore.model.forest import Segment, segment_positions


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
@pytest.mark.parametrize("segments", [GROUPS, BRANCHING, MANY, DEEP], ids=["groups", "branching", "many", "deep"])
@pytest.mark.parametrize("small", [0, 12, 128], ids=lambda small: f"up to {small} in one piece")
def test_output_and_gradients_are_those_of_a_dense_mask(segments, window, softcap, small, monkeypatch):
    monkeypatch.setattr(attention, "SMALL_SUBTREE", small)
    assert_as_dense(segments, window, softcap)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("small", [0, 128])
def test_the_plain_path_is_the_flash_path(window, small, monkeypatch):
    monkeypatch.setattr(attention, "SMALL_SUBTREE", small)
    inputs, tree = states(BRANCHING), TreeAttention(BRANCHING)
    flash = tree.attend(torch.nn.Identity(), *inputs, scaling=0.4, sliding_window=window, softcap=None)
    plain = _plain_tree(*(x[0].transpose(0, 1) for x in inputs), tree, 0.4, window, None)
    torch.testing.assert_close(flash[0], plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("small", [0, 128])
def test_gradcheck(small, monkeypatch):
    monkeypatch.setattr(attention, "SMALL_SUBTREE", small)
    segments = forest((3, -1), (2, 0), (4, 0))
    tree = TreeAttention(segments)

    def attend(*inputs: Tensor) -> Tensor:
        return tree.attend(torch.nn.Identity(), *inputs, scaling=0.4, sliding_window=4, softcap=None)

    assert torch.autograd.gradcheck(attend, states(segments))


@pytest.mark.parametrize("small", [0, 128])
def test_padding_slots_never_turn_into_nan_when_later_scores_are_huge(small, monkeypatch):
    """Two completions share a batch; the padding of the short one repeats its first token, whose weight may
    overflow."""
    monkeypatch.setattr(attention, "SMALL_SUBTREE", small)
    segments = forest((2, -1), (1, 0), (4, 0))
    inputs = [x.detach().float().mul(40).requires_grad_() for x in states(segments)]
    out = TreeAttention(segments).attend(torch.nn.Identity(), *inputs, scaling=1.0, sliding_window=None, softcap=None)
    out.sum().backward()
    assert all(bool(torch.isfinite(x.grad).all()) for x in inputs)


def test_a_completions_positions_continue_its_prompt():
    assert segment_positions(forest((3, -1), (2, 0), (2, 0), (1, 2))).tolist() == [0, 1, 2, 3, 4, 3, 4, 5]


@pytest.mark.parametrize(
    "segments",
    [
        [],
        forest((0, -1)),
        [Segment(start=1, length=2, parent=-1)],
        forest((2, -1), (2, -1), (1, 0)),  # the first root's subtree was closed by the second root
    ],
)
def test_rows_that_are_no_forest_are_refused(segments):
    with pytest.raises(ValueError, match="segment"):
        TreeAttention(segments)


@pytest.mark.parametrize("length", [128, 256])
def test_work_grows_with_the_group_and_with_the_square_of_the_length(length):
    """Prompt and G completions of L tokens: each attends to itself, and each completion to the prompt. A dense mask
    over the same row has ((G + 1) L)² pairs."""
    for size in (1, 2, 8, 32):
        tree = TreeAttention(forest((length, -1), *[(length, 0)] * size))
        assert tree.num_pairs == (2 * size + 1) * length**2
