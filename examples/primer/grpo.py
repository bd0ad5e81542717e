"""GRPO: PPO without the critic. What was to be expected is the mean of a group that began in the same place.

    python examples/primer/grpo.py

PPO's critic estimates V(s) from the past. For a language model that is a second model as large as the first, and all it
has to know at a prompt is how well answers do there. So ask for G answers and take their mean:

    A_i = (r_i - mean r) / std r       for every action of episode i, r its whole return
    J   = 1/N Σ_i 1/|o_i| Σ_t { min(ρ A_i, clip(ρ, 1 - ε, 1 + ε) A_i) - β (π_ref/π - log(π_ref/π) - 1) }

Source: DeepSeekMath, arXiv 2402.03300, eq. 3 and 4. A start state is the prompt, an episode the completion, an action
the token. The mean of the group is an unbiased estimate of V^π(start); what is given up is credit within an episode.
`examples/grpo_from_scratch.py` is the same for a language model.
"""

from collections.abc import Callable

import numpy as np
import torch
from bellman import discounted_returns, greedy_policy, optimal_action_values, run_episode, solve_values, start_value
from environments import MDP, bandit, chain
from ppo import clipped_surrogate
from torch import Tensor


def group_advantages(rewards: Tensor, scale: bool = True) -> Tensor:
    """(r - mean) / population std within each row of rewards[group, completion]; a group of equals is exactly 0.

    With `scale` off, the difference is all: the advantage of Dr. GRPO (arXiv 2503.20783).
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    std = rewards.std(dim=1, keepdim=True, correction=0) if scale else torch.ones_like(rewards)
    return torch.where(equal, 0.0, centred / torch.where(equal, 1.0, std))


def grpo_loss(
    policy_logprobs: Tensor,
    anchor_logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    completion_index: Tensor,
    clip: float,
    kl_coef: float,
) -> Tensor:
    """Minus J. Log-probs are [token], advantages [completion]; `completion_index` says whose each token is."""
    log_ref_ratio = ref_logprobs - policy_logprobs
    kl = torch.exp(log_ref_ratio) - log_ref_ratio - 1
    gain = clipped_surrogate(policy_logprobs, anchor_logprobs, advantages[completion_index], clip) - kl_coef * kl
    lengths = torch.bincount(completion_index, minlength=len(advantages))
    return -(gain / lengths[completion_index]).sum() / len(advantages)


def train(
    mdp: MDP,
    num_steps: int,
    seed: int,
    on_step: Callable[[int, np.ndarray, np.ndarray], None],
    group_size: int = 16,
    num_updates: int = 2,
    learning_rate: float = 0.1,
    clip: float = 0.2,
    kl_coef: float = 0.01,
) -> np.ndarray:
    """policy[state, action], learnt; `on_step(step, policy that sampled, mean return of each group)` sees each step."""
    rng = np.random.default_rng(seed)
    logits = torch.zeros(mdp.num_states, mdp.num_actions, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    ref = torch.log_softmax(logits.detach(), dim=1)  # the policy at the start
    prompts = np.flatnonzero(~mdp.terminal)
    for step in range(1, num_steps + 1):
        anchor = torch.log_softmax(logits.detach(), dim=1)
        policy = anchor.exp().numpy()
        episodes = [run_episode(mdp, policy, rng, start=int(p)) for p in prompts for _ in range(group_size)]
        rewards = [discounted_returns(episode_rewards, mdp.discount)[0] for _, _, episode_rewards in episodes]
        grouped = torch.tensor(np.reshape(rewards, (len(prompts), group_size)))
        on_step(step, policy, grouped.mean(dim=1).numpy())

        states = torch.tensor(np.concatenate([states for states, _, _ in episodes]))
        actions = torch.tensor(np.concatenate([actions for _, actions, _ in episodes]))
        index = torch.arange(len(episodes)).repeat_interleave(torch.tensor([len(e[0]) for e in episodes]))
        for _ in range(num_updates):
            now = torch.log_softmax(logits, dim=1)
            loss = grpo_loss(
                now[states, actions],
                anchor[states, actions],
                ref[states, actions],
                group_advantages(grouped).flatten(),
                index,
                clip,
                kl_coef,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return torch.softmax(logits.detach(), dim=1).numpy()


def main() -> None:
    """Learning on the bandit and on the chain; the group's mean beside the value that a critic would have to learn."""
    for name, mdp in (("bandit", bandit()), ("chain", chain())):
        best = start_value(mdp, greedy_policy(optimal_action_values(mdp)))

        def show(
            step: int, policy: np.ndarray, means: np.ndarray, name: str = name, mdp: MDP = mdp, best: float = best
        ) -> None:
            if step in (1, 10, 20, 40):
                true = solve_values(mdp, policy)[~mdp.terminal]
                print(f"{name} step {step:2d}: group means {np.round(means, 3)}  V {np.round(true, 3)}", end="  ")
                print(f"earns {start_value(mdp, policy) / best:.3f} of the optimum", flush=True)

        train(mdp, 40, seed=0, on_step=show)


if __name__ == "__main__":
    main()
