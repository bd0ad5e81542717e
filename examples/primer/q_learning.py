"""Q-learning: learn the value of every action, and take the best one.

    python examples/primer/q_learning.py

The Bellman equation of Q* with the expectation replaced by the one step that was just taken:

    Q(S,A) ← Q(S,A) + α [R + γ max_a Q(S',a) - Q(S,A)]

Source: Watkins & Dayan, Q-learning, Machine Learning 8, 1992; Sutton & Barto eq. 6.8. It converges to Q* if every
action is tried again and again in every state (ε-greedy: the best action, or any with probability ε), and if α falls,
neither too fast nor too slowly: Σ α = ∞, Σ α² < ∞. Here α = 1 / (1 + (1 - γ) n) at the n-th visit of a pair
(Wainwright, arXiv 1905.06265).
"""

import numpy as np
from bellman import greedy_policy, optimal_action_values, start_value
from environments import MDP, Array, chain, gridworld


def q_learning(mdp: MDP, num_steps: int, rng: np.random.Generator, exploration: float = 0.5) -> Array:
    """Q[state, action] after `num_steps` steps of ε-greedy behaviour, ε = `exploration`."""
    # At random at first; but a terminal state is worth nothing, and that is known.
    q = np.where(mdp.terminal[:, None], 0.0, rng.random((mdp.num_states, mdp.num_actions)))
    num_visits = np.zeros_like(q)
    state = mdp.start
    for _ in range(num_steps):
        explores = rng.random() < exploration
        action = int(rng.random() * mdp.num_actions) if explores else int(q[state].argmax())
        following, reward, ended = mdp.step(state, action, rng)
        num_visits[state, action] += 1
        step_size = 1 / (1 + (1 - mdp.discount) * num_visits[state, action])
        q[state, action] += step_size * (reward + mdp.discount * q[following].max() - q[state, action])
        state = mdp.start if ended else following
    return q


def main() -> None:
    """Q-learning on both environments, against Q* from value iteration."""
    for name, mdp, num_steps in (("chain", chain(), 50_000), ("gridworld", gridworld(), 50_000)):
        optimal = optimal_action_values(mdp)
        q = q_learning(mdp, num_steps, np.random.default_rng(0))
        earned, best = start_value(mdp, greedy_policy(q)), start_value(mdp, greedy_policy(optimal))
        print(f"{name:9s}  {num_steps:7,} steps  max|Q - Q*| {np.abs(q - optimal).max():.4f}", end="  ")
        print(f"greedy policy earns {earned:.4f} of {best:.4f}")


if __name__ == "__main__":
    main()
