"""The primer's policy methods: REINFORCE, actor-critic, TRPO, PPO with GAE, GRPO."""

import itertools
import math

import actor_critic
import cartpole
import grpo
import numpy as np
import ppo
import pytest
import reinforce
import torch
import trpo
from bellman import action_values, greedy_policy, optimal_action_values, solve_values, start_value, uniform_policy
from environments import ARM_REWARDS, bandit, chain, gridworld

from outscore.objectives.advantages import group_advantages

LOGITS = np.array([0.3, 0.0, -0.4])


def optimum(mdp):
    return start_value(mdp, greedy_policy(optimal_action_values(mdp)))


# --- REINFORCE ----------------------------------------------------------------------------------------------------


def autograd_bandit_gradient() -> np.ndarray:
    """∇J from J itself, without a score function."""
    logits = torch.tensor(LOGITS, requires_grad=True)
    (torch.softmax(logits, dim=0) @ torch.tensor(ARM_REWARDS)).backward()
    return logits.grad.numpy()


@pytest.mark.parametrize("baseline", [0.0, 1.4, -3.0])
def test_the_enumerated_score_function_gradient_is_that_of_the_expected_reward(baseline):
    found = reinforce.expected_bandit_gradient(LOGITS, baseline)
    np.testing.assert_allclose(found, autograd_bandit_gradient(), atol=1e-14)


@pytest.mark.parametrize("baseline", [0.0, 1.4])
def test_the_monte_carlo_policy_gradient_agrees_with_the_enumerated_one(baseline):
    arms = np.random.default_rng(0).choice(3, size=50_000, p=reinforce.softmax(LOGITS))
    estimates = reinforce.bandit_gradients(LOGITS, arms, baseline)
    error = estimates.std(axis=0, ddof=1) / math.sqrt(len(arms))
    assert (np.abs((estimates.mean(axis=0) - autograd_bandit_gradient()) / error) < 4).all()


@pytest.mark.parametrize(("make", "num_episodes"), [(bandit, 300), (chain, 200), (gridworld, 500)])
def test_reinforce_learns(make, num_episodes):
    mdp = make()
    policy, curve = reinforce.reinforce(mdp, num_episodes, np.random.default_rng(0))
    assert curve[0] < 0.8 * optimum(mdp) and start_value(mdp, policy) > 0.95 * optimum(mdp)


# --- actor-critic -------------------------------------------------------------------------------------------------


def test_a_baseline_lowers_the_variance_and_leaves_the_mean():
    probabilities = reinforce.softmax(LOGITS)
    value = float(probabilities @ ARM_REWARDS)
    without, with_value = (actor_critic.bandit_gradient_variance(LOGITS, baseline) for baseline in (0.0, value))
    assert with_value < without
    arms = np.random.default_rng(1).choice(3, size=50_000, p=probabilities)
    for baseline, enumerated in ((0.0, without), (value, with_value)):
        sampled = reinforce.bandit_gradients(LOGITS, arms, baseline).var(axis=0, ddof=1).sum()
        assert sampled == pytest.approx(enumerated, rel=0.03)


@pytest.mark.parametrize("make", [chain, gridworld])
def test_the_expected_td_error_is_the_advantage_when_the_critic_is_right(make):
    mdp = make()
    values = solve_values(mdp, uniform_policy(mdp))
    advantages = action_values(mdp, values) - values[:, None]
    for s, a in itertools.product(range(mdp.num_states), range(mdp.num_actions)):
        errors = [mdp.reward[s, a, n] + mdp.discount * values[n] - values[s] for n in range(mdp.num_states)]
        assert np.dot(mdp.transition[s, a], errors) == pytest.approx(advantages[s, a], abs=1e-12)


@pytest.mark.parametrize(("make", "num_episodes"), [(bandit, 300), (chain, 300), (gridworld, 500)])
def test_actor_critic_learns_policy_and_value(make, num_episodes):
    mdp = make()
    policy, values, _ = actor_critic.actor_critic(mdp, num_episodes, np.random.default_rng(0))
    assert start_value(mdp, policy) > 0.95 * optimum(mdp)
    assert values[mdp.start] == pytest.approx(solve_values(mdp, policy)[mdp.start], rel=0.15)
    assert (values[mdp.terminal] == 0).all()


