"""The pretraining mix of PPO-ptx: plain text that each update of the policy predicts beside its samples.

InstructGPT (arXiv 2203.02155, eq. 2) adds gamma E_{x ~ D_pretrain}[log pi(x)] to what is maximised, and accumulates the
gradients of both in one update. It does not say whether log pi(x) is summed over tokens; here it is the mean over those
of the update's texts, which is what `pretrain` trains on and does not depend on their length.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from outscore.algorithms.rows import algorithm
from outscore.model.logprobs import token_logprobs
from outscore.model.rows import split_groups
from outscore.objectives.loss import LossTerms, policy_loss
from outscore.records import DemonstrationGroup
from outscore.stages import PolicySettings, StageSettings
from outscore.train.demonstrations import demonstration_batch
from outscore.train.order import batch_indices
from outscore.train.step import Batch, Learner, pack

ORDER_APART = 500_009
"""Added to the seed of the order of texts, so that it is not that of the prompts."""


def text_term(settings: StageSettings) -> Callable[[Learner, Batch, int], Sequence[LossTerms]] | None:
    """What adds the gradient of a stage's texts to an update; None where it has none, or they count for nothing."""
    ptx = settings.ptx if isinstance(settings, PolicySettings) else None
    return partial(add_texts, coef=ptx.coef, token_budget=settings.token_budget) if ptx and ptx.coef else None


def step_texts(
    settings: PolicySettings, pieces: Sequence[DemonstrationGroup], *, seed: int, stage: int
) -> Callable[[int], tuple[Batch, ...]] | None:
    """What gives the texts of a step, a batch for each of its updates: a function of seed, stage and step. None where
    `text_term` is."""
    ptx, num_updates = settings.ptx, settings.updates_per_step
    if ptx is None or not ptx.coef:
        return None
    size = ptx.batch_size

    def texts(step: int) -> tuple[Batch, ...]:
        chosen = batch_indices(seed + ORDER_APART, stage, step, size * num_updates, len(pieces))
        parts = (chosen[first : first + size] for first in range(0, len(chosen), size))
        return tuple(demonstration_batch([pieces[place] for place in part]) for part in parts)

    return texts


def add_texts(learner: Learner, batch: Batch, number: int, *, coef: float, token_budget: int) -> list[LossTerms]:
    """Add the gradient of `coef` times the mean negative log-likelihood of the tokens of an update's texts, however
    they are split. Its summand of the loss is `ptx`, and `ptx_nll` the mean, in nats."""
    policy, texts = learner.policy, batch.texts[number]
    row, starts = algorithm("pretrain"), texts.starts
    factors = torch.full((len(texts.completions),), coef, device=policy.device)
    reported = []
    for micro in split_groups(texts.groups, token_budget):
        rows = pack(policy, micro, starts)
        terms = policy_loss(
            token_logprobs(policy, rows, temperature=texts.temperature).logprobs,
            algorithm=row,
            completion_index=rows.completion_index,
            completion_lengths=texts.lengths(policy.device),
            num_completions=len(texts.completions),
            num_tokens=starts[-1],
            factors=factors,
        )
        terms.loss.backward()
        learner.masters.gather_gradients()
        parts, means = {"ptx": terms.parts["policy"]}, {"ptx_nll": terms.means["nll"]}
        reported.append(replace(terms, parts=parts, means=means, maxima={}))
    return reported
