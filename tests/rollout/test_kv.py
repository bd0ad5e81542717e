"""Keys and values survive growth, moves and compaction."""

from itertools import combinations

import torch

from outscore.rollout.kv import KeyValueTable, compaction


def test_compaction_keeps_the_live_entries_in_the_first_places_with_few_moves():
    """All ways to remove entries from up to six: the survivors, each once, fill the first places."""
    for count in range(7):
        for size in range(count + 1):
            for removed in combinations(range(count), size):
                entries = list(range(count))
                moves = compaction(count, removed)
                for source, target in moves:
                    entries[target] = source
                live = entries[: count - size]
                assert sorted(live) == [entry for entry in range(count) if entry not in removed]
                assert not {source for source, _ in moves} & {target for _, target in moves}
                assert len(moves) <= size


def test_growth_keeps_what_is_stored_and_fills_with_zeros():
    table = KeyValueTable()
    table.reserve(2, 3)
    key, value = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    table.write(7, 1, key, value)
    table.reserve(5, 8)
    keys, values = table.layer(7)
    assert keys.shape == (5, 2, 8, 4) and values.shape == (5, 2, 8, 5)
    assert torch.equal(keys[1, :, :3], key) and torch.equal(values[1, :, :3], value)
    assert int(keys.count_nonzero()) == key.numel() and int(values.count_nonzero()) == value.numel()
    table.reserve(1, 1)
    assert table.layer(7)[0].shape == (5, 2, 8, 4)


def test_tokens_are_appended_at_each_entry_s_own_place_and_entries_move():
    table = KeyValueTable()
    table.reserve(3, 4)
    key, value = torch.randn(2, 3, 4), torch.randn(2, 3, 4)  # two heads, three entries
    keys, values = table.append(0, torch.arange(3), torch.tensor([0, 3, 1]), key, value)
    for entry, place in enumerate((0, 3, 1)):
        assert torch.equal(keys[entry, :, place], key[:, entry])
        assert torch.equal(values[entry, :, place], value[:, entry])
    last = keys[2].clone()
    table.copy([2], [0])
    assert torch.equal(table.layer(0)[0][0], last)
