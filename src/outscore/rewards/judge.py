"""What one reward says of the completions of a step, and which completion is to blame when it fails."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from outscore.records import StepScore
from outscore.rewards.call import CallFailed, Finish, Reply
from outscore.rewards.contract import Item, Reward, TrainerState
from outscore.rewards.runners import Runner
from outscore.rewards.shaping import UNCERTAINTY
from outscore.rewards.values import Failed, whole
from outscore.settings import OnFailure

LARGEST = 1e15
"""A greater reward is a failure: its square would leave fp32, and others beside it would no longer count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one reward said about the completions of a step.

    >>> Outcome(values=(1.0, None), faults={}, metrics=(("length", 3.0),), columns={"seen": (True, False)})
    """

    values: tuple[float | None, ...]
    """For each completion, the reward, or None where it does not apply or failed; of steps, their sum."""
    faults: Mapping[int, str]
    """Completion -> what went wrong."""
    metrics: tuple[tuple[str, float], ...]
    """What the function logged with `log_metric`."""
    columns: Mapping[str, tuple[Any, ...]]
    """What it logged with `log_extra`, one value for each completion."""
    steps: Mapping[int, tuple[StepScore, ...]] = field(default_factory=dict)
    """Completion -> the rewards of its steps, where the reward scores steps."""
    seconds_lost: float = 0.0
    """Seconds of calls that failed, of waiting for new workers, and of finding out whose fault it was: all but the call
    that gave the values."""
    constant: float | None = None
    """What the reward counts as where it failed; None where such a completion has no score."""

    @property
    def says_anything(self) -> bool:
        """Whether it gave a completion a number."""
        return any(value is not None for value in self.values)

    def part(self, place: int) -> float | None:
        """What counts for a completion."""
        return self.constant if place in self.faults else self.values[place]

    def placed(self, places: Sequence[int], count: int) -> "Outcome":
        """The same as said about some of `count` completions, those at `places`; it does not apply to the others."""
        if len(places) == count:
            return self

        def spread(column: Sequence[Any]) -> tuple[Any, ...]:
            own = dict(zip(places, column, strict=True))
            return tuple(own.get(place) for place in range(count))

        return replace(
            self,
            values=spread(self.values),
            faults={places[place]: reason for place, reason in self.faults.items()},
            columns={name: spread(column) for name, column in self.columns.items()},
            steps={places[place]: steps for place, steps in self.steps.items()},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One reward and the completions it is to score."""

    reward: Reward
    """The reward."""
    runner: Runner
    """Where it runs."""
    items: Sequence[Item]
    """The completions."""
    state: TrainerState
    """What the function reads as `trainer_state`."""
    on_failure: OnFailure
    """`stop` raises RewardError; otherwise a completion that fails has a fault, and the others are scored."""

    @property
    def constant(self) -> float | None:
        """What a failure counts as, if anything."""
        return None if isinstance(self.on_failure, str) else float(self.on_failure)

    def begin(self, places: Sequence[int]) -> Finish:
        """Begin a call for some of the completions."""
        return self.runner.begin([self.items[place] for place in places], self.state)


def judge(trial: Trial, begun: Finish | None = None) -> Outcome:
    """Score completions with a reward that takes whole batches; `begun` is the call for all of them, if it has begun.

    When it fails, each completion is tried alone to find the ones to blame. Unless the run is to stop those are left
    out, as those whose reward is not finite, and the rest are scored together once more: a reward that compares
    completions sees the batch as if the others had not been sampled. Where a reward itself says that it failed on a
    completion, its other values stand. What is no completion's fault stops the run.

    Raises:
        RewardError: for a failure that the policy does not tolerate.
        ValueError: if the function asks for a column that there is not.
    """
    reward, items = trial.reward, trial.items
    places: list[int] = list(range(len(items)))
    if not places:
        return _outcome(trial, {}, [], {}, 0.0)
    started = last = time.perf_counter()
    faults: dict[int, str] = {}
    try:
        reply = (begun or trial.begin(places))()
    except CallFailed as failure:
        faults = _culprits(trial, failure)
        # A result of the wrong shape from every completion is a function that does not keep the contract.
        is_nobodys = failure.wrong_shape and (not faults or len(faults) == len(items) > 1)
        if trial.on_failure == "stop" or is_nobodys:
            place, reason = next(iter(faults.items()), (0, failure.reason))
            error = items[place].error(reward.name, reason, is_culprit=bool(faults))
            raise error from failure.__cause__ or failure
        places = [place for place in places if place not in faults]
        last = time.perf_counter()
        reply = _again(trial, places)
    while wrong := _not_finite(reply, places):
        _tolerate(trial, wrong)
        faults |= wrong | _told(reply, places)
        places = [place for place in places if place not in faults]
        last = time.perf_counter()
        reply = _again(trial, places)
    told = _told(reply, places)
    _tolerate(trial, told)
    lost = last - started + reply.seconds_lost
    return _outcome(trial, {place: i for i, place in enumerate(places)}, [reply], faults | told, lost)


