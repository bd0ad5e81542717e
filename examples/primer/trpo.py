"""TRPO: the largest improvement that stays within a trusted distance, measured where it counts, between policies.

    python examples/primer/trpo.py

A step of a given length in θ may change the policy hardly at all, or ruin it, and with it the samples of the next step.
TRPO bounds the change of the policy itself:

    maximise   L(θ) = E[π(a|s)/π_anchor(a|s) · A(s,a)]   subject to   E_s[KL(π_anchor(·|s) ‖ π(·|s))] ≤ δ
    direction  x = F⁻¹ ∇L, the natural gradient, by conjugate gradients: only products F v are needed, F = ∇² KL
    length     √(2δ / xᵀF x), then halved until KL ≤ δ and L has risen: both hold for every step that is taken

Source: Schulman et al., arXiv 1502.05477, eq. 14 and appendix C. The anchor is the policy that drew the samples. Here
the policy is a small network, and the advantage is the return minus the mean return of the state in the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from bellman import discounted_returns, greedy_policy, optimal_action_values, run_episode, start_value
from environments import MDP, gridworld
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


@dataclass(frozen=True, kw_only=True)
class Step:
    """What became of one step."""

    accepted: bool
    """Whether the line search found a step to take; else θ is as it was."""
    kl: float
    """E_s[KL(π_anchor ‖ π)] of the step taken."""
    improvement: float
    """L(θ) - L(θ_anchor) of the step taken."""
    num_backtracks: int
    """How often the step was halved."""


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, num_iterations: int = 10) -> Tensor:
    """x with F x ≈ b, given only `product(v)` = F v for a positive definite F."""
    x, residual = torch.zeros_like(b), b.clone()
    direction, squared = residual.clone(), residual @ residual
    for _ in range(num_iterations):
        if squared < 1e-20:
            break
        moved = product(direction)
        length = squared / (direction @ moved)
        x = x + length * direction
        residual = residual - length * moved
        before, squared = squared, residual @ residual
        direction = residual + squared / before * direction
    return x


def mean_kl(anchor_logprobs: Tensor, policy_logprobs: Tensor) -> Tensor:
    """E_s[KL(anchor ‖ policy)] of log-probs [sample, action], exact over the actions."""
    return (anchor_logprobs.exp() * (anchor_logprobs - policy_logprobs)).sum(dim=1).mean()


def trpo_step(
    policy: nn.Module,
    observations: Tensor,
    actions: Tensor,
    advantages: Tensor,
    max_kl: float = 0.05,
    damping: float = 1e-3,
) -> Step:
    """One step of the policy, in place. `damping` is added to F's diagonal, which keeps it positive definite."""
    parameters = list(policy.parameters())

    def flat_gradient(of: Tensor, create_graph: bool = False) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(of, parameters, create_graph=create_graph)])

    def logprobs() -> Tensor:
        return torch.log_softmax(policy(observations), dim=1)

    def surrogate(policy_logprobs: Tensor) -> Tensor:
        ratio = torch.exp((policy_logprobs - anchor_logprobs).gather(1, actions[:, None])[:, 0])
        return (ratio * advantages).mean()

    def fisher_product(vector: Tensor) -> Tensor:
        kl_gradient = flat_gradient(mean_kl(anchor_logprobs, logprobs()), create_graph=True)
        return flat_gradient(kl_gradient @ vector) + damping * vector

    anchor_logprobs = logprobs().detach()
    anchor, before = parameters_to_vector(parameters).detach(), advantages.mean()
    direction = conjugate_gradient(fisher_product, flat_gradient(surrogate(logprobs())))
    curvature = direction @ fisher_product(direction)
    step = direction * torch.sqrt(2 * max_kl / curvature.clamp(min=1e-20))
    for num_backtracks in range(10):
        vector_to_parameters(anchor + step / 2**num_backtracks, parameters)
        with torch.no_grad():
            policy_logprobs = logprobs()
        kl, improvement = mean_kl(anchor_logprobs, policy_logprobs), surrogate(policy_logprobs) - before
        if kl <= max_kl and improvement > 0:
            return Step(accepted=True, kl=float(kl), improvement=float(improvement), num_backtracks=num_backtracks)
    vector_to_parameters(anchor, parameters)
    return Step(accepted=False, kl=0.0, improvement=0.0, num_backtracks=10)


def sample_batch(mdp: MDP, policy: np.ndarray, rng: np.random.Generator, num_episodes: int) -> tuple[Tensor, ...]:
    """(states, actions, advantages), a step of an episode each."""
    episodes = [run_episode(mdp, policy, rng, max_steps=100) for _ in range(num_episodes)]
    states = np.concatenate([states for states, _, _ in episodes])
    actions = np.concatenate([actions for _, actions, _ in episodes])
    returns = np.concatenate([discounted_returns(rewards, mdp.discount) for _, _, rewards in episodes])
    totals = np.bincount(states, returns, mdp.num_states)
    baseline = totals / np.bincount(states, minlength=mdp.num_states).clip(min=1)
    return torch.tensor(states), torch.tensor(actions), torch.tensor(returns - baseline[states])


def train(
    mdp: MDP, num_steps: int, seed: int, on_step: Callable[[Step, float], None], num_episodes: int = 20
) -> nn.Module:
    """Train a new policy; `on_step(step, expected return)` is called after every step."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    policy = nn.Sequential(nn.Linear(mdp.num_states, 16), nn.Tanh(), nn.Linear(16, mdp.num_actions)).double()
    features = torch.eye(mdp.num_states, dtype=torch.float64)

    def probabilities() -> np.ndarray:
        with torch.no_grad():
            return torch.softmax(policy(features), dim=1).numpy()

    for _ in range(num_steps):
        states, actions, advantages = sample_batch(mdp, probabilities(), rng, num_episodes)
        step = trpo_step(policy, features[states], actions, advantages)
        on_step(step, start_value(mdp, probabilities()))
    return policy


def main() -> None:
    """The distance and the gain of each step."""
    mdp = gridworld()
    best = start_value(mdp, greedy_policy(optimal_action_values(mdp)))

    def show(step: Step, earned: float) -> None:
        taken = f"KL {step.kl:.4f} ≤ 0.05  halved {step.num_backtracks}×  surrogate {step.improvement:+.4f}"
        print(taken if step.accepted else f"{'no step':42s}", end="  ")
        print(f"earns {earned / best:6.3f} of the optimum", flush=True)

    train(mdp, 25, seed=0, on_step=show)


if __name__ == "__main__":
    main()
