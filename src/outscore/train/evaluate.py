"""Held-out evaluation: greedy accuracy, pass@k and maj@k with confidence intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from outscore.objectives.estimators import Estimate, maj_at_k, mean_interval, pass_at_k, wilson_interval
from outscore.records import Prompt, SampledGroup, SampleRequest, SamplingParams, Score, ScoredGroup
from outscore.report.evaluation import PART, Evaluation
from outscore.report.populations import means_by_population
from outscore.rewards import Rewards
from outscore.rollout import Sampler
from outscore.train.activity import Tell, both, counting, tell_nobody

EVALUATION_STEP = 0
"""The step that keys evaluation draws: every evaluation of a run draws with the same uniforms, which makes them
comparable."""
EVALUATION_SEED = 7_919
"""Added to the run's seed, so that evaluation and training never share draws."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """Decides whether a scored completion is correct, and what its answer is."""

    reward_name: str
    """The reward that says what is right."""
    full: float = 1.0
    """What it gives a right answer: its greatest value."""
    extract: Callable[[str], str | None]
    """Response text -> answer, for majority votes; None where there is none."""

    def correct(self, group: ScoredGroup) -> list[bool | None]:
        """For each completion whether it is right; None where the reward does not say."""
        verdicts: list[bool | None] = []
        for score in group.scores:
            is_judged = isinstance(score, Score) and self.reward_name not in score.failures
            part = score.parts.get(self.reward_name) if isinstance(score, Score) and is_judged else None
            verdicts.append(None if part is None else part >= self.full - 1e-9)
        return verdicts

    def applies(self, group: ScoredGroup) -> bool:
        """Whether it can say anything of the group's problem: its reward may be for others."""
        return not all(
            isinstance(score, Score)
            and self.reward_name in score.parts
            and score.parts[self.reward_name] is None
            and self.reward_name not in score.failures
            for score in group.scores
        )

    def answers(self, group: SampledGroup) -> list[str | None]:
        """For each completion its answer."""
        return [self.extract(drawn.completion.text) for drawn in group.completions]

    def votes(self, group: ScoredGroup) -> tuple[list[str | None], list[bool]]:
        """For each completion its vote, and whether that is right: a right completion without an answer that could be
        extracted still casts its vote, under its own text."""
        verdicts = [bool(verdict) for verdict in self.correct(group)]
        votes = [
            drawn.completion.text if answer is None and verdict else answer
            for answer, verdict, drawn in zip(
                self.answers(group.sampled), verdicts, group.sampled.completions, strict=True
            )
        ]
        right = {vote for vote, verdict in zip(votes, verdicts, strict=True) if verdict}
        return votes, [vote in right for vote in votes]


