"""Labels in a run: completions and their steps as batches, and how well and how surely a reward model tells those that
are held out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from outscore.algorithms.rows import Algorithm
from outscore.model.heads import RewardModel
from outscore.model.rows import TrainingGroup
from outscore.objectives.estimators import Estimate, mean_interval
from outscore.objectives.reward_models import label_accuracy, label_calibration_error, label_losses
from outscore.records import Completion, LabelledGroup
from outscore.report.populations import means_by_population
from outscore.train.activity import Tell, tell_nobody
from outscore.train.order import Strata, batch_indices
from outscore.train.reward_models import batch_scores
from outscore.train.sources import Collected
from outscore.train.step import Batch


class Labels(Protocol):
    """Labelled completions, which may have to be made first."""

    def trained(self, tell: Tell = tell_nobody) -> Sequence[LabelledGroup]:
        """Those to train on; never empty."""
        ...

    def held_out(self, tell: Tell = tell_nobody) -> Sequence[LabelledGroup]:
        """Those to evaluate on."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenLabels:
    """Labels of the task."""

    train: Sequence[LabelledGroup]
    """Those to train on."""
    evaluation: Sequence[LabelledGroup]
    """Those of held-out problems."""

    def trained(self, tell: Tell = tell_nobody) -> Sequence[LabelledGroup]:
        """Those to train on."""
        return self.train

    def held_out(self, tell: Tell = tell_nobody) -> Sequence[LabelledGroup]:
        """Those of held-out problems."""
        return self.evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSource:
    """Labelled completions, in an order that each epoch shuffles."""

    labels: Labels
    """All of them."""
    batch_size: int
    """How many completions in a step."""
    seed: int
    """The run's seed."""
    stage: int
    """The stage's place in the run."""
    strata: Strata | None = None
    """Which of them are of which population, where that decides what is drawn."""

    def collect(self, step: int, tell: Tell = tell_nobody) -> Collected:
        """The completions of a step."""
        groups = self.labels.trained(tell)
        chosen = batch_indices(self.seed, self.stage, step, self.batch_size, len(groups), self.strata)
        kept = [groups[index] for index in chosen]
        lengths = [float(len(group.completion.token_ids)) for group in kept]
        metrics = {
            "completion_length": (sum(lengths), float(len(lengths))),
            "labels_per_completion": (float(sum(len(group.labels) for group in kept)), float(len(kept))),
        }
        return Collected(batch=labelled_batch(kept), metrics=metrics, seconds={}, num_tokens=int(sum(lengths)))


def labelled_batch(groups: Sequence[LabelledGroup]) -> Batch:
    """Labelled completions as a batch whose completions are their labelled beginnings: a score is read where each ends.

    In group rows a completion and its beginnings are one path, which is forwarded once.
    """
    rows: list[TrainingGroup] = []
    completions: list[Completion] = []
    for group in groups:
        first = len(completions)
        for end in group.ends:
            ids = group.completion.token_ids[: end + 1]
            completions.append(Completion(token_ids=ids, text="", counts=(False,) * len(ids)))
        rows.append(
            TrainingGroup(
                prompt_ids=group.prompt.token_ids,
                completions=tuple(completions[first:]),
                completion_index=tuple(range(first, len(completions))),
            )
        )
    return Batch(
        groups=tuple(rows),
        completions=tuple(completions),
        advantages=None,
        sampler_logprobs=None,
        temperature=1.0,
        labels=torch.tensor([label for group in groups for label in group.labels], dtype=torch.float32),
        populations=tuple(group.prompt.problem.population for group in groups),
    )


@dataclass(frozen=True, kw_only=True)
class LabelMeasure:
    """How well a reward model tells the labels of held-out completions.

    `label_loss`: the loss it is trained by. Of chances also `label_accuracy`, the share of labels, those of 1/2 left
    out, on whose side of 1/2 the model is, and `calibration_error`, how far the chances it gives are from the labels it
    finds; of ratings `explained`, the share of their variance that it explains, NaN where they have none. Loss and
    accuracy also by population, where the problems have one.
    """

    labels: Labels
    """Whose held-out ones are asked for when `run` is called."""
    model: RewardModel
    """The model as it stands then."""
    algorithm: Algorithm
    """The row it is trained by."""
    token_budget: int
    """Tokens forwarded at once."""

    @property
    def num_problems(self) -> int:
        """How many completions there are."""
        return len(self.labels.held_out())

    def run(self, tell: Tell = tell_nobody) -> Mapping[str, Estimate | float]:
        """The metrics, the accuracy with a 95 % interval."""
        groups = self.labels.held_out(tell)
        tell("scoring held-out completions")
        batch = labelled_batch(groups)
        assert batch.labels is not None
        scores = batch_scores(self.model, batch, self.token_budget).double().cpu()
        labels = batch.labels.double()
        names = batch.completion_populations
        if self.algorithm.surrogate == "squared_error":
            errors = label_losses(scores, labels, "squared_error")
            variance = float(labels.var(correction=0))
            found = {"explained": 1.0 - float(errors.mean()) / variance if variance > 0.0 else math.nan}
            found |= means_by_population("label_loss", errors.tolist(), names)
            return {**found, "label_loss": float(errors.mean())}
        losses = label_losses(scores, labels, "cross_entropy")
        sides = label_accuracy(scores, labels).tolist()
        sided = [name for name, label in zip(names, labels.tolist(), strict=True) if label != 0.5]
        return {
            **means_by_population("label_loss", losses.tolist(), names),
            **means_by_population("label_accuracy", sides, sided),
            "label_accuracy": mean_interval(sides) if sides else math.nan,
            "calibration_error": label_calibration_error(torch.sigmoid(scores), labels),
            "label_loss": float(losses.mean()),
        }
