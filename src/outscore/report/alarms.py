"""Sentences for runs that go wrong: what was seen, and what to change."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WINDOW = 5
"""Steps whose mean has to cross a limit: one unlucky batch raises nothing."""
ZERO_VARIANCE_LIMIT = 0.9
TRUNCATED_LIMIT = 0.5
FAILURES_LIMIT = 0.05
"""Of the completions: at some per cent a reward has a fault, not the model a bad day."""
ENTROPY_LIMIT = 0.1
"""As a share of the entropy of the stage's first steps."""
SOLVED = 0.9
"""Accuracy from which groups without contrast and low entropy are what success looks like."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """Something a person should look at."""

    kind: str
    """`zero_variance`, `truncated`, `scoring_failures`, `entropy` or `not_finite`."""
    sentence: str
    """What was seen and what to do about it."""


def find_alarms(history: Sequence[Mapping[str, float | None]]) -> list[Alarm]:
    """What stands out in a stage's metrics, a mapping per step, oldest first. An absent metric raises nothing."""
    if not history:
        return []
    solved = _recent(history, "accuracy", default=0.0) >= SOLVED
    entropy = None if solved else _entropy(history)
    found = [_zero_variance(history, solved), _truncated(history), _scoring_failures(history), entropy]
    return _not_finite(history[-1]) + [alarm for alarm in found if alarm is not None]


@dataclass(kw_only=True, slots=True)
class AlarmWatch:
    """Reports an alarm when it begins, and again only after it had ended."""

    active: frozenset[str] = frozenset()
    """Kinds that stand now."""

    def update(self, history: Sequence[Mapping[str, float | None]]) -> list[Alarm]:
        """The alarms that began with the last step of the history."""
        found = find_alarms(history)
        begun = [alarm for alarm in found if alarm.kind not in self.active]
        self.active = frozenset(alarm.kind for alarm in found)
        return begun


def _zero_variance(history: Sequence[Mapping[str, float | None]], solved: bool) -> Alarm | None:
    share = _recent(history, "zero_variance")
    if not share > ZERO_VARIANCE_LIMIT:
        return None
    if solved:
        remedy = "The task is nearly solved: take harder problems, or stop here."
    else:
        remedy = (
            "Take easier problems, a reward with partial credit, a larger group_size or a higher temperature, "
            "or teach the format with an SFT stage first."
        )
    seen = f"{share:.0%} of the groups of the last {WINDOW} steps have equal rewards throughout and teach nothing. "
    return Alarm(kind="zero_variance", sentence=seen + remedy)


def _truncated(history: Sequence[Mapping[str, float | None]]) -> Alarm | None:
    share = _recent(history, "truncated")
    if not share > TRUNCATED_LIMIT:
        return None
    return Alarm(
        kind="truncated",
        sentence=f"{share:.0%} of the completions of the last {WINDOW} steps were cut off at the limit of new tokens. "
        "Raise max_new_tokens; if they ramble on after the answer, check with `outscore check` that the stop token "
        "is the one the model was trained with.",
    )


def _scoring_failures(history: Sequence[Mapping[str, float | None]]) -> Alarm | None:
    share = _recent(history, "scoring_failures")
    if not share > FAILURES_LIMIT:
        return None
    prefix = "scoring_failures/"
    names = dict.fromkeys(name.removeprefix(prefix) for step in history[-WINDOW:] for name in step if prefix in name)
    whose = f" by {', '.join(names)}" if names else ""
    return Alarm(
        kind="scoring_failures",
        sentence=f"{share:.0%} of the completions of the last {WINDOW} steps could not be scored{whose}. "
        "events.log says why, step by step, and `failure` in the step's group file for each completion: mend the "
        "reward, or raise its limits.",
    )


def _entropy(history: Sequence[Mapping[str, float | None]]) -> Alarm | None:
    # Demonstrations are not drawn from the policy: learning them lowers its entropy, as it should.
    if len(history) < 2 * WINDOW or "zero_variance" not in history[-1]:
        return None
    first, now = _recent(history[:WINDOW], "entropy"), _recent(history, "entropy")
    if not (first > 0 and now < ENTROPY_LIMIT * first):
        return None
    return Alarm(
        kind="entropy",
        sentence=f"Entropy fell from {first:.3g} to {now:.3g} nats per token: completions no longer differ. "
        "Lower the learning rate, raise the upper clip range or the temperature, or hold the policy with a larger "
        "beta; an earlier checkpoint may be the better start.",
    )


def _not_finite(last: Mapping[str, float | None]) -> list[Alarm]:
    # None is no evidence: nothing was counted in that step, as when every group had equal rewards.
    bad = {name: value for name in ("loss", "grad_norm") if (value := last.get(name)) is not None}
    bad = {name: value for name, value in bad.items() if not math.isfinite(value)}
    if not bad:
        return []
    seen = " and ".join(f"{name} is {value}" for name, value in bad.items())
    sentence = f"{seen}. Lower the learning rate, or set precision: fp32."
    return [Alarm(kind="not_finite", sentence=sentence)]


def _recent(history: Sequence[Mapping[str, float | None]], name: str, *, default: float = math.nan) -> float:
    values = [_number(step.get(name)) for step in history[-WINDOW:]]
    known = [value for value in values if math.isfinite(value)]
    # A mean over fewer steps than the window is no evidence yet.
    return math.fsum(known) / WINDOW if len(known) == WINDOW else default


def _number(value: float | None) -> float:
    return math.nan if value is None else value
