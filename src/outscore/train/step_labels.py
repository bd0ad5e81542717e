"""Labels that a stage makes for itself: samples of the policy, labelled by whether they are right, and their steps by
how often completions from there on are (Math-Shepherd, arXiv 2312.08935, 3.2).

From the end of each step of a solution N completions are sampled; the step's label is the share of them that are right
(soft estimate) or 1 where one is (hard). The last step's label is whether the solution itself is right. What solutions
have in common is sampled from once. All solutions with their labels, as rewards of steps, are the group file of step 0
of the stage, which a resume reads back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from outscore.model.steps import Decode, split_steps, step_ends
from outscore.records import (
    Completion,
    LabelledGroup,
    Problem,
    Prompt,
    SampledCompletion,
    SampledGroup,
    SampleRequest,
    SamplingParams,
    Score,
    ScoredGroup,
    StepScore,
)
from outscore.report import RunDirectory, completion_rows
from outscore.report.rows import CompletionRow, read_parquet
from outscore.rewards import Rewards
from outscore.rollout import Sampler
from outscore.stage_parts import SolutionSampling, StepSampling
from outscore.stages import OutcomeRewardModelSettings, ProcessRewardModelSettings
from outscore.train.activity import Tell, counting, tell_nobody
from outscore.train.evaluate import Judge
from outscore.train.order import batch_indices
from outscore.train.sources import stage_seed

BLOCK = 64
"""Prompts sampled for, and labelled, together."""
SOLUTIONS, FROM_STEPS = 0, 1
"""The steps that key the draws of solutions, and of completions from their steps."""

Ends = tuple[int, ...]


@dataclass(kw_only=True, slots=True)
class SampledLabels:
    """Solutions of the policy as the stage finds it, labelled. They are made when they are first asked for."""

    prompts: Sequence[Prompt]
    """The training prompts."""
    sampler: Sampler
    """Samples the policy."""
    decode: Decode
    """Tokens to text."""
    rewards: Rewards
    """What scores a completion."""
    judge: Judge
    """Says which are right."""
    settings: OutcomeRewardModelSettings
    """How many samples, and what ends a step."""
    seed: int
    """The run's seed."""
    stage: int
    """The stage's place in the run."""
    run: RunDirectory | None = None
    """Where solutions and labels are kept and, after a resume, found."""
    history: Callable[[], Sequence[LabelledGroup]] | None = None
    """What the stages trained on that this one continues."""
    _trained: list[LabelledGroup] = field(default_factory=list)
    _held_out: list[LabelledGroup] = field(default_factory=list)

    def trained(self, tell: Tell = tell_nobody) -> Sequence[LabelledGroup]:
        """Those to train on, what is replayed among them.

        Raises:
            ValueError: if nothing could be labelled.
        """
        self._fill(tell)
        return self._trained

    def held_out(self, tell: Tell = tell_nobody) -> Sequence[LabelledGroup]:
        """Those of the problems that are not trained on."""
        self._fill(tell)
        return self._held_out

    @property
    def sampling(self) -> SolutionSampling:
        """What is sampled."""
        assert self.settings.sample is not None
        return self.settings.sample

    def _fill(self, tell: Tell) -> None:
        if self._trained:
            return
        path = self.run.groups_path(self.settings.label, 0) if self.run else None
        rows = read_parquet(path) if path is not None and path.is_file() else self._sample(tell)
        if self.run is not None and path is not None and not path.is_file():
            self.run.write_groups(self.settings.label, 0, rows)
        num_prompts = len({row.slot for row in rows})
        num_held_out = max(round(self.sampling.held_out * num_prompts), 1) if self.sampling.held_out else 0
        for row in rows:
            group = labelled_row(row)
            if group is not None:
                (self._held_out if row.slot < num_held_out else self._trained).append(group)
        if not self._trained or (num_held_out and not self._held_out):
            raise ValueError(
                f"stage {self.settings.label}: of {len(rows)} samples of {num_prompts} problems {len(self._trained)} "
                f"to train on and {len(self._held_out)} to evaluate on could be labelled: sample more, or set "
                "held_out: 0"
            )
        shown = {group.prompt.problem.id for group in self._held_out}
        before = [] if self.history is None else [g for g in self.history() if g.prompt.problem.id not in shown]
        old = replayed(before, len(self._trained), self.settings.replay, [self.seed, self.stage])
        self._trained += old
        if self.run is not None:
            labels = [label for group in self._trained for label in group.labels]
            self.run.log(
                f"{self.settings.label}: {len(self._trained)} completions with {len(labels)} labels to train on "
                f"({len(old)} replayed, mean label {sum(labels) / len(labels):.3f}), {len(self._held_out)} held out"
            )

    def _sample(self, tell: Tell) -> list[CompletionRow]:
        rows: list[CompletionRow] = []
        wanted = self.sampling.num_prompts or len(self.prompts)
        chosen = batch_indices(self.seed, self.stage, 1, min(wanted, len(self.prompts)), len(self.prompts))
        num_before = 0
        for first in range(0, len(chosen), BLOCK):
            places = range(first, min(first + BLOCK, len(chosen)))
            requests = [
                SampleRequest(prompt=self.prompts[chosen[slot]], num_samples=self.sampling.group_size, slot=slot)
                for slot in places
            ]
            what = f"sampling, prompt {first + 1} of {len(chosen)} and on:"
            scored = self._scored(self._draw(requests, SOLUTIONS, what, tell))
            labels, num_asked = self._labels(scored, num_before, tell)
            num_before += num_asked
            labelled = [_with_labels(group, own) for group, own in zip(scored, labels, strict=True)]
            rows += self._rows(labelled)
        return rows

    def _draw(self, requests: Sequence[SampleRequest], step: int, what: str, tell: Tell) -> list[SampledGroup]:
        total = sum(request.num_samples for request in requests)
        return self.sampler.sample(
            requests,
            SamplingParams(**self.sampling.sampling.model_dump(exclude={"max_rows"})),
            seed=stage_seed(self.seed, self.stage),
            step=step,
            on_finished=counting(what, total, tell),
        )

    def _scored(self, sampled: Sequence[SampledGroup]) -> list[ScoredGroup]:
        return list(self.rewards.score(sampled, step=0, max_steps=self.settings.steps).groups)

    def _labels(
        self, groups: Sequence[ScoredGroup], num_before: int, tell: Tell
    ) -> tuple[list[list[list[StepScore]]], int]:
        """For each completion of each group the labels of its steps, and from how many places was sampled."""
        verdicts = [self.judge.correct(group) for group in groups]
        ends = [[self._ends(drawn) for drawn in group.sampled.completions] for group in groups]
        places: dict[tuple[int, tuple[int, ...]], float | None] = {}
        for i, group in enumerate(groups):
            for drawn, own, verdict in zip(group.sampled.completions, ends[i], verdicts[i], strict=True):
                if verdict is not None:
                    places |= {(i, drawn.completion.token_ids[: end + 1]): None for end in own[:-1]}
        chances = self._chances(groups, list(places), num_before, tell)
        labels: list[list[list[StepScore]]] = []
        for i, group in enumerate(groups):
            labels.append([])
            for drawn, own, verdict in zip(group.sampled.completions, ends[i], verdicts[i], strict=True):
                ids = drawn.completion.token_ids
                found = [(end, chances.get((i, ids[: end + 1]))) for end in own[:-1]]
                found.append((own[-1], None if verdict is None else float(verdict)))
                labels[-1].append([StepScore(end=end, reward=label) for end, label in found if label is not None])
        return labels, len(places)

    def _ends(self, drawn: SampledCompletion) -> Ends:
        """Where the steps of a sample end; those that end in the same token are one."""
        ids = drawn.completion.token_ids
        if not isinstance(self.settings, ProcessRewardModelSettings):
            return (len(ids) - 1,)
        steps = split_steps(drawn.completion.text, self.settings.separators)
        return tuple(sorted(set(step_ends(steps, ids, self.decode))))

    def _chances(
        self, groups: Sequence[ScoredGroup], places: Sequence[tuple[int, tuple[int, ...]]], num_before: int, tell: Tell
    ) -> dict[tuple[int, tuple[int, ...]], float | None]:
        """The labels of the beginnings (group, tokens): of N completions of each, the share that is right, or whether
        one is; None where none could be judged."""
        if not places:
            return {}
        sampling = self.sampling
        assert isinstance(sampling, StepSampling)
        requests = [
            SampleRequest(
                prompt=_continued(groups[i].sampled.prompt, begun, self.decode),
                num_samples=sampling.completions,
                slot=num_before + number,
                max_new_tokens=sampling.sampling.max_new_tokens - len(begun),
            )
            for number, (i, begun) in enumerate(places)
        ]
        drawn = self._draw(requests, FROM_STEPS, f"completing from {len(places)} steps:", tell)
        whole = [
            SampledGroup(
                prompt=groups[i].sampled.prompt,
                completions=tuple(_joined(begun, each, self.decode) for each in group.completions),
                slot=group.slot,
                attempt=group.attempt,
            )
            for (i, begun), group in zip(places, drawn, strict=True)
        ]
        tell("scoring")
        chances: dict[tuple[int, tuple[int, ...]], float | None] = {}
        for place, group in zip(places, self._scored(whole), strict=True):
            known = [verdict for verdict in self.judge.correct(group) if verdict is not None]
            chances[place] = estimate(known, hard=sampling.estimate == "hard") if known else None
        return chances

    def _rows(self, groups: Sequence[ScoredGroup]) -> list[CompletionRow]:
        verdicts = [self.judge.correct(group) for group in groups]
        return completion_rows(
            stage=self.settings.label,
            step=0,
            groups=groups,
            advantages=[[None] * len(group.scores) for group in groups],
            extracted=[answer for group in groups for answer in self.judge.answers(group.sampled)],
            correct=[verdict for group in verdicts for verdict in group],
        )


