"""Where a step's groups come from; here samples of the policy with their scores and advantages."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from outscore.algorithms.rows import Algorithm
from outscore.model.forest import PrefixCount
from outscore.model.rows import TrainingGroup
from outscore.objectives.advantages import is_zero_variance
from outscore.records import (
    Completion,
    GivenGroup,
    Prompt,
    SampledGroup,
    SampleRequest,
    SamplingParams,
    Score,
    ScoredGroup,
)
from outscore.rewards import Rewards
from outscore.rewards.compose import part_metrics
from outscore.rewards.scoring import Scoring
from outscore.rollout import Sampler
from outscore.stages import PolicySettings
from outscore.train.activity import Tell, both, counting, tell_nobody
from outscore.train.order import Strata, batch_indices, refill_index
from outscore.train.step import Batch, Metrics, merge
from outscore.train.worth import Appraisal, Penalty, Values, Verdict, Worth, without_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What a source hands to a step."""

    batch: Batch
    """What is trained on."""
    metrics: Metrics
    """What is to be reported about it."""
    seconds: Mapping[str, float]
    """Wall-clock of getting it, by phase."""
    num_tokens: int
    """Completion tokens sampled or imitated."""
    groups: tuple[ScoredGroup, ...] = ()
    """Sampled groups, for the record: those trained on in slot order, then those that a refill replaced."""
    advantages: tuple[tuple[float | None, ...], ...] = ()
    """For each of `groups` one advantage per completion, the mean of its tokens' where these differ; None where a
    completion was left out of training, as all of a replaced group are."""
    extra_columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """What rewards logged, flat over the completions of `groups`."""
    given: tuple[GivenGroup, ...] = ()
    """Instead of `groups`, those of the batch where their completions were given."""

    @property
    def num_kept(self) -> int:
        """How many of `groups`, the first ones, are trained on."""
        return len(self.batch.groups)

    def per_token(self, values: Float[Tensor, " token"]) -> list[tuple[float, ...] | None]:
        """Values on the batch's token axis for every token of every completion of `groups`, or of `given`, 0 where it
        carries no loss; None for a completion that was left out of training."""
        flat, starts = values.tolist(), self.batch.starts
        used = [value is not None for group in self.advantages for value in group]
        used = [True] * len(self.batch.completions) if self.given else used
        spread: list[tuple[float, ...] | None] = [None] * len(used)
        for number, completion in enumerate(self.batch.completions):
            if used[number]:
                own = flat[starts[number] : starts[number + 1]]
                if len(own) < len(completion.counts):
                    rest = iter(own)
                    own = [next(rest) if counts else 0.0 for counts in completion.counts]
                spread[number] = tuple(own)
        return spread