# --- TRPO ---------------------------------------------------------------------------------------------------------


def test_conjugate_gradient_solves_the_linear_system():
    root = torch.randn(6, 6, dtype=torch.float64)
    matrix, b = root @ root.T + torch.eye(6), torch.randn(6, dtype=torch.float64)
    found = trpo.conjugate_gradient(lambda v: matrix @ v, b)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-10)


def test_every_step_trpo_takes_keeps_to_its_distance_and_improves(monkeypatch):
    """KL and surrogate are computed anew, as sums over samples and actions, from the policies before and after."""
    steps, take = [], trpo.trpo_step

    def probabilities(policy, observations):
        with torch.no_grad():
            return torch.softmax(policy(observations), dim=1).numpy()

    def watched(policy, observations, actions, advantages, **options):
        before = probabilities(policy, observations)
        step = take(policy, observations, actions, advantages, max_kl=0.05, **options)
        after = probabilities(policy, observations)
        kl = np.mean(
            [sum(p * math.log(p / q) for p, q in zip(*rows, strict=True)) for rows in zip(before, after, strict=True)]
        )
        chosen = np.arange(len(actions)), actions.numpy()
        steps.append((step, kl, ((after[chosen] / before[chosen] - 1) * advantages.numpy()).mean()))
        return step

    monkeypatch.setattr(trpo, "trpo_step", watched)
    mdp, earned = gridworld(), []
    trpo.train(mdp, 22, seed=0, on_step=lambda step, value: earned.append(value))
    accepted = [(kl, improvement) for step, kl, improvement in steps if step.accepted]
    assert len(accepted) > 10
    assert all(kl <= 0.05 * (1 + 1e-3) and improvement > 0 for kl, improvement in accepted)
    assert all(kl == 0 for step, kl, _ in steps if not step.accepted)
    assert max(kl for kl, _ in accepted) > 0.03  # and it goes as far as it may, not just any small step
    for step, kl, improvement in steps:
        assert (step.kl, step.improvement) == pytest.approx((kl, improvement), abs=1e-12)
    assert earned[-1] > 0.95 * optimum(mdp)


def test_a_step_that_would_not_improve_the_surrogate_is_not_taken(monkeypatch):
    monkeypatch.setattr(trpo, "conjugate_gradient", lambda product, b: -b)  # downhill
    policy = torch.nn.Linear(1, 3, bias=False).double()
    before = policy.weight.detach().clone()
    actions, advantages = torch.tensor([0, 1, 2]), torch.tensor([-1.0, 0.0, 1.0]).double()
    step = trpo.trpo_step(policy, torch.ones(3, 1).double(), actions, advantages)
    assert not step.accepted and torch.equal(policy.weight, before)


def test_the_first_direction_is_the_natural_gradient():
    """With one state the Fisher matrix of the logits is diag(π) - π πᵀ: the step taken is along (F + damping)⁻¹ ∇L."""
    policy = torch.nn.Linear(1, 3, bias=False).double()
    with torch.no_grad():
        policy.weight[:, 0] = torch.tensor(LOGITS)
    before = policy.weight.detach()[:, 0].clone()
    actions, advantages = torch.tensor([0, 1, 2, 2]), torch.tensor([-1.0, 0.5, 2.0, 1.0]).double()
    trpo.trpo_step(policy, torch.ones(4, 1).double(), actions, advantages, max_kl=1e-4, damping=0.1)
    taken = policy.weight.detach()[:, 0] - before
    pi = torch.softmax(before, dim=0)
    gradient = sum(a * (torch.eye(3).double()[k] - pi) for k, a in zip(actions, advantages, strict=True)) / 4
    fisher = torch.diag(pi) - torch.outer(pi, pi) + 0.1 * torch.eye(3)
    expected = torch.linalg.solve(fisher, gradient)
    torch.testing.assert_close(taken / taken.norm(), expected / expected.norm(), rtol=1e-6, atol=1e-8)


# --- PPO ----------------------------------------------------------------------------------------------------------

RATIOS = [0.3, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0]


