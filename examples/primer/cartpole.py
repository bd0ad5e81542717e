"""CartPole: keep a pole upright on a cart by pushing it left (0) or right (1), many carts at a time.

Source: Barto, Sutton & Anderson, IEEE Transactions on Systems, Man, and Cybernetics 13, 1983, without friction;
constants and Euler steps as in OpenAI Gym's CartPole-v0. A step pays 1; an episode is *terminated* when the pole leans
by 12° or the cart is 2.4 away, and *truncated* after 200 steps, which says nothing bad about the state it was cut in.
"""

import numpy as np

Array = np.ndarray


class CartPole:
    """`num_envs` carts. An observation is (position, speed, angle, angular speed), in metres, radians, seconds."""

    def __init__(self, num_envs: int, rng: np.random.Generator, max_steps: int = 200) -> None:
        self.rng, self.max_steps = rng, max_steps
        self.observations = rng.uniform(-0.05, 0.05, (num_envs, 4))
        self.ages = np.zeros(num_envs, dtype=np.int64)

    def step(self, actions: Array) -> tuple[Array, Array, Array]:
        """(observations that the actions led to, terminated, truncated), [env]; what has ended begins anew."""
        x, speed, angle, spin = self.observations.T
        gravity, pole_mass, mass, half_length, dt = 9.8, 0.1, 1.1, 0.5, 0.02
        force = np.where(actions == 1, 10.0, -10.0)
        pull = (force + pole_mass * half_length * spin**2 * np.sin(angle)) / mass
        inertia = half_length * (4 / 3 - pole_mass * np.cos(angle) ** 2 / mass)
        spin_change = (gravity * np.sin(angle) - np.cos(angle) * pull) / inertia
        speed_change = pull - pole_mass * half_length * spin_change * np.cos(angle) / mass
        reached = np.stack([x + dt * speed, speed + dt * speed_change, angle + dt * spin, spin + dt * spin_change], 1)
        self.ages += 1
        terminated = (np.abs(reached[:, 0]) > 2.4) | (np.abs(reached[:, 2]) > np.deg2rad(12))
        truncated = ~terminated & (self.ages >= self.max_steps)
        ended = terminated | truncated
        fresh = self.rng.uniform(-0.05, 0.05, reached.shape)
        self.observations = np.where(ended[:, None], fresh, reached)
        self.ages[ended] = 0
        return reached, terminated, truncated
