"""What memory each phase of each stage will need, counted before a run; `outscore plan` prints it, and `outscore check`
warns by it.

A stage holds some things from its first step to its last: weights, their fp32 masters, Adam's moments, the reference,
a critic, a reward model. Beside these every phase has something of its own, and phases take turns: keys and values when
sampling; activations and logits when the backward pass begins; gradients, where activations were, when it ends. What a
stage needs is the largest sum, not the sum of the largest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from outscore.algorithms.rows import Algorithm
from outscore.config import Recipe
from outscore.model.kernels import fits, heads_of
from outscore.model.logprobs import chunk_tokens
from outscore.model.policy import Policy
from outscore.model_places import names_other_model
from outscore.stage_rows import stage_algorithm
from outscore.stages import PolicySettings, RejectionSettings, StageSettings, sampling_of
from outscore.train.build import EVALUATION_ROWS
from outscore.train.extent import Extent, Stored, largest_step, longest, sampling_extent, stored, update_extent
from outscore.train.materials import Materials, answer_limit
from outscore.train.memory import (
    DRAWN_ARRAYS,
    EVALUATED_ARRAYS,
    DecoderShape,
    activation_bytes,
    cache_bytes,
    decoder_shape,
    device_bytes,
    logit_bytes,
    resident_bytes,
    scalar_sizes,
    score_bytes,
    state_bytes,
    working_bytes,
)
from outscore.train.optim import moment_bytes
from outscore.train.scorers import ScoringModel, scoring_models
from outscore.train.setup import Workshop, default_device, prepare

Parts = Mapping[str, int]
"""What memory is for -> bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMemory:
    """What a stage needs, phase by phase."""

    label: str
    """The stage."""
    algorithm: str
    """Its row of the table."""
    phases: Mapping[str, Parts]
    """Each phase with all that is there then."""

    @property
    def peak(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def parts(self) -> Parts:
        """What is there at the peak."""
        return self.phases[self.peak]

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts.values())

    @property
    def dominant(self) -> str:
        """The largest part at the peak."""
        return max(self.parts, key=lambda part: self.parts[part])


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """What a recipe needs."""

    stages: Sequence[StageMemory]
    """Each stage, in order."""
    interpreter: int
    """What the process takes before there is a weight: interpreter, libraries, the task's data. Measured, and 0 on a
    GPU, whose memory holds none of it."""
    available: int
    """The memory of the device."""
    device: str
    """Which device that is."""
    precision: str
    """What the model computes in."""

    @property
    def largest(self) -> StageMemory:
        """The stage that needs most."""
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def total(self) -> int:
        """Bytes at the peak of the run."""
        return self.interpreter + self.largest.total


