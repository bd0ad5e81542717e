"""DQN: Q-learning with a network in the table's place, and the two things that keep it from chasing its own tail.

    python examples/primer/dqn.py

A table has a cell for each pair; a network shares its weights among them, so it scales to states never seen, and an
update for one state moves the values of all others, its own target included. Hence *experience replay*, steps drawn at
random from the past, and a *target network* Q', a copy of Q that is renewed only now and then:

    loss = E_{(S,A,R,S') from the buffer} [ (R + γ max_a Q'(S',a) - Q(S,A))² ]

Source: Mnih et al., Nature 518, 2015, algorithm 1. The greedy policy is an argmax, so a small change of Q can flip its
action and with it everything that is sampled next; `main` shows how much more often that happens without Q'.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from bellman import greedy_policy, optimal_action_values, start_value
from environments import MDP, Array, gridworld
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Config:
    """The numbers of a run."""

    num_steps: int = 2500
    """Steps of the environment; each is followed by one update."""
    batch_size: int = 32
    """Steps drawn from the buffer for an update."""
    buffer_size: int = 2000
    """How many steps are remembered."""
    target_every: int = 100
    """Updates between two copies of Q into Q'; 1 is no target network."""
    exploration: float = 0.3
    """ε: the share of actions taken at random."""
    learning_rate: float = 3e-3
    """Adam's."""
    num_hidden: int = 32
    """The width of the network's hidden layer."""
    report_every: int = 20
    """Steps between two looks at the greedy policy."""
    max_episode: int = 50
    """Steps after which an episode is begun anew."""


def td_loss(network: nn.Module, target: nn.Module, features: Tensor, batch: list[Array], discount: float) -> Tensor:
    """The mean squared error against R + γ max_a Q'(S',a), which no gradient enters; nothing follows a last step."""
    states, actions, rewards, following, ended = (torch.as_tensor(column) for column in batch)
    with torch.no_grad():
        targets = rewards + discount * ~ended * target(features[following]).amax(dim=1)
    predicted = network(features[states]).gather(1, actions[:, None])[:, 0]
    return nn.functional.mse_loss(predicted, targets)


def dqn(mdp: MDP, config: Config, seed: int) -> tuple[Array, Array]:
    """(Q[state, action], the expected return of the greedy policy at each report)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    features = torch.eye(mdp.num_states)
    network = nn.Sequential(
        nn.Linear(mdp.num_states, config.num_hidden), nn.ReLU(), nn.Linear(config.num_hidden, mdp.num_actions)
    )
    target = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    kinds = (np.int64, np.int64, np.float32, np.int64, np.bool_)
    buffer = [np.zeros(config.buffer_size, dtype=kind) for kind in kinds]
    curve = []
    state, age = mdp.start, 0
    for step in range(config.num_steps):
        with torch.no_grad():
            greedy = int(network(features[state]).argmax())
        action = int(rng.random() * mdp.num_actions) if rng.random() < config.exploration else greedy
        following, reward, ended = mdp.step(state, action, rng)
        for column, value in zip(buffer, (state, action, reward, following, ended), strict=True):
            column[step % config.buffer_size] = value
        age += 1
        state, age = (mdp.start, 0) if ended or age == config.max_episode else (following, age)

        drawn = rng.integers(min(step + 1, config.buffer_size), size=config.batch_size)
        loss = td_loss(network, target, features, [column[drawn] for column in buffer], mdp.discount)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % config.target_every == 0:
            target.load_state_dict(network.state_dict())
        if step % config.report_every == 0:
            with torch.no_grad():
                curve.append(start_value(mdp, greedy_policy(network(features).numpy())))
    with torch.no_grad():
        return network(features).double().numpy(), np.array(curve)


def main() -> None:
    """The greedy policy's return in the second half of training, with a target network and without."""
    mdp = gridworld()
    best = start_value(mdp, greedy_policy(optimal_action_values(mdp)))
    for name, config in (("with target network", Config()), ("without", Config(target_every=1))):
        for seed in (0, 1):
            q, curve = dqn(mdp, config, seed)
            late = curve[len(curve) // 2 :] / best
            error = np.abs(q - optimal_action_values(mdp))[~mdp.terminal].max()
            print(f"{name:19s} seed {seed}: greedy return / optimum {late.mean():.3f}, standard deviation", end=" ")
            print(f"{late.std():.3f};  max|Q - Q*| {error:.3f}", flush=True)


if __name__ == "__main__":
    main()
