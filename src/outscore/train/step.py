"""One batch of groups, the updates it gives the policy, and what is reported about them.

The loop here never asks for an algorithm's name: it reads the row's cells through `outscore.objectives`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from outscore.algorithms.rows import Algorithm
from outscore.model.logprobs import TokenLogprobs, token_logprobs
from outscore.model.policy import Policy
from outscore.model.precision import MasterWeights
from outscore.model.rows import GroupRows, TrainingGroup, flat_starts, group_rows, separate_rows, split_groups
from outscore.model.transfer import on_device
from outscore.objectives.example_losses import example_losses
from outscore.objectives.loss import LossTerms, add_loss_terms, policy_loss
from outscore.objectives.preferences import Pairs
from outscore.records import Completion
from outscore.stage_parts import OptimizerSettings
from outscore.train.optim import learning_rate, take_step
from outscore.train.passes import part_of, updates_of
from outscore.train.populations import PopulationWeights, reward_pairs, weighed_passes

Metrics = Mapping[str, tuple[float, float]]
"""Name -> (sum, count)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticTargets:
    """What a critic learns from, for each loss-carrying token of a batch."""

    values: Float[Tensor, " token"]
    """What it expected before the step's updates."""
    returns: Float[Tensor, " token"]
    """What it is to expect."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The groups of one step, all completions numbered, with what is known of each loss-carrying token.

    The `token` axis runs over the loss-carrying tokens of all completions in order; `flat_starts` says where each
    completion begins.
    """

    groups: tuple[TrainingGroup, ...]
    """In slot order."""
    completions: tuple[Completion, ...]
    """All completions of the groups; their place here is their number."""
    advantages: Float[Tensor, " token"] | None
    """None where nothing is compared (demonstrations)."""
    sampler_logprobs: Float[Tensor, " token"] | None
    """What the sampler drew the tokens with; None for demonstrations."""
    temperature: float
    """The sampling temperature, which also divides the logits in training."""
    pairs: Pairs | None = None
    """Which completions were liked better than which, where that is what is trained on."""
    critic: CriticTargets | None = None
    """What the critic learns from, where there is one."""
    labels: Float[Tensor, " completion"] | None = None
    """What each completion is to be scored, where that is what is trained on."""
    populations: tuple[str | None, ...] = ()
    """The population of each group, if the data say so."""
    rewards: tuple[float | None, ...] | None = None
    """Where completions were sampled, the mean reward of what was first drawn in each group's slot: a refill was chosen
    for its rewards. None for a group that could not be scored."""
    texts: "tuple[Batch, ...]" = ()
    """Plain text that is predicted beside, for each update of the step a batch."""

    @property
    def starts(self) -> list[int]:
        """Where each completion begins on the token axis, and the total."""
        return flat_starts(self.completions)

    def by_group(self, values: Float[Tensor, " token"]) -> list[Tensor]:
        """Values on the batch's token axis, cut into those of each group."""
        ends = [self.starts[group.completion_index[-1] + 1] for group in self.groups]
        return list(values.tensor_split(ends[:-1]))

    def lengths(self, device: torch.device) -> Int[Tensor, " completion"]:
        """Loss-carrying tokens of each completion."""
        return on_device(torch.tensor([sum(completion.counts) for completion in self.completions]), device)

    def group_index(self, device: torch.device) -> Int[Tensor, " completion"]:
        """The place of each completion's group."""
        sizes = torch.tensor([len(group.completions) for group in self.groups])
        return on_device(torch.arange(len(self.groups)).repeat_interleave(sizes), device)

    @property
    def completion_populations(self) -> list[str | None]:
        """The population of each completion."""
        named = zip(self.groups, self.populations, strict=True)
        return [name for group, name in named for _ in group.completions]


