"""REINFORCE: no values at all. Make an action more likely in proportion to the return that followed it.

    python examples/primer/reinforce.py

The policy itself is what is learnt, a softmax of parameters θ. The gradient of the expected return is an expectation,
so samples estimate it, whatever the environment does and however many actions there are:

    ∇J(θ) = E_π[Σ_t γ^t G_t ∇log π(A_t|S_t)]

Source: Williams, Machine Learning 8, 1992; the policy gradient theorem, Sutton et al. 1999; Sutton & Barto section
13.3. For a softmax of logits, ∇log π(a) = onehot(a) - π. A_t did not cause the rewards before it: G_t leaves them out.
"""

import numpy as np
from bellman import discounted_returns, greedy_policy, optimal_action_values, run_episode, start_value
from environments import ARM_REWARDS, MDP, Array, chain, gridworld


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def grad_log_policy(logits: Array, actions: Array | int) -> Array:
    """∇log π(a) with respect to the logits[..., action] that made π, for each of `actions`."""
    return np.eye(logits.shape[-1])[actions] - softmax(logits)


def bandit_gradients(logits: Array, arms: Array, baseline: float = 0.0) -> Array:
    """What single pulls say ∇J is, [pull, arm]: (R - baseline) ∇log π. `actor_critic.py` is about the baseline."""
    return (ARM_REWARDS[arms] - baseline)[:, None] * grad_log_policy(logits, arms)


def expected_bandit_gradient(logits: Array, baseline: float = 0.0) -> Array:
    """∇J[arm], by enumeration: every pull's gradient times its probability."""
    return softmax(logits) @ bandit_gradients(logits, np.arange(len(ARM_REWARDS)), baseline)


def reinforce(mdp: MDP, num_episodes: int, rng: np.random.Generator, learning_rate: float = 0.5) -> tuple[Array, Array]:
    """(policy[state, action], the expected return after each episode), learnt from whole episodes."""
    logits = np.zeros((mdp.num_states, mdp.num_actions))
    curve = np.zeros(num_episodes)
    for episode in range(num_episodes):
        states, actions, rewards = run_episode(mdp, softmax(logits), rng)
        returns = discounted_returns(rewards, mdp.discount)
        discounts = mdp.discount ** np.arange(len(rewards))
        gradients = (discounts * returns)[:, None] * grad_log_policy(logits[states], np.array(actions))
        np.add.at(logits, states, learning_rate * gradients)
        curve[episode] = start_value(mdp, softmax(logits))
    return softmax(logits), curve


def episodes_until(curve: Array, level: float) -> int | None:
    """How many episodes it took to earn `level` for the first time."""
    reached = np.flatnonzero(curve >= level)
    return int(reached[0]) + 1 if len(reached) else None


def main() -> None:
    """The estimated gradient beside the enumerated one, then learning."""
    rng = np.random.default_rng(0)
    logits = np.array([0.3, 0.0, -0.4])
    arms = rng.choice(3, size=10_000, p=softmax(logits))
    estimates = bandit_gradients(logits, arms)
    print("bandit: ∇J enumerated", np.round(expected_bandit_gradient(logits), 4))
    print("  mean of 10,000 pulls", np.round(estimates.mean(axis=0), 4), end=" ± ")
    print(np.round(estimates.std(axis=0, ddof=1) / 100, 4))
    for name, mdp, num_episodes in (("chain", chain(), 1000), ("gridworld", gridworld(), 1000)):
        best = start_value(mdp, greedy_policy(optimal_action_values(mdp)))
        runs = [reinforce(mdp, num_episodes, np.random.default_rng(seed))[1] for seed in range(5)]
        print(
            f"{name}: earns {[round(float(curve[-1] / best), 3) for curve in runs]} of the optimum {best:.3f};", end=" "
        )
        print(f"95 % of it after {[episodes_until(curve, 0.95 * best) for curve in runs]} episodes")


if __name__ == "__main__":
    main()
