"""Several rewards made one: the weighted total of each completion, and what the rewards said besides."""

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outscore.inputs import nearest
from outscore.records import SampledGroup, Score, ScoredGroup, ScoringFailure, StepScore
from outscore.rewards.contract import Item, Reward, RewardFunction, TrainerState, items_of
from outscore.rewards.judge import OnFailure, Outcome, judge
from outscore.rewards.loading import make_reward
from outscore.rewards.shaping import Shaper

Metrics = Mapping[str, tuple[float, float]]
"""Name -> (sum, count)."""

NOT_APPLICABLE = "not_applicable/"
"""Before a reward's name: the share of completions that the reward does not apply to."""

NONE_APPLIES = "does not apply to this completion"
"""What is wrong with a completion that no reward of nonzero weight gives a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringResult:
    """What scoring a step gave.

    >>> ScoringResult(groups=[scored], group_metrics=[{"reward/format_tags": (3.5, 8.0)}], logged={}, extra_columns={})
    """

    groups: list[ScoredGroup]
    """The groups in the order given, with scores."""
    group_metrics: list[Metrics]
    """For each of the groups: `reward/NAME` over the completions it applied to, `not_applicable/NAME` over all its
    completions. `part_metrics` adds those of several groups up."""
    logged: Metrics
    """What rewards logged with `log_metric`: name -> (sum, count)."""
    extra_columns: Mapping[str, list[Any]]
    """What rewards logged with `log_extra`: column -> one value for each completion, in the order of the groups."""

    @property
    def metrics(self) -> Metrics:
        """All metrics of all groups."""
        return {**self.logged, **part_metrics(self.group_metrics)}


class Rewards:
    """The rewards of a run.

    Args:
        specs: built-in names, `file.py:function`, `module:function`, functions, mappings with one of these as `name`
            beside `weight`, `label` and options, or `Reward` records.
        on_failure: `stop` raises when a reward fails on a completion; `exclude` makes it a `ScoringFailure`.
        folder: what `file.py` paths are relative to; the working directory if not given.

    Raises:
        ValueError: naming key, value and nearest name, if a spec is wrong, two rewards share a name, or all weights
        are 0.

    >>> Rewards(["answer_exact", {"name": "format_tags", "weight": 0.5}, my_function]).names
    ('answer_exact', 'format_tags', 'my_function')
    """

    def __init__(
        self,
        specs: Iterable[str | Mapping[str, Any] | RewardFunction | Reward],
        *,
        on_failure: OnFailure = "stop",
        folder: Path | None = None,
    ) -> None:
        self.rewards = tuple(make_reward(spec, folder=folder) for spec in specs)
        self.on_failure = on_failure
        for name in self.names:
            if self.names.count(name) > 1:
                raise ValueError(f"rewards: two are called {name!r}; give one of them another `label`")
        if self.rewards and not any(reward.weight for reward in self.rewards):
            raise ValueError("rewards: every weight is 0, so that nothing would be learned; give one a weight")
        self._shaped = Shaper(self.names, [each.full for each in self.rewards], [each.shaping for each in self.rewards])

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards' names in order."""
        return tuple(reward.name for reward in self.rewards)

    @property
    def full(self) -> float | None:
        """The greatest total; None where a reward does not say its greatest value or counts negatively."""
        counted = [(each.weight, each.shaping.full(each.full)) for each in self.rewards if each.weight]
        if any(full is None or weight < 0 for weight, full in counted):
            return None
        return math.fsum(weight * (full or 0.0) for weight, full in counted)

    def named(self, name: str) -> Reward:
        """The reward of this name; ValueError names the nearest."""
        for reward in self.rewards:
            if reward.name == name:
                return reward
        raise ValueError(f"no reward is called {name!r}{nearest(name, self.names)}")

    def says_correct(self) -> Reward | None:
        """The reward that says whether an answer is right where nobody names one; None where there is no reward.

        The last whose greatest value is 1, as every answer reward's is; else the last whose greatest value is not
        known, one of the user's; else the last.
        """
        for known in (1.0, None):
            if fitting := [reward for reward in self.rewards if reward.full == known]:
                return fitting[-1]
        return self.rewards[-1] if self.rewards else None

    def score(
        self,
        groups: Sequence[SampledGroup],
        *,
        step: int,
        max_steps: int = 0,
        epoch: float | None = None,
        on_failure: OnFailure | None = None,
    ) -> ScoringResult:
        """Score groups: each reward is called once for all their completions, asynchronous ones at the same time.

        `step`, `max_steps` and `epoch` are what rewards read in `trainer_state`; `on_failure` is for this call alone.

        Raises:
            RewardError: if a reward fails on a completion, or none applies to it, and the policy is to stop, naming
                reward, prompt and completion.
            ValueError: if there is no reward, or one asks for a column that the data do not have.
        """
        if not self.rewards:
            raise ValueError("rewards: there is none to score with")
        items = items_of(groups)
        if not items:
            return ScoringResult(groups=[], group_metrics=[], logged={}, extra_columns={})
        policy = on_failure or self.on_failure
        outcomes = self._outcomes(items, TrainerState(global_step=step, max_steps=max_steps, epoch=epoch), policy)
        if policy == "stop":
            self._check_each_applies(items, outcomes)
        scored, group_metrics = [], []
        first = 0
        for group in groups:
            last = first + len(group.completions)
            lengths = [len(drawn.completion.token_ids) for drawn in group.completions]
            scored.append(ScoredGroup(sampled=group, scores=self._scores(outcomes, range(first, last), lengths)))
            group_metrics.append(self._group_metrics(outcomes, range(first, last)))
            first = last
        columns = {name: list(values) for outcome in outcomes for name, values in outcome.columns.items()}
        return ScoringResult(
            groups=scored, group_metrics=group_metrics, logged=_logged(outcomes), extra_columns=columns
        )

    def _outcomes(self, items: Sequence[Item], state: TrainerState, on_failure: OnFailure) -> list[Outcome]:
        """Each reward's outcome. Asynchronous rewards wait in threads while the synchronous ones run in this one."""
        waiting = [reward for reward in self.rewards if reward.is_async]
        with ThreadPoolExecutor(max(1, len(waiting)), thread_name_prefix="outscore-reward") as threads:
            started = {reward.name: threads.submit(judge, reward, items, state, on_failure) for reward in waiting}
            done = {
                reward.name: judge(reward, items, state, on_failure)
                for reward in self.rewards
                if reward.name not in started
            }
            done |= {name: future.result() for name, future in started.items()}
        return [done[name] for name in self.names]

    def _check_each_applies(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> None:
        """RewardError for the first completion that no reward of nonzero weight applies to: nothing is learned from
        it."""
        counted = [outcome for reward, outcome in zip(self.rewards, outcomes, strict=True) if reward.weight]
        for place, item in enumerate(items):
            if all(outcome.values[place] is None for outcome in counted):
                raise item.error(", ".join(self.names), NONE_APPLIES + _missing_answer(item))

    def _scores(
        self, outcomes: Sequence[Outcome], places: range, lengths: Sequence[int]
    ) -> tuple[Score | ScoringFailure, ...]:
        """The scores of one group: the completions at these places, with so many tokens."""
        failures = [self._failure(outcomes, place) for place in places]
        sound = [place for place, failure in zip(places, failures, strict=True) if failure is None]
        parts = {place: [outcome.values[place] for outcome in outcomes] for place in sound}
        totals = dict(
            zip(
                sound,
                group_totals(self._shaped(list(parts.values())), [each.weight for each in self.rewards]),
                strict=True,
            )
        )
        scores: list[Score | ScoringFailure] = []
        for place, failure in zip(places, failures, strict=True):
            total = totals.get(place)
            if failure is not None:
                scores.append(failure)
            elif total is None:
                scores.append(ScoringFailure(reward_name=", ".join(self.names), reason=NONE_APPLIES))
            else:
                steps = self._steps(outcomes, place, total, lengths[place - places.start])
                scores.append(Score(reward=total, parts=dict(zip(self.names, parts[place], strict=True)), steps=steps))
        return tuple(scores)

    def _steps(self, outcomes: Sequence[Outcome], place: int, total: float, num_tokens: int) -> tuple[StepScore, ...]:
        """The total as it was earned: weighted steps, and at the last token what is left of it; () without steps."""
        earned: dict[int, float] = {}
        for reward, outcome in zip(self.rewards, outcomes, strict=True):
            for step in outcome.steps.get(place, ()) if reward.weight else ():
                earned[step.end] = earned.get(step.end, 0.0) + reward.weight * step.reward
        if not earned:
            return ()
        stepped = math.fsum(
            reward.weight * value
            for reward, outcome in zip(self.rewards, outcomes, strict=True)
            if place in outcome.steps and (value := outcome.values[place]) is not None
        )
        # What has no steps; exactly nothing, rather than rounding, where every reward has.
        if any(reward.weight and place not in each.steps for reward, each in zip(self.rewards, outcomes, strict=True)):
            earned[num_tokens - 1] = earned.get(num_tokens - 1, 0.0) + total - stepped
        return tuple(StepScore(end=end, reward=value) for end, value in sorted(earned.items()))

    def _failure(self, outcomes: Sequence[Outcome], place: int) -> ScoringFailure | None:
        for reward, outcome in zip(self.rewards, outcomes, strict=True):
            if place in outcome.faults:
                return ScoringFailure(reward_name=reward.name, reason=outcome.faults[place])
        return None

    def _group_metrics(self, outcomes: Sequence[Outcome], places: range) -> Metrics:
        """What the rewards say of one group: the completions at these places."""
        metrics: dict[str, tuple[float, float]] = {}
        for reward, outcome in zip(self.rewards, outcomes, strict=True):
            applied = [value for place in places if (value := outcome.values[place]) is not None]
            failed = sum(place in outcome.faults for place in places)
            metrics[f"reward/{reward.name}"] = (math.fsum(applied), float(len(applied)))
            without = float(len(places) - len(applied) - failed)
            metrics[f"{NOT_APPLICABLE}{reward.name}"] = (without, float(len(places)))
        return metrics


def part_metrics(groups: Sequence[Metrics]) -> Metrics:
    """The metrics of these groups together; that a reward does not apply is named only where that happened.

    >>> part_metrics([{"reward/a": (1.0, 2.0), "not_applicable/a": (0.0, 2.0)}, {"reward/a": (0.5, 2.0)}])
    {'reward/a': (1.5, 4.0)}
    """
    terms: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        for name, term in group.items():
            terms.setdefault(name, []).append(term)
    sums = {name: (math.fsum(s for s, _ in each), math.fsum(n for _, n in each)) for name, each in terms.items()}
    return {name: (total, n) for name, (total, n) in sums.items() if total or not name.startswith(NOT_APPLICABLE)}


def _logged(outcomes: Sequence[Outcome]) -> Metrics:
    metrics: dict[str, tuple[float, float]] = {}
    for outcome in outcomes:
        for name, value in outcome.metrics:
            total, count = metrics.get(name, (0.0, 0.0))
            metrics[name] = (total + value, count + 1.0)
    return metrics


def group_totals(parts: Sequence[Sequence[float | None]], weights: Sequence[float]) -> list[float | None]:
    """Totals of one group: parts[completion][reward] weighted and summed over the rewards.

    total_i = Σ_k w_k r_ik, where a part that does not apply to completion i counts as the mean of that part over the
    group's completions it does apply to, and not at all if there are none. It then says nothing for or against the
    completion: counting it as 0 would punish it (as in TRL), and leaving it out while others have it would, too. None
    for a completion that no reward of nonzero weight applies to.

    >>> group_totals([[0.5, 1.0], [0.5, 0.0], [0.5, None]], [1.0, 1.0])
    [1.5, 0.5, 1.0]
    """
    neutral = [_mean([row[k] for row in parts]) for k in range(len(weights))]
    totals: list[float | None] = []
    for row in parts:
        applies = any(value is not None and weight for value, weight in zip(row, weights, strict=True))
        filled = (mean if value is None else value for value, mean in zip(row, neutral, strict=True))
        total = math.fsum(weight * value for weight, value in zip(weights, filled, strict=True))
        totals.append(total if applies else None)
    return totals


def _missing_answer(item: Item) -> str:
    """What helps where the reason is that the problem has no gold answer."""
    if item.columns.get("answer") is not None:
        return ""
    return ": its problem has no gold answer; map the gold column with task.answer (or on_reward_failure: exclude)"


def _mean(values: Sequence[float | None]) -> float:
    present = [value for value in values if value is not None]
    # A mean of equal numbers must be that number: rounding would give a group of equal rewards a spread.
    if not present or min(present) == max(present):
        return present[0] if present else 0.0
    return math.fsum(present) / len(present)
