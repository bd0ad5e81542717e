"""The shift by one, by hand."""

from outscore.model.rows import TrainingGroup, flat_starts, group_rows, separate_rows, split_groups
from outscore.records import Completion


def completion(*ids: int, counts: tuple[bool, ...] | None = None) -> Completion:
    return Completion(token_ids=ids, text="", counts=counts or (True,) * len(ids))


STOP = 2
GROUP = TrainingGroup(
    prompt_ids=(5, 6),
    completions=(completion(7, 8, STOP), completion(9, STOP, counts=(False, True))),
    completion_index=(0, 1),
)
STARTS = flat_starts(GROUP.completions)


def test_every_completion_begins_at_the_prompts_last_token():
    rows = group_rows([GROUP], STARTS)
    assert rows.token_ids.tolist() == [[5, 6, 7, 8, STOP, 9, STOP]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    # 7 is predicted at the prompt's end (1), 8 at 7 (2), the stop token at 8 (3); of the second completion only the
    # stop token counts, and it is predicted at 9 (5).
    assert rows.sources.tolist() == [1, 2, 3, 5]
    assert rows.targets.tolist() == [7, 8, STOP, STOP]
    assert rows.completion_index.tolist() == [0, 0, 0, 1]
    assert rows.order.tolist() == [0, 1, 2, 3]


def test_the_stop_token_keeps_its_loss_even_when_it_is_the_pad_token():
    rows = separate_rows([GROUP], STARTS)
    assert rows.token_ids.tolist() == [[5, 6, 7, 8, STOP], [5, 6, 9, STOP, 0]]
    assert rows.sources.tolist() == [1, 2, 3, 5 + 2]
    assert rows.targets.tolist() == [7, 8, STOP, STOP]
    assert rows.lengths == (5, 4)


def test_what_groups_have_in_common_stands_once():
    """A second group with the same prompt, and a completion that begins as one of the first's."""
    twin = TrainingGroup(prompt_ids=(5, 6), completions=(completion(7, 9),), completion_index=(2,))
    rows = group_rows([GROUP, twin], flat_starts([*GROUP.completions, *twin.completions]))
    assert rows.token_ids.tolist() == [[5, 6, 7, 8, STOP, 9, 9, STOP]]
    assert [segment.parent for segment in rows.segments] == [-1, 0, 1, 1, 0]
    # 7 is predicted once, for the first completion and the third.
    assert list(zip(rows.sources.tolist(), rows.targets.tolist(), strict=True)) == [
        (1, 7),
        (2, 8),
        (3, STOP),
        (6, STOP),
        (2, 9),
    ]
    assert rows.predictions.tolist() == [0, 1, 2, 3, 0, 4]
    assert rows.completion_index.tolist() == [0, 0, 0, 1, 2, 2]


def test_a_group_over_budget_is_split_and_its_prompt_repeated():
    parts = [list(part) for part in split_groups([GROUP], token_budget=5)]
    assert [[group.completion_index for group in part] for part in parts] == [[(0,)], [(1,)]]
    assert all(group.prompt_ids == (5, 6) for part in parts for group in part)


def test_a_completion_longer_than_the_budget_is_not_dropped():
    assert [group.completion_index for part in split_groups([GROUP], 1) for group in part] == [(0,), (1,)]


def test_small_groups_share_a_row_in_order():
    small = [
        TrainingGroup(prompt_ids=(1,), completions=(completion(3),), completion_index=(number,)) for number in range(5)
    ]
    parts = [[group.completion_index[0] for group in part] for part in split_groups(small, 4)]
    assert parts == [[0, 1], [2, 3], [4]]