@pytest.mark.parametrize("advantage", [-1.5, 2.0])
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_clip_takes_the_gradient_exactly_where_it_would_reward_going_farther(ratio, advantage):
    anchor = torch.tensor([-1.2], dtype=torch.float64)
    logprobs = (anchor + math.log(ratio)).requires_grad_()
    ppo.clipped_surrogate(logprobs, anchor, torch.tensor([advantage]).double(), clip=0.2).sum().backward()
    clipped = (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
    assert float(logprobs.grad) == pytest.approx(0.0 if clipped else ratio * advantage, abs=1e-12)


def random_rollout(num_steps: int = 9, num_envs: int = 4):
    rewards, values, following = torch.randn(3, num_steps, num_envs, dtype=torch.float64)
    terminated = torch.rand(num_steps, num_envs) < 0.15
    ended = terminated | (torch.rand(num_steps, num_envs) < 0.15)
    ended[-1] = True
    return rewards, values, following, terminated, ended


def test_gae_equals_its_definition_as_a_double_loop():
    rewards, values, following, terminated, ended = random_rollout()
    assert terminated.any() and (ended & ~terminated).any()
    found = ppo.gae(rewards, values, following, terminated, ended, discount=0.9, gae_lambda=0.7)
    for env in range(rewards.shape[1]):
        for t in range(len(rewards)):
            total = 0.0
            for k in range(t, len(rewards)):
                after = 0.0 if terminated[k, env] else float(following[k, env])
                total += (0.9 * 0.7) ** (k - t) * float(rewards[k, env] + 0.9 * after - values[k, env])
                if ended[k, env]:
                    break
            assert float(found[t, env]) == pytest.approx(total, abs=1e-12)


def one_episode(rewards, values):
    """The same numbers as one episode in one environment that ends with its last step."""
    following = torch.cat([values[1:], torch.zeros_like(values[:1])])
    last = torch.zeros_like(values, dtype=torch.bool)
    last[-1] = True
    return tuple(column[:, None] for column in (rewards, values, following, last, last))


def test_with_lambda_1_and_no_discount_gae_is_the_return_minus_the_value():
    rewards, values = torch.randn(2, 7, dtype=torch.float64)
    found = ppo.gae(*one_episode(rewards, values), discount=1.0, gae_lambda=1.0)[:, 0]
    torch.testing.assert_close(found, rewards.flip(0).cumsum(0).flip(0) - values)


def test_with_lambda_0_gae_is_the_td_error():
    rewards, values = torch.randn(2, 7, dtype=torch.float64)
    found = ppo.gae(*one_episode(rewards, values), discount=0.9, gae_lambda=0.0)[:, 0]
    torch.testing.assert_close(found, rewards + 0.9 * torch.cat([values[1:], torch.zeros(1)]) - values)


def test_with_the_groups_mean_as_critic_and_lambda_1_gae_is_the_advantage_of_dr_grpo():
    final = torch.tensor([1.0, 0.0, 0.25, 1.0], dtype=torch.float64)
    advantages = grpo.group_advantages(final[None], scale=False)[0]
    for reward, advantage, length in zip(final, advantages, (3, 1, 6, 2), strict=True):
        rewards = torch.zeros(length, dtype=torch.float64)
        rewards[-1] = reward
        values = torch.full_like(rewards, float(final.mean()))
        found = ppo.gae(*one_episode(rewards, values), discount=1.0, gae_lambda=1.0)[:, 0]
        torch.testing.assert_close(found, advantage.expand(length))


def test_a_cart_moves_as_the_equations_of_1983_say():
    """The published form, solved for the angular acceleration, beside ours, for one cart pushed to the right."""
    env = cartpole.CartPole(1, np.random.default_rng(0))
    x, v, angle, spin = env.observations[0] = (0.1, -0.3, 0.05, 0.4)
    [reached], [terminated], [truncated] = env.step(np.array([1]))
    m, total, length, sin, cos = 0.1, 1.1, 0.5, math.sin(angle), math.cos(angle)
    inner = (-10.0 - m * length * spin**2 * sin) / total
    spin_change = (9.8 * sin + cos * inner) / (length * (4 / 3 - m * cos**2 / total))
    change = (10.0 + m * length * (spin**2 * sin - spin_change * cos)) / total
    expected = [x + 0.02 * v, v + 0.02 * change, angle + 0.02 * spin, spin + 0.02 * spin_change]
    assert reached.tolist() == pytest.approx(expected, abs=1e-14) and not terminated and not truncated


def test_a_cart_that_falls_is_terminated_and_one_that_is_old_truncated():
    env = cartpole.CartPole(3, np.random.default_rng(0), max_steps=2)
    env.observations[0, 2] = 0.25
    env.observations[1, 0] = -2.5
    _, terminated, truncated = env.step(np.zeros(3, dtype=int))
    assert terminated.tolist() == [True, True, False] and not truncated.any()
    assert (np.abs(env.observations[:2]) <= 0.05).all() and env.ages.tolist() == [0, 0, 1]
    _, terminated, truncated = env.step(np.zeros(3, dtype=int))
    assert not terminated.any() and truncated.tolist() == [False, False, True]


def test_ppo_balances_the_pole():
    policy = ppo.train(ppo.Config(), seed=0, on_iteration=lambda *_: None)
    assert ppo.episode_lengths(policy, 50, seed=1).mean() >= 195  # what CartPole-v0 calls solved


# --- GRPO ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [True, False])
def test_the_primers_group_advantages_are_the_librarys(scale):
    rewards = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.1, 0.7, 0.7, 3.0], [0.3, 0.3, 0.3, 0.3]], dtype=torch.float64)
    found = grpo.group_advantages(rewards, scale)
    for row, own in zip(found, rewards, strict=True):
        library = group_advantages(own, baseline="group_mean", scale="population_std" if scale else "none", eps=0.0)
        torch.testing.assert_close(row, library)
    assert (found[2] == 0).all() and (not scale or found[0].tolist() == [1.0, -1.0, 1.0, -1.0])


