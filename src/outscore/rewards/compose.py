"""Several rewards made one: the weighted total of each completion, and what the rewards said besides."""

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from outscore.inputs import nearest
from outscore.records import SampledGroup, SampleRequest, Score, ScoredGroup, ScoringFailure
from outscore.rewards.contract import Item, Reward, RewardFunction, TrainerState
from outscore.rewards.judge import Outcome
from outscore.rewards.loading import make_reward, read_policy, read_settings
from outscore.rewards.runners import Runner, make_runner
from outscore.rewards.scoring import Listener, Notices, Part, Scoring
from outscore.rewards.shaping import UNCERTAINTY, Shaper
from outscore.rewards.totals import as_earned, group_totals
from outscore.settings import OnFailure, ScoringSettings

Metrics = Mapping[str, tuple[float, float]]
"""Name -> (sum, count)."""

NOT_APPLICABLE = "not_applicable/"
"""Before a reward's name: the share of completions that the reward does not apply to."""

FAILURES = "scoring_failures/"
"""Before a reward's name: the share of completions that the reward failed on."""

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
        on_failure: `stop` raises when a reward fails on a completion; `exclude` makes it a `ScoringFailure`; a number
            is what the reward then counts as.
        folder: what `file.py` paths are relative to; the working directory if not given.
        scoring: worker processes and their limits, as a recipe has them. Without it rewards run in this process, but
            for those that say otherwise themselves.

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
        scoring: ScoringSettings | Mapping[str, Any] | None = None,
    ) -> None:
        self.rewards = tuple(make_reward(spec, folder=folder) for spec in specs)
        self.on_failure = read_policy(on_failure, where="on_failure")
        for name in self.names:
            if self.names.count(name) > 1:
                raise ValueError(f"rewards: two are called {name!r}; give one of them another `label`")
        if self.rewards and not any(reward.weight for reward in self.rewards):
            raise ValueError("rewards: every weight is 0, so that nothing would be learned; give one a weight")
        self._shaped = Shaper(self.names, [each.full for each in self.rewards], [each.shaping for each in self.rewards])
        settings = ScoringSettings(isolate=False) if scoring is None else read_settings(scoring, where="scoring")
        self._notices = Notices()
        self._runners = {reward.name: make_runner(reward, settings, self._notices.say) for reward in self.rewards}
        # The threads of workers know the runners and not this object, which can so be let go of.
        weakref.finalize(self, _close, tuple(self._runners.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards' names in order."""
        return tuple(reward.name for reward in self.rewards)

    @property
    def full(self) -> float | None:
        """The greatest total; None where a reward does not say its greatest value, counts negatively, or is for some
        of the problems."""
        counted = [(each.weight, each.shaping.full(each.full)) for each in self.rewards if each.weight]
        if any(full is None or weight < 0 for weight, full in counted) or any(each.where for each in self.rewards):
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

    def listen(self, listener: Listener) -> None:
        """Have somebody hear what rewards had to say so far, and from now on whenever a scoring ends."""
        self._notices.listener = listener
        self._notices.pass_on()

    @property
    def notices(self) -> tuple[str, ...]:
        """What was said and nobody has listened to, the newest last."""
        return tuple(text for text, _ in self._notices.waiting)

    def bind(self, initial: Callable[[], Any] | None) -> None:
        """Tell rewards that ask the model which the run begins with how to load it; None where it is built from
        scratch. ValueError from one that cannot do without."""
        for reward in self.rewards:
            if reward.bind is not None:
                reward.bind(initial)

    def start(self) -> None:
        """Start the workers of isolated rewards, without waiting for them."""
        for runner in self._runners.values():
            runner.start()

    def close(self) -> None:
        """End all workers; the next scoring starts others. Without it they end with this object."""
        _close(tuple(self._runners.values()))

    def score(
        self,
        groups: Sequence[SampledGroup],
        *,
        step: int,
        max_steps: int = 0,
        epoch: float | None = None,
        on_failure: OnFailure | None = None,
    ) -> ScoringResult:
        """Score groups: each reward is called once for all their completions, those in workers and asynchronous ones
        at the same time.

        `step`, `max_steps` and `epoch` are what rewards read in `trainer_state`; `on_failure` is for this call alone.

        Raises:
            RewardError: if a reward fails on a completion, or none applies to it, and the policy is to stop, naming
                reward, prompt and completion.
            ValueError: if there is no reward, or one asks for a column that the data do not have.
        """
        return self.begin([], step=step, max_steps=max_steps, epoch=epoch, on_failure=on_failure).result(groups)

    def begin(
        self,
        requests: Sequence[SampleRequest],
        *,
        step: int,
        max_steps: int = 0,
        epoch: float | None = None,
        on_failure: OnFailure | None = None,
    ) -> Scoring[ScoringResult]:
        """Begin to score groups that are being sampled: hand `Scoring.finished` to the sampler as its `on_finished`."""
        if not self.rewards:
            raise ValueError("rewards: there is none to score with")
        state = TrainerState(global_step=step, max_steps=max_steps, epoch=epoch)
        parts = [self._part(reward, on_failure) for reward in self.rewards]
        policy = self.on_failure if on_failure is None else on_failure

        def combine(
            groups: Sequence[SampledGroup], items: Sequence[Item], outcomes: Sequence[Outcome]
        ) -> ScoringResult:
            if policy == "stop" and items:
                self._check_each_applies(items, outcomes)
            return self._combined(groups, outcomes)

        return Scoring(parts, requests, state, self._notices, combine)

    def _part(self, reward: Reward, given: OnFailure | None) -> Part:
        own = self.on_failure if reward.on_failure is None else reward.on_failure
        return Part(reward=reward, runner=self._runners[reward.name], on_failure=own if given is None else given)

    def _combined(self, groups: Sequence[SampledGroup], outcomes: Sequence[Outcome]) -> ScoringResult:
        ends = list(accumulate(len(group.completions) for group in groups))
        places = [range(end - len(group.completions), end) for group, end in zip(groups, ends, strict=True)]
        sound = [[place for place in own if self._failure(outcomes, place) is None] for own in places]
        parts = [[[outcome.part(place) for outcome in outcomes] for place in own] for own in sound]
        shaped = self._shaped(parts, [[self._stds(outcomes, place) for place in own] for own in sound])
        scored, group_metrics = [], []
        for group, own, kept, values in zip(groups, places, sound, shaped, strict=True):
            lengths = [len(drawn.completion.token_ids) for drawn in group.completions]
            scores = self._scores(outcomes, own, dict(zip(kept, values, strict=True)), lengths)
            scored.append(ScoredGroup(sampled=group, scores=scores))
            group_metrics.append(self._group_metrics(outcomes, own))
        columns = {
            self._column(name, reward): list(values)
            for reward, outcome in zip(self.rewards, outcomes, strict=False)  # without groups there is no outcome
            for name, values in outcome.columns.items()
        }
        return ScoringResult(
            groups=scored, group_metrics=group_metrics, logged=_logged(outcomes), extra_columns=columns
        )

    def _check_each_applies(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> None:
        """RewardError for the first completion that no reward of nonzero weight applies to: nothing is learned from
        it."""
        counted = [outcome for reward, outcome in zip(self.rewards, outcomes, strict=True) if reward.weight]
        for place, item in enumerate(items):
            if all(outcome.part(place) is None for outcome in counted):
                raise item.error(", ".join(self.names), NONE_APPLIES + _missing_answer(item))

    def _column(self, name: str, reward: Reward) -> str:
        """What a column is kept as: every reward may say how unsure it is."""
        return f"{reward.name}_{name}" if name == UNCERTAINTY else name

    def _stds(self, outcomes: Sequence[Outcome], place: int) -> list[float | None]:
        """How unsure the rewards are of a completion. ValueError where one is shaped by that and does not say."""
        stds: list[float | None] = []
        for reward, outcome in zip(self.rewards, outcomes, strict=True):
            if UNCERTAINTY not in outcome.columns and reward.shaping.uncertainty and outcome.says_anything:
                raise ValueError(
                    f"reward {reward.name!r}: uncertainty = {reward.shaping.uncertainty:g} needs to know how unsure it "
                    f'is, which it says by log_extra("{UNCERTAINTY}", standard_deviations); it did not'
                )
            said = outcome.columns.get(UNCERTAINTY)
            stds.append(None if said is None or place in outcome.faults else said[place])
        return stds

    def _scores(
        self,
        outcomes: Sequence[Outcome],
        places: range,
        shaped: Mapping[int, Sequence[float | None]],
        lengths: Sequence[int],
    ) -> tuple[Score | ScoringFailure, ...]:
        """The scores of one group: the completions at these places, with so many tokens; `shaped` are the parts of
        those without a failure."""
        weights = [reward.weight for reward in self.rewards]
        totals = dict(zip(shaped, group_totals(list(shaped.values()), weights), strict=True))
        scores: list[Score | ScoringFailure] = []
        for place, length in zip(places, lengths, strict=True):
            failure, total = self._failure(outcomes, place), totals.get(place)
            if failure is not None:
                scores.append(failure)
            elif total is None:
                scores.append(ScoringFailure(reward_name=", ".join(self.names), reason=NONE_APPLIES))
            else:
                named = {name: outcome.part(place) for name, outcome in zip(self.names, outcomes, strict=True)}
                said = [outcome.steps.get(place, ()) for outcome in outcomes]
                steps = as_earned(said, shaped[place], weights, total=total, num_tokens=length)
                scores.append(Score(reward=total, parts=named, steps=steps, failures=self._faults(outcomes, place)))
        return tuple(scores)

    def _faults(self, outcomes: Sequence[Outcome], place: int) -> dict[str, str]:
        named = zip(self.names, outcomes, strict=True)
        return {name: outcome.faults[place] for name, outcome in named if place in outcome.faults}

    def _failure(self, outcomes: Sequence[Outcome], place: int) -> ScoringFailure | None:
        """The first failure that leaves the completion without a score: of a reward that counts."""
        for reward, outcome in zip(self.rewards, outcomes, strict=True):
            if place in outcome.faults and outcome.constant is None and reward.weight:
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
            metrics[f"{FAILURES}{reward.name}"] = (float(failed), float(len(places)))
            if UNCERTAINTY in outcome.columns:
                stds = [std for place in places if (std := outcome.columns[UNCERTAINTY][place]) is not None]
                metrics[f"{UNCERTAINTY}/{reward.name}"] = (math.fsum(stds), float(len(stds)))
        return metrics


def part_metrics(groups: Sequence[Metrics]) -> Metrics:
    """The metrics of these groups together; that a reward does not apply, or fails, is named only where that happened.

    >>> part_metrics([{"reward/a": (1.0, 2.0), "not_applicable/a": (0.0, 2.0)}, {"reward/a": (0.5, 2.0)}])
    {'reward/a': (1.5, 4.0)}
    """
    terms: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        for name, term in group.items():
            terms.setdefault(name, []).append(term)
    sums = {name: (math.fsum(s for s, _ in each), math.fsum(n for _, n in each)) for name, each in terms.items()}
    rare = (NOT_APPLICABLE, FAILURES)
    return {name: (total, n) for name, (total, n) in sums.items() if total or not name.startswith(rare)}


def _close(runners: Iterable[Runner]) -> None:
    for runner in runners:
        runner.close()


def _logged(outcomes: Sequence[Outcome]) -> Metrics:
    metrics: dict[str, tuple[float, float]] = {}
    for outcome in outcomes:
        for name, value in outcome.metrics:
            total, count = metrics.get(name, (0.0, 0.0))
            metrics[name] = (total + value, count + 1.0)
    return metrics


def _missing_answer(item: Item) -> str:
    """What helps where the reason is that the problem has no gold answer."""
    if item.columns.get("answer") is not None:
        return ""
    return ": its problem has no gold answer; map the gold column with task.answer (or on_reward_failure: exclude)"
