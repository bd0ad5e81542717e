"""A critic in a run: what it begins as, what it expects, and its updates beside the policy's."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from outscore.model.heads import (
    RewardModel,
    ValueHead,
    is_reward_model,
    load_reward_model,
    reward_model_from,
    token_values,
)
from outscore.model.logprobs import TokenLogprobs
from outscore.model.policy import Layout, Policy
from outscore.model.precision import MasterWeights
from outscore.model.rows import GroupRows, split_groups
from outscore.objectives.critic import critic_loss
from outscore.objectives.loss import LossTerms
from outscore.records import ScoredGroup
from outscore.report import RunDirectory
from outscore.rewards.reward_model import newest_checkpoint
from outscore.stage_parts import POLICY, CriticSettings, OptimizerSettings
from outscore.train.checkpoint import CRITIC, load_weights
from outscore.train.optim import make_optimizer
from outscore.train.passes import part_of
from outscore.train.sources import plain_batch
from outscore.train.step import (
    Batch,
    CriticTargets,
    Learner,
    Metrics,
    UpdatePlan,
    counted_groups,
    merge,
    pack,
    take_update,
    update,
)

Critic = RewardModel | ValueHead
"""A model of its own, or a head on the policy."""


def critic_learner(
    policy: Policy,
    settings: CriticSettings,
    optimizer: OptimizerSettings,
    *,
    run: RunDirectory | None = None,
    resumed: Path | None = None,
) -> Learner:
    """A learner whose model is a critic; the policy is left as it is. With `trunk: shared` it is a head of zeros on the
    policy.

    Otherwise it begins as `settings.start` says: as a copy of the policy with a head of zeros, or as another
    model with a scalar head, which it brings along (InstructGPT, arXiv 2203.02155, begins with its reward model).
    `resumed` is the checkpoint that the stage goes on from. Without a `run` there is no earlier stage to begin as, and
    the policy stands in.

    Raises:
        ValueError: if the model that it is to begin as cannot be read, or reads other tokens.
    """
    if settings.trunk == "shared":
        return _head_learner(policy, optimizer, resumed)
    found = resumed / CRITIC if resumed is not None else _beginning(settings, run)
    if found is None:
        model = reward_model_from(policy, seed=0, end_token_id=None)
        torch.nn.init.zeros_(model.head.weight)
    else:
        model = load_reward_model(found, layout=_layout(found, policy))
        _check_fits(model, policy, settings.start)
        torch.nn.Module.to(model.model, policy.device)
    masters = MasterWeights(model.model, policy.compute_dtype)
    if resumed is not None:
        load_weights(resumed / CRITIC, masters)
    made = make_optimizer(masters.parameters.values(), optimizer)
    return Learner(policy=model, masters=masters, optimizer=made, reference=None)


def _head_learner(policy: Policy, optimizer: OptimizerSettings, resumed: Path | None) -> Learner:
    """A learner of a head on the policy; the head is fp32, whatever the policy computes in."""
    model = ValueHead(policy)
    if resumed is not None:
        model.load(resumed / CRITIC)
    masters = MasterWeights(model.head, model.head.weight.dtype)
    made = make_optimizer(masters.parameters.values(), optimizer)
    return Learner(policy=model, masters=masters, optimizer=made, reference=None)


def _beginning(settings: CriticSettings, run: RunDirectory | None) -> Path | None:
    """The directory of the model that a critic begins as; None for a copy of the policy."""
    if settings.start == POLICY:
        return None
    own = [item.path for item in run.checkpoints() if item.stage == settings.start] if run else []
    if own:
        return own[-1] if is_reward_model(own[-1]) else own[-1] / CRITIC
    folder = Path(settings.start).expanduser()
    return newest_checkpoint(folder) if folder.is_dir() else None


def _layout(directory: Path, policy: Policy) -> Layout:
    """The policy's, which was tried, for a model of its architecture; another one has a row for each completion."""
    kind = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type")
    return policy.layout if kind in (policy.base.config.model_type, policy.config.model_type) else "separate_rows"


def _check_fits(model: RewardModel, policy: Policy, start: str) -> None:
    if model.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ValueError(
            f"critic.start = {start!r}: its tokens are not the policy's, so it cannot read what the policy writes; "
            "take a reward model that was trained from this policy, or `policy`"
        )


@dataclass(frozen=True, slots=True)
class CriticValues:
    """What a critic expects, as it stands when asked."""

    critic: Learner
    """The critic."""
    token_budget: int
    """Tokens forwarded at once."""

    def __call__(self, groups: Sequence[ScoredGroup]) -> list[Tensor]:
        """For each group the value of the state before each token that could carry loss, flat."""
        batch = plain_batch(groups, 1.0)
        return batch.by_group(batch_values(cast(Critic, self.critic.policy), batch, self.token_budget).cpu())


@torch.no_grad()
def batch_values(model: Critic, batch: Batch, token_budget: int) -> Float[Tensor, " token"]:
    """The values of a batch on its flat token axis. What groups share is forwarded once."""
    starts = batch.starts
    flat = torch.zeros(starts[-1], device=model.device)
    for micro in split_groups(counted_groups(batch, batch.groups), token_budget):
        rows = pack(model, micro, starts)
        values = token_values(model, rows)
        flat = flat.to(values.dtype).index_copy(0, rows.order, values)
    return flat


