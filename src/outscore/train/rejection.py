"""Rejection sampling: demonstrations that a stage makes for itself, by sampling the model it begins with and keeping
what passes.

RFT of DeepSeekMath's unified paradigm (arXiv 2402.03300, eq. 5): q ~ P_sft(Q), o ~ π_sft(O|q), gradient coefficient
I(o is right). All samples, kept or not, are the group file of step 0 of the stage, which a resume reads back.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from outscore.records import (
    Completion,
    DemonstrationGroup,
    Prompt,
    SampleRequest,
    SamplingParams,
    ScoredGroup,
)
from outscore.report import RunDirectory, completion_rows
from outscore.report.rows import CompletionRow, read_parquet
from outscore.rewards import Rewards
from outscore.rollout import Sampler
from outscore.stages import RejectionSettings
from outscore.train.activity import Tell, both, counting, tell_nobody
from outscore.train.demonstrations import DemonstrationSource
from outscore.train.evaluate import Judge
from outscore.train.order import batch_indices
from outscore.train.sources import Collected, stage_seed

BLOCK = 64
"""Prompts sampled, and scored, together."""


@dataclass(kw_only=True, slots=True)
class RejectionSource:
    """Samples once, keeps what passes, and then is a source of demonstrations."""

    prompts: Sequence[Prompt]
    """The training prompts."""
    sampler: Sampler
    """Samples the model as it stands when the first step is collected."""
    rewards: Rewards
    """What scores a sample."""
    judge: Judge
    """Says which are right."""
    settings: RejectionSettings
    """How many samples, and which of them are kept."""
    seed: int
    """The run's seed."""
    stage: int
    """The stage's place in the run."""
    run: RunDirectory | None = None
    """Where the samples are kept and, after a resume, found."""
    demonstrations: Sequence[DemonstrationGroup] = ()
    """What is imitated beside what is kept."""
    sampled_as: Callable[[], AbstractContextManager[None]] = nullcontext
    """Gives the policy the weights that sample, where those are not what the stage begins with."""
    _kept: list[DemonstrationGroup] = field(default_factory=list)
    _num_sampled: int = 0

    def collect(self, step: int, tell: Tell = tell_nobody) -> Collected:
        """The demonstrations of a step. The first call samples, or reads what an interrupted run had sampled."""
        if not self._kept:
            told = self.fill(tell)
            if len(self._kept) < self.settings.min_kept:
                few = f"{len(self._kept)} samples passed, and min_kept = {self.settings.min_kept}"
                said = few if self._kept else "no sample passed, so there is nothing to imitate"
                raise ValueError(
                    f"stage {self.settings.label}: {said}: {told}. Begin with a better model, raise num_prompts, "
                    "group_size or sampling.max_new_tokens. All samples are kept: with a lower min_reward or other "
                    "filters in config.yaml, a resume judges them again"
                )
            if self.run is not None:
                self.run.log(f"{self.settings.label}: {told}")
        own = DemonstrationSource(
            demonstrations=[*self._kept, *self.demonstrations],
            batch_size=self.settings.batch_size,
            seed=self.seed,
            stage=self.stage,
        )
        collected = own.collect(step, tell)
        share = {"kept_samples": (float(len(self._kept)), float(self._num_sampled))}
        return replace(collected, metrics={**collected.metrics, **share})

    def fill(self, tell: Tell = tell_nobody) -> str:
        """Sample what is not on record yet, and say what became of it all. It may be that nothing is kept.

        What is sampled is recorded whatever stops it, a judge that cannot be reached or a person.
        """
        chosen = self._chosen()
        path = self.run.groups_path(self.settings.label, 0) if self.run else None
        recorded = read_parquet(path) if path is not None and path.is_file() else []
        rows = list(recorded)
        try:
            if (first := len({row.slot for row in rows})) < len(chosen):
                with self.sampled_as():
                    for block in self._sample(chosen, first, tell):
                        rows += block
        finally:
            by_slot = self._decided(rows)
            rows = [row for own in by_slot.values() for row in own]
            if self.run is not None and rows and rows != recorded:
                self.run.write_groups(self.settings.label, 0, rows)
        fates: Counter[str] = Counter()
        for slot, own in by_slot.items():
            passed = [row for row in own if row.advantage]
            fates.update(_fates(own, self.settings))
            self._kept += [DemonstrationGroup(prompt=self.prompts[chosen[slot]], completion=_of(row)) for row in passed]
        self._num_sampled = len(rows)
        listed = ", ".join(f"{count} {fate}" for fate, count in fates.most_common())
        return f"{len(rows)} samples of {len(by_slot)} prompts: {listed}"

    def _decided(self, rows: Sequence[CompletionRow]) -> dict[int, list[CompletionRow]]:
        """The samples of each prompt with what is kept of them: by the settings as they are now, which may be others
        than when too few had passed."""
        by_slot: dict[int, list[CompletionRow]] = {}
        for row in rows:
            by_slot.setdefault(row.slot, []).append(row)
        return {slot: kept(own, self.settings) for slot, own in by_slot.items()}

    @property
    def num_kept(self) -> int:
        """How many samples are imitated."""
        return len(self._kept)

    def _chosen(self) -> list[int]:
        """The places of the prompts that are sampled for."""
        count = min(self.settings.num_prompts or len(self.prompts), len(self.prompts))
        return batch_indices(self.seed, self.stage, 1, count, len(self.prompts))

    def _sample(self, chosen: Sequence[int], first: int, tell: Tell) -> Iterator[list[CompletionRow]]:
        """The samples of each block of prompts, from the place `first` on."""
        params = SamplingParams(**self.settings.sampling.model_dump(exclude={"max_rows"}))
        size = self.settings.group_size
        for begin in range(first, len(chosen), BLOCK):
            places = range(begin, min(begin + BLOCK, len(chosen)))
            requests = [
                SampleRequest(prompt=self.prompts[chosen[slot]], num_samples=size, slot=slot) for slot in places
            ]
            scoring = self.rewards.begin(requests, step=0, max_steps=self.settings.steps)
            what = f"sampling, prompt {begin + 1} of {len(chosen)} and on:"
            sampled = self.sampler.sample(
                requests,
                params,
                seed=stage_seed(self.seed, self.stage),
                step=0,
                on_finished=both(scoring.finished, counting(what, len(requests) * size, tell)),
            )
            tell("scoring")
            yield self._rows(scoring.result(sampled).groups)

    def _rows(self, groups: Sequence[ScoredGroup]) -> list[CompletionRow]:
        """The record of these groups, before it is decided which are kept."""
        verdicts = [self.judge.correct(group) for group in groups]
        return completion_rows(
            stage=self.settings.label,
            step=0,
            groups=groups,
            advantages=[[None] * len(group.scores) for group in groups],
            extracted=[answer for group in groups for answer in self.judge.answers(group.sampled)],
            correct=[verdict for group in verdicts for verdict in group],
        )