ASSUMPTIONS = (
    "the longest prompts meet in one step, every completion is as long as it may be, and no two begin alike",
    "not counted are worker processes of rewards, and the holes in an allocator's memory: glibc's held 11 to 25 % more "
    "(docs/results.md); with MALLOC_MMAP_THRESHOLD_=65536 in the environment it has none, and takes longer",
)
"""What is taken for granted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A model with an optimizer, as far as its memory goes."""

    shape: DecoderShape
    """Its widths."""
    device: torch.device
    """Where it computes."""
    num_parameters: int
    """All weights."""
    num_trained: int
    """Those with a gradient."""
    num_head: int
    """Those of the output layer over the vocabulary that have a gradient; 0 for a scalar head."""
    is_tied: bool
    """Whether the output layer is the input embeddings."""
    bytes_per_weight: int
    """4 in fp32, 2 in bf16."""
    bytes_of_moments: int
    """Both of Adam's."""
    has_vocabulary: bool
    """Whether its head makes logits."""
    recomputed: bool
    """Whether activations are recomputed."""
    keeps_scores: bool
    """Whether attention keeps its scores for the backward pass: no fused kernel here does without."""
    keeps_masks: bool
    """Whether every layer keeps a mask: the model's own attention over padded rows."""

    @property
    def held(self) -> dict[str, int]:
        """What is there throughout."""
        states = state_bytes(self.num_parameters, self.num_trained, bytes_per_weight=self.bytes_per_weight)
        return {"weights": states["weights"], "masters": states["masters"], "optimizer": self.bytes_of_moments}

    def forward(self, extent: Extent) -> dict[str, int]:
        """What a forward pass without gradients needs."""
        parts = {"activations": working_bytes(self.shape, extent.num_tokens, bytes_per_value=self.bytes_per_weight)}
        if self.has_vocabulary:
            parts["logits"] = logit_bytes(self.shape, extent.num_predictions, self.device, arrays=EVALUATED_ARRAYS)
        return parts

    def backward_begins(self, extent: Extent) -> dict[str, int]:
        """What is there when the loss is known: all activations, the logits of a chunk, the head's gradient."""
        size = self.bytes_per_weight
        parts = {
            "gradients": self._gathered(extent) + size * self.num_head * (2 if self._has_chunks(extent) else 1),
            "activations": self._kept(extent) + 3 * self.shape.hidden * extent.num_tokens * size,
        }
        if self.has_vocabulary:
            parts["logits"] = logit_bytes(self.shape, extent.num_predictions, self.device)
        return parts

    def backward_ends(self, extent: Extent) -> dict[str, int]:
        """What is there when it is through: gradients of all weights, the activations of the first layer."""
        size, gathers = self.bytes_per_weight, extent.num_micro_batches > 1
        first = replace(self, shape=replace(self.shape, num_layers=1))
        # fp32 gradients are added to those of earlier micro-batches one by one; in bf16 they are other tensors.
        own = size * self.num_trained if size < 4 or not gathers else 0
        # One that another waits for is there twice: the tied embedding's, which the head's waits for, or an added one.
        twice = size * self.num_head if self.is_tied or gathers else 0
        working = working_bytes(self.shape, extent.num_tokens, bytes_per_value=size)
        return {
            "gradients": max(self._gathered(extent) + own + twice, 4 * self.num_trained),
            "activations": first._kept(extent) + working,
        }

    def _gathered(self, extent: Extent) -> int:
        """Gradients of earlier micro-batches, which are fp32."""
        return 4 * self.num_trained if extent.num_micro_batches > 1 else 0

    def _kept(self, extent: Extent) -> int:
        kept = activation_bytes(
            self.shape, extent.num_tokens, bytes_per_value=self.bytes_per_weight, recomputed=self.recomputed
        )
        if self.keeps_scores:
            kept += score_bytes(self.shape, extent.num_pairs, recomputed=self.recomputed)
        if self.keeps_masks:
            kept += self.bytes_per_weight * extent.num_pairs * (1 if self.recomputed else self.shape.num_layers)
        return kept

    def _has_chunks(self, extent: Extent) -> bool:
        return extent.num_predictions > chunk_tokens(self.shape.vocab, self.device)


def plan_recipe(recipe: Recipe) -> MemoryPlan:
    """Count what a recipe needs, without its weights: config, tokenizer and data are enough.

    Raises:
        ValueError: where a run would raise it too, before it has a model's weights.
        ImportError: if a package is missing that the recipe needs.
    """
    workshop = prepare(recipe, outlined=True)
    device = default_device()
    return MemoryPlan(
        stages=plan_stages(recipe, workshop),
        interpreter=resident_bytes() if device.type == "cpu" else 0,
        available=device_bytes(device),
        device=device.type,
        precision=workshop.facts["precision"],
    )


def plan_stages(recipe: Recipe, workshop: Workshop) -> list[StageMemory]:
    """What each stage of a prepared recipe needs; the weights may be missing."""
    return [stage_memory(recipe, index, workshop) for index in range(len(recipe.stages))]


def stage_memory(recipe: Recipe, index: int, workshop: Workshop) -> StageMemory:
    """What a stage needs, phase by phase."""
    stage, materials, policy = recipe.stages[index], workshop.materials[index], workshop.policy
    row = stage_algorithm(stage)
    states = stage.optimizer.states
    own = trained_policy(workshop, recipe.model.activation_checkpointing, states)
    scalar = _scalar(policy, own, states)
    learner = own if row.trains == "policy" else scalar
    extent = update_extent(stage, materials, policy)
    scorers = scoring_models(recipe, stage, policy)
    shares = isinstance(stage, PolicySettings) and stage.critic is not None and stage.critic.trunk == "shared"
    held = _held(workshop, row, own, scalar, scorers)
    if shares:  # a head alone, in fp32: itself, its gradient, two moments
        held["critic"] = 16 * own.shape.hidden
    own_stages = [each.label for each in recipe.stages[:index]]
    if isinstance(stage, RejectionSettings) and names_other_model(stage.samples_from, own_stages):
        # As if it were as large as the policy.
        held["sampled model"] = own.bytes_per_weight * own.num_parameters
    phases: dict[str, Parts] = {}
    if index == 0:
        # Weights are read in fp32, and the masters taken, before they become what the model computes in.
        phases["loading"] = {"weights": 4 * own.num_parameters, "masters": own.held["masters"]}
    if sampled := sampling_extent(stage, materials):
        phases["sampling"] = {**held, **_sampling(own, sampled)}
    if sampled and scorers:
        phases["scoring"] = {**held, "activations": _scoring(scorers, stage, materials)}
    if _compares(stage, row):
        phases["comparing"] = {**held, **learner.forward(extent)}
    phases["backward begins"] = {**held, **learner.backward_begins(extent)}
    phases["backward ends"] = {**held, **learner.backward_ends(extent)}
    if row.has_critic and not shares:
        phases["critic begins"] = {**held, **scalar.backward_begins(extent)}
        phases["critic ends"] = {**held, **scalar.backward_ends(extent)}
    if workshop.eval_prompts and row.trains == "policy":
        samples = recipe.evaluation.samples
        room = answer_limit(recipe)
        found = stored(workshop.eval_prompts, samples, max_rows=EVALUATION_ROWS, max_new_tokens=room)
        phases["evaluating"] = {**held, **_sampling(own, found)}
    return StageMemory(label=stage.label, algorithm=row.name, phases=phases)