def update_both(
    learner: Learner,
    batch: Batch,
    plan: UpdatePlan,
    on_progress: Callable[[float], None] | None = None,
    coefficients: Float[Tensor, " token"] | None = None,
    *,
    critic_plan: UpdatePlan,
    warmup_updates: int,
) -> Metrics:
    """The updates of policy and critic on a batch, as many of each; in the critic's first `warmup_updates` its own
    alone.

    Neither enters the other's loss once advantages and returns are known, so that the policy takes all of its updates
    first: it is the same as in turns.
    """
    assert learner.critic is not None
    pretrains = learner.critic.num_updates < warmup_updates
    reports: list[Metrics] = []
    if not pretrains:
        told = part_of(0, 2, on_progress) if on_progress else None
        reports.append(update(learner, batch, plan, told, coefficients))
    told = part_of(0 if pretrains else 1, 1 if pretrains else 2, on_progress) if on_progress else None
    return merge([*reports, update_critic(learner.critic, batch, critic_plan, told)])


def update_shared(
    learner: Learner,
    batch: Batch,
    plan: UpdatePlan,
    on_progress: Callable[[float], None] | None = None,
    coefficients: Float[Tensor, " token"] | None = None,
    *,
    critic_plan: UpdatePlan,
    warmup_updates: int,
    coef: float,
) -> Metrics:
    """The updates of a policy whose trunk the critic shares, on the policy's loss + c1 × value loss (PPO, arXiv
    1707.06347, eq. 9): one forward and one backward pass. Head and trunk have an optimizer each, and are clipped alone.

    In the head's first `warmup_updates` it learns by itself, and the trunk stays as it is.
    """
    critic = learner.critic
    assert critic is not None and batch.critic is not None
    if critic.num_updates < warmup_updates:
        return update_critic(critic, batch, critic_plan, on_progress)
    model, targets, of_head = cast(ValueHead, critic.policy), batch.critic, []

    def within(rows: GroupRows, now: TokenLogprobs, num_tokens: int) -> LossTerms:
        values = model.scores(now.states).index_select(0, rows.predictions)
        terms = _value_terms(values, targets, rows, critic_plan, num_tokens)
        return replace(terms, loss=coef * terms.loss, parts={"value": coef * terms.loss.detach()})

    def beside(learner: Learner, batch: Batch, number: int) -> Sequence[LossTerms]:
        of_head.append(_take_update(critic, critic_plan, []))
        return plan.beside(learner, batch, number) if plan.beside else []

    both = replace(plan, within=within, beside=beside)
    return merge([update(learner, batch, both, on_progress, coefficients), *of_head])


def update_critic(
    critic: Learner, batch: Batch, plan: UpdatePlan, on_progress: Callable[[float], None] | None = None
) -> Metrics:
    """`epochs` passes of `minibatches` updates (`UpdatePlan.parts`) on the clipped value loss, whose mean is over the
    tokens of an update.

    Every token that carries loss counts, whatever its advantage is. Values before, and returns, are those of `batch`.
    """
    assert batch.critic is not None
    parts = plan.parts(batch.groups, critic)
    reports: list[Metrics] = []
    for before, part in enumerate(parts):
        told = part_of(before, len(parts), on_progress) if on_progress else None
        terms = []
        starts, counted = batch.starts, counted_groups(batch, part)
        num_tokens = sum(starts[n + 1] - starts[n] for group in counted for n in group.completion_index)
        micros = list(split_groups(counted, plan.token_budget))
        for done, micro in enumerate(micros, start=1):
            rows = pack(critic.policy, micro, starts)
            values = token_values(cast(Critic, critic.policy), rows)
            terms.append(_value_terms(values, batch.critic, rows, plan, num_tokens))
            terms[-1].loss.backward()
            critic.masters.gather_gradients()
            if told:
                told(done / len(micros))
        reports.append(_take_update(critic, plan, terms))
    return merge(reports)


def _value_terms(
    values: Float[Tensor, " token"], targets: CriticTargets, rows: GroupRows, plan: UpdatePlan, num_tokens: int
) -> LossTerms:
    """The value loss of the tokens of some rows, as its share of the mean over an update's."""
    own, device = rows.order.to(targets.values.device), rows.order.device
    return critic_loss(
        values,
        targets.values.index_select(0, own).to(device),
        targets.returns.index_select(0, own).to(device),
        clip=plan.algorithm.value_clip,
        num_tokens=num_tokens,
    )


def _take_update(critic: Learner, plan: UpdatePlan, terms: Sequence[LossTerms]) -> Metrics:
    """A step of the critic on the gradients that have been gathered."""
    return {_NAMES.get(name, name): value for name, value in take_update(critic, plan, terms).items()}


_NAMES = {"grad_norm": "value_grad_norm", "lr": "value_lr"}
"""What a step reports of every learner, and how it is called for the critic."""
