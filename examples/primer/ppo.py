"""PPO: TRPO's caution with nothing but a clip, so that plain minibatch gradient steps are enough.

    python examples/primer/ppo.py

    ratio      ρ = π(a|s) / π_anchor(a|s), 1 before the first update on a batch
    objective  E[min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)]: no gain from moving a ratio beyond the clip, but a way back
    advantage  δ_t = R_t + γ V(s_{t+1}) - V(s_t),  A_t = Σ_l (γλ)^l δ_{t+l}: λ = 0 is actor-critic's one step, which
               believes the critic; λ = 1 the whole return minus V, which believes the samples
    critic     V(s_t) towards A_t + V(s_t)

Sources: Schulman et al., arXiv 1707.06347, eq. 7 and 11; generalized advantage estimation, arXiv 1506.02438, eq. 16;
"The 37 implementation details of PPO" (Huang et al., 2022), of which here: orthogonal weights, Adam's eps 1e-5, falling
learning rate, advantages whitened per minibatch, gradient norm 0.5. Left out: value clipping, entropy bonus.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from cartpole import CartPole
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every number of a run."""

    num_iterations: int = 20
    """Batches of samples."""
    num_envs: int = 16
    """Carts that are driven at once."""
    num_steps: int = 64
    """Steps of each cart in a batch."""
    num_epochs: int = 4
    """Times a batch is gone through."""
    minibatch_size: int = 256
    """Samples for one update."""
    discount: float = 0.98
    """γ."""
    gae_lambda: float = 0.95
    """λ."""
    clip: float = 0.2
    """ε."""
    learning_rate: float = 2e-3
    """Adam's, at the start; it falls to 0."""


def gae(
    rewards: Tensor,
    values: Tensor,
    following_values: Tensor,
    terminated: Tensor,
    ended: Tensor,
    discount: float,
    gae_lambda: float,
) -> Tensor:
    """A[step, env]. `following_values` are V of what each step led to, `ended` where an episode did, cut or terminated.

    After termination nothing follows. Where an episode was only cut, its last step still counts on V, but the sum over
    later errors stops, because they belong to another episode.
    """
    errors = rewards + discount * torch.where(terminated, 0.0, following_values) - values
    advantages = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        later = advantages[t] = errors[t] + discount * gae_lambda * torch.where(ended[t], 0.0, later)
    return advantages


def clipped_surrogate(policy_logprobs: Tensor, anchor_logprobs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) of each sample; the loss is minus its mean."""
    ratio = torch.exp(policy_logprobs - anchor_logprobs)
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def mlp(num_outputs: int, last_gain: float) -> nn.Module:
    """A network with two hidden layers and orthogonal weights."""
    layers: list[nn.Module] = []
    for num_in, num_out, gain in ((4, 64, 2**0.5), (64, 64, 2**0.5), (64, num_outputs, last_gain)):
        layer = nn.Linear(num_in, num_out)
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def collect(env: CartPole, policy: nn.Module, critic: nn.Module, config: Config) -> tuple[list[Tensor], Tensor]:
    """([observations, actions, anchor log-probs, advantages, value targets], terminated[step, env])."""
    columns = []
    for _ in range(config.num_steps):
        observations = torch.tensor(env.observations, dtype=torch.float32)
        logprobs = torch.log_softmax(policy(observations), dim=1)
        actions = torch.multinomial(logprobs.exp(), 1)
        reached, *ends = env.step(actions[:, 0].numpy())
        following = torch.tensor(reached, dtype=torch.float32)
        drawn = (observations, actions[:, 0], logprobs.gather(1, actions)[:, 0])
        columns.append((*drawn, following, *map(torch.tensor, ends)))
    stacked = [torch.stack(column) for column in zip(*columns, strict=True)]
    observations, actions, anchor_logprobs, following, terminated, truncated = stacked
    values, following_values = critic(observations)[..., 0], critic(following)[..., 0]
    ended = terminated | truncated
    ended[-1] = True  # the batch is cut here
    rewards = torch.ones_like(values)
    advantages = gae(rewards, values, following_values, terminated, ended, config.discount, config.gae_lambda)
    return [observations, actions, anchor_logprobs, advantages, advantages + values], terminated


def train(config: Config, seed: int, on_iteration: Callable[[int, int], None]) -> nn.Module:
    """Train a new policy; `on_iteration(iteration, poles that fell)` is called for each batch."""
    torch.manual_seed(seed)
    env = CartPole(config.num_envs, np.random.default_rng(seed))
    policy, critic = mlp(2, 0.01), mlp(1, 1.0)
    parameters = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, eps=1e-5)
    for iteration in range(config.num_iterations):
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - iteration / config.num_iterations)
        batch, terminated = collect(env, policy, critic, config)
        flat = [column.flatten(0, 1) for column in batch]
        for _ in range(config.num_epochs):
            for chosen in torch.randperm(len(flat[0])).split(config.minibatch_size):
                observations, actions, anchor_logprobs, advantages, targets = (column[chosen] for column in flat)
                logprobs = torch.log_softmax(policy(observations), dim=1)
                policy_logprobs = logprobs.gather(1, actions[:, None])[:, 0]
                whitened = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
                gain = clipped_surrogate(policy_logprobs, anchor_logprobs, whitened, config.clip).mean()
                error = nn.functional.mse_loss(critic(observations)[:, 0], targets)
                optimizer.zero_grad()
                (0.5 * error - gain).backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
        on_iteration(iteration + 1, int(terminated.sum()))
    return policy


@torch.no_grad()
def episode_lengths(policy: nn.Module, num_episodes: int, seed: int) -> np.ndarray:
    """How long each of `num_episodes` fresh carts keeps its pole up under the most probable actions, at most 200."""
    env = CartPole(num_episodes, np.random.default_rng(seed))
    lengths, running = np.zeros(num_episodes), np.ones(num_episodes, dtype=bool)
    while running.any():
        lengths += running
        logits = policy(torch.tensor(env.observations, dtype=torch.float32))
        _, terminated, truncated = env.step(logits.argmax(dim=1).numpy())
        running &= ~(terminated | truncated)
    return lengths


def main() -> None:
    """Train, and show how the poles stop falling."""

    def show(iteration: int, num_fallen: int) -> None:
        print(f"iteration {iteration:3d}  {num_fallen:3d} poles fell in 1,024 steps", flush=True)

    policy = train(Config(), seed=0, on_iteration=show)
    lengths = episode_lengths(policy, 100, seed=1)
    print(f"100 new episodes: {lengths.mean():.1f} of 200 steps on average, at least {lengths.min():.0f}")


if __name__ == "__main__":
    main()
