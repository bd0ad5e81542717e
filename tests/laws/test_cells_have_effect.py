"""A cell that is refused because nothing reads it would have changed nothing, and one that is accepted changes numbers:
the table of where cells are read, against what the mathematics does with them."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from oracles.ragged import flat, loss_arguments, random_batch
from oracles.worth import random_worth

from outscore.algorithms.cell_effects import READ
from outscore.algorithms.rows import ALGORITHMS, Algorithm, algorithm
from outscore.objectives.batch import GroupRewards, batch_advantages, batch_returns
from outscore.objectives.critic import critic_loss
from outscore.objectives.kl import kl_estimate, kl_per_completion
from outscore.objectives.loss import policy_loss
from outscore.objectives.preferences import ranked_pairs
from outscore.objectives.returns import adaptive_kl_coef

LENGTHS = [3, 8, 1, 5, 2, 6, 4]
BATCH = random_batch(LENGTHS, seed=7)
GROUPS = [random_worth(LENGTHS[:4], seed=1), random_worth(LENGTHS[4:], seed=2)]
PAIRS = ranked_pairs([[0, 1, 2, 1], [2, 0, 1]], ties="half")
ENTROPY = torch.linspace(0.1, 2.0, sum(LENGTHS), dtype=torch.float64)
OTHER_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "supervision": ("process", "outcome"),
    "reward": ("correct", "parts", "none"),
    "baseline": ("leave_one_out", "shrunk_mean", "none", "group_mean"),
    "scale": ("sample_std", "mean", "batch_std", "none", "population_std"),
    "advantage_eps": (0.5,),
    "batch_norm": ("completions", "tokens", "whiten", "none"),
    "gae_lambda": (0.3,),
    "critic_lambda": (0.4,),
    "lambda_alpha": (2.0,),
    "value_clip": (0.01,),
    "whiten_rewards": (True,),
    "zero_negative": (True,),
    "ratio_level": ("token", "sequence", "sequence_mean", "sequence_mean_token"),
    "ratio_base": ("sampler", "anchor"),
    "surrogate": ("clipped", "log_likelihood", "capped_weight", "tv_masked", "soft_gate", "logistic", "squared"),
    "clip_low": (0.02,),
    "clip_high": (0.02,),
    "gate_positive": (4.0,),
    "gate_negative": (4.0,),
    "aggregation": ("completion_mean", "completion_sum", "token_mean", "prompt_mean"),
    "aggregation_constant": (99,),
    "kl_estimator": ("k1", "k2"),
    "kl_coef": (0.7, 0.0),
    "kl_place": ("loss", "reward", "token_reward"),
    "kl_level": ("sequence", "token"),
    "kl_to": ("anchor", "teacher", "reference"),
    "kl_adapt_to": (6.0,),
    "kl_horizon": (9,),
    "kl_weighted": (True,),
    "mismatch_cap": (1.1,),
    "mismatch_floor": (0.99,),
    "mismatch_mode": ("mask", "truncate"),
    "mismatch_level": ("sequence", "token"),
    "stale_threshold": (-1.0,),
    "entropy_coef": (0.3,),
    "label_smoothing": (0.2,),
}
SAME_KIND = ("pretrain", "rft", "dapo", "dr-grpo", "dpo-mean", "cdpo", "vc-ppo", "reinforce++-baseline")
"""Rows that read the cells that another row here does, and are left out for the time it takes."""
POLICY_ROWS = {name: row for name, row in ALGORITHMS.items() if row.trains == "policy" and name not in SAME_KIND}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, {"aggregation_constant": 16} if row.aggregation == "constant" else {})
        for name, row in POLICY_ROWS.items()
    },
    "steered": ("ppo", {"kl_adapt_to": 6.0}),
    "masked": ("grpo", {"mismatch_cap": 1.2, "mismatch_mode": "mask"}),
    "bounded": ("rloo", {"mismatch_cap": 1.2}),
    "tokens pay": ("distillation", {"kl_to": "reference", "kl_place": "token_reward"}),
    "steps": ("grpo", {"supervision": "process", "kl_coef": 0.0}),
    "no ratio": ("online-rft", {"kl_coef": 0.2}),
}
"""Presets, and what single cells make of them: name of the preset and those cells."""


IDENTITIES = {
    ("gspo", "ratio_level", "sequence_mean_token"),  # equal where all tokens of an answer share an advantage
    ("online-rft", "ratio_level", "sequence_mean"),  # 1/|o| times the sum over |o| tokens of a mean is that mean
    ("no ratio", "ratio_level", "sequence_mean"),
    ("rloo", "kl_level", "sequence"),  # k1 of a product of ratios is the sum of their k1
    ("bounded", "kl_level", "sequence"),
    ("rloo", "baseline", "shrunk_mean"),  # of two groups each has one other: too few to draw its mean towards them
    ("bounded", "baseline", "shrunk_mean"),
    ("reinforce++", "reward", "parts"),  # without baseline and scale, parts add up to the total
}
"""(row, cell, choice) where two different choices give the same numbers, because the mathematics says so."""


def groups_of(row: Algorithm) -> list[GroupRewards]:
    """The groups as `train.worth` hands them over: rewards of the kind that is compared, and what the KL costs."""
    arguments = loss_arguments(BATCH)
    anchor, ref = arguments["anchor_logprobs"], arguments["ref_logprobs"]
    estimated = {"estimator": row.kl_estimator, "level": row.kl_level}
    index = arguments["completion_index"]
    costs = row.kl_coef * kl_per_completion(anchor, ref, index, **estimated, num_completions=len(LENGTHS))
    per_token = (row.kl_coef * kl_estimate(anchor - ref, estimator=row.kl_estimator)).split([17, 12])
    groups = []
    for worth, cost, own in zip(GROUPS, costs.split([4, 3]), per_token, strict=True):
        group = worth.tensors()
        assert group.parts is not None
        rewards = group.parts[0] if row.reward == "correct" else group.rewards
        if row.scale != "mean":  # which wants no negative rewards
            rewards = rewards - torch.tensor([1.0, *[0.0] * (len(cost) - 1)])  # too long: a punishment
        groups.append(replace(group, rewards=rewards - cost if row.kl_place == "reward" else rewards, token_costs=own))
    return groups


def outcome(row: Algorithm) -> torch.Tensor:
    """All that a row decides, as numbers: coefficients and loss of the policy, returns and the loss of a critic, and
    what becomes of kl_coef."""
    arguments = loss_arguments(BATCH) | {"entropy": ENTROPY, "advantages": None}
    if row.kl_to == "teacher":
        arguments["ref_logprobs"] = arguments["ref_logprobs"].flip(0)  # somebody else
    found = []
    if row.is_pairwise:
        arguments["pairs"] = PAIRS
    elif row.source == "policy":
        groups = groups_of(row)
        arguments["advantages"] = batch_advantages(groups, row)
        if row.has_critic:
            returns = batch_returns(groups, row)
            old = torch.zeros_like(returns)
            found += [returns, critic_loss(old + 0.1, old, returns, clip=row.value_clip, num_tokens=29).loss[None]]
    terms = policy_loss(flat(BATCH.policy), algorithm=row, **arguments)
    found += [terms.coefficients, terms.loss[None]]
    if row.kl_adapt_to is not None and row.kl_place != "loss" and row.kl_coef > 0.0:
        steered = adaptive_kl_coef(
            row.kl_coef, measured_kl=9.0, target=row.kl_adapt_to, num_samples=7, horizon=row.kl_horizon
        )
        found.append(torch.tensor([steered], dtype=torch.float64))
    return torch.cat(found)


@pytest.mark.parametrize("label", ROWS)
def test_a_cell_is_refused_as_idle_where_it_changes_nothing_and_nowhere_else(label: str) -> None:
    name, cells = ROWS[label]
    row = algorithm(name, **cells)
    before, wrong = outcome(row), []
    for cell, choices in OTHER_CHOICES.items():
        for choice in choices:
            if getattr(row, cell) == choice:
                continue
            said = ""
            try:
                changed = algorithm(name, **{**cells, cell: choice})
            except ValueError as error:
                said = str(error)
                if not said.startswith(f"{cell}={choice!r} has no effect"):
                    continue  # out of range, excluded by another cell, or another is idle beside it
                changed = replace(row, **{cell: choice})
            after = outcome(changed)
            is_same = len(after) == len(before) and torch.equal(after, before)
            if is_same != bool(said) and (label, cell, choice) not in IDENTITIES:
                wrong.append(
                    f"{cell}={choice!r} changes {'nothing, but is accepted' if is_same else 'numbers: ' + said}"
                )
    assert not wrong, "; ".join(wrong)


def test_every_cell_is_given_another_choice_and_says_where_it_is_read() -> None:
    assert set(OTHER_CHOICES) == {field.name for field in fields(Algorithm)} - {"name", "source", "trains"} == set(READ)
