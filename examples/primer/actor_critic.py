"""Actor-critic: compare with what was to be expected, and do not wait for the end of the episode.

    python examples/primer/actor_critic.py

REINFORCE pushes every action up that was followed by something positive, some a little more than others: most of that
is noise. Subtracting a baseline that does not depend on the action leaves the mean of the gradient as it is and takes
away variance. The best guess of the return is the state's value, and what remains is the *advantage*:

    A(s,a) = Q(s,a) - V(s)            ∇J = E_π[Σ_t γ^t A(S_t,A_t) ∇log π(A_t|S_t)]
    critic: δ = R + γ V(S') - V(S),   V(S) ← V(S) + α_V δ
    actor:  θ ← θ + α_π γ^t δ ∇log π(A|S)

Source: Barto, Sutton & Anderson 1983; Sutton & Barto section 13.5. With V = V^π, E[δ | s,a] = A(s,a): one step of the
environment is enough to estimate an advantage, once a critic has been learnt.
"""

import numpy as np
from bellman import greedy_policy, optimal_action_values, solve_values, start_value
from environments import ARM_REWARDS, MDP, Array, chain, draw, gridworld
from reinforce import bandit_gradients, episodes_until, expected_bandit_gradient, grad_log_policy, softmax


def bandit_gradient_variance(logits: Array, baseline: float) -> float:
    """E‖gradient of one pull - ∇J‖², by enumeration of the arms."""
    each = bandit_gradients(logits, np.arange(len(ARM_REWARDS)), baseline)
    deviations = each - expected_bandit_gradient(logits, baseline)
    return float(softmax(logits) @ (deviations**2).sum(axis=1))


def actor_critic(
    mdp: MDP,
    num_episodes: int,
    rng: np.random.Generator,
    actor_rate: float = 0.5,
    critic_rate: float = 0.1,
    max_steps: int = 1000,
) -> tuple[Array, Array, Array]:
    """(policy[state, action], critic[state], the expected return after each episode), learnt step by step."""
    logits = np.zeros((mdp.num_states, mdp.num_actions))
    values = np.zeros(mdp.num_states)
    curve = np.zeros(num_episodes)
    for episode in range(num_episodes):
        state, ended, discount = mdp.start, False, 1.0
        for _ in range(max_steps):
            action = draw(softmax(logits[state]), rng)
            following, reward, ended = mdp.step(state, action, rng)
            # The value of a terminal state was never moved from 0.
            td_error = reward + mdp.discount * values[following] - values[state]
            values[state] += critic_rate * td_error
            logits[state] += actor_rate * discount * td_error * grad_log_policy(logits[state], action)
            state, discount = following, discount * mdp.discount
            if ended:
                break
        curve[episode] = start_value(mdp, softmax(logits))
    return softmax(logits), values, curve


def main() -> None:
    """The variance that a baseline takes away, then learning."""
    logits = np.array([0.3, 0.0, -0.4])
    value = float(softmax(logits) @ ARM_REWARDS)
    for name, baseline in (("none", 0.0), ("V = E[R]", value)):
        print(
            f"bandit, baseline {name:8s}: E[gradient]", np.round(expected_bandit_gradient(logits, baseline), 4), end=""
        )
        print(f"  variance {bandit_gradient_variance(logits, baseline):.4f}")
    for name, mdp, num_episodes in (("chain", chain(), 1000), ("gridworld", gridworld(), 1000)):
        best = start_value(mdp, greedy_policy(optimal_action_values(mdp)))
        runs = [actor_critic(mdp, num_episodes, np.random.default_rng(seed)) for seed in range(5)]
        print(
            f"{name}: earns {[round(float(run[2][-1] / best), 3) for run in runs]} of the optimum {best:.3f};", end=" "
        )
        print(f"95 % of it after {[episodes_until(curve, 0.95 * best) for _, _, curve in runs]} episodes;", end=" ")
        policy, values, _ = runs[0]
        print(f"critic at the start {values[mdp.start]:.3f}, true {solve_values(mdp, policy)[mdp.start]:.3f}")


if __name__ == "__main__":
    main()
