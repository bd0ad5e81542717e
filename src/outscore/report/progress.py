"""How far a stage is, and how long it has still to go."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

RECENT = 20
"""How many of the last steps the time left is computed from."""
OCCASIONAL = frozenset({"save", "evaluate"})
"""Phases that only some steps have. Their cost is spread over all steps; a mean over recent ones would jump."""


def seconds_per_step(history: Sequence[Mapping[str, float]]) -> float:
    """Expected seconds of the next step, from the seconds by phase of the steps so far; NaN before the first.

    The phases of every step: the mean of the last `RECENT` without the fastest and slowest tenth, so that one hiccup
    moves nothing. The occasional phases: their mean over all steps, without what preceded the first, which comes once.
    """
    if not history:
        return math.nan
    recent = sorted(math.fsum(s for phase, s in step.items() if phase not in OCCASIONAL) for step in history[-RECENT:])
    cut = len(recent) // 10
    steady = recent[cut : len(recent) - cut]
    occasional = math.fsum(step.get(phase, 0.0) for step in history[1:] for phase in OCCASIONAL)
    return math.fsum(steady) / len(steady) + occasional / len(history)


@dataclass(kw_only=True, slots=True)
class Progress:
    """The steps of one stage."""

    total_steps: int
    """Steps the stage will take."""
    steps_done: int = 0
    """Steps taken, those before a resume included."""
    history: list[Mapping[str, float]] = field(default_factory=list)
    """Seconds by phase of each step taken by this process."""
    has_ended: bool = False
    """Whether the stage is over, be it before its last step."""

    def advance(self, step: int, seconds: Mapping[str, float]) -> None:
        """Step number `step` (1 for the first) took these seconds."""
        self.steps_done = step
        self.history.append(seconds)

    @property
    def is_over(self) -> bool:
        """Whether no step is to come."""
        return self.has_ended or self.steps_done >= self.total_steps

    @property
    def seconds_left(self) -> float:
        """Estimated seconds to the end of the stage; NaN before the first step."""
        return max(0, self.total_steps - self.steps_done) * seconds_per_step(self.history)

    @property
    def seconds_spent(self) -> float:
        """Seconds of the steps taken by this process."""
        return math.fsum(s for step in self.history for s in step.values())