def judge_each(trial: Trial, begun: Mapping[int, Finish] | None = None) -> Outcome:
    """Score completions one by one; `begun` are the calls that have begun, by completion.

    Raises:
        RewardError: for the first failure, if the policy is to stop.
        ValueError: if the function asks for a column that there is not.
    """
    finishes = dict(begun or {})
    for place in range(len(trial.items)):
        if place not in finishes:
            finishes[place] = trial.begin([place])
    replies: list[Reply] = []
    rows: dict[int, int] = {}
    faults: dict[int, str] = {}
    lost = 0.0
    for place, item in enumerate(trial.items):
        cause: BaseException | None = None
        try:
            reply = finishes[place]()
            lost += reply.seconds_lost
            wrong = _not_finite(reply, [place]) | _told(reply, [place])
        except CallFailed as failure:
            wrong, cause = {place: failure.reason}, failure.__cause__ or failure
            lost += failure.seconds
        if wrong and trial.on_failure == "stop":
            raise item.error(trial.reward.name, wrong[place]) from cause
        if wrong:
            faults |= wrong
        else:
            rows[place] = len(replies)
            replies.append(reply)
    return _outcome(trial, rows, replies, faults, lost)


def _again(trial: Trial, places: Sequence[int]) -> Reply:
    """Score together those that are left; if that fails, too, all of them have failed."""
    if not places:
        return Reply(values=(), columns={}, metrics=())
    try:
        return trial.begin(places)()
    except CallFailed as failure:
        if trial.on_failure == "stop":
            first, cause = trial.items[places[0]], failure.__cause__ or failure
            raise first.error(trial.reward.name, failure.reason, is_culprit=False) from cause
        reason = f"{failure.reason}, but on no completion alone"
        return Reply(values=[Failed(reason=reason)] * len(places), columns={}, metrics=())


def _culprits(trial: Trial, failure: CallFailed) -> dict[int, str]:
    """Which completions make the reward fail when scored alone, and how; the first only, if the run is to stop.

    Asynchronous rewards try all at once.
    """
    if len(trial.items) == 1:
        return {0: failure.reason}
    places = range(len(trial.items))
    finishes = map(trial.begin, ([place] for place in places))
    faults: dict[int, str] = {}
    for place, finish in zip(places, list(finishes) if trial.reward.is_async else finishes, strict=True):
        try:
            finish()
        except CallFailed as alone:
            faults[place] = alone.reason
            if trial.on_failure == "stop":
                break
    return faults


def _not_finite(reply: Reply, places: Sequence[int]) -> dict[int, str]:
    """Completions whose value is no finite number or too large a one, or of which the reward is unsure by no standard
    deviation."""
    values = zip(places, map(whole, reply.values), strict=True)
    # NaN is not within any bounds.
    wrong = {place: f"returned {value}" for place, value in values if value is not None and not abs(value) <= LARGEST}
    unsure = zip(places, reply.columns.get(UNCERTAINTY, ()), strict=False)
    return {place: f"logged {std!r} as its {UNCERTAINTY}" for place, std in unsure if not _is_std(std)} | wrong


def _told(reply: Reply, places: Sequence[int]) -> dict[int, str]:
    """Completions on which the reward itself says that it failed."""
    return {place: value.reason for place, value in zip(places, reply.values, strict=True) if isinstance(value, Failed)}


def _tolerate(trial: Trial, faults: Mapping[int, str]) -> None:
    """RewardError for the first of these faults, if the policy is to stop."""
    if faults and trial.on_failure == "stop":
        place, reason = next(iter(faults.items()))
        raise trial.items[place].error(trial.reward.name, reason)


def _is_std(value: Any) -> bool:
    value = value.item() if hasattr(value, "item") else value
    return value is None or (isinstance(value, int | float) and 0 <= value < math.inf)


def _outcome(
    trial: Trial, rows: Mapping[int, int], replies: Sequence[Reply], faults: Mapping[int, str], lost: float
) -> Outcome:
    """The replies as one; `rows` says which of their values, counted through, is which completion's."""
    values = [value for reply in replies for value in reply.values]
    names = dict.fromkeys(name for reply in replies for name in reply.columns)
    columns = {
        name: [value for reply in replies for value in reply.columns.get(name, [None] * len(reply.values))]
        for name in names
    }

    def spread(column: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(column[rows[place]] if place in rows else None for place in range(len(trial.items)))

    said = spread(values)
    return Outcome(
        values=tuple(map(whole, said)),
        faults=faults,
        metrics=tuple(metric for reply in replies for metric in reply.metrics),
        columns={name: spread(column) for name, column in columns.items()},
        steps={place: value for place, value in enumerate(said) if isinstance(value, tuple)},
        seconds_lost=lost,
        constant=trial.constant,
    )
