"""Advantages of a batch: against loops, by hand, and what may not change them."""

from dataclasses import replace

import pytest
import torch
from oracles.worth import Worth, naive_advantages, naive_gae, random_worth

from outscore.algorithms.rows import ALGORITHMS, algorithm
from outscore.objectives.advantages import group_advantages
from outscore.objectives.batch import (
    GroupRewards,
    StepRewards,
    batch_advantages,
    batch_returns,
    is_silent,
    process_advantages,
)

GROUPS = [random_worth([3, 5, 1, 4], seed=1), random_worth([2, 6, 4], seed=2), random_worth([4, 4, 2, 3], seed=5)]
SAMPLED = [name for name, row in ALGORITHMS.items() if row.source == "policy" and row.reward != "correct"]


def _flat(table: list[list[float]]) -> torch.Tensor:
    return torch.tensor([value for own in table for value in own], dtype=torch.float64)


def _outcome(rewards: list[float], lengths: list[int]) -> GroupRewards:
    return GroupRewards(
        rewards=torch.tensor(rewards, dtype=torch.float64),
        valid=torch.ones(len(rewards), dtype=torch.bool),
        num_tokens=torch.tensor(lengths),
    )


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("cells", [{}, {"zero_negative": True}, {"supervision": "process"}], ids=str)
def test_every_presets_advantages_equal_the_printed_equations(name: str, cells: dict[str, object]) -> None:
    refused = ("rloo", "gdpo", "lite-ppo", "distillation") if cells.get("supervision") else ("distillation",)
    if cells and name in refused:
        pytest.skip("refused: steps have no such comparison, and without a reward there is nothing to compare")
    row = algorithm(name, **cells, **({"ratio_level": "token"} if cells.get("supervision") else {}))
    found = batch_advantages([group.tensors() for group in GROUPS], row)
    torch.testing.assert_close(found, _flat(naive_advantages(GROUPS, row)), rtol=1e-10, atol=1e-12)


def test_lite_ppo_by_hand() -> None:
    # Rewards 1, 0 and 3, 0: batch mean 1, population deviation sqrt((0 + 1 + 4 + 1) / 4)
    row = algorithm("lite-ppo", advantage_eps=0.0)
    found = batch_advantages([_outcome([1, 0], [1, 2]), _outcome([3, 0], [1, 1])], row)
    deviation = 1.5**0.5
    assert found.tolist() == pytest.approx([value / deviation for value in (0.5, -0.5, -0.5, 1.5, -1.5)], abs=1e-12)


def test_gdpo_tells_apart_what_a_sum_makes_equal() -> None:
    """Two binary rewards, two samples (GDPO's example): totals (0, 1) and (0, 2) give the same GRPO advantages."""

    def group(first: list[float], second: list[float]) -> GroupRewards:
        one = _outcome([a + b for a, b in zip(first, second, strict=True)], [1, 1])
        return replace(one, parts=torch.tensor([first, second], dtype=torch.float64), part_weights=torch.ones(2))

    groups = [group([0, 1], [0, 0]), group([0, 1], [0, 1])]
    grpo = batch_advantages(groups, algorithm("grpo", advantage_eps=0.0))
    assert grpo.tolist() == [-1.0, 1.0, -1.0, 1.0]
    # Sums of normalised parts -1, 1, -2, 2; their batch deviation is sqrt(10 / 4).
    gdpo = batch_advantages(groups, algorithm("gdpo", advantage_eps=0.0))
    assert gdpo.tolist() == pytest.approx([value / 2.5**0.5 for value in (-1, 1, -2, 2)], abs=1e-12)
    # Equal totals with different parts are not silent to GDPO, though to GRPO they are.
    swapped = group([0, 1], [1, 0])
    assert is_silent(swapped, algorithm("grpo"))
    assert is_silent(swapped, algorithm("gdpo"))  # equal weights: the two parts cancel
    assert not is_silent(replace(swapped, part_weights=torch.tensor([1.0, 0.5])), algorithm("gdpo"))


def test_a_part_that_does_not_apply_says_nothing() -> None:
    one = replace(
        _outcome([1, 0, 1], [1, 1, 1]),
        parts=torch.tensor([[1.0, 0.0, 1.0], [1.0, float("nan"), 0.0]], dtype=torch.float64),
        part_weights=torch.tensor([0.0, 1.0]),
    )
    row = algorithm("gdpo", batch_norm="none", advantage_eps=0.0)
    assert batch_advantages([one], row).tolist() == [1.0, 0.0, -1.0]