class Source(Protocol):
    """Where the groups of a step come from."""

    def collect(self, step: int, tell: Tell = tell_nobody) -> Collected:
        """The groups of step `step` (1 for the first): a function of the weights, the seed and the step.

        `tell` hears how far it is.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSource:
    """Samples, scores and compares the groups of a step."""

    prompts: Sequence[Prompt]
    """The training prompts."""
    sampler: Sampler
    """The engine."""
    rewards: Rewards
    """What scores a completion."""
    settings: PolicySettings
    """Group size, refills, sampling."""
    algorithm: Algorithm
    """What completions are worth."""
    seed: int
    """The run's seed."""
    stage: int
    """The stage's place in the run."""
    penalty: Penalty | None = None
    """KL in the reward, where the algorithm puts it there."""
    verdict: Verdict | None = None
    """What is right, for an algorithm that compares that."""
    values: Values | None = None
    """What a critic expects, for an algorithm that has one."""
    strata: Strata | None = None
    """Which prompts are of which population, where that decides what is drawn; a refill is then of the population of
    what it replaces."""
    texts: Callable[[int], tuple[Batch, ...]] | None = None
    """The plain text beside the updates of a step, for a stage that has some."""

    @property
    def worth(self) -> Worth:
        """How completions are compared."""
        return Worth(
            algorithm=self.algorithm,
            settings=self.settings,
            weights={reward.name: reward.weight for reward in self.rewards.rewards},
            penalty=self.penalty,
            verdict=self.verdict,
            values=self.values,
        )

    @property
    def params(self) -> SamplingParams:
        """How completions are drawn."""
        sampling = self.settings.sampling
        return SamplingParams(**sampling.model_dump(exclude={"max_rows"}))

    def collect(self, step: int, tell: Tell = tell_nobody) -> Collected:
        """Draw the groups of a step; slots with nothing to teach, as where all rewards are equal, are drawn again while
        refills last."""
        worth = self.worth
        seconds = {"sample": 0.0, "score": 0.0}
        size, total = self.settings.prompts_per_step, len(self.prompts)
        chosen = batch_indices(self.seed, self.stage, step, size, total, self.strata)
        requests = [self._request(index, slot, 0) for slot, index in enumerate(chosen)]
        current: dict[int, _Scored] = {}
        first: list[float | None] = []
        replaced: list[_Scored] = []
        logged: list[Metrics] = []
        for attempt in range(self.settings.refills + 1):
            started = time.perf_counter()
            scoring = self.rewards.begin(requests, step=step, max_steps=self.settings.steps, epoch=self._epoch(step))
            sampled = self._sample(requests, step, attempt, scoring, tell)
            tell("scoring")
            between = time.perf_counter()
            result = scoring.result(sampled)
            seconds["sample"] += between - started
            seconds["score"] += time.perf_counter() - between
            logged.append(result.logged)
            first = first or [_mean_reward(group) for group in result.groups]
            columns = _columns_by_group(result.extra_columns, sampled)
            for group, own, metrics in zip(result.groups, columns, result.group_metrics, strict=True):
                if group.sampled.slot in current:
                    replaced.append(current[group.sampled.slot])
                current[group.sampled.slot] = _Scored(group, own, metrics)
            flat = [slot for slot in sorted(current) if worth.is_silent(current[slot].group)]
            if not flat or attempt == self.settings.refills:
                break
            again = [(slot, self._refill(step, slot, attempt + 1, chosen[slot])) for slot in flat]
            requests = [self._request(index, slot, attempt + 1) for slot, index in again]
        kept = [current[slot] for slot in sorted(current)]
        found = worth.appraise([scored.group for scored in kept])
        everything = [*kept, *replaced]
        return Collected(
            batch=replace(
                self._batch([scored.group for scored in kept], found, first),
                texts=self.texts(step) if self.texts else (),
            ),
            metrics={
                **merge(logged),
                **part_metrics([scored.metrics for scored in kept]),
                **rollout_metrics([scored.group for scored in kept], len(replaced)),
                **_overlong_metrics(worth, [scored.group for scored in kept]),
                **found.metrics,
            },
            seconds=seconds,
            num_tokens=sum(len(d.completion.token_ids) for s in everything for d in s.group.sampled.completions),
            groups=tuple(scored.group for scored in everything),
            advantages=(
                *(_used(worth, scored.group, values) for scored, values in zip(kept, found.advantages, strict=True)),
                *((None,) * len(scored.group.scores) for scored in replaced),
            ),
            extra_columns=_flat_columns(everything),
        )

    def _sample(
        self, requests: Sequence[SampleRequest], step: int, attempt: int, scoring: Scoring[Any], tell: Tell
    ) -> list[SampledGroup]:
        what = f"sampling refill {attempt} of {self.settings.refills}:" if attempt else "sampling"
        return self.sampler.sample(
            requests,
            self.params,
            seed=stage_seed(self.seed, self.stage),
            step=step,
            on_finished=both(scoring.finished, counting(what, len(requests) * self.settings.group_size, tell)),
        )

    def _batch(self, groups: Sequence[ScoredGroup], found: Appraisal, rewards: Sequence[float | None]) -> Batch:
        worth = self.worth
        rows: list[TrainingGroup] = []
        completions: list[Completion] = []
        logprobs: list[float] = []
        for group in groups:
            first = len(completions)
            for i, drawn in enumerate(group.sampled.completions):
                completion = drawn.completion if worth.trains(group, i) else without_loss(drawn.completion)
                completions.append(completion)
                logprobs.extend(p for p, c in zip(drawn.sampler_logprobs, completion.counts, strict=True) if c)
            rows.append(
                TrainingGroup(
                    prompt_ids=group.sampled.prompt.token_ids,
                    completions=tuple(completions[first:]),
                    completion_index=tuple(range(first, len(completions))),
                )
            )
        return Batch(
            groups=tuple(rows),
            completions=tuple(completions),
            advantages=torch.cat([own for group in found.advantages for own in group]).float(),
            sampler_logprobs=torch.tensor(logprobs),
            temperature=self.settings.sampling.temperature,
            critic=found.critic,
            populations=tuple(group.sampled.prompt.problem.population for group in groups),
            rewards=tuple(rewards),
        )

    def _epoch(self, step: int) -> float:
        return step * self.settings.prompts_per_step / len(self.prompts)

    def _request(self, index: int, slot: int, attempt: int) -> SampleRequest:
        return SampleRequest(
            prompt=self.prompts[index], num_samples=self.settings.group_size, slot=slot, attempt=attempt
        )

    def _refill(self, step: int, slot: int, attempt: int, replaced: int) -> int:
        among = None if self.strata is None else self.strata.beside(replaced)
        return refill_index(self.seed, self.stage, step, slot, attempt, len(self.prompts), among)


class _Scored(NamedTuple):
    """A scored group with what rewards logged for its completions, and its parts' metrics."""

    group: ScoredGroup
    columns: Mapping[str, Sequence[Any]]
    metrics: Metrics


