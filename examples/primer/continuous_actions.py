"""Continuous actions: where the maximum over actions is out of reach, a policy can still be improved.

    python examples/primer/continuous_actions.py

A bandit whose action is any real number: R = -(a - 0.73)² + noise. Q-learning needs max_a Q(a), which over a continuum
is an optimization problem of its own at every step. A table can only cut the axis into a grid: the answer is never
finer than the grid, a finer grid has fewer pulls for each point, and its size is exponential in the number of
dimensions. A policy needs no maximum:

    π(a) = N(μ, σ²)      ∂log π/∂μ = (a - μ)/σ²      ∂log π/∂log σ = (a - μ)²/σ² - 1
    ∇J = E[(R - b) ∇log π(a)],  b the mean reward of the batch's other samples

Source: Williams, Machine Learning 8, 1992, section 6 (Gaussian units); Sutton & Barto section 13.7.
"""

import numpy as np
from environments import Array

BEST_ACTION = 0.73
NOISE = 0.05
"""The standard deviation of a reward around its mean."""


def pull(actions: Array, rng: np.random.Generator) -> Array:
    """The reward of each action."""
    return -((actions - BEST_ACTION) ** 2) + NOISE * rng.standard_normal(actions.shape)


def gaussian_gradients(mu: float, log_sigma: float, actions: Array, rewards: Array) -> Array:
    """What each sample says the gradient in (μ, log σ) is, [sample, 2]; each has the mean of the others as baseline."""
    others = (rewards.sum() - rewards) / (len(rewards) - 1)
    z = (actions - mu) / np.exp(log_sigma)
    return (rewards - others)[:, None] * np.stack([z / np.exp(log_sigma), z**2 - 1], axis=1)


def learn_policy(
    num_batches: int, batch_size: int, rng: np.random.Generator, rate: float = 0.05
) -> tuple[float, float]:
    """(μ, σ) after `num_batches` gradient steps from N(0, 1)."""
    mu, log_sigma = 0.0, 0.0
    for _ in range(num_batches):
        actions = mu + np.exp(log_sigma) * rng.standard_normal(batch_size)
        step = rate * gaussian_gradients(mu, log_sigma, actions, pull(actions, rng)).mean(axis=0)
        mu, log_sigma = mu + step[0], log_sigma + step[1]
    return float(mu), float(np.exp(log_sigma))


def learn_action_values(num_actions: int, num_pulls: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """(grid of actions in [-2, 2], Q of each): the mean reward of its pulls, all pulled equally often."""
    grid = np.linspace(-2, 2, num_actions)
    return grid, np.mean([pull(grid, rng) for _ in range(num_pulls // num_actions)], axis=0)


def main() -> None:
    """The same number of pulls, spent by a policy and by tables of several sizes."""
    mu, sigma = learn_policy(400, 16, np.random.default_rng(0))
    print(f"best action {BEST_ACTION}; each method may pull 6,400 times")
    print(f"policy gradient       μ {mu:.3f}  σ {sigma:.3f}        off by {abs(mu - BEST_ACTION):.3f}")
    for num_actions in (5, 11, 41, 641):
        grid, q = learn_action_values(num_actions, 6400, np.random.default_rng(0))
        found = grid[q.argmax()]
        print(f"Q on {num_actions:3d} grid points   a {found:.3f}, spacing {grid[1] - grid[0]:.3f}", end="")
        print(f"  off by {abs(found - BEST_ACTION):.3f};  in 6 dimensions {num_actions**6:.0e} points")


if __name__ == "__main__":
    main()