def estimate(verdicts: Sequence[bool], *, hard: bool) -> float:
    """The label of a step by whether its completions are right: the share that is, or 1 where one is and else 0
    (Math-Shepherd eq. 4 and 5).

    >>> estimate([True, False, False, False], hard=False), estimate([True, False, False, False], hard=True)
    (0.25, 1.0)
    """
    return float(any(verdicts)) if hard else sum(verdicts) / len(verdicts)


def replayed(history: Sequence[LabelledGroup], num_new: int, share: float, key: Sequence[int]) -> list[LabelledGroup]:
    """A random part of the history, so large that it is this share of everything together (or all of it):
    DeepSeekMath's replay of 10 % historical data (arXiv 2402.03300, 4.1.4)."""
    wanted = min(round(share / (1.0 - share) * num_new), len(history))
    chosen = np.random.default_rng([*key]).permutation(len(history))[:wanted]
    return [history[int(place)] for place in sorted(chosen)]


def labelled_row(row: CompletionRow) -> LabelledGroup | None:
    """A row of the group file as what is trained on; None where it has no label."""
    if not row.step_ends:
        return None
    assert row.step_rewards is not None
    problem = Problem(id=row.problem_id, question=row.question, answer=row.answer, columns={})
    return LabelledGroup(
        prompt=Prompt(problem=problem, text=row.prompt, token_ids=row.prompt_token_ids),
        completion=Completion(token_ids=row.token_ids, text=row.response, counts=row.counts),
        ends=row.step_ends,
        labels=row.step_rewards,
    )


def _with_labels(group: ScoredGroup, labels: Sequence[Sequence[StepScore]]) -> ScoredGroup:
    scores = [
        replace(score, steps=tuple(own)) if isinstance(score, Score) else score
        for score, own in zip(group.scores, labels, strict=True)
    ]
    return replace(group, scores=tuple(scores))


def _continued(prompt: Prompt, begun: tuple[int, ...], decode: Decode) -> Prompt:
    """A prompt with an answer that has begun."""
    return replace(prompt, text=prompt.text + decode(begun), token_ids=(*prompt.token_ids, *begun))


def _joined(begun: tuple[int, ...], drawn: SampledCompletion, decode: Decode) -> SampledCompletion:
    """The whole answer: its beginning, and the completion of that."""
    ids = (*begun, *drawn.completion.token_ids)
    completion = Completion(token_ids=ids, text=decode(ids), counts=(True,) * len(ids))
    return replace(drawn, completion=completion, sampler_logprobs=(0.0,) * len(begun) + drawn.sampler_logprobs)
