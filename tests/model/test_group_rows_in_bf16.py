"""What bf16 rounds away in group rows is no more than in separate rows, both against fp32 with the same weights."""

import torch
from families import VOCAB_SIZE, build_family, each_family
from model.forests import forest
from torch import Tensor

from outscore.model import attention
from outscore.model.attention import TreeAttention
from outscore.model.logprobs import token_logprobs
from outscore.model.policy import Policy
from outscore.model.rows import TrainingGroup, flat_starts, group_rows, separate_rows
from outscore.model.tiny import character_tokenizer
from outscore.records import Completion

NUM_SEEDS = 4
SHAPES = ((9, (3, 17, 1)), (20, (2, 9, 30, 4)), (30, (25, 12, 40)))
"""(prompt length, completion lengths)."""


def groups(generator: torch.Generator) -> list[TrainingGroup]:
    made, number = [], 0

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist())

    for prompt_length, lengths in SHAPES:
        completions = tuple(Completion(token_ids=ids(n), text="", counts=(True,) * n) for n in lengths)
        numbers = tuple(range(number, number + len(lengths)))
        made.append(TrainingGroup(prompt_ids=ids(prompt_length), completions=completions, completion_index=numbers))
        number += len(lengths)
    return made


def evaluate(family: str, seed: int, dtype: torch.dtype, layout: str) -> list[Tensor]:
    """Log-probs of all tokens, and the gradient of their sum with random weights."""
    generator = torch.Generator().manual_seed(seed)
    drawn = groups(generator)
    starts = flat_starts([completion for group in drawn for completion in group.completions])
    weights = torch.randn(starts[-1], generator=generator)
    model = build_family(family, seed=seed).to(torch.bfloat16).to(dtype)  # type: ignore[call-overload]
    policy = Policy(model, character_tokenizer("ab", []), stop_token_ids=frozenset(), layout=layout)  # type: ignore[arg-type]
    rows = (group_rows if layout == "group_rows" else separate_rows)(drawn, starts)
    found = token_logprobs(policy, rows).logprobs
    (found * weights.index_select(0, rows.order)).sum().backward()
    flat = torch.zeros(starts[-1]).index_copy(0, rows.order, found.detach().float())
    return [flat, torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])]


@each_family
def test_log_probs_and_gradients_are_as_near_to_fp32_as_those_of_separate_rows(family, monkeypatch):
    """In the root mean square over seeds, where subtrees are one piece and where every segment is a piece of its own;
    a tenth (of gradients a fifth) is what four seeds leave to chance."""
    exact = [evaluate(family, seed, torch.float32, "separate_rows") for seed in range(NUM_SEEDS)]

    def errors(layout: str) -> Tensor:
        found = (evaluate(family, seed, torch.bfloat16, layout) for seed in range(NUM_SEEDS))
        pairs = (zip(ours, theirs, strict=True) for ours, theirs in zip(found, exact, strict=True))
        squares = [[float((one - other).norm() / other.norm()) ** 2 for one, other in pair] for pair in pairs]
        return torch.tensor(squares).mean(0).sqrt()

    separate = errors("separate_rows")
    for small in (0, attention.SMALL_SUBTREE):
        monkeypatch.setattr(attention, "SMALL_SUBTREE", small)
        assert bool((errors("group_rows") <= torch.tensor([1.1, 1.2]) * separate).all())


def test_however_many_pieces_are_joined_the_sum_is_rounded_once(monkeypatch):
    """Sixteen segments, each the child of the one before, are one sequence; as one piece it is the kernel's own."""
    monkeypatch.setattr(attention, "SMALL_SUBTREE", 0)
    joined, alone = TreeAttention(forest((8, -1), *[(8, i) for i in range(15)])), TreeAttention(forest((128, -1)))
    assert len(joined._cross) == 15 and not alone._cross
    squares = []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        states = [torch.randn(1, heads, 128, 16, generator=generator).bfloat16() for heads in (4, 2, 2)]
        exact, *found = (
            tree.attend(torch.nn.Identity(), *given, scaling=0.4, sliding_window=None, softcap=None).double()
            for tree, given in (
                (alone, [each.double() for each in states]),
                (joined, states),
                (alone, states),
            )
        )
        squares.append([float((out - exact).norm() / exact.norm()) ** 2 for out in found])
    pieces, whole = torch.tensor(squares).mean(0).sqrt()
    assert pieces <= 1.3 * whole