def rollout_metrics(groups: Sequence[ScoredGroup], num_replaced: int) -> Metrics:
    """Reward, lengths and shares of the groups of a step."""
    completions = [drawn for group in groups for drawn in group.sampled.completions]
    scores = [score for group in groups for score in group.scores if isinstance(score, Score)]
    lengths = [float(len(drawn.completion.token_ids)) for drawn in completions]
    spreads = [float(rewards[valid].std(correction=0)) for rewards, valid in map(_rewards, groups) if bool(valid.any())]
    errors = [
        float(own.std(correction=1)) / len(own) ** 0.5
        for own in (r[v] for r, v in map(_rewards, groups))
        if len(own) > 1
    ]
    total = float(len(completions))
    compared = [group for group in groups if len(group.scores) > 1]
    beginnings = [PrefixCount() for _ in groups]
    for group, count in zip(groups, beginnings, strict=True):
        for drawn in group.sampled.completions:
            count.add(drawn.completion.token_ids)
    return {
        "reward": (sum(score.reward for score in scores), float(len(scores))),
        "reward_std": (sum(spreads), float(len(spreads))),
        "zero_variance": (float(sum(map(_is_flat, compared))), float(len(compared))),
        "reward_mean_error": (sum(errors), float(len(errors))),
        "replaced_groups": (float(num_replaced), 1.0),
        "completion_length": (sum(lengths), total),
        "distinct_share": (float(sum(count.size for count in beginnings)), sum(lengths)),
        "truncated": (float(sum(drawn.finish == "length" for drawn in completions)), total),
        "scoring_failures": (total - float(sum(not score.failures for score in scores)), total),
    }


def _rewards(group: ScoredGroup) -> tuple[Float[Tensor, " completion"], Tensor]:
    values = [score.reward if isinstance(score, Score) else 0.0 for score in group.scores]
    valid = [isinstance(score, Score) for score in group.scores]
    return torch.tensor(values, dtype=torch.float64), torch.tensor(valid)


def _mean_reward(group: ScoredGroup) -> float | None:
    """The mean over the completions that could be scored; None where there is none."""
    scores = [score.reward for score in group.scores if isinstance(score, Score)]
    return sum(scores) / len(scores) if scores else None


def _is_flat(group: ScoredGroup) -> bool:
    rewards, valid = _rewards(group)
    return bool(is_zero_variance(rewards, valid))


def _used(worth: Worth, group: ScoredGroup, advantages: Sequence[Tensor]) -> tuple[float | None, ...]:
    """The advantages as training used them; None for a completion that was left out."""
    return tuple(_one(own) if worth.trains(group, i) else None for i, own in enumerate(advantages))


def _one(advantages: Float[Tensor, " token"]) -> float:
    """What the tokens of a completion share, else their mean."""
    if not advantages.numel():
        return 0.0
    first = advantages[0]
    return float(first if bool((advantages == first).all()) else advantages.mean())


def _overlong_metrics(worth: Worth, groups: Sequence[ScoredGroup]) -> Metrics:
    if not worth.settings.overlong_buffer:
        return {}
    costs = torch.cat([worth.overlong(group) for group in groups])
    return {"overlong_penalty": (float(costs.sum()), float(costs.numel()))}


def _columns_by_group(
    columns: Mapping[str, Sequence[Any]], groups: Sequence[SampledGroup]
) -> list[dict[str, Sequence[Any]]]:
    split: list[dict[str, Sequence[Any]]] = []
    start = 0
    for group in groups:
        end = start + len(group.completions)
        split.append({name: values[start:end] for name, values in columns.items()})
        start = end
    return split


def _flat_columns(scored: Sequence[_Scored]) -> dict[str, list[Any]]:
    names = sorted({name for item in scored for name in item.columns})
    return {
        name: [v for item in scored for v in item.columns.get(name, [None] * len(item.group.scores))] for name in names
    }


def stage_seed(seed: int, stage: int) -> int:
    """Stages sample independently of each other; the first one with the run's own seed."""
    return seed + 1_000_003 * stage


def plain_batch(groups: Sequence[ScoredGroup], temperature: float) -> Batch:
    """Sampled groups as a batch of all their tokens that could carry loss, whatever becomes of them."""
    completions = [drawn.completion for group in groups for drawn in group.sampled.completions]
    rows: list[TrainingGroup] = []
    first = 0
    for group in groups:
        last = first + len(group.scores)
        own = TrainingGroup(
            prompt_ids=group.sampled.prompt.token_ids,
            completions=tuple(completions[first:last]),
            completion_index=tuple(range(first, last)),
        )
        rows.append(own)
        first = last
    return Batch(
        groups=tuple(rows),
        completions=tuple(completions),
        advantages=None,
        sampler_logprobs=None,
        temperature=temperature,
    )
