"""How much a stage has in hand at once, at most: the tokens of a forward pass, and those stored when sampling.

What cannot be known before a run is taken at its largest: the longest prompts of the data meet in one step, every
completion is as long as it may be, and no two begin alike. The packing is the trainer's own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from outscore.model.attention import TreeAttention
from outscore.model.policy import Layout, Policy
from outscore.model.rows import TrainingGroup, flat_starts, group_rows, separate_rows, split_groups
from outscore.records import Completion, DemonstrationGroup, Prompt
from outscore.rollout.context import block_tokens
from outscore.rollout.engine import PREFILL_TOKENS
from outscore.stages import (
    OutcomeRewardModelSettings,
    PolicySettings,
    PreferenceSettings,
    RejectionSettings,
    SftSettings,
    StageSettings,
    TextSettings,
    sampling_of,
)
from outscore.train.materials import Materials
from outscore.train.passes import minibatches
from outscore.train.rejection import BLOCK


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """The largest micro-batch of an update."""

    num_tokens: int
    """Tokens forwarded, padding included."""
    num_predictions: int
    """Tokens that are predicted, for each of which the head makes logits."""
    num_pairs: int
    """Pairs of tokens whose attention score is computed."""
    num_micro_batches: int
    """Of the update: gradients that are gathered wait from the first one on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """What an engine holds when it samples."""

    num_rows: int
    """Completions decoded at once."""
    num_slots: int
    """Places for the keys and values of tokens: storage grows by doubling."""
    num_prefilled: int
    """Prompt tokens forwarded together."""


def update_extent(stage: StageSettings, materials: Materials, policy: Policy) -> Extent:
    """The largest micro-batch of any update of the stage."""
    groups = largest_step(stage, materials)
    parts = minibatches(groups, stage.minibatches) if isinstance(stage, PolicySettings) else [groups]
    starts = flat_starts([completion for group in groups for completion in group.completions])
    whole = isinstance(stage, PreferenceSettings | OutcomeRewardModelSettings)
    found = [
        _extent(list(split_groups(part, stage.token_budget, whole=whole)), starts, policy.layout) for part in parts
    ]
    if isinstance(stage, PolicySettings) and stage.ptx is not None and materials.texts:
        texts = _numbered([(g.prompt, [g.completion]) for g in _largest(materials.texts, stage.ptx.batch_size)])
        starts = flat_starts([completion for group in texts for completion in group.completions])
        beside = _extent(list(split_groups(texts, stage.token_budget)), starts, policy.layout)
        # An update gathers the gradients of its texts beside those of its samples.
        found = [
            replace(each, num_micro_batches=each.num_micro_batches + beside.num_micro_batches) for each in found
        ] + [replace(beside, num_micro_batches=beside.num_micro_batches + 1)]
    return max(found, key=lambda extent: extent.num_tokens)


def _extent(micros: Sequence[Sequence[TrainingGroup]], starts: Sequence[int], layout: Layout) -> Extent:
    pack = group_rows if layout == "group_rows" else separate_rows
    rows = max((pack(micro, starts) for micro in micros), key=lambda rows: rows.num_slots)
    pairs = TreeAttention(rows.segments).num_pairs if rows.segments else rows.num_slots * rows.token_ids.shape[1]
    return Extent(
        num_tokens=rows.num_slots,
        num_predictions=len(rows.sources),
        num_pairs=pairs,
        num_micro_batches=len(micros),
    )


