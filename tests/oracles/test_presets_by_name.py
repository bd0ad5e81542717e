"""Every preset by its name against a loop of its own, which holds the equation's numbers and reads no cell: loss,
coefficients and advantages on one off-policy batch of unequal lengths. Cells that were changed, and two rows that were
exchanged, are found."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from oracles.literal import LiteralBatch, Ragged, Said, literal_batch
from oracles.literal_given import GIVEN
from oracles.literal_sampled import SAMPLED, scalerl
from oracles.ragged import flat, index_of
from torch import Tensor

from outscore.algorithms.presets import PRESETS
from outscore.algorithms.rows import ALGORITHMS, Algorithm, algorithm
from outscore.config import parse_recipe
from outscore.objectives.batch import GroupRewards, batch_advantages, batch_returns
from outscore.objectives.critic import critic_loss
from outscore.objectives.kl import kl_estimate, kl_per_completion
from outscore.objectives.loss import policy_loss
from outscore.objectives.preferences import Pairs, ranked_pairs
from outscore.objectives.reward_models import label_loss, reward_model_loss
from outscore.rewards.length import overlong_penalty
from outscore.stages import PolicySettings
from outscore.train.setup import stage_algorithm

BATCH = literal_batch()
LOOPS = GIVEN | SAMPLED
SCORED = [name for name, row in ALGORITHMS.items() if row.trains != "policy"]
STEP = 1e-5
LIMIT = 32
ALIKE = {"pretrain", "sft"}
"""One likelihood of two sources: plain texts, demonstrations."""
IDLE = {("grpo-r1", "clip_low")}
"""A number that no batch can show: no ratio is below 1 - 10."""
OF_GRPO = ("clip_low", "clip_high", "kl_coef", "advantage_eps")
"""The numbers of the row that all others are written against."""


def row_of(name: str) -> tuple[Algorithm, int]:
    """The row as a recipe gets it that names the algorithm and nothing else, and the overlong buffer of its stage."""
    if ALGORITHMS[name].source != "policy":
        return ALGORITHMS[name], 0
    stage = {"algorithm": name, "steps": 100, "sampling": {"max_new_tokens": LIMIT}}
    given = {"task": {"kind": "arithmetic"}, "rewards": ["tag_answer"], "stages": [stage]}
    [settings] = parse_recipe(given).stages
    assert isinstance(settings, PolicySettings)
    return stage_algorithm(settings), settings.overlong_buffer


@cache
def library(name: str) -> dict[str, Tensor]:
    """What the library says under the preset's name."""
    return outcome(*row_of(name))


def outcome(row: Algorithm, buffer: int = 0) -> dict[str, Tensor]:
    """Loss and coefficients on the batch, with advantages, returns and the critic's loss where there are any."""
    if row.trains != "policy":
        return of_scores(row)
    said: dict[str, Tensor] = {}
    kept = [i for i in BATCH.completions if row.source != "samples" or BATCH.right[i]]
    lengths = [len(BATCH.policy[i]) for i in kept]

    def tensor(values: Ragged) -> Tensor:
        return flat([values[i] for i in kept])

    arguments: dict[str, Any] = {}
    if row.source == "policy":
        groups = group_rewards(row, buffer)
        arguments["advantages"] = said["advantages"] = batch_advantages(groups, row)
        arguments |= {"anchor_logprobs": tensor(BATCH.anchor), "sampler_logprobs": tensor(BATCH.sampler)}
        if row.has_critic:
            said["returns"] = batch_returns(groups, row)
            before, now, clip = flat(BATCH.values_before), flat(BATCH.values), row.value_clip
            terms = critic_loss(now, before, said["returns"], clip=clip, num_tokens=BATCH.num_tokens)
            said["critic_loss"] = terms.loss
    if row.is_pairwise:
        arguments["pairs"] = pairs()
    if row.kl_coef > 0:
        arguments["ref_logprobs"] = tensor(BATCH.teacher if row.needs_teacher else BATCH.ref)
    terms = policy_loss(
        tensor(BATCH.policy),
        algorithm=row,
        completion_index=index_of(lengths),
        completion_lengths=torch.tensor(lengths),
        num_completions=len(lengths),
        num_tokens=sum(lengths),
        completion_group=torch.tensor([BATCH.groups.index(BATCH.group_of(i)) for i in kept]),
        num_groups=len(BATCH.groups),
        **arguments,
    )
    coefficients = torch.zeros(BATCH.num_tokens, dtype=torch.float64)
    coefficients[torch.isin(index_of([len(own) for own in BATCH.policy]), torch.tensor(kept))] = terms.coefficients
    return said | {"loss": terms.loss, "coefficients": coefficients}