class Measure(Protocol):
    """Something else to find out in an evaluation: nothing is sampled for it."""

    @property
    def num_problems(self) -> int:
        """On how many held-out items it is found out."""
        ...

    def run(self, tell: Tell = tell_nobody) -> Mapping[str, Estimate | float]:
        """The metrics of the model as it stands."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluator:
    """Evaluates a sampler on held-out prompts, and whatever else there is to measure."""

    prompts: Sequence[Prompt]
    """Held-out prompts; with none, nothing is sampled."""
    rewards: Rewards
    """The rewards of the run."""
    judge: Judge
    """Says what is correct."""
    samples: int
    """Sampled completions of each problem; 1 evaluates greedily only."""
    temperature: float
    """Of those samples."""
    max_new_tokens: int
    """Limit on new tokens."""
    seed: int
    """The run's seed."""
    measures: Sequence[Measure] = ()
    """What is found out in every evaluation besides."""

    def run(
        self,
        sampler: Sampler,
        *,
        label: str,
        stage: str,
        step: int,
        policy_version: int,
        greedy_only: bool = False,
        tell: Tell = tell_nobody,
    ) -> Evaluation:
        """Evaluate; the metrics are `greedy` (with several rewards also `part/NAME`, the mean of each), with k > 1
        samples also `pass@1`, `pass@2`, `pass@4` and so on to `pass@k`, `maj@k`, `reward`, and those of the measures;
        by population where problems have one (`outscore.report.populations`).

        `tell` hears how far it is.
        """
        found: dict[str, Estimate | float] = {}
        if self.prompts:
            greedy = self._score(sampler, num_samples=1, temperature=0.0, tell=tell)
            judged = self._judged(greedy)
            hits = [bool(self.judge.correct(group)[0]) for group in judged]
            found["greedy"] = wilson_interval(sum(hits), len(hits))
            found |= means_by_population("greedy", map(float, hits), _populations(judged))
            found |= self._by_reward(greedy)
        if self.prompts and self.samples > 1 and not greedy_only:
            groups = self._score(sampler, num_samples=self.samples, temperature=self.temperature, tell=tell)
            found |= self._sampled(groups)
            totals = [score.reward for group in groups for score in group.scores if isinstance(score, Score)]
            found |= {"reward": sum(totals) / len(totals)} if totals else {}
        for measure in self.measures:
            found |= measure.run(tell)
        estimates = {name: value for name, value in found.items() if isinstance(value, Estimate)}
        return Evaluation(
            label=label,
            stage=stage,
            step=step,
            policy_version=policy_version,
            num_problems=len(self.prompts) or max(measure.num_problems for measure in self.measures),
            samples=0 if not self.prompts else 1 if greedy_only else self.samples,
            metrics={name: value.value if isinstance(value, Estimate) else value for name, value in found.items()},
            intervals={name: (estimate.low, estimate.high) for name, estimate in estimates.items()},
        )

    def _by_reward(self, groups: Sequence[ScoredGroup]) -> dict[str, Estimate | float]:
        """What each of several rewards says of greedy answers, over those it applies to; with an interval where it is
        from 0 to 1."""
        parts: dict[str, list[float]] = {}
        for group in groups:
            for score in group.scores:
                for name, value in score.parts.items() if isinstance(score, Score) else ():
                    parts.setdefault(name, [])
                    parts[name] += [] if value is None else [value]
        several = {name: values for name, values in parts.items() if values} if len(parts) > 1 else {}
        return {
            f"{PART}{name}": mean_interval(values)
            if all(0.0 <= value <= 1.0 for value in values)
            else math.fsum(values) / len(values)
            for name, values in several.items()
        }

    def _judged(self, groups: Sequence[ScoredGroup]) -> Sequence[ScoredGroup]:
        """The groups that accuracy is about: those of problems that the judging reward is for."""
        return [group for group in groups if self.judge.applies(group)] or groups

    def _sampled(self, groups: Sequence[ScoredGroup]) -> dict[str, Estimate | float]:
        k = self.samples
        budgets = [*(1 << power for power in range(1, (k - 1).bit_length())), k]
        groups = self._judged(groups)
        counts = [sum(bool(verdict) for verdict in self.judge.correct(group)) for group in groups]
        rates = [count / k for count in counts]
        return {
            "pass@1": mean_interval(rates),
            **means_by_population("pass@1", rates, _populations(groups)),
            **{
                f"pass@{few}": mean_interval([pass_at_k(num_samples=k, num_correct=count, k=few) for count in counts])
                for few in budgets
            },
            f"maj@{k}": mean_interval([self._majority(group) for group in groups]),
        }

    def _majority(self, group: ScoredGroup) -> float:
        votes, right = self.judge.votes(group)
        return maj_at_k(votes, right, k=self.samples)

    def _score(self, sampler: Sampler, *, num_samples: int, temperature: float, tell: Tell) -> list[ScoredGroup]:
        requests = [
            SampleRequest(prompt=prompt, num_samples=num_samples, slot=slot) for slot, prompt in enumerate(self.prompts)
        ]
        params = SamplingParams(max_new_tokens=self.max_new_tokens, temperature=temperature)
        what = "evaluating" if temperature else "evaluating greedily"
        scoring = self.rewards.begin(requests, step=EVALUATION_STEP)
        sampled = sampler.sample(
            requests,
            params,
            seed=self.seed + EVALUATION_SEED,
            step=EVALUATION_STEP,
            on_finished=both(scoring.finished, counting(what, len(requests) * num_samples, tell)),
        )
        return list(scoring.result(sampled).groups)


def _populations(groups: Sequence[ScoredGroup]) -> list[str | None]:
    return [group.sampled.prompt.problem.population for group in groups]