def test_reinforce_by_hand_each_token_pays_for_itself_and_what_follows() -> None:
    one = replace(_outcome([1, 0], [2, 1]), token_costs=torch.tensor([0.25, 0.5, -0.25], dtype=torch.float64))
    row = algorithm("reinforce++", batch_norm="none")
    assert batch_advantages([one], row).tolist() == [1 - 0.75, 1 - 0.5, 0.25]
    normalised = batch_advantages([one], algorithm("reinforce++", advantage_eps=0.0))
    assert normalised.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert normalised.square().mean().item() == pytest.approx(1.0, abs=1e-12)


def test_the_batchs_statistics_leave_out_what_could_not_be_scored_and_what_is_not_trained() -> None:
    """A failure's reward is in no statistic; a completion without loss counts among completions, not among tokens."""
    whole = [group.tensors() for group in GROUPS]
    rewards = whole[0].rewards.clone()
    rewards[1] = float("nan")
    tokens = whole[0].num_tokens.clone()
    tokens[1] = 0
    costs = torch.cat([whole[0].token_costs[:3], whole[0].token_costs[8:]])
    values = torch.cat([whole[0].values[:3], whole[0].values[8:]])
    failed = replace(
        whole[0],
        rewards=rewards,
        valid=torch.tensor([True, False, True, True]),
        num_tokens=tokens,
        token_costs=costs,
        values=values,
    )
    keep = [0, 2, 3]
    without = Worth(
        parts=[GROUPS[0].parts[i] for i in keep],
        weights=GROUPS[0].weights,
        steps=[GROUPS[0].steps[i] for i in keep],
        costs=[GROUPS[0].costs[i] for i in keep],
        values=[GROUPS[0].values[i] for i in keep],
    )
    for name in ("grpo", "lite-ppo", "reinforce++", "reinforce++-baseline", "rloo"):
        row = algorithm(name)
        expected = _flat(naive_advantages([without, *GROUPS[1:]], row))
        torch.testing.assert_close(batch_advantages([failed, *whole[1:]], row), expected, rtol=1e-10, atol=1e-12)
    masked = replace(whole[0], num_tokens=tokens, token_costs=costs, values=values)
    row = algorithm("lite-ppo")
    kept = torch.cat([torch.ones(3), torch.zeros(5), torch.ones(5 + 12 + 13)]).bool()
    torch.testing.assert_close(
        batch_advantages([masked, *whole[1:]], row), _flat(naive_advantages(GROUPS, row))[kept], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "lite-ppo", "gdpo", "reinforce++", "reinforce++-baseline"])
def test_a_batch_without_any_difference_has_advantage_exactly_zero(name: str) -> None:
    flat = replace(
        _outcome([0.1, 0.1, 0.1], [2, 1, 3]),
        parts=torch.full((2, 3), 0.1, dtype=torch.float64),
        part_weights=torch.ones(2),
        token_costs=torch.zeros(6, dtype=torch.float64),
    )
    row = algorithm(name, **({} if name == "dr-grpo" else {"advantage_eps": 0.0}))
    found = batch_advantages([flat, flat], row)
    assert torch.equal(found, torch.zeros(12, dtype=torch.float64))


def test_what_is_silent_depends_on_what_is_compared() -> None:
    wrong, right, mixed = (_outcome(rewards, [1, 1]) for rewards in ([0, 0], [1, 1], [1, 0]))
    assert [is_silent(group, algorithm("grpo")) for group in (wrong, right, mixed)] == [True, True, False]
    rft = algorithm("online-rft")
    assert [is_silent(group, rft) for group in (wrong, right, mixed)] == [True, False, False]
    assert not is_silent(wrong, algorithm("reinforce++"))  # the rest of the batch may be better


def _steps(table: list[list[tuple[int, float]]]) -> StepRewards:
    flat = [(i, end, reward) for i, own in enumerate(table) for end, reward in own]
    completion, end, reward = zip(*flat, strict=True)
    return StepRewards(
        completion=torch.tensor(completion), end=torch.tensor(end), reward=torch.tensor(reward, dtype=torch.float64)
    )


def test_process_advantages_by_hand() -> None:
    # Pool 1, 0, 1, 0: mean 1/2, deviation 1/2, so every normalised reward is +1 or -1.
    found = process_advantages(
        _steps([[(1, 1.0), (3, 0.0), (4, 1.0)], [(0, 0.0)]]),
        torch.tensor([5, 2]),
        baseline="group_mean",
        scale="population_std",
        eps=0.0,
    )
    assert found.tolist() == [1.0, 1.0, 0.0, 0.0, 1.0, -1.0, 0.0]


