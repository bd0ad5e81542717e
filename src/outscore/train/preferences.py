"""Preferences in a run: the groups of a step, and how well a policy tells held-out pairs apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from outscore.algorithms.rows import Algorithm
from outscore.model.policy import Policy
from outscore.model.rows import TrainingGroup
from outscore.objectives.estimators import Estimate, mean_interval
from outscore.objectives.preferences import (
    Ties,
    completion_log_ratios,
    pair_accuracy,
    pair_losses,
    preference_loss,
    preference_metrics,
    ranked_pairs,
)
from outscore.objectives.ratios import completion_sums
from outscore.records import RankedGroup
from outscore.report.populations import means_by_population
from outscore.report.text import shorten
from outscore.tasks.base import question_text
from outscore.train.activity import Tell, tell_nobody
from outscore.train.order import Strata, batch_indices
from outscore.train.sources import Collected
from outscore.train.step import Batch, Reference, batch_logprobs


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceSource:
    """Pairs and rankings, in an order that each epoch shuffles.

    Raises ValueError where a ranking has no pair to learn from.
    """

    rankings: Sequence[RankedGroup]
    """All of them."""
    batch_size: int
    """How many in a step."""
    ties: Ties
    """What a pair of equal rank says."""
    seed: int
    """The run's seed."""
    stage: int
    """The stage's place in the run."""
    strata: Strata | None = None
    """Which of them are of which population, where that decides what is drawn."""

    def __post_init__(self) -> None:
        check_ties(self.rankings, self.ties)

    def collect(self, step: int, tell: Tell = tell_nobody) -> Collected:
        """The rankings of a step; they are there, so there is nothing to tell."""
        chosen = batch_indices(self.seed, self.stage, step, self.batch_size, len(self.rankings), self.strata)
        groups = tuple(self.rankings[index] for index in chosen)
        batch = ranked_batch(groups, ties=self.ties)
        assert batch.pairs is not None
        lengths = [float(len(completion.token_ids)) for completion in batch.completions]
        metrics = {
            "completion_length": (sum(lengths), float(len(lengths))),
            "pairs": (float(batch.pairs.better.numel()), float(len(batch.groups))),
        }
        return Collected(batch=batch, metrics=metrics, seconds={}, num_tokens=int(sum(lengths)), given=groups)


def check_ties(rankings: Sequence[RankedGroup], ties: Ties) -> None:
    """ValueError naming the first ranking that has no pair to learn from: one that is all ties, where these are
    dropped."""
    for group in rankings:
        if ties == "drop" and len(set(group.ranks)) == 1:
            problem = group.prompt.problem
            raise ValueError(
                f"preference {problem.id!r} ({shorten(question_text(problem), 60)!r}): all its completions rank alike, "
                "which says nothing where ties are dropped; leave it out, or set ties: half"
            )


def ranked_batch(groups: Sequence[RankedGroup], *, ties: Ties) -> Batch:
    """Ranked groups as a batch with their pairs; one forward of each completion serves all its pairs."""
    ends = list(accumulate(len(group.completions) for group in groups))
    return Batch(
        groups=tuple(
            TrainingGroup(
                prompt_ids=group.prompt.token_ids,
                completions=group.completions,
                completion_index=tuple(range(end - len(group.completions), end)),
            )
            for group, end in zip(groups, ends, strict=True)
        ),
        completions=tuple(completion for group in groups for completion in group.completions),
        advantages=None,
        sampler_logprobs=None,
        temperature=1.0,
        pairs=ranked_pairs([group.ranks for group in groups], ties=ties),
        populations=tuple(group.prompt.problem.population for group in groups),
    )


@dataclass(frozen=True, kw_only=True)
class PreferenceMeasure:
    """How well the policy tells which of two held-out completions was liked better.

    `likelihood_accuracy`: the share of pairs whose better completion it finds more probable. In a stage of preferences
    also `preference_accuracy`, the share whose better one has the larger implicit reward, with its mean `margin` and
    the loss. Ties count in the loss alone. All but the margin also by population, where rankings have one.
    """

    rankings: Sequence[RankedGroup]
    """Held-out rankings, none of them all ties."""
    policy: Policy
    """The model as it stands when `run` is called."""
    token_budget: int
    """Tokens forwarded at once."""
    reference: Reference | None = None
    """The reference of a stage of preferences, which stays as it is throughout."""
    algorithm: Algorithm | None = None
    """The row of that stage."""
    ties: Ties = "drop"
    """As in training."""

    @property
    def num_problems(self) -> int:
        """How many rankings there are."""
        return len(self.rankings)

    @cached_property
    def _batch(self) -> Batch:
        return ranked_batch(self.rankings, ties=self.ties)

    @cached_property
    def _ref(self) -> Float[Tensor, " token"]:
        assert self.reference is not None
        with self.reference.in_place():
            return self._logprobs()

    def run(self, tell: Tell = tell_nobody) -> Mapping[str, Estimate | float]:
        """The metrics, those that are shares of pairs with 95 % intervals."""
        tell("comparing held-out preferences")
        ref = self._ref if self.reference is not None else None
        now = self._logprobs()
        lengths = self._batch.lengths(now.device)
        index = torch.repeat_interleave(torch.arange(len(lengths), device=now.device), lengths)
        assert self._batch.pairs is not None
        pairs = self._batch.pairs.to(now)
        strict = pairs.labels != 0.5
        sums = completion_sums(now, index, len(lengths))
        known = self._batch.completion_populations
        names = [known[better] for better in pairs.better.tolist()]
        sure = [name for name, counts in zip(names, strict.tolist(), strict=True) if counts]
        likelier = pair_accuracy(sums[pairs.better] - sums[pairs.worse])[strict].tolist()
        found: dict[str, Estimate | float] = {
            "likelihood_accuracy": mean_interval(likelier),
            **means_by_population("likelihood_accuracy", likelier, sure),
        }
        if ref is not None and self.algorithm is not None:
            objective = self.algorithm.pair_objective
            by_pair = preference_metrics(now, ref, index, lengths, pairs, objective)
            found["preference_accuracy"] = mean_interval(by_pair["preference_accuracy"].tolist())
            found["margin"] = float(by_pair["margin"].mean())
            found["preference_loss"] = float(preference_loss(now, ref, index, lengths, pairs, objective))
            ratios = completion_log_ratios(now, ref, index, lengths, per_token=objective.per_token)
            losses = pair_losses(ratios[pairs.better] - ratios[pairs.worse], pairs.labels, objective).tolist()
            found |= means_by_population("preference_loss", losses, names, pairs.weights.tolist())
            found |= means_by_population("preference_accuracy", by_pair["preference_accuracy"].tolist(), sure)
        return found

    def _logprobs(self) -> Float[Tensor, " token"]:
        return batch_logprobs(self.policy, self._batch, self._batch.groups, self.token_budget).double()
