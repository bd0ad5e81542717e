"""KL to the reference as a cost of rewards, without gradient (DeepSeekMath, arXiv 2402.03300, eq. 2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outscore.algorithms.rows import Algorithm
from outscore.objectives.kl import kl_estimate, kl_per_completion
from outscore.records import ScoredGroup
from outscore.stages import PolicySettings
from outscore.train.sources import plain_batch
from outscore.train.step import Learner, batch_logprobs


@dataclass(frozen=True, slots=True)
class RewardKl:
    """What completions pay for leaving the reference: `Penalty` of a learner that has one."""

    learner: Learner
    """The policy and its reference as they stand when asked."""
    settings: PolicySettings
    """Temperature, and tokens forwarded at once."""
    algorithm: Algorithm
    """Which estimate, and whether completions pay or each of their tokens."""

    @property
    def coef(self) -> float:
        """The coefficient now."""
        return self.learner.kl_coef

    def estimates(self, groups: Sequence[ScoredGroup]) -> list[Tensor]:
        """For each group the KL of each completion, or with `kl_place: token_reward` of each token, in nats."""
        learner, settings, row = self.learner, self.settings, self.algorithm
        assert learner.reference is not None
        batch = plain_batch(groups, settings.sampling.temperature)
        anchor = batch_logprobs(learner.policy, batch, batch.groups, settings.token_budget)
        with learner.reference.in_place():
            ref = batch_logprobs(learner.policy, batch, batch.groups, settings.token_budget)
        if row.kl_place == "token_reward":
            return batch.by_group(kl_estimate(anchor - ref, estimator=row.kl_estimator).cpu())
        lengths = batch.lengths(anchor.device)
        index = torch.repeat_interleave(torch.arange(len(lengths), device=anchor.device), lengths)
        each = kl_per_completion(
            anchor, ref, index, estimator=row.kl_estimator, level=row.kl_level, num_completions=len(lengths)
        )
        return list(each.cpu().split([len(group.scores) for group in groups]))