def trained_policy(workshop: Workshop, recomputed: bool, states: str) -> Trained:
    """The policy as a stage trains it."""
    policy = workshop.policy
    head, embeddings = policy.base.get_output_embeddings().weight, policy.base.get_input_embeddings().weight
    grouped = policy.layout == "group_rows"
    assert isinstance(head, Tensor)
    return Trained(
        shape=decoder_shape(policy.config, policy.vocab_size),
        device=default_device(),
        num_parameters=sum(parameter.numel() for parameter in policy.model.parameters()),
        num_trained=sum(parameter.numel() for parameter in workshop.masters.parameters.values()),
        num_head=head.numel() if head.requires_grad else 0,
        is_tied=head is embeddings,
        bytes_per_weight=policy.compute_dtype.itemsize,
        bytes_of_moments=moment_bytes((weight.numel() for weight in workshop.masters.parameters.values()), states),
        has_vocabulary=True,
        recomputed=recomputed,
        keeps_scores=grouped and not fits(heads_of(policy.config, default_device(), policy.compute_dtype)),
        keeps_masks=not grouped,
    )


def _scalar(policy: Policy, own: Trained, states: str) -> Trained:
    """A copy of the policy with a scalar head, all of it trained: a critic, or a reward model."""
    sizes = scalar_sizes(policy)
    return replace(
        own,
        num_parameters=sum(sizes),
        num_trained=sum(sizes),
        num_head=0,
        is_tied=False,
        bytes_of_moments=moment_bytes(sizes, states),
        has_vocabulary=False,
    )


def _held(
    workshop: Workshop, row: Algorithm, own: Trained, scalar: Trained, scorers: Sequence[ScoringModel]
) -> dict[str, int]:
    """What a stage holds from its first step to its last."""
    size = own.bytes_per_weight
    if row.trains == "reward_model":  # a model of its own beside the policy, which stays as it is
        return {**scalar.held, "policy": size * own.num_parameters + own.held["masters"]}
    parts = dict(own.held)
    if row.needs_reference:
        parts["reference"] = size * own.num_trained
    if row.has_critic:  # all of it is trained, also where the policy has adapters
        parts["critic"] = sum(scalar.held.values())
    if row.needs_teacher:  # as if it were as large as the policy
        parts["teacher"] = size * own.num_parameters
    if scorers:
        parts["reward model"] = sum(each.num_bytes for each in scorers)
    return parts


def _sampling(own: Trained, stored: Stored) -> dict[str, int]:
    """What sampling needs: keys and values, and the larger of a prefill's states and a draw's logits."""
    size = own.bytes_per_weight
    return {
        "KV cache": cache_bytes(own.shape, stored.num_slots, bytes_per_value=size),
        "activations": working_bytes(own.shape, max(stored.num_prefilled, stored.num_rows), bytes_per_value=size),
        "logits": DRAWN_ARRAYS * 4 * stored.num_rows * own.shape.vocab,
    }


def _scoring(scorers: Sequence[ScoringModel], stage: StageSettings, materials: Materials) -> int:
    """What scoring needs beside the weights of the models that score, which have a row for each completion."""
    sampling = sampling_of(stage)
    assert sampling is not None
    width = len(longest(materials.train_prompts, 1)[0].token_ids) + sampling.max_new_tokens
    completions = sum(len(group.completions) for group in largest_step(stage, materials))
    return max(each.working_bytes(completions, width) for each in scorers)


def _compares(stage: StageSettings, row: Algorithm) -> bool:
    """Whether there are forward passes without gradients before an update: of a reference, an anchor, a critic."""
    several = isinstance(stage, PolicySettings) and stage.updates_per_step > 1
    return row.needs_reference or row.needs_teacher or row.has_critic or (several and row.needs_anchor)
