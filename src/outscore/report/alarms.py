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
ENTROPY_RISE, ENTROPY_RISE_NATS = 2.0, 0.5
"""As a multiple of the same, and by how much at least: a small entropy may double and mean nothing."""
REF_KL_LIMIT = 1.0
"""Nats per token. Healthy runs stay below 0.2; policies that a reward model's blind spots drew away were at 3 to 5."""
RATIO_LIMIT = 20.0
"""Of a step's largest ratio. Healthy runs with several updates a step reach 8."""
SAMPLER_KL_LIMIT = 0.01
"""Nats per token. Rounding is far below 0.001, in bf16 too; min_p 0.005 at temperature 1.4 was seen to reach 0.005."""
SOLVED = 0.9
"""Accuracy from which groups without contrast and low entropy are what success looks like."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """Something a person should look at."""

    kind: str
    """`zero_variance`, `truncated`, `scoring_failures`, `entropy`, `entropy_rise`, `ref_kl`, `ratio`, `mismatch` or
    `not_finite`."""
    sentence: str
    """What was seen and what to do about it."""


def find_alarms(history: Sequence[Mapping[str, float | None]]) -> list[Alarm]:
    """What stands out in a stage's metrics, a mapping per step, oldest first. An absent metric raises nothing."""
    if not history:
        return []
    solved = _recent(history, "accuracy", default=0.0) >= SOLVED
    entropy = None if solved else _entropy(history)
    found = [_zero_variance(history, solved), _truncated(history), _scoring_failures(history), entropy]
    found += [_ref_kl(history), _ratio(history), _mismatch(history)]
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
    if now > max(ENTROPY_RISE * first, first + ENTROPY_RISE_NATS):
        return Alarm(
            kind="entropy_rise",
            sentence=f"Entropy rose from {first:.3g} to {now:.3g} nats per token: completions fall apart. Lower the "
            "learning rate, the temperature or an entropy bonus, or narrow the upper clip range; an earlier "
            "checkpoint may be the better start.",
        )
    if not (first > 0 and now < ENTROPY_LIMIT * first):
        return None
    return Alarm(
        kind="entropy",
        sentence=f"Entropy fell from {first:.3g} to {now:.3g} nats per token: completions no longer differ. "
        "Lower the learning rate, raise the upper clip range or the temperature, or hold the policy with a larger "
        "beta; an earlier checkpoint may be the better start.",
    )


def _ref_kl(history: Sequence[Mapping[str, float | None]]) -> Alarm | None:
    distance = _recent(history, "ref_kl")
    if not distance > REF_KL_LIMIT:
        return None
    return Alarm(
        kind="ref_kl",
        sentence=f"The policy is {distance:.3g} nats per token from the reference, in the mean of the last {WINDOW} "
        "steps: it no longer writes like the model it began as. Read its completions (`outscore show --best`): a "
        "reward may be gamed. Hold it with a larger beta (kl_coef), lower the learning rate, or go on from an earlier "
        "checkpoint.",
    )


def _ratio(history: Sequence[Mapping[str, float | None]]) -> Alarm | None:
    # Largest values: in the geometric mean a single wild token of a single step raises nothing.
    largest = [math.log(value) if (value := step.get("ratio_max")) else None for step in history[-WINDOW:]]
    ratio = math.exp(_recent([{"log": value} for value in largest], "log"))
    if not ratio > RATIO_LIMIT:
        return None
    return Alarm(
        kind="ratio",
        sentence=f"In each of the last {WINDOW} steps a token became some {ratio:.3g} times as likely within the step: "
        "clipping does not bound a bad token's ratio. Take fewer updates of a step's groups (epochs, minibatches), a "
        "lower learning rate, or a smaller max_grad_norm.",
    )


def _mismatch(history: Sequence[Mapping[str, float | None]]) -> Alarm | None:
    distance = _recent(history, "sampler_kl")
    if not distance > SAMPLER_KL_LIMIT:
        return None
    return Alarm(
        kind="mismatch",
        sentence=f"The distribution sampled from is {distance:.3g} nats per token from the one trained, in the mean of "
        f"the last {WINDOW} steps, and the gradient is biased by it. Sample without top_k, top_p or min_p, or with "
        "less of them, or correct it: cells: {mismatch_cap: 2.0}. Without any of them, and with one update a step, it "
        "should be rounding: set precision: fp32.",
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
