"""Every two presets are two algorithms: from the same rewards, on the same off-policy batch of unequal lengths, they
pull elsewhere. A pair whose rows are equal differs in the settings of its stage, which has a test of its own."""

import itertools
from dataclasses import replace

import pytest
import torch
from oracles.ragged import flat, loss_arguments, random_batch
from oracles.worth import random_worth

from outscore.objectives import (
    ALGORITHMS,
    Algorithm,
    GroupRewards,
    algorithm,
    batch_advantages,
    kl_per_completion,
    policy_loss,
)

LENGTHS = [3, 8, 1, 5, 2, 6, 4]
BATCH = random_batch(LENGTHS, seed=7)
GROUPS = [random_worth(LENGTHS[:4], seed=1), random_worth(LENGTHS[4:], seed=2)]
SAME_CELLS = {("dapo", "dapo-loss")}
"""They differ in `refills` and `overlong_buffer`: tests/test_config.py."""

ONE_FACTOR = {("dr-grpo", "lite-ppo")}
"""Within a batch one number apart, the batch's deviation times a length, which is another in the next batch."""


def _coefficients(name: str) -> torch.Tensor:
    """The coefficient on grad log pi of each token, from rewards on."""
    row = algorithm(name, **({"aggregation_constant": 16} if ALGORITHMS[name].aggregation == "constant" else {}))
    arguments = loss_arguments(BATCH)
    if row.source == "demonstrations":
        arguments["advantages"] = None
    else:
        arguments["advantages"] = batch_advantages(_groups(row), row)
    return policy_loss(flat(BATCH.policy), algorithm=row, **arguments).coefficients


def _groups(row: Algorithm) -> list[GroupRewards]:
    arguments = loss_arguments(BATCH)
    anchor, ref = arguments["anchor_logprobs"], arguments["ref_logprobs"]
    costs = row.kl_coef * kl_per_completion(
        anchor,
        ref,
        arguments["completion_index"],
        estimator=row.kl_estimator,
        level=row.kl_level,
        num_completions=len(LENGTHS),
    )
    per_token = (row.kl_coef * (anchor - ref)).split([sum(LENGTHS[:4]), sum(LENGTHS[4:])])
    groups = []
    for worth, cost, own in zip(GROUPS, costs.split([4, 3]), per_token, strict=True):
        group = worth.tensors()
        assert group.parts is not None
        rewards = group.parts[0] if row.reward == "correct" else group.rewards
        charged = rewards - cost if row.kl_place == "reward" else rewards
        groups.append(replace(group, rewards=charged, token_costs=own))
    return groups


SOURCES = ("demonstrations", "policy")
COEFFICIENTS = {name: _coefficients(name) for name, row in ALGORITHMS.items() if row.source in SOURCES}


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(sorted(COEFFICIENTS), 2)))
def test_every_two_presets_differ_on_an_off_policy_batch_of_unequal_lengths(first: str, second: str) -> None:
    mine, theirs = COEFFICIENTS[first], COEFFICIENTS[second]
    cells = [replace(ALGORITHMS[name], name="") for name in (first, second)]
    if (first, second) in SAME_CELLS:
        assert cells[0] == cells[1] and torch.equal(mine, theirs)
    else:
        assert cells[0] != cells[1]
        assert (mine - theirs).norm() > 1e-3 * mine.norm()
        # Not even a learning rate apart: the directions differ, too.
        cosine = torch.nn.functional.cosine_similarity(mine, theirs, dim=0).item()
        assert (cosine < 1.0 - 1e-6) == ((first, second) not in ONE_FACTOR), cosine
