"""Environments small enough to be known completely: a bandit, a chain with one delayed reward, and a gridworld.

A finite *Markov decision process*: an *agent* in a *state* s chooses an *action* a, and the *environment* answers with
a *reward* and the next state s'. They are written down as the tables P(s'|s,a) and R(s,a,s'), so that
`bellman.py` can compute what is optimal. The methods of the other files may only call `step`.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def draw(probabilities: Array, rng: np.random.Generator) -> int:
    """An index, each with its probability."""
    index = int(np.searchsorted(np.cumsum(probabilities), rng.random(), side="right"))
    return min(index, len(probabilities) - 1)  # a sum of probabilities may be rounded to less than 1


@dataclass(frozen=True, kw_only=True)
class MDP:
    """A finite Markov decision process. A terminal state leads to itself, with reward 0."""

    transition: Array
    """P(s'|s,a), [state, action, next state]."""
    reward: Array
    """R(s,a,s'), [state, action, next state]."""
    terminal: Array
    """Whether an episode ends in a state, [state]."""
    start: int
    """Where an episode begins."""
    discount: float
    """γ, below 1: what a reward is worth that comes one step later."""

    @property
    def num_states(self) -> int:
        """How many states there are, terminal ones included."""
        return self.transition.shape[0]

    @property
    def num_actions(self) -> int:
        """How many actions there are, the same in each state."""
        return self.transition.shape[1]

    def step(self, state: int, action: int, rng: np.random.Generator) -> tuple[int, float, bool]:
        """The environment's answer: (next state, reward, whether the episode has ended)."""
        following = draw(self.transition[state, action], rng)
        return following, float(self.reward[state, action, following]), bool(self.terminal[following])


ARM_REWARDS = np.array([1.0, 1.5, 2.0])
"""What the arms of the bandit pay."""


def bandit() -> MDP:
    """The smallest environment, three arms: one state, one action, one reward, and the episode ends."""
    transition, reward = np.zeros((2, 3, 2)), np.zeros((2, 3, 2))
    transition[:, :, 1] = 1.0
    reward[0, :, 1] = ARM_REWARDS
    return MDP(transition=transition, reward=reward, terminal=np.array([False, True]), start=0, discount=0.9)


def chain(num_states: int = 5, slip: float = 0.1, discount: float = 0.9) -> MDP:
    """States in a row, left (0) and right (1); only entering the last one pays, 1. A step slips to the other side.

    The reward is sparse and delayed: it comes once, at the end, and nothing says which of the steps deserve it.
    """
    shape = (num_states, 2, num_states)
    transition, reward = np.zeros(shape), np.zeros(shape)
    goal = num_states - 1
    for state in range(goal):
        sides = (max(state - 1, 0), state + 1)
        for action in (0, 1):
            transition[state, action, sides[action]] += 1 - slip
            transition[state, action, sides[1 - action]] += slip
    transition[goal, :, goal] = 1.0
    reward[:goal, :, goal] = 1.0
    return MDP(transition=transition, reward=reward, terminal=np.arange(num_states) == goal, start=0, discount=discount)


GRID = ("...G", ".#.X", "S...")


def gridworld(grid: tuple[str, ...] = GRID, discount: float = 0.9) -> MDP:
    """A map to walk on, up, right, down, left: from S to G, which pays 1, past X, which costs 1; # is a wall.

    G and X end the episode. A step into a wall or over the border stays where it is.
    """
    cells = [(y, x) for y, row in enumerate(grid) for x, kind in enumerate(row) if kind != "#"]
    kinds = [grid[y][x] for y, x in cells]
    shape = (len(cells), 4, len(cells))
    transition, reward = np.zeros(shape), np.zeros(shape)
    for state, (y, x) in enumerate(cells):
        for action, (dy, dx) in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1))):
            there = (y + dy, x + dx)
            following = cells.index(there) if there in cells and kinds[state] not in "GX" else state
            transition[state, action, following] = 1.0
            if following != state:
                reward[state, action, following] = {"G": 1.0, "X": -1.0}.get(kinds[following], 0.0)
    terminal = np.array([kind in "GX" for kind in kinds])
    return MDP(transition=transition, reward=reward, terminal=terminal, start=kinds.index("S"), discount=discount)