def kept(rows: Sequence[CompletionRow], settings: RejectionSettings) -> list[CompletionRow]:
    """The samples of a prompt; one that is kept has advantage 1, its gradient coefficient, the others None.

    Out go samples that were cut off or could not be scored, those that are not right (or score below `min_reward`,
    where that is given), those that one of the `filters` stops, repeats of one that is kept, and all but the `keep`
    best, the earlier first among equals.
    """
    candidates: list[tuple[float, int]] = []
    seen: set[tuple[int, ...]] = set()
    for i, row in enumerate(rows):
        if row.reward is None or row.finish == "length":
            continue
        passes = row.correct if settings.min_reward is None else row.reward >= settings.min_reward
        passes = passes and stopped_by(row.parts, settings.filters) is None
        if passes and row.token_ids not in seen:
            seen.add(row.token_ids)
            candidates.append((-row.reward, i))
    chosen = {i for _, i in sorted(candidates)[: settings.keep or None]}
    return [replace(row, advantage=1.0 if i in chosen else None) for i, row in enumerate(rows)]


def stopped_by(parts: Mapping[str, float | None], filters: Mapping[str, float]) -> str | None:
    """The first filter that a sample does not pass, in words; None where it passes all. A reward that does not apply
    stops nothing."""
    for name, least in filters.items():
        value = parts[name]
        if value is not None and value < least:
            return f"{name} below {least:g}"
    return None


def _fates(rows: Sequence[CompletionRow], settings: RejectionSettings) -> Counter[str]:
    """What became of the samples of a prompt: the first reason that applies."""
    fates: Counter[str] = Counter()
    seen: set[tuple[int, ...]] = set()
    for row in sorted(rows, key=lambda row: not row.advantage):  # those kept are no repeats of what came before
        low = not row.correct if settings.min_reward is None else (row.reward or 0.0) < settings.min_reward
        if row.advantage:
            fate = "kept"
        elif row.reward is None:
            fate = "could not be scored"
        elif row.finish == "length":
            fate = "cut off"
        elif low:
            fate = "not right" if settings.min_reward is None else f"below {settings.min_reward:g}"
        elif filtered := stopped_by(row.parts, settings.filters):
            fate = filtered
        else:
            fate = "repeats" if row.token_ids in seen else "right, but beyond `keep`"
        seen.add(row.token_ids)
        fates[fate] += 1
    return fates


def _of(row: CompletionRow) -> Completion:
    return Completion(token_ids=row.token_ids, text=row.response, counts=row.counts)
