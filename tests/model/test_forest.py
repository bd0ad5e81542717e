"""What sequences have in common is laid out once: against sets of prefixes, and against forwards that share nothing."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from families import VOCAB_SIZE, build_family, each_family

from outscore.model import forest
from outscore.model.forest import PrefixCount, PrefixForest, check_forest, prefix_forest, segment_positions
from outscore.model.logprobs import token_logprobs
from outscore.model.policy import Policy
from outscore.model.rows import TrainingGroup, flat_starts, group_rows, separate_rows, split_groups
from outscore.model.tiny import character_tokenizer
from outscore.records import Completion


def prefixes(sequences: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {sequence[:end] for sequence in sequences for end in range(1, len(sequence) + 1)}


def places_of(sequences: list[tuple[int, ...]], found: PrefixForest) -> list[list[int]]:
    ends = np.cumsum([len(sequence) for sequence in sequences])
    return [places.tolist() for places in np.split(found.places(), ends[:-1])]


def random_sequences(generator: random.Random) -> list[tuple[int, ...]]:
    """Few tokens, so that beginnings agree often; some sequences are equal, some continue others."""
    made = [tuple(generator.choices((1, 2), k=generator.randint(1, 9))) for _ in range(generator.randint(1, 12))]
    made += [(*generator.choice(made), 3), generator.choice(made)]
    generator.shuffle(made)
    return made


@pytest.mark.parametrize("seed", range(40))
def test_every_sequence_is_a_path_from_a_root(seed: int) -> None:
    sequences = random_sequences(random.Random(seed))
    found = prefix_forest(sequences)
    check_forest(found.segments)
    positions = segment_positions(found.segments)
    owner = [index for index, segment in enumerate(found.segments) for _ in range(segment.length)]
    for sequence, places in zip(sequences, places_of(sequences, found), strict=True):
        assert tuple(found.token_ids[place] for place in places) == sequence
        assert [positions[place] for place in places] == list(range(len(sequence)))
        for before, place in pairwise(places):
            below = found.segments[owner[place]]
            goes_on = owner[place] == owner[before] and place == before + 1
            goes_down = below.parent == owner[before] and place == below.start
            assert goes_on or goes_down


@pytest.mark.parametrize("seed", range(40))
def test_every_prefix_stands_once_where_sharing_costs_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest, "WORTH", 1_000_000)
    sequences = random_sequences(random.Random(seed))
    assert len(prefix_forest(sequences).token_ids) == len(prefixes(sequences))


@pytest.mark.parametrize("seed", range(40))
def test_the_different_beginnings_are_counted_as_sequences_come(seed: int) -> None:
    sequences, count = random_sequences(random.Random(seed)), PrefixCount()
    for number, sequence in enumerate(sequences, start=1):
        count.add(sequence)
        assert count.size == len(prefixes(sequences[:number]))


def test_a_short_beginning_of_long_sequences_is_repeated_but_never_a_prompt() -> None:
    """Sharing 1 token between two saves 1, and 200 tokens would have to be joined to it."""
    long = [(5, 1, *range(10, 110)), (5, 2, *range(10, 110))]
    assert len(prefix_forest(long).token_ids) == 204
    assert len(prefix_forest(long, [1, 1]).token_ids) == 203
    short = [(5, 1, 10), (5, 2, 10)]
    assert len(prefix_forest(short).token_ids) == 5


def test_equal_sequences_share_all_their_tokens() -> None:
    assert prefix_forest([(5, 6), (5, 6), (5, 6)]).places().tolist() == [0, 1] * 3


def test_a_deep_forest_needs_no_deep_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest, "WORTH", 1_000_000)
    staircase = [(1,) * length for length in range(1, 1200)]
    assert len(prefix_forest(staircase).token_ids) == 1199


def completion(ids: tuple[int, ...], counts: tuple[bool, ...] | None = None) -> Completion:
    return Completion(token_ids=ids, text="", counts=counts or (True,) * len(ids))


def overlapping_groups() -> list[TrainingGroup]:
    """Two prompts with a common beginning, and completions that agree in part, wholly, or as one's end in another's
    middle; one counts only some of the tokens it shares."""
    ids = torch.randint(VOCAB_SIZE, (200,), generator=torch.Generator().manual_seed(5)).tolist()
    system, first, second = tuple(ids[:40]), tuple(ids[40:46]), tuple(ids[46:60])
    stem, branch, other = tuple(ids[60:75]), tuple(ids[75:84]), tuple(ids[84:124])
    own = (
        completion(stem + branch),
        completion(stem + other),
        completion(stem + branch),
        completion(stem),
        completion(stem + branch[:4] + other, (False,) * 10 + (True,) * 49),
        completion(other),
    )
    return [
        TrainingGroup(prompt_ids=system + first, completions=own, completion_index=tuple(range(6))),
        TrainingGroup(prompt_ids=system + second, completions=own[:3], completion_index=(6, 7, 8)),
        TrainingGroup(prompt_ids=system, completions=own[3:], completion_index=(9, 10, 11)),
    ]


@each_family
@pytest.mark.parametrize("token_budget", [10_000, 100])
def test_shared_beginnings_change_no_log_prob_and_no_gradient(family: str, token_budget: int) -> None:
    """Against one unshared row for each completion, through the model's own attention."""
    groups = overlapping_groups()
    starts = flat_starts([own for group in groups for own in group.completions])
    weights = torch.randn(starts[-1], generator=torch.Generator().manual_seed(6))
    results = []
    for layout, pack in (("separate_rows", separate_rows), ("group_rows", group_rows)):
        model = build_family(family)
        policy = Policy(model, character_tokenizer("ab", []), stop_token_ids=frozenset(), layout=layout)
        flat, entropy = torch.zeros(starts[-1]), torch.zeros(starts[-1])
        for micro in split_groups(groups, token_budget):
            rows = pack(micro, starts)
            found = token_logprobs(policy, rows, temperature=0.8)
            flat = flat.index_copy(0, rows.order, found.logprobs)
            entropy = entropy.index_copy(0, rows.order, found.entropy)
        (flat * weights + 0.1 * entropy * weights.flip(0)).sum().backward()
        results.append((flat, entropy, {name: p.grad for name, p in model.named_parameters()}))
    (expected, expected_entropy, oracle), (found, found_entropy, gradients) = results
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(found_entropy, expected_entropy, rtol=0, atol=2e-4)
    for name, gradient in gradients.items():
        assert (gradient - oracle[name]).norm() <= 1e-5 * oracle[name].norm(), name


def test_a_group_of_equal_completions_costs_one_of_them() -> None:
    one = completion(tuple(range(3, 40)))
    group = TrainingGroup(prompt_ids=(1, 2), completions=(one,) * 64, completion_index=tuple(range(64)))
    starts = flat_starts(group.completions)
    rows = group_rows([group], starts)
    assert rows.num_slots == 2 + 37
    assert len(rows.sources) == 37
    assert len(rows.order) == 64 * 37
    assert len(list(split_groups([group], token_budget=39))) == 1
