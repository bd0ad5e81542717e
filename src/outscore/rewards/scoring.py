"""Scoring one step: calls begin while completions are still being sampled, and end in one outcome for each reward."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from outscore.records import SampledCompletion, SampledGroup, SampleRequest
from outscore.rewards.call import Finish
from outscore.rewards.contract import Item, Reward, TrainerState, item_of, items_of
from outscore.rewards.judge import Outcome, Trial, judge, judge_each
from outscore.rewards.runners import Runner
from outscore.settings import OnFailure

Listener = Callable[[str, bool], None]
"""Takes what a person should know, and whether it belongs on the screen or only in a log."""

MOST_NOTICES = 100
"""How many notices are kept until somebody listens."""

WORTH_SAYING = 0.05
"""Seconds lost, where nothing has failed for good, that the log has a line for."""

Result = TypeVar("Result")
"""What the outcomes are made into."""


@dataclass(kw_only=True, slots=True, eq=False)
class Notices:
    """What rewards have to say: heard when a scoring ends, in the thread that scores."""

    waiting: deque[tuple[str, bool]] = field(default_factory=lambda: deque(maxlen=MOST_NOTICES))
    """What nobody has heard yet, the newest last."""
    listener: Listener | None = None
    """Who hears it."""

    def say(self, text: str, shown: bool) -> None:
        """Keep something to be heard; from any thread."""
        self.waiting.append((text, shown))

    def pass_on(self) -> None:
        """Have the listener hear what waits."""
        while self.listener is not None and self.waiting:
            self.listener(*self.waiting.popleft())


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A reward in a scoring."""

    reward: Reward
    """The reward."""
    runner: Runner
    """Where it runs."""
    on_failure: OnFailure
    """What its failures mean in this scoring."""

    @property
    def begins_early(self) -> bool:
        """Whether a completion's call begins when the completion is finished."""
        return not self.reward.batched and self.runner.overlaps

    def trial(self, items: Sequence[Item], state: TrainerState) -> Trial:
        """The reward with what it is to score."""
        return Trial(reward=self.reward, runner=self.runner, items=items, state=state, on_failure=self.on_failure)


class Scoring(Generic[Result]):
    """A scoring under way. Hand `finished` to a sampler as its `on_finished`, then ask for the `result`.

    Args:
        parts: the rewards.
        requests: what is being sampled; none where nothing is scored before `result`.
        state: what rewards read as `trainer_state`.
        notices: where failures are told.
        combine: makes the result of groups, completions and the rewards' outcomes.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        requests: Sequence[SampleRequest],
        state: TrainerState,
        notices: Notices,
        combine: Callable[[Sequence[SampledGroup], Sequence[Item], Sequence[Outcome]], Result],
    ) -> None:
        self._parts = parts
        self._requests = requests
        self._state = state
        self._notices = notices
        self._combine = combine
        self._begun: dict[str, dict[tuple[int, int], Finish]] = {
            part.reward.name: {} for part in parts if part.begins_early
        }

    def finished(self, request: int, sample: int, completion: SampledCompletion) -> None:
        """A completion is finished: rewards that score one at a time in a process of their own begin with it."""
        asked = self._requests[request]
        if not self._begun:
            return
        item = item_of(asked.prompt, completion, sample=sample, group_size=asked.num_samples)
        for part in self._parts:
            if part.begins_early and part.reward.is_for(item):
                self._begun[part.reward.name][request, sample] = part.runner.begin([item], self._state)

    def result(self, groups: Sequence[SampledGroup]) -> Result:
        """Score what has not begun, and wait for everything; the groups are in the order of the requests.

        Raises:
            RewardError: for a failure that the policy does not tolerate.
            ValueError: if a reward asks for a column that there is not.
        """
        items = items_of(groups)
        if not items:
            return self._combine([], [], [])
        try:
            outcomes = self._outcomes(groups, items)
        finally:
            self._notices.pass_on()
        return self._combine(groups, items, outcomes)

    def _outcomes(self, groups: Sequence[SampledGroup], items: Sequence[Item]) -> list[Outcome]:
        """Each reward's outcome. What goes on by itself begins before what this thread has to do."""
        keys = [(index, sample) for index, group in enumerate(groups) for sample in range(len(group.completions))]
        places = {part.reward.name: _places(part.reward, items) for part in self._parts}
        trials = {
            part.reward.name: part.trial([items[place] for place in places[part.reward.name]], self._state)
            for part in self._parts
        }
        whole: dict[str, Finish] = {}
        single: dict[str, dict[int, Finish]] = {}
        for part in self._parts:
            name = part.reward.name
            if part.begins_early:
                begun = self._begun[name]
                own = [keys[place] for place in places[name]]
                single[name] = {i: begun.get(key) or trials[name].begin([i]) for i, key in enumerate(own)}
            elif part.runner.overlaps and places[name]:
                whole[name] = trials[name].begin(range(len(places[name])))
        done: dict[str, Outcome] = {}
        for part in sorted(self._parts, key=lambda part: part.runner.overlaps):
            name, trial = part.reward.name, trials[part.reward.name]
            said = judge(trial, whole.get(name)) if part.reward.batched else judge_each(trial, single.get(name))
            done[name] = said.placed(places[name], len(items))
            if done[name].faults or done[name].seconds_lost >= WORTH_SAYING:
                self._notices.say(_failures(name, done[name], self._state.global_step), False)
        return [done[part.reward.name] for part in self._parts]


def _places(reward: Reward, items: Sequence[Item]) -> list[int]:
    """The completions that a reward is asked about."""
    return [place for place, item in enumerate(items) if reward.is_for(item)]


def _failures(name: str, outcome: Outcome, step: int) -> str:
    """A line for the log: how many completions failed, how, and what it cost."""
    if not outcome.faults:
        return f"step {step}: reward {name!r} failed and was called again: {outcome.seconds_lost:.1f} s lost"
    counts = Counter(outcome.faults.values())
    reasons = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common(3))
    more = f" and {len(counts) - 3} other reasons" if len(counts) > 3 else ""
    return (
        f"step {step}: reward {name!r} failed on {len(outcome.faults)} of {len(outcome.values)} completions: "
        f"{reasons}{more}; {outcome.seconds_lost:.1f} s lost"
    )
