"""What the completions of a step are worth: from scores to one advantage for each token that is trained on.

The mathematics is `outscore.objectives.batch`; this turns records into its tensors.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from outscore.algorithms.rows import Algorithm
from outscore.objectives.batch import GroupRewards, StepRewards, batch_advantages, batch_returns, is_silent, shrunk
from outscore.objectives.critic import explained_variance
from outscore.records import Completion, Score, ScoredGroup, StepScore
from outscore.rewards.length import overlong_penalty
from outscore.stages import PolicySettings
from outscore.train.step import CriticTargets, Metrics


class Penalty(Protocol):
    """KL to the reference as a cost of rewards."""

    @property
    def coef(self) -> float:
        """What a nat costs, now."""
        ...

    def estimates(self, groups: Sequence[ScoredGroup]) -> list[Tensor]:
        """For each group the KL in nats: of each completion (`kl_place: reward`), or of each token that could carry
        loss, flat (`token_reward`)."""
        ...


Values = Callable[[Sequence[ScoredGroup]], list[Tensor]]
"""For each group what a critic expects before each token that could carry loss, flat."""
Verdict = Callable[[ScoredGroup], Sequence[bool | None]]
"""Whether each completion of a group is right; None where that is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Appraisal:
    """What the completions of a step are worth."""

    advantages: list[list[Tensor]]
    """For each completion of each group, of its tokens that are trained on."""
    critic: CriticTargets | None
    """What a critic learns from, over the same tokens in the same order."""
    metrics: Metrics
    """The KL that rewards pay for, how certain the baselines are, and how well the critic knew what would come."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Worth:
    """Compares the completions of a step as an algorithm's row says."""

    algorithm: Algorithm
    """The row."""
    settings: PolicySettings
    """What becomes of completions that reached the length limit."""
    weights: Mapping[str, float]
    """The weight of each reward, by name, for `reward: parts`."""
    penalty: Penalty | None = None
    """KL in the reward, where the algorithm puts it there."""
    verdict: Verdict | None = None
    """For `reward: correct`."""
    values: Values | None = None
    """What the critic expects, for `baseline: critic`."""

    def is_silent(self, group: ScoredGroup) -> bool:
        """Whether a group has nothing to teach, penalties aside: what a refill replaces."""
        return is_silent(self._rewards(group, None, None, shaped=False), self.algorithm)

    def appraise(self, groups: Sequence[ScoredGroup]) -> Appraisal:
        """Compare the completions of a step's groups."""
        self._check_steps(groups)
        kl = self.penalty.estimates(groups) if self.penalty else [None] * len(groups)
        values = self.values(groups) if self.values else [None] * len(groups)
        rewards = [self._rewards(*known) for known in zip(groups, kl, values, strict=True)]
        flat = batch_advantages(rewards, self.algorithm)
        lengths = [group.num_tokens.tolist() for group in rewards]
        parts = iter(flat.split([length for own in lengths for length in own]))
        metrics = self._kl_metrics(groups, [own for own in kl if own is not None])
        if self.algorithm.baseline == "shrunk_mean":
            known = shrunk(rewards)[1]
            metrics["baseline_certainty"] = (float(known.nansum()), float((~known.isnan()).sum()))
        targets = None
        if self.algorithm.has_critic:
            before = torch.cat([group.values for group in rewards if group.values is not None])
            targets = CriticTargets(values=before.float(), returns=batch_returns(rewards, self.algorithm).float())
            explained = explained_variance(targets.values, targets.returns)
            metrics["explained_variance"] = (0.0, 0.0) if math.isnan(explained) else (explained, 1.0)
        return Appraisal(advantages=[[next(parts) for _ in own] for own in lengths], critic=targets, metrics=metrics)

    def overlong(self, group: ScoredGroup) -> Float[Tensor, " completion"]:
        """The soft overlong punishment of each completion; 0 where there is none."""
        limit, buffer = self.settings.sampling.max_new_tokens, self.settings.overlong_buffer
        lengths = [len(drawn.completion.token_ids) for drawn in group.sampled.completions]
        costs = [overlong_penalty(length, limit=limit, buffer=buffer) if buffer else 0.0 for length in lengths]
        return torch.tensor(costs, dtype=torch.float64)

    def trains(self, group: ScoredGroup, sample: int) -> bool:
        """Whether a completion's tokens carry loss: it was scored, and not cut off where such ones are masked."""
        cut = group.sampled.completions[sample].finish == "length"
        return isinstance(group.scores[sample], Score) and not (cut and self.settings.truncated == "mask")

    def _check_steps(self, groups: Sequence[ScoredGroup]) -> None:
        """ValueError where steps are to be compared and no reward scores any: that would be outcome supervision."""
        scores = [score for group in groups for score in group.scores if isinstance(score, Score)]
        if self.algorithm.supervision == "process" and scores and not any(score.steps for score in scores):
            raise ValueError(
                f"supervision='process' needs a reward that scores steps, and none of {', '.join(self.weights)} "
                "returned any: let one return a list of (index of the step's last token, reward) for a completion"
            )

    def _kl_metrics(self, groups: Sequence[ScoredGroup], kl: Sequence[Tensor]) -> dict[str, tuple[float, float]]:
        """The mean KL of a completion that rewards pay for, and what a nat of it costs."""
        if self.penalty is None:
            return {}
        total = sum(float(own.double().sum()) for own in kl)
        count = sum(len(group.scores) for group in groups)
        return {"completion_kl": (total, float(count)), "kl_coef": (self.penalty.coef, 1.0)}

    def _rewards(
        self, group: ScoredGroup, kl: Tensor | None, values_before: Tensor | None, *, shaped: bool = True
    ) -> GroupRewards:
        row = self.algorithm
        values, valid = self._compared(group)
        counts = [drawn.completion.counts for drawn in group.sampled.completions]
        trained = [self.trains(group, i) for i in range(len(counts))]
        charged = self.overlong(group) if shaped else torch.zeros(len(counts), dtype=torch.float64)
        expected = None if values_before is None else _of_trained(values_before, counts, trained)
        token_costs = None
        if kl is not None:
            assert self.penalty is not None
            cost = self.penalty.coef * kl.double().cpu()
            if row.kl_place == "token_reward":
                token_costs = _of_trained(cost, counts, trained)
            else:
                charged = charged + cost
        parts, weights = self._parts(group, charged) if row.reward == "parts" else (None, None)
        return GroupRewards(
            rewards=values - charged,
            valid=valid,
            num_tokens=torch.tensor([sum(own) if kept else 0 for own, kept in zip(counts, trained, strict=True)]),
            parts=parts,
            part_weights=weights,
            steps=_steps(group, charged.tolist()) if row.supervision == "process" else None,
            token_costs=token_costs,
            values=expected,
        )

    def _compared(self, group: ScoredGroup) -> tuple[Tensor, Tensor]:
        """The reward that the row compares, before anything is taken off it, and where there is one."""
        if self.algorithm.reward == "correct":
            assert self.verdict is not None
            verdicts = zip(self.verdict(group), group.scores, strict=True)
            known = [
                None if right is None or not isinstance(score, Score) else float(right) for right, score in verdicts
            ]
        else:
            known = [score.reward if isinstance(score, Score) else None for score in group.scores]
        if (instead := self.settings.truncated_score) is not None:
            cut = [drawn.finish == "length" for drawn in group.sampled.completions]
            known = [instead if late and value is not None else value for value, late in zip(known, cut, strict=True)]
        values = torch.tensor([value or 0.0 for value in known], dtype=torch.float64)
        return values, torch.tensor([value is not None for value in known])

    def _parts(self, group: ScoredGroup, charged: Tensor) -> tuple[Tensor, Tensor]:
        """Every reward of nonzero weight on its own; a punishment is one more, of weight 1."""
        names = [name for name, weight in self.weights.items() if weight]
        table = [
            [_number(score.parts[name]) if isinstance(score, Score) else float("nan") for score in group.scores]
            for name in names
        ]
        parts = torch.tensor([*table, (-charged).tolist()], dtype=torch.float64)
        return parts, torch.tensor([*(self.weights[name] for name in names), 1.0], dtype=torch.float64)


