"""Which groups share an update: each pass has all of them, and later passes put others together."""

import pytest
import torch
from train.building import batch_of, learner_of, plan_of, tiny_policy

import outscore.train.step as step_module
from outscore.train.passes import minibatches, pass_order, updates_of

KEY = {"seed": 3, "stage": 1, "num_updates": 0}


def test_a_pass_has_every_group_once_and_the_first_has_them_as_drawn() -> None:
    parts = updates_of("abcdefghij", num_minibatches=4, num_passes=3, **KEY)
    assert parts[:4] == minibatches("abcdefghij", 4) == ["ab", "cde", "fgh", "ij"]
    assert [len(part) for part in parts] == [2, 3, 3, 2] * 3
    for first in (4, 8):
        assert sorted(group for part in parts[first : first + 4] for group in part) == list("abcdefghij")
    later = [{frozenset(part) for part in parts[first : first + 4]} for first in (0, 4, 8)]
    assert later[0] != later[1] != later[2] != later[0]


def test_the_order_of_a_pass_is_a_function_of_seed_stage_and_the_updates_before_it() -> None:
    orders = [
        tuple(pass_order(seed, stage, num_updates, 12)) for seed in (0, 1) for stage in (0, 1) for num_updates in (2, 4)
    ]
    assert len(set(orders)) == 8 and tuple(pass_order(1, 0, 4, 12)) == orders[5]
    # A step that begins after 6 updates of two passes of two: its second pass comes after 8.
    step = updates_of(range(12), num_minibatches=2, num_passes=2, seed=1, stage=0, num_updates=6)
    assert [*step[2], *step[3]] == pass_order(1, 0, 8, 12)


def test_a_pass_of_one_update_keeps_the_order() -> None:
    assert updates_of("abc", num_minibatches=1, num_passes=2, **KEY) == ["abc", list("abc")]


def test_all_groups_come_first_to_last_in_equal_shares_over_many_passes() -> None:
    # 600 passes of 6 groups: how often a group comes first has mean 100 and standard deviation 9.1.
    first = torch.tensor([pass_order(0, 0, number, 6)[0] for number in range(600)])
    assert (torch.bincount(first, minlength=6) - 100).abs().max() < 40


def test_a_step_of_the_trainer_takes_these_parts_and_goes_on_from_its_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    learner, batch = learner_of(policy), batch_of(policy, [[1.0, -1.0]] * 5, [[2, 3]] * 5)
    taken: list[list[int]] = []
    accumulate = step_module.accumulate

    def watched(learner, batch, part, *given):  # type: ignore[no-untyped-def]
        taken.append([batch.groups.index(group) for group in part])
        return accumulate(learner, batch, part, *given)

    monkeypatch.setattr(step_module, "accumulate", watched)
    plan = plan_of(epochs=2, minibatches=2, order=(7, 2))
    for _ in range(2):
        step_module.update(learner, batch, plan)
    halves = [[0, 1], [2, 3, 4]]
    orders = [pass_order(7, 2, before, 5) for before in (2, 6)]
    assert orders[0] != orders[1]
    assert taken == [*halves, orders[0][:2], orders[0][2:], *halves, orders[1][:2], orders[1][2:]]