class Reference:
    """The policy as it was: a snapshot of the trained weights that can be put in the policy's place for a moment.

    With fresh LoRA adapters the snapshot holds adapters whose update is exactly zero, so the reference is the model
    with its adapter switched off and no second copy of the weights exists.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self.weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def refresh(self) -> None:
        """Reference ← policy."""
        for name, parameter in self._parameters.items():
            self.weights[name].copy_(parameter.detach())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The policy *is* the reference inside the block; storage is exchanged, nothing is copied."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.weights[name] = self.weights[name], parameter.data


@dataclass(kw_only=True, slots=True)
class Learner:
    """What changes while a stage trains."""

    policy: Policy
    """The model that is trained: the run's policy, or a reward model."""
    masters: MasterWeights
    """Its trained weights in fp32."""
    optimizer: torch.optim.Optimizer
    """Moments of those."""
    reference: Reference | None
    """For the KL penalty; None where the algorithm has none."""
    num_updates: int = 0
    """Optimizer updates taken in this stage; those of the whole run are `policy.version`."""
    kl_coef: float = 0.0
    """The coefficient of a KL in the reward as it stands: the row's, unless it is steered."""
    critic: "Learner | None" = None
    """The critic of a stage that has one, which learns beside the policy."""
    teacher: Policy | None = None
    """Whom the policy is to become like, where the algorithm has one; it never changes."""
    populations: PopulationWeights | None = None
    """How much each population counts; None where every example counts the same."""
    lr_factor: float = 1.0
    """What the learning rate is multiplied by, after plateaus."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdatePlan:
    """How a batch becomes optimizer updates."""

    algorithm: Algorithm
    """The row of choices."""
    optimizer: OptimizerSettings
    """Rates and clip."""
    total_updates: int
    """Updates of the whole stage, which the schedule runs over."""
    token_budget: int
    """Tokens forwarded at once."""
    minibatches: int = 1
    """Updates in a pass over the batch."""
    epochs: int = 1
    """Passes over the batch, µ."""
    order: tuple[int, int] = (0, 0)
    """The run's seed and the stage's place, which the order of groups in later passes is drawn from."""
    beside: Callable[[Learner, Batch, int], Sequence[LossTerms]] | None = None
    """Adds another loss's gradient to that of an update, which it is told by its number in the step, 0 the first."""
    within: Callable[[GroupRows, TokenLogprobs, int], LossTerms] | None = None
    """Another loss of the same forward passes, as a share of an update of so many tokens; one backward pass takes both.
    Where there is one, every completion with a counted token is forwarded."""

    def parts(self, groups: Sequence[TrainingGroup], learner: Learner) -> list[Sequence[TrainingGroup]]:
        """The groups of each update that the learner takes of a step's (`updates_of`)."""
        seed, stage = self.order
        known = {"seed": seed, "stage": stage, "num_updates": learner.num_updates}
        return updates_of(groups, num_minibatches=self.minibatches, num_passes=self.epochs, **known)


def pack(policy: Policy, groups: Sequence[TrainingGroup], starts: Sequence[int]) -> GroupRows:
    """Rows in the layout the policy takes."""
    build = group_rows if policy.layout == "group_rows" else separate_rows
    return build(groups, starts, policy.device)


@torch.no_grad()
def batch_logprobs(
    policy: Policy, batch: Batch, groups: Sequence[TrainingGroup], token_budget: int
) -> Float[Tensor, " token"]:
    """Log-probs of the groups' tokens on the batch's flat token axis; tokens of other groups stay 0."""
    starts = batch.starts
    flat = torch.zeros(starts[-1], device=policy.device)
    for micro in split_groups(groups, token_budget):
        rows = pack(policy, micro, starts)
        logprobs = token_logprobs(policy, rows, temperature=batch.temperature).logprobs
        flat = flat.to(logprobs.dtype).index_copy(0, rows.order, logprobs)
    return flat


def live_groups(batch: Batch, groups: Sequence[TrainingGroup], algorithm: Algorithm) -> list[TrainingGroup]:
    """The groups without the completions that cannot move the policy: no counted token, or advantage 0 and nothing
    else in the loss.

    Exact: their gradient is zero, and the denominators, which count them, are handed in from the whole batch.
    """
    others = algorithm.penalises_kl or algorithm.entropy_coef != 0
    if batch.advantages is None or others:
        return counted_groups(batch, groups)
    advantages = batch.advantages.cpu()
    return _only(batch, groups, lambda first, last: bool(advantages[first:last].any()))


