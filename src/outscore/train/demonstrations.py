"""Demonstrations as batches, and a source of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from outscore.model.rows import TrainingGroup
from outscore.records import DemonstrationGroup
from outscore.train.activity import Tell, tell_nobody
from outscore.train.order import Strata, batch_indices
from outscore.train.sources import Collected
from outscore.train.step import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class DemonstrationSource:
    """Groups of one, in an order that each epoch shuffles."""

    demonstrations: Sequence[DemonstrationGroup]
    """All of them."""
    batch_size: int
    """How many in a step."""
    seed: int
    """The run's seed."""
    stage: int
    """The stage's place in the run."""
    strata: Strata | None = None
    """Which of them are of which population, where that decides what is drawn."""

    def collect(self, step: int, tell: Tell = tell_nobody) -> Collected:
        """The demonstrations of a step; they are there, so there is nothing to tell."""
        size, total = self.batch_size, len(self.demonstrations)
        chosen = batch_indices(self.seed, self.stage, step, size, total, self.strata)
        groups = [self.demonstrations[index] for index in chosen]
        batch = demonstration_batch(groups)
        lengths = [float(len(group.completion.token_ids)) for group in groups]
        metrics = {"completion_length": (sum(lengths), float(len(lengths)))}
        return Collected(batch=batch, metrics=metrics, seconds={}, num_tokens=int(sum(lengths)), given=tuple(groups))


def demonstration_batch(groups: Sequence[DemonstrationGroup]) -> Batch:
    """Groups of one as a batch."""
    return Batch(
        groups=tuple(
            TrainingGroup(prompt_ids=group.prompt.token_ids, completions=(group.completion,), completion_index=(i,))
            for i, group in enumerate(groups)
        ),
        completions=tuple(group.completion for group in groups),
        advantages=None,
        sampler_logprobs=None,
        temperature=1.0,
        populations=tuple(group.prompt.problem.population for group in groups),
    )