def largest_step(stage: StageSettings, materials: Materials) -> list[TrainingGroup]:
    """The groups of the largest step that the stage's data and settings allow, the largest first."""
    if isinstance(stage, SftSettings | TextSettings):
        return _numbered([(g.prompt, [g.completion]) for g in _largest(materials.demonstrations, stage.batch_size)])
    if isinstance(stage, PreferenceSettings):
        ranked = [(group.prompt, list(group.completions)) for group in materials.rankings]
        ranked.sort(key=lambda group: -len(group[0].token_ids) - sum(len(c.token_ids) for c in group[1]))
        return _numbered(ranked[: stage.batch_size])
    if isinstance(stage, OutcomeRewardModelSettings) and stage.sample is None:
        given = sorted(materials.labelled, key=lambda g: -len(g.prompt.token_ids) - len(g.completion.token_ids))
        return _numbered([(group.prompt, [group.completion]) for group in given[: stage.batch_size]])
    sampling = sampling_of(stage)
    assert sampling is not None
    if isinstance(stage, PolicySettings):
        num_groups, size = stage.prompts_per_step, stage.group_size
    else:  # samples that are imitated or labelled are groups of one
        assert isinstance(stage, RejectionSettings | OutcomeRewardModelSettings)
        num_groups, size = stage.batch_size, 1
    prompts = longest(materials.train_prompts, num_groups)
    written = _written(sampling.max_new_tokens)
    return _numbered([(prompt, [next(written) for _ in range(size)]) for prompt in prompts])


def longest(prompts: Sequence[Prompt], number: int) -> list[Prompt]:
    """The longest prompts, and over again if there are fewer than asked for: a step may have one twice."""
    ordered = sorted(prompts, key=lambda prompt: -len(prompt.token_ids))
    return [ordered[place % len(ordered)] for place in range(number)]


def _largest(groups: Sequence[DemonstrationGroup], number: int) -> list[DemonstrationGroup]:
    return sorted(groups, key=lambda g: -len(g.prompt.token_ids) - len(g.completion.token_ids))[:number]


def _written(length: int) -> Iterator[Completion]:
    """Completions of a length that share no beginning: their tokens are of no vocabulary, and none comes twice."""
    fresh = count(-1, -1)
    while True:
        yield Completion(token_ids=tuple(next(fresh) for _ in range(length)), text="", counts=(True,) * length)


def _numbered(groups: Sequence[tuple[Prompt, Sequence[Completion]]]) -> list[TrainingGroup]:
    number = count()
    return [
        TrainingGroup(
            prompt_ids=prompt.token_ids,
            completions=tuple(completions),
            completion_index=tuple(next(number) for _ in completions),
        )
        for prompt, completions in groups
    ]


def sampling_extent(stage: StageSettings, materials: Materials) -> Stored | None:
    """What the engine holds when the stage samples for training; None where it does not."""
    sampling = sampling_of(stage)
    if sampling is None:
        return None
    num_prompts = stage.prompts_per_step if isinstance(stage, PolicySettings) else BLOCK
    size = stage.sample.group_size if isinstance(stage, OutcomeRewardModelSettings) and stage.sample else 1
    size = stage.group_size if isinstance(stage, PolicySettings | RejectionSettings) else size
    prompts = longest(materials.train_prompts, num_prompts)
    return stored(prompts, size, max_rows=sampling.max_rows, max_new_tokens=sampling.max_new_tokens)


def stored(prompts: Sequence[Prompt], group_size: int, *, max_rows: int, max_new_tokens: int) -> Stored:
    """What an engine of so many rows holds when it samples groups for these prompts."""
    num_rows = min(max_rows, len(prompts) * group_size)
    open_prompts = prompts[: -(-num_rows // group_size)]
    blocks: dict[int, int] = {}
    for prompt in open_prompts:
        size = block_tokens(len(prompt.token_ids))
        blocks[size] = blocks.get(size, 0) + 1
    # Entries of a block double as prompts come; rows and their tokens double up to what there may be.
    held = sum(size * (1 << (number - 1).bit_length()) for size, number in blocks.items())
    lengths = [len(prompt.token_ids) for prompt in open_prompts]
    return Stored(
        num_rows=num_rows,
        num_slots=held + num_rows * max_new_tokens,
        num_prefilled=max(min(sum(lengths), PREFILL_TOKENS), *lengths),
    )
