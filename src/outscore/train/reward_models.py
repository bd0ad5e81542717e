"""Training a reward model in a run: its updates, its scale, and how well and how surely it ranks what is held out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from outscore.algorithms.choices import PointLoss
from outscore.algorithms.rows import Algorithm
from outscore.model.heads import RewardModel, completion_scores, load_reward_model, reward_model_from
from outscore.model.policy import Policy
from outscore.model.precision import MasterWeights
from outscore.model.rows import GroupRows, TrainingGroup, split_groups
from outscore.objectives.estimators import Estimate, mean_interval
from outscore.objectives.loss import LossTerms
from outscore.objectives.preferences import pair_accuracy, pair_losses
from outscore.objectives.reward_models import (
    calibration_error,
    label_loss,
    label_score_losses,
    normalisation,
    pair_score_losses,
    reward_model_loss,
)
from outscore.records import RankedGroup
from outscore.report.populations import means_by_population
from outscore.stages import ProcessRewardModelSettings, StageSettings
from outscore.train.activity import Tell, tell_nobody
from outscore.train.checkpoint import load_weights
from outscore.train.optim import make_optimizer
from outscore.train.populations import weighed_passes
from outscore.train.preferences import ranked_batch
from outscore.train.step import Batch, Learner, Metrics, UpdatePlan, pack, take_update

REFERENCE_RANKINGS = 256
"""Training rankings whose completions set the scale of the scores."""


def reward_learner(policy: Policy, settings: StageSettings, seed: int, end: int, weights: Path | None) -> Learner:
    """A learner whose model is a reward model: a copy of the policy with a fresh head, or what a checkpoint holds.

    The policy is left as it is, and its version is the learner's throughout.
    """
    if weights is None:
        separators = settings.separators if isinstance(settings, ProcessRewardModelSettings) else None
        model = reward_model_from(policy, seed=seed, end_token_id=end, separators=separators)
    else:
        model = load_reward_model(weights, layout=policy.layout)
        torch.nn.Module.to(model.model, policy.device)
    model.version = policy.version
    masters = MasterWeights(model.model, policy.compute_dtype)
    if weights is not None:
        load_weights(weights, masters)
    optimizer = make_optimizer(masters.parameters.values(), settings.optimizer)
    return Learner(policy=model, masters=masters, optimizer=optimizer, reference=None)


def update_reward_model(
    learner: Learner,
    batch: Batch,
    plan: UpdatePlan,
    on_progress: Callable[[float], None] | None = None,
    coefficients: Tensor | None = None,
) -> Metrics:
    """One update on a batch of preferences or labels. Each completion is forwarded once for all its pairs, and every
    micro-batch divides by the counts of the whole batch. Nothing is asked of log π, so `coefficients` stay 0."""
    model = cast(RewardModel, learner.policy)
    populations = learner.populations
    micros = list(split_groups(batch.groups, plan.token_budget, whole=True))
    reported = []

    def forward(micro: Sequence[TrainingGroup]) -> tuple[GroupRows, Tensor]:
        rows = pack(model, micro, batch.starts)
        return rows, completion_scores(model, rows)

    def losses(made: tuple[GroupRows, Tensor]) -> Float[Tensor, "2 completion"]:
        rows, scores = made
        return _example_losses(scores, rows.ended, batch, plan.algorithm)

    index = None if populations is None else populations.index(batch.completion_populations)
    for done, (rows, scores) in enumerate(weighed_passes(populations, index, micros, forward, losses), start=1):
        factors = None if populations is None or index is None else populations.factors(index)
        terms = _loss(scores, rows.ended, batch, plan.algorithm, factors)
        terms.loss.backward()
        learner.masters.gather_gradients()
        reported.append(terms)
        if on_progress:
            on_progress(done / len(micros))
    return take_update(learner, plan, reported)


def _loss(scores: Tensor, numbers: Tensor, batch: Batch, row: Algorithm, factors: Tensor | None) -> LossTerms:
    """The share of these scores, of the batch's completions `numbers`, in what the batch is trained on; `factors`
    multiply what each completion adds to it."""
    total = len(batch.completions)
    if batch.pairs is not None:
        pairs = batch.pairs if factors is None else batch.pairs.times(factors)
        return reward_model_loss(scores, numbers, pairs, row.pair_objective, num_completions=total)
    assert batch.labels is not None
    labels = batch.labels.to(scores.device)[numbers]
    own = None if factors is None else factors.to(scores)[numbers]
    return label_loss(scores, labels, _kind(row), num_labels=total, factors=own)


def _example_losses(
    scores: Tensor, numbers: Tensor, batch: Batch, row: Algorithm
) -> Float[Tensor, "2 batch_completion"]:
    """What each completion adds to the loss by itself (`outscore.objectives.example_losses`)."""
    if batch.pairs is not None:
        total = len(batch.completions)
        return pair_score_losses(scores, numbers, batch.pairs, row.pair_objective, num_completions=total)
    assert batch.labels is not None
    return label_score_losses(scores, numbers, batch.labels, _kind(row))


def _kind(row: Algorithm) -> PointLoss:
    return "squared_error" if row.surrogate == "squared_error" else "cross_entropy"


@torch.no_grad()
def batch_scores(model: RewardModel, batch: Batch, token_budget: int) -> Float[Tensor, " completion"]:
    """The score of every completion of a batch."""
    scores = torch.zeros(len(batch.completions), device=model.device)
    for micro in split_groups(batch.groups, token_budget):
        rows = pack(model, micro, batch.starts)
        found = completion_scores(model, rows)
        scores = scores.to(found.dtype).index_copy(0, rows.ended, found)
    return scores


@torch.no_grad()
def normalise(learner: Learner, rankings: Sequence[RankedGroup], token_budget: int) -> None:
    """Bring the scores of the first `REFERENCE_RANKINGS` rankings' completions to mean 0 and variance 1 (Ziegler et
    al., arXiv 1909.08593)."""
    model = cast(RewardModel, learner.policy)
    batch = ranked_batch(rankings[:REFERENCE_RANKINGS], ties="half")
    gain, bias = normalisation(batch_scores(model, batch, token_budget))
    model.rescale(gain, bias)
    if learner.masters.separate:
        name = next(name for name, parameter in model.model.named_parameters() if parameter is model.head.weight)
        learner.masters.parameters[name].mul_(gain)


@dataclass(frozen=True, kw_only=True)
class RewardModelMeasure:
    """How well a reward model ranks held-out completions, and how well it knows it.

    `preference_accuracy`: the share of pairs it has the right way round. `calibration_error`: how far that is from how
    sure it is (`calibration_error` in `outscore.objectives`). `preference_loss`, and the `margin` of a pair. Accuracy
    and loss also by population, where rankings have one.
    """

    rankings: Sequence[RankedGroup]
    """Held-out rankings, none of them all ties."""
    model: RewardModel
    """The model as it stands when `run` is called."""
    plan: UpdatePlan
    """The row it is trained by, and the tokens forwarded at once."""

    @property
    def num_problems(self) -> int:
        """How many rankings there are."""
        return len(self.rankings)

    def run(self, tell: Tell = tell_nobody) -> Mapping[str, Estimate | float]:
        """The metrics, the accuracy with a 95 % interval."""
        tell("ranking held-out preferences")
        batch = ranked_batch(self.rankings, ties="drop")
        assert batch.pairs is not None
        scores = batch_scores(self.model, batch, self.plan.token_budget).double()
        pairs = batch.pairs.to(scores)
        differences = scores[pairs.better] - scores[pairs.worse]
        losses = pair_losses(differences, pairs.labels, self.plan.algorithm.pair_objective)
        names = [batch.completion_populations[better] for better in pairs.better.tolist()]
        right = pair_accuracy(differences).tolist()
        return {
            "preference_accuracy": mean_interval(right),
            **means_by_population("preference_accuracy", right, names),
            **means_by_population("preference_loss", losses.tolist(), names, pairs.weights.tolist()),
            "calibration_error": calibration_error(differences),
            "preference_loss": float((pairs.weights * losses).sum()),
            "margin": float(differences.mean()),
        }
