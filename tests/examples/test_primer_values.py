"""The primer's value methods: the environments, the Bellman equation, Q-learning, DQN, and what a grid cannot do."""

import itertools

import bellman
import continuous_actions
import dqn
import environments
import numpy as np
import pytest
import q_learning
import torch
from bellman import greedy_policy, optimal_action_values, start_value
from environments import bandit, chain, gridworld

ENVIRONMENTS = [bandit, chain, gridworld]
each_environment = pytest.mark.parametrize("make", ENVIRONMENTS)


@each_environment
def test_transitions_are_distributions_and_nothing_follows_a_terminal_state(make):
    mdp = make()
    np.testing.assert_allclose(mdp.transition.sum(axis=2), 1.0, atol=1e-15)
    assert mdp.terminal.any() and not mdp.terminal[mdp.start]
    for state in np.flatnonzero(mdp.terminal):
        assert (mdp.transition[state, :, state] == 1).all() and (mdp.reward[state, :, state] == 0).all()


def test_the_chain_pays_only_at_its_end():
    mdp = chain()
    assert {tuple(map(int, index[::2])) for index in np.argwhere(mdp.reward)} == {(s, 4) for s in range(4)}
    _, _, rewards = bellman.run_episode(mdp, bellman.uniform_policy(mdp), np.random.default_rng(0))
    assert rewards[-1] == 1.0 and not any(rewards[:-1]) and len(rewards) >= 4


def test_a_walk_on_the_grid_by_hand():
    mdp = gridworld(("S#G", "..X"))  # states: S 0, G 1, then the row below: 2, 3, X 4
    following = mdp.transition.argmax(axis=2)
    assert following[[0, 2, 3]].tolist() == [[0, 0, 2, 0], [0, 3, 2, 2], [3, 4, 3, 2]]
    assert mdp.terminal.tolist() == [False, True, False, False, True]
    assert mdp.reward[3, 1, 4] == -1.0 and np.count_nonzero(mdp.reward) == 1


@each_environment
def test_steps_are_drawn_from_the_table(make):
    mdp, rng = make(), np.random.default_rng(0)
    for state, action in itertools.product(np.flatnonzero(~mdp.terminal), range(mdp.num_actions)):
        steps = [mdp.step(int(state), action, rng) for _ in range(400)]
        drawn = np.bincount([following for following, _, _ in steps], minlength=mdp.num_states) / 400
        expected = mdp.transition[state, action]
        assert (np.abs(drawn - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / 400)).all()
        assert all(reward == mdp.reward[state, action, following] for following, reward, _ in steps)
        assert all(ended == mdp.terminal[following] for following, _, ended in steps)


def test_discounted_returns_are_the_sums_they_stand_for():
    rewards = [1.0, 0.0, -2.0, 4.0]
    naive = [sum(0.5 ** (k - t) * rewards[k] for k in range(t, 4)) for t in range(4)]
    assert bellman.discounted_returns(rewards, 0.5).tolist() == naive == [1.0, 0.0, 0.0, 4.0]


@each_environment
def test_iterated_policy_evaluation_equals_the_linear_solve(make):
    mdp = make()
    policy = np.random.default_rng(1).dirichlet(np.ones(mdp.num_actions), size=mdp.num_states)
    assert np.abs(bellman.evaluate_policy(mdp, policy) - bellman.solve_values(mdp, policy)).max() < 1e-10


@each_environment
def test_values_satisfy_the_bellman_equation_written_as_loops(make):
    mdp = make()
    policy = np.random.default_rng(2).dirichlet(np.ones(mdp.num_actions), size=mdp.num_states)
    values = bellman.solve_values(mdp, policy)
    for s in range(mdp.num_states):
        expected = 0.0
        for a, n in itertools.product(range(mdp.num_actions), range(mdp.num_states)):
            expected += policy[s, a] * mdp.transition[s, a, n] * (mdp.reward[s, a, n] + mdp.discount * values[n])
        assert values[s] == pytest.approx(expected, abs=1e-12)


@each_environment
def test_a_random_policy_earns_what_was_solved(make):
    mdp, rng = make(), np.random.default_rng(0)
    policy = bellman.uniform_policy(mdp)
    episodes = [bellman.run_episode(mdp, policy, rng)[2] for _ in range(500)]
    earned = [sum(mdp.discount**t * reward for t, reward in enumerate(rewards)) for rewards in episodes]
    z = (np.mean(earned) - start_value(mdp, policy)) / (np.std(earned, ddof=1) / np.sqrt(len(earned)))
    assert abs(z) < 4