def test_with_one_step_for_each_completion_process_supervision_is_outcome_supervision() -> None:
    rewards, lengths = torch.tensor([0.3, 1.0, 0.0, 0.7], dtype=torch.float64), torch.tensor([3, 1, 4, 2])
    for scale in ("population_std", "sample_std", "mean", "none"):
        steps = StepRewards(completion=torch.arange(4), end=lengths - 1, reward=rewards)
        found = process_advantages(steps, lengths, baseline="group_mean", scale=scale, eps=1e-6)
        expected = group_advantages(rewards, baseline="group_mean", scale=scale, eps=1e-6).repeat_interleave(lengths)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def test_steps_that_no_trained_token_belongs_to_still_count_in_the_pool() -> None:
    steps = _steps([[(-1, 1.0), (1, 0.0)], [(0, 1.0)], [(1, 0.0)]])
    found = process_advantages(steps, torch.tensor([2, 1, 0]), baseline="group_mean", scale="population_std", eps=0.0)
    assert found.tolist() == [-1.0, -1.0, 1.0]
    left_out = process_advantages(
        steps,
        torch.tensor([2, 0, 0]),
        baseline="group_mean",
        scale="none",
        eps=0.0,
        valid=torch.tensor([True, False, False]),
    )
    assert left_out.tolist() == [-0.5, -0.5]


def test_equal_steps_are_worth_exactly_nothing_however_many() -> None:
    found = process_advantages(
        _steps([[(0, 0.1), (1, 0.1)], [(0, 0.1)]]), torch.tensor([2, 1]), baseline="group_mean", scale="none", eps=0.0
    )
    assert torch.equal(found, torch.zeros(3, dtype=torch.float64))


def test_the_batchs_deviation_is_not_one_groups() -> None:
    with pytest.raises(ValueError, match="use batch_advantages"):
        group_advantages(torch.tensor([1.0, 0.0]), baseline="group_mean", scale="batch_std", eps=0.0)


CRITICS: list[dict[str, object]] = [
    {},
    {"batch_norm": "none"},
    {"batch_norm": "tokens", "gae_lambda": 1.0},
    {"gae_lambda": 0.5, "critic_lambda": 1.0, "batch_norm": "none"},
    {"critic_lambda": 0.9, "lambda_alpha": 0.4, "batch_norm": "none"},
    {"whiten_rewards": True, "batch_norm": "none"},
    {"supervision": "process", "batch_norm": "none", "critic_lambda": 0.3},
]


@pytest.mark.parametrize("cells", CRITICS, ids=str)
def test_generalised_advantages_of_ragged_groups_equal_a_double_loop(cells: dict[str, object]) -> None:
    row = algorithm("ppo", **cells)
    tensors = [group.tensors() for group in GROUPS]
    torch.testing.assert_close(
        batch_advantages(tensors, row), _flat(naive_advantages(GROUPS, row)), rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(batch_returns(tensors, row), _flat(naive_gae(GROUPS, row)[1]), rtol=1e-10, atol=1e-12)


def test_with_lambda_1_and_the_group_mean_for_a_value_ppo_has_the_advantages_of_dr_grpo() -> None:
    row = algorithm("ppo", gae_lambda=1.0, kl_coef=0.0, batch_norm="none")
    tensors = []
    for group in GROUPS:
        own = group.tensors()
        tensors.append(replace(own, values=own.rewards.mean().expand(int(own.num_tokens.sum()))))
    torch.testing.assert_close(
        batch_advantages(tensors, row), batch_advantages(tensors, algorithm("dr-grpo")), rtol=1e-12, atol=1e-14
    )


def test_what_could_not_be_scored_is_in_no_statistics_of_a_critic_either() -> None:
    row = algorithm("ppo", whiten_rewards=True)
    whole = [
        replace(group.tensors(), valid=torch.tensor([False] + [True] * (len(group.parts) - 1))) for group in GROUPS
    ]
    rest = [
        Worth(**{name: value[1:] if name != "weights" else value for name, value in vars(group).items()})
        for group in GROUPS
    ]
    expected = iter(naive_advantages(rest, row))
    table = []
    for group in GROUPS:
        table.append([0.0] * group.lengths[0])
        table += [next(expected) for _ in group.lengths[1:]]
    torch.testing.assert_close(batch_advantages(whole, row), _flat(table), rtol=1e-10, atol=1e-12)


def test_no_difference_is_no_advantage_under_whitening() -> None:
    row = algorithm("ppo", gae_lambda=1.0, kl_coef=0.0)
    group = replace(_outcome([0.3, 0.3], [2, 3]), values=torch.full((5,), 0.1 + 0.2, dtype=torch.float64))
    assert batch_advantages([group], row).tolist() == [0.0] * 5
    assert not is_silent(group, row)  # it still teaches the critic