def step_scores(score: Score, num_tokens: int) -> tuple[StepScore, ...]:
    """A score as steps: its own, or the whole reward at the last token."""
    return score.steps or (StepScore(end=num_tokens - 1, reward=score.reward),)


def without_loss(completion: Completion) -> Completion:
    """The completion with no token that carries loss."""
    return Completion(token_ids=completion.token_ids, text=completion.text, counts=(False,) * len(completion.token_ids))


def _steps(group: ScoredGroup, charged: Sequence[float]) -> StepRewards:
    """The steps of the scored completions, what is charged to a completion taken off its last one."""
    completion: list[int] = []
    end: list[int] = []
    reward: list[float] = []
    for i, (score, drawn) in enumerate(zip(group.scores, group.sampled.completions, strict=True)):
        if not isinstance(score, Score):
            continue
        counts = drawn.completion.counts
        steps = step_scores(score, len(counts))
        for j, step in enumerate(steps):
            completion.append(i)
            end.append(sum(counts[: step.end + 1]) - 1)
            reward.append(step.reward - (charged[i] if j == len(steps) - 1 else 0.0))
    return StepRewards(
        completion=torch.tensor(completion, dtype=torch.long),
        end=torch.tensor(end, dtype=torch.long),
        reward=torch.tensor(reward, dtype=torch.float64),
    )


def _of_trained(flat: Tensor, counts: Sequence[Sequence[bool]], trained: Sequence[bool]) -> Tensor:
    """Of what is known of each token that could carry loss, that of the completions that are trained on, in float64."""
    each = flat.double().cpu().split([sum(own) for own in counts])
    return torch.cat([each[0][:0], *(own for own, kept in zip(each, trained, strict=True) if kept)])


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