def group_rewards(row: Algorithm, buffer: int) -> list[GroupRewards]:
    """The batch's groups as `train.worth` hands them to the objectives."""
    lengths = torch.tensor([len(own) for own in BATCH.policy])
    anchor, ref = flat(BATCH.anchor), flat(BATCH.ref)
    rewards = torch.tensor(BATCH.right if row.reward == "correct" else BATCH.rewards, dtype=torch.float64)
    if buffer:
        charged = [overlong_penalty(length, limit=LIMIT, buffer=buffer) for length in lengths.tolist()]
        rewards = rewards - torch.tensor(charged, dtype=torch.float64)
    if row.kl_place == "reward":
        how: dict[str, Any] = {"estimator": row.kl_estimator, "level": row.kl_level, "num_completions": len(lengths)}
        rewards = rewards - row.kl_coef * kl_per_completion(anchor, ref, index_of(lengths.tolist()), **how)
    costs = row.kl_coef * kl_estimate(anchor - ref, estimator=row.kl_estimator)
    sizes = [len(group) for group in BATCH.groups]
    own_tokens = [int(own.sum()) for own in lengths.split(sizes)]
    return [
        GroupRewards(
            rewards=own,
            valid=torch.ones_like(own, dtype=torch.bool),
            num_tokens=num_tokens,
            parts=torch.tensor([BATCH.parts[i] for i in group], dtype=torch.float64).T,
            part_weights=torch.tensor([1.0, 0.4], dtype=torch.float64),
            token_costs=cost,
            values=values,
        )
        for group, own, num_tokens, cost, values in zip(
            BATCH.groups,
            rewards.split(sizes),
            lengths.split(sizes),
            costs.split(own_tokens),
            flat(BATCH.values_before).split(own_tokens),
            strict=True,
        )
    ]


def pairs() -> Pairs:
    """What the rankings say; a tie is no pair."""
    return ranked_pairs([[BATCH.ranks[i] for i in group] for group in BATCH.groups], ties="drop")


def of_scores(row: Algorithm) -> dict[str, Tensor]:
    """The same of a reward model, whose coefficients are those of its scores."""
    lengths = torch.tensor([len(own) for own in BATCH.scores])
    steps = row.supervision == "process"
    read = torch.arange(BATCH.num_tokens) if steps else lengths.cumsum(0) - 1
    scores = flat(BATCH.scores)[read]
    if row.is_pairwise:
        numbers = torch.arange(len(lengths))
        terms = reward_model_loss(scores, numbers, pairs(), row.pair_objective, num_completions=len(lengths))
    else:
        assert row.surrogate in ("cross_entropy", "squared_error")
        terms = label_loss(scores, flat(BATCH.labels)[read], row.surrogate, num_labels=len(read))
    coefficients = torch.zeros(BATCH.num_tokens, dtype=torch.float64).index_copy(0, read, terms.coefficients)
    return {"loss": terms.loss, "coefficients": coefficients}


@cache
def literal(name: str) -> dict[str, Tensor]:
    """What the loop of that name says; coefficients are minus its slopes, by central differences."""
    return of_loop(LOOPS[name], "scores" if name in SCORED else "policy")


def of_loop(loop: Callable[[LiteralBatch], Said], axis: str = "policy") -> dict[str, Tensor]:
    said, slopes = loop(BATCH), []
    for i in BATCH.completions:
        for t in BATCH.tokens(i):
            ends = [loop(_moved(axis, i, t, shift)).loss for shift in (STEP, -STEP)]
            slopes.append((ends[0] - ends[1]) / (2 * STEP))
    tables = {"advantages": said.advantages, "returns": said.returns}
    numbers = {"loss": said.loss, "critic_loss": said.critic_loss}
    return {
        **{key: flat(table) for key, table in tables.items() if table is not None},
        **{key: torch.tensor(number, dtype=torch.float64) for key, number in numbers.items() if number is not None},
        "coefficients": -torch.tensor(slopes, dtype=torch.float64),
    }


def _moved(axis: str, i: int, t: int, shift: float) -> LiteralBatch:
    table = [list(own) for own in getattr(BATCH, axis)]
    table[i][t] += shift
    return replace(BATCH, **{axis: table})


def differing(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    """The names of what is not the same: to rounding, or for slopes to what differences are good for."""
    if mine.keys() != theirs.keys():
        return sorted(mine.keys() ^ theirs.keys())
    bounds = {"coefficients": 1e-8}
    far = {key: float((value - theirs[key]).abs().max()) for key, value in mine.items()}
    return [key for key, distance in far.items() if distance > bounds.get(key, 1e-12)]


def test_every_row_of_the_table_has_a_loop_of_its_own() -> None:
    assert set(LOOPS) == set(ALGORITHMS) and len({id(loop) for loop in LOOPS.values()}) == len(LOOPS)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_loss_coefficients_and_advantages_are_those_of_the_loop_of_that_name(name: str) -> None:
    assert differing(library(name), literal(name)) == []


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_equation_that_is_printed_stands_above_the_loop(name: str) -> None:
    assert " ".join((LOOPS[name].__doc__ or "").split()) == PRESETS[name].equation


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_loop_of_one_row_is_not_that_of_another(name: str) -> None:
    same = {other for other in LOOPS if not differing(library(name), literal(other))}
    assert same == (ALIKE if name in ALIKE else {name})


@pytest.mark.parametrize("factor", [0.8, 1.25])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_batch_shows_each_number_of_a_row(name: str, factor: float) -> None:
    row, buffer = row_of(name)
    for cell in PRESETS[name].cells if name != "grpo" else OF_GRPO:
        number = getattr(row, cell)
        at_its_limit = cell == "critic_lambda" and factor > 1
        if type(number) is float and 0.0 < number < math.inf and (name, cell) not in IDLE and not at_its_limit:
            moved = replace(row, **{cell: factor * number})
            assert differing(outcome(moved, buffer), literal(name)), cell


def test_scalerl_is_cispo_with_the_cells_that_its_page_names() -> None:
    row = algorithm("cispo", scale="none", batch_norm="completions", aggregation="prompt_mean")
    assert differing(outcome(row), of_loop(scalerl)) == []
