"""Where reinforcement learning begins: returns, values, and the Bellman equation.

    python examples/primer/bellman.py

Nobody tells the agent which action was right. It wants the largest expected *return*
G_t = R_{t+1} + γ R_{t+2} + γ² R_{t+3} + …, and how much to expect is what values say:

    V^π(s) = E_π[G_t | S_t = s]      Q^π(s,a) = E_π[G_t | S_t = s, A_t = a]
    Bellman:  V^π = r_π + γ P_π V^π,  so  V^π = (I - γ P_π)⁻¹ r_π
    optimal:  Q*(s,a) = Σ_s' P(s'|s,a) [R(s,a,s') + γ max_a' Q*(s',a')]

Source: Sutton & Barto, Reinforcement Learning, 2nd edition, 2018, eq. 3.8, 3.12 to 3.14 and 3.20. Here the tables of
the environment are known, and values are computed. Later the agent sees only its own samples, and these judge it.
"""

import numpy as np
from environments import MDP, Array, chain, draw, gridworld


def discounted_returns(rewards: list[float], discount: float) -> Array:
    """G_t for each step of one episode, from the back: G_t = R_{t+1} + γ G_{t+1}."""
    returns = np.zeros(len(rewards))
    following = 0.0
    for t in reversed(range(len(rewards))):
        following = returns[t] = rewards[t] + discount * following
    return returns


def run_episode(
    mdp: MDP, policy: Array, rng: np.random.Generator, max_steps: int = 1000, start: int | None = None
) -> tuple[list[int], list[int], list[float]]:
    """(states, actions, rewards) of one episode under policy[state, action]; it is cut after `max_steps`."""
    states: list[int] = []
    actions: list[int] = []
    rewards: list[float] = []
    state, ended = mdp.start if start is None else start, False
    while not ended and len(states) < max_steps:
        action = draw(policy[state], rng)
        states.append(state)
        actions.append(action)
        state, reward, ended = mdp.step(state, action, rng)
        rewards.append(reward)
    return states, actions, rewards


def under_policy(mdp: MDP, policy: Array) -> tuple[Array, Array]:
    """(P_π[state, next state], r_π[state]): the process once the policy has chosen."""
    transition = np.einsum("sa,san->sn", policy, mdp.transition)
    reward = np.einsum("sa,san,san->s", policy, mdp.transition, mdp.reward)
    return transition, reward


def solve_values(mdp: MDP, policy: Array) -> Array:
    """V^π[state], from the Bellman equation as the linear system that it is."""
    transition, reward = under_policy(mdp, policy)
    return np.linalg.solve(np.eye(mdp.num_states) - mdp.discount * transition, reward)


def evaluate_policy(mdp: MDP, policy: Array, tolerance: float = 1e-12) -> Array:
    """V^π[state], by using the Bellman equation as an assignment until nothing moves.

    An application shrinks the error by γ, so the error that is left is below γ/(1 - γ) times the last move.
    """
    transition, reward = under_policy(mdp, policy)
    values = np.zeros(mdp.num_states)
    while True:
        before, values = values, reward + mdp.discount * transition @ values
        if mdp.discount / (1 - mdp.discount) * np.abs(values - before).max() < tolerance:
            return values


def action_values(mdp: MDP, values: Array) -> Array:
    """Q[state, action] = Σ_s' P(s'|s,a) [R(s,a,s') + γ V(s')]."""
    return np.einsum("san,san->sa", mdp.transition, mdp.reward + mdp.discount * values)


def optimal_action_values(mdp: MDP, tolerance: float = 1e-12) -> Array:
    """Q*[state, action], by value iteration: Q ← r + γ P max_a Q."""
    q = np.zeros((mdp.num_states, mdp.num_actions))
    while True:
        before, q = q, action_values(mdp, q.max(axis=1))
        if mdp.discount / (1 - mdp.discount) * np.abs(q - before).max() < tolerance:
            return q


def uniform_policy(mdp: MDP) -> Array:
    """The policy that knows nothing."""
    return np.full((mdp.num_states, mdp.num_actions), 1 / mdp.num_actions)


def greedy_policy(q: Array) -> Array:
    """The policy that takes the action of the highest value in each state of q[state, action]."""
    return np.eye(q.shape[1])[q.argmax(axis=1)]


def start_value(mdp: MDP, policy: Array) -> float:
    """The expected return of an episode, J = V^π(start): what every method here maximises."""
    return float(solve_values(mdp, policy)[mdp.start])


def main() -> None:
    """What a random policy earns, sampled and solved, beside the optimum."""
    rng = np.random.default_rng(0)
    for name, mdp in (("chain", chain()), ("gridworld", gridworld())):
        policy = uniform_policy(mdp)
        sampled = [discounted_returns(run_episode(mdp, policy, rng)[2], mdp.discount)[0] for _ in range(2000)]
        error = np.std(sampled, ddof=1) / len(sampled) ** 0.5
        difference = np.abs(evaluate_policy(mdp, policy) - solve_values(mdp, policy)).max()
        best = start_value(mdp, greedy_policy(optimal_action_values(mdp)))
        print(f"{name:9s}  random policy: {np.mean(sampled):.3f} ± {error:.3f} in 2,000 episodes, solved", end=" ")
        print(f"{start_value(mdp, policy):.3f} (iterated: within {difference:.0e});  optimal policy {best:.3f}")


if __name__ == "__main__":
    main()