def _forwarded(batch: Batch, groups: Sequence[TrainingGroup], plan: UpdatePlan) -> list[TrainingGroup]:
    """The groups without the completions that no loss of the update has a use for."""
    return counted_groups(batch, groups) if plan.within else live_groups(batch, groups, plan.algorithm)


def counted_groups(batch: Batch, groups: Sequence[TrainingGroup]) -> list[TrainingGroup]:
    """The groups without the completions that have no token to learn from."""
    return _only(batch, groups, lambda first, last: first < last)


def _only(batch: Batch, groups: Sequence[TrainingGroup], moves: Callable[[int, int], bool]) -> list[TrainingGroup]:
    """The groups without the completions whose stretch of the token axis moves nothing."""
    starts = batch.starts
    live = []
    for group in groups:
        kept = [i for i, number in enumerate(group.completion_index) if moves(starts[number], starts[number + 1])]
        if kept:
            completions = tuple(group.completions[i] for i in kept)
            numbers = tuple(group.completion_index[i] for i in kept)
            live.append(replace(group, completions=completions, completion_index=numbers))
    return live


def update(
    learner: Learner,
    batch: Batch,
    plan: UpdatePlan,
    on_progress: Callable[[float], None] | None = None,
    coefficients: Float[Tensor, " token"] | None = None,
) -> Metrics:
    """Take the batch's optimizer updates: `epochs` passes of `minibatches` updates each (`UpdatePlan.parts`).

    The anchor is the policy before the first of them; when there is only one update the anchor is the policy itself
    and costs nothing. `on_progress` hears the share that is done, after each micro-batch. `coefficients`, zeros on the
    batch's token axis, receives `LossTerms.coefficients` of each token in the first pass: the update of its own
    mini-batch.
    """
    device = learner.policy.device
    live = _forwarded(batch, batch.groups, plan)
    anchor = ref = None
    if plan.epochs * plan.minibatches > 1 and plan.algorithm.needs_anchor:
        anchor = batch_logprobs(learner.policy, batch, live, plan.token_budget)
    if learner.reference is not None and plan.algorithm.kl_place == "loss":
        with learner.reference.in_place():
            ref = batch_logprobs(learner.policy, batch, live, plan.token_budget)
    if learner.teacher is not None:
        ref = batch_logprobs(learner.teacher, batch, live, plan.token_budget)
    moved = (batch.advantages, anchor, batch.sampler_logprobs, ref)
    known = dict(
        zip(
            ("advantages", "anchor_logprobs", "sampler_logprobs", "ref_logprobs"),
            (None if tensor is None else tensor.to(device) for tensor in moved),
            strict=True,
        )
    )
    reports: list[Metrics] = []
    parts = plan.parts(batch.groups, learner)
    for before, part in enumerate(parts):
        told = part_of(before, len(parts), on_progress) if on_progress else None
        kept = coefficients if before < plan.minibatches else None
        terms = accumulate(learner, batch, part, plan, known, told, kept)
        terms += plan.beside(learner, batch, before) if plan.beside else []
        reports.append(take_update(learner, plan, terms))
    return merge(reports)


def take_update(learner: Learner, plan: UpdatePlan, terms: Sequence[LossTerms]) -> Metrics:
    """Step on the gradients that have been gathered; the metrics are those of the micro-batches, and of the step."""
    lr = learning_rate(plan.optimizer, learner.num_updates, plan.total_updates) * learner.lr_factor
    norm = take_step(learner.optimizer, learner.masters.parameters.values(), lr, plan.optimizer.max_grad_norm)
    learner.masters.copy_back()
    learner.num_updates += 1
    learner.policy.took_update()
    weights = learner.populations.report if learner.populations else {}
    return {**add_loss_terms(terms), "grad_norm": (float(norm), 1.0), "lr": (lr, 1.0), **weights}


