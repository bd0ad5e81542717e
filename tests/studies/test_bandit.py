"""The synthetic bandit against numbers worked from its definition."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from outscore.studies.group_robust import bandit
from outscore.studies.group_robust.bandit import (
    NUM_ACTIONS,
    REWARD_PARAMS,
    SCENARIOS,
    draw,
    draw_pairs,
    features,
    policy_quality,
    preference_differences,
    rewards,
)

DOUBLE = torch.float64
MAPS = ("swapped", "same", "flipped")


@pytest.mark.parametrize(
    ("state", "expected", "best"),
    [
        ((0.25, 0.75), (4.2426, 3.7712, 3.3941, 3.0856, 2.8284, 2.6109, 2.4244, 2.2627), 0),
        ((0.1, 0.2), (4.4505, 4.3716, 4.3524, 4.3768, 4.4337, 4.5158, 4.6175, 4.7350), 7),
    ],
)
def test_rewards_in_two_states(state: tuple[float, float], expected: tuple[float, ...], best: int) -> None:
    found = rewards(torch.tensor(state, dtype=DOUBLE), 0, "swapped")
    assert found.tolist() == pytest.approx(expected, abs=5e-5)
    assert int(found.argmax()) == best


def test_swapped_populations_have_one_reward_and_different_features() -> None:
    states = torch.rand(500, 2, dtype=DOUBLE)
    assert torch.allclose(rewards(states, 0, "swapped"), rewards(states, 1, "swapped"), atol=1e-13)
    assert not torch.allclose(features(states, 0, "swapped"), features(states, 1, "swapped"), atol=0.1)
    for other in ("same", "flipped"):
        assert not torch.allclose(rewards(states, 0, other), rewards(states, 1, other), atol=0.1)


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("population", [0, 1])
def test_features_term_by_term(kind: str, population: int) -> None:
    x = (0.3, 0.8)
    found = features(torch.tensor([x], dtype=DOUBLE), population, kind)[0]  # type: ignore[arg-type]
    for y in range(8):
        c = y / 8 + 1
        for i in range(4):
            angle = math.pi * x[i // 2]
            if kind == "swapped":
                value = c * math.cos(angle) if i % 2 == population else math.sin(angle) / c
            elif kind == "same" or population == 0:
                value = c * math.cos(angle) if i % 2 == 0 else math.sin(angle) / c
            else:
                value = c * math.sin(angle) if i % 2 == 0 else math.cos(angle) / c
            assert found[y, i].item() == pytest.approx(value, abs=1e-14)


def test_even_pairs_are_any_two_different_actions_equally_often() -> None:
    _, actions = draw_pairs(np.random.default_rng(0), 56_000, 0, uneven=False)
    seen = Counter(map(tuple, actions.tolist()))
    assert set(seen) == {(a, b) for a in range(8) for b in range(8) if a != b}
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in seen.values())


def test_uneven_pairs_are_neighbours_or_four_apart() -> None:
    _, hard = draw_pairs(np.random.default_rng(0), 16_000, 0, uneven=True)
    seen = Counter(map(tuple, hard.tolist()))
    assert set(seen) == {(a, b) for a in range(8) for b in (a - 1, a + 1) if 0 <= b < 8}
    for (first, _), count in seen.items():
        expected = 2000 if first in (0, 7) else 1000  # an end has one neighbour
        assert abs(count - expected) < 5 * math.sqrt(expected)
    _, easy = draw_pairs(np.random.default_rng(0), 1000, 1, uneven=True)
    assert torch.equal(easy[:, 1], (easy[:, 0] + 4) % NUM_ACTIONS)


def test_the_action_of_higher_reward_is_preferred() -> None:
    # In (0.25, 0.75) the reward falls with the action: 2 beats 5 whichever comes first.
    state = torch.tensor([[0.25, 0.75]], dtype=DOUBLE)
    phi = features(state, 1, "swapped")[0]
    for order in ([2, 5], [5, 2]):
        found = preference_differences(state, torch.tensor([order]), 1, "swapped")
        assert torch.allclose(found[0], phi[2] - phi[5], atol=1e-15)


def test_of_equal_rewards_the_second_action_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandit, "rewards", lambda states, population, kind: torch.zeros(len(states), 8, dtype=DOUBLE))
    state = torch.tensor([[0.25, 0.75]], dtype=DOUBLE)
    phi = features(state, 0, "swapped")[0]
    assert torch.equal(preference_differences(state, torch.tensor([[3, 6]]), 0, "swapped")[0], phi[6] - phi[3])


def test_each_population_is_put_right_by_its_own_theta() -> None:
    """Labels have no noise: <d, theta_g> is never negative."""
    for kind in MAPS:
        data = draw(SCENARIOS["uneven-imbalanced"], kind, 3)  # type: ignore[arg-type]
        margins = torch.einsum("spf,pf->sp", data.train, REWARD_PARAMS[data.train_index])
        assert bool((margins >= 0).all())


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_what_a_scenario_draws(name: str) -> None:
    data = draw(SCENARIOS[name], "swapped", 2)
    assert data.train.shape == (2, 300, 4) and data.validation.shape == (2, 1000, 4)
    assert data.test.shape == (2, 2, 1000, 8, 4) and data.initial.shape == (2, 4)
    expected = {"even-imbalanced": [60, 240], "uneven-balanced": [150, 150], "uneven-imbalanced": [60, 240]}[name]
    assert torch.bincount(data.train_index).tolist() == expected
    assert torch.bincount(data.validation_index).tolist() == [500, 500]
    assert bool(((data.initial >= 0) & (data.initial <= 5)).all())


def test_a_seed_draws_the_same_whatever_the_number_of_seeds() -> None:
    few, many = (draw(SCENARIOS["even-imbalanced"], "same", n) for n in (2, 4))
    assert torch.equal(few.train, many.train[:2]) and torch.equal(few.test, many.test[:2])
    assert not torch.equal(many.train[0], many.train[1])


def test_quality_by_a_loop_over_states() -> None:
    data, theta = draw(SCENARIOS["even-imbalanced"], "flipped", 2), torch.rand(2, 4, dtype=DOUBLE)
    found = policy_quality(theta, data.test)
    seed, population = 1, 1
    best = reached = divergence = 0.0
    for phi in data.test[seed, population]:
        reward, logits = (phi @ REWARD_PARAMS[population]).tolist(), (phi @ theta[seed]).tolist()
        best += max(reward) / 1000
        reached += reward[logits.index(max(logits))] / 1000
        p, q = ([math.exp(v) / math.fsum(map(math.exp, row)) for v in row] for row in (reward, logits))
        divergence += math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 1000
    assert found.reward_gap[seed, population].item() == pytest.approx(best - reached, abs=1e-9)
    assert found.reward_error[seed, population].item() == pytest.approx((best - reached) / best, abs=1e-9)
    assert found.kl[seed, population].item() == pytest.approx(divergence, abs=1e-9)


def test_the_true_parameters_are_perfect_for_their_population() -> None:
    data = draw(SCENARIOS["even-imbalanced"], "swapped", 2)
    found = policy_quality(REWARD_PARAMS[0].expand(2, 4), data.test)
    assert found.reward_error[:, 0].abs().max().item() < 1e-12 and found.kl[:, 0].abs().max().item() < 1e-12
    assert found.reward_error[:, 1].min().item() > 0.01