@each_environment
def test_no_deterministic_policy_beats_the_optimum_and_one_attains_it(make):
    mdp = make()
    optimal = optimal_action_values(mdp)
    free = np.flatnonzero(~mdp.terminal)
    choices = itertools.product(range(mdp.num_actions), repeat=len(free))
    if mdp.num_actions ** len(free) > 1000:  # too many to try: any thousand of them
        rng = np.random.default_rng(0)
        choices = iter(rng.integers(mdp.num_actions, size=(1000, len(free))).tolist())
    best = greedy_policy(optimal)
    np.testing.assert_allclose(bellman.solve_values(mdp, best), optimal.max(axis=1), atol=1e-10)
    for chosen in choices:
        policy = best.copy()
        policy[free] = np.eye(mdp.num_actions)[list(chosen)]
        assert (bellman.solve_values(mdp, policy) <= optimal.max(axis=1) + 1e-10).all()


def test_the_shortest_way_through_the_grid_is_worth_its_discount():
    # Up, up, right, right, right: five steps, the last pays 1.
    assert optimal_action_values(gridworld())[gridworld().start].max() == pytest.approx(0.9**4, abs=1e-10)


@pytest.mark.parametrize(("make", "num_steps"), [(chain, 30_000), (gridworld, 20_000)])
def test_q_learning_reaches_the_optimal_values_and_its_greedy_policy_is_optimal(make, num_steps):
    mdp = make()
    optimal = optimal_action_values(mdp)
    q = q_learning.q_learning(mdp, num_steps, np.random.default_rng(3))
    assert np.abs(q - optimal).max() < 1e-2
    assert start_value(mdp, greedy_policy(q)) == pytest.approx(start_value(mdp, greedy_policy(optimal)), abs=1e-12)


def test_dqn_with_replay_and_target_network_solves_the_grid():
    mdp = gridworld()
    optimal = optimal_action_values(mdp)
    q, curve = dqn.dqn(mdp, dqn.Config(num_steps=1300), seed=0)
    late = curve[len(curve) * 3 // 4 :]
    assert late.min() > 0.95 * optimal[mdp.start].max()
    assert np.abs(q - optimal)[~mdp.terminal].max() < 0.05


@pytest.mark.learning
def test_without_a_target_network_the_greedy_return_oscillates_more():
    """The same environments, samples and updates, three seeds; only the target is the network itself."""
    spreads = {}
    for target_every in (1, dqn.Config().target_every):
        curves = [dqn.dqn(gridworld(), dqn.Config(target_every=target_every), seed)[1] for seed in range(3)]
        spreads[target_every] = np.mean([curve[len(curve) // 2 :].std() for curve in curves])
    assert spreads[1] > 2 * spreads[dqn.Config().target_every] and spreads[1] > 0.05


def test_a_target_network_is_looked_at_and_not_learnt():
    features = torch.eye(2)
    network, target = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))  # Q(s, a) = weight[a, s]
        target.weight.copy_(torch.tensor([[10.0, 20.0], [30.0, 40.0]]))
    rewards, ended = np.array([5.0, 7.0], dtype=np.float32), np.array([False, True])
    batch = [np.array([0, 1]), np.array([1, 0]), rewards, np.array([1, 0]), ended]
    loss = dqn.td_loss(network, target, features, batch, discount=0.5)
    loss.backward()
    # Q(0,1) = 3 against 5 + 0.5 · max(20, 40) = 25; Q(1,0) = 2 against 7, since nothing follows a last step.
    assert loss.item() == (22.0**2 + 5.0**2) / 2
    assert target.weight.grad is None and network.weight.grad is not None
    assert network.weight.grad.tolist() == [[0.0, -5.0], [-22.0, 0.0]]


def test_policy_gradient_solves_the_continuous_bandit():
    for seed in range(5):
        mu, sigma = continuous_actions.learn_policy(400, 16, np.random.default_rng(seed))
        assert abs(mu - continuous_actions.BEST_ACTION) < 0.05 and sigma < 0.2


def test_a_grid_of_action_values_is_off_by_its_spacing_whatever_the_number_of_pulls():
    grid, q = continuous_actions.learn_action_values(5, 200_000, np.random.default_rng(0))
    assert grid.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert grid[q.argmax()] == 1.0  # the nearest point to 0.73; no number of pulls brings it nearer


def test_the_gaussian_gradient_is_that_of_the_expected_reward():
    # J(μ, σ) = -(μ - a*)² - σ², so ∂J/∂μ = -2 (μ - a*) and ∂J/∂log σ = -2 σ².
    rng, mu, log_sigma = np.random.default_rng(0), 0.2, np.log(0.6)
    actions = mu + 0.6 * rng.standard_normal((20_000, 16))
    estimates = np.array(
        [
            continuous_actions.gaussian_gradients(mu, log_sigma, each, continuous_actions.pull(each, rng)).mean(axis=0)
            for each in actions
        ]
    )
    z = (estimates.mean(axis=0) - [-2 * (0.2 - 0.73), -2 * 0.36]) / (estimates.std(axis=0, ddof=1) / 20_000**0.5)
    assert (np.abs(z) < 4).all()


def test_draws_follow_their_probabilities_and_never_leave_them():
    class Highest:
        def random(self):
            return np.nextafter(1.0, 0.0)

    assert environments.draw(np.full(10, 0.1), Highest()) == 9  # ten times 0.1 sums to less than 1