def accumulate(
    learner: Learner,
    batch: Batch,
    part: Sequence[TrainingGroup],
    plan: UpdatePlan,
    known: Mapping[str, Float[Tensor, " token"] | None],
    on_progress: Callable[[float], None] | None = None,
    coefficients: Float[Tensor, " token"] | None = None,
) -> list[LossTerms]:
    """Add the gradient of one update to the master weights' gradients, micro-batch by micro-batch.

    Every micro-batch divides by the counts of the whole update, so how it is split changes nothing. `on_progress` hears
    the share of them that is done; `coefficients` receives those of the tokens.
    """
    policy, populations = learner.policy, learner.populations
    starts, lengths, group_index = batch.starts, batch.lengths(policy.device), batch.group_index(policy.device)
    numbers = [number for group in part for number in group.completion_index]
    num_tokens = max(sum(starts[number + 1] - starts[number] for number in numbers), 1)
    reported = []
    # A pair is compared where both of it are forwarded.
    micros = list(split_groups(_forwarded(batch, part, plan), plan.token_budget, whole=batch.pairs is not None))

    def forward(micro: Sequence[TrainingGroup]) -> tuple[GroupRows, TokenLogprobs]:
        rows = pack(policy, micro, starts)
        return rows, token_logprobs(policy, rows, temperature=batch.temperature)

    index = None if populations is None else populations.index(batch.completion_populations)
    losses = None
    if batch.rewards is None:
        losses = partial(_losses, batch, known.get("ref_logprobs"), plan.algorithm, (len(numbers), num_tokens))
    elif populations is not None:
        _hear_rewards(populations, batch, part)
    passes = weighed_passes(populations, index, micros, forward, losses)
    for done, (rows, now) in enumerate(passes, start=1):
        terms = policy_loss(
            now.logprobs,
            algorithm=plan.algorithm,
            completion_index=rows.completion_index,
            completion_lengths=lengths,
            num_completions=len(numbers),
            num_tokens=num_tokens,
            completion_group=group_index,
            num_groups=len(part),
            entropy=now.entropy,
            pairs=batch.pairs,
            factors=None if populations is None or index is None else populations.factors(index),
            **{name: None if flat is None else flat.index_select(0, rows.order) for name, flat in known.items()},
        )
        reported.append(terms)
        loss = terms.loss
        if plan.within is not None:
            reported.append(plan.within(rows, now, num_tokens))
            loss = loss + reported[-1].loss
        loss.backward()
        learner.masters.gather_gradients()
        if coefficients is not None:
            coefficients.index_copy_(0, rows.order.to(coefficients.device), terms.coefficients.to(coefficients))
        if on_progress:
            on_progress(done / len(micros))
    return reported


def _losses(
    batch: Batch,
    ref_logprobs: Float[Tensor, " token"] | None,
    row: Algorithm,
    counts: tuple[int, int],
    made: tuple[GroupRows, TokenLogprobs],
) -> Float[Tensor, "2 completion"]:
    """What the completions of a forward pass add to the loss of an update that counts so many completions and
    tokens."""
    rows, now = made
    return example_losses(
        now.logprobs,
        algorithm=row,
        completion_index=rows.completion_index,
        completion_lengths=batch.lengths(now.logprobs.device),
        num_completions=counts[0],
        num_tokens=counts[1],
        ref_logprobs=None if ref_logprobs is None else ref_logprobs.index_select(0, rows.order),
        pairs=batch.pairs,
    )


def _hear_rewards(populations: PopulationWeights, batch: Batch, part: Sequence[TrainingGroup]) -> None:
    """Let the weights climb by the rewards of an update's groups."""
    assert batch.rewards is not None
    places = {group.completion_index: place for place, group in enumerate(batch.groups)}
    own = [places[group.completion_index] for group in part]
    index = populations.index([batch.populations[place] for place in own])
    found = reward_pairs([batch.rewards[place] for place in own])
    populations.take_rewards(populations.sums(found, index), len(own))


def merge(reports: Sequence[Metrics]) -> Metrics:
    """Put reports together by name: (sum, count) pairs add up, and of metrics called `…_max` the largest stays."""
    merged: dict[str, tuple[float, float]] = {}
    for report in reports:
        for name, (total, count) in report.items():
            before, seen = merged.get(name, (total, 0.0) if name.endswith("_max") else (0.0, 0.0))
            merged[name] = (max(before, total), count) if name.endswith("_max") else (before + total, seen + count)
    return merged