def test_the_groups_mean_shrinks_the_expected_gradient_by_its_own_share_and_changes_nothing_else():
    """Over all 27 groups of three pulls: E[1/G Σ (r - mean) ∇log π] = (1 - 1/G) ∇J."""
    probabilities, total = reinforce.softmax(LOGITS), np.zeros(3)
    for arms in itertools.product(range(3), repeat=3):
        advantages = grpo.group_advantages(torch.tensor(ARM_REWARDS[list(arms)])[None], scale=False)[0].numpy()
        scores = reinforce.grad_log_policy(LOGITS, np.array(arms))
        total += probabilities[list(arms)].prod() * (advantages[:, None] * scores).mean(axis=0)
    np.testing.assert_allclose(total, (1 - 1 / 3) * autograd_bandit_gradient(), atol=1e-14)


def test_the_loss_is_equation_3_as_loops():
    lengths, clip, kl_coef = (3, 1, 4), 0.2, 0.3
    index = torch.repeat_interleave(torch.tensor(lengths))
    policy, anchor, ref = -torch.rand(3, 8, dtype=torch.float64)
    advantages = torch.tensor([1.0, -0.5, -0.5], dtype=torch.float64)
    objective, token = 0.0, 0
    for i, length in enumerate(lengths):
        for _ in range(length):
            ratio = math.exp(policy[token] - anchor[token])
            gain = min(ratio * advantages[i], min(max(ratio, 1 - clip), 1 + clip) * advantages[i])
            to_ref = math.exp(ref[token] - policy[token])
            objective += (gain - kl_coef * (to_ref - math.log(to_ref) - 1)) / length / len(lengths)
            token += 1
    assert float(grpo.grpo_loss(policy, anchor, ref, advantages, index, clip, kl_coef)) == pytest.approx(-objective)


@pytest.mark.parametrize("make", [bandit, chain])
def test_grpo_learns_without_a_critic(make):
    mdp = make()
    policy = grpo.train(mdp, 20, seed=0, on_step=lambda *_: None)
    assert start_value(mdp, policy) > 0.95 * optimum(mdp)


def test_the_groups_mean_is_an_unbiased_estimate_of_the_value():
    """At the first step the policy is uniform, so each start state's mean return is known."""
    mdp, means = chain(), []
    for seed in range(15):
        grpo.train(mdp, 1, seed=seed, on_step=lambda step, policy, groups: means.append(groups))
    true = solve_values(mdp, uniform_policy(mdp))[~mdp.terminal]
    z = (np.mean(means, axis=0) - true) / (np.std(means, axis=0, ddof=1) / math.sqrt(len(means)))
    assert (np.abs(z) < 4.5).all()
