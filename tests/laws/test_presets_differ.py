"""Every two presets are two algorithms: from the same rewards, on the same off-policy batch of unequal lengths, they
pull elsewhere. A pair whose rows are equal differs in the settings of its stage, and one that differs in its source
alone in what it is given, each of which has a test of its own. No row is left out."""

import itertools
from dataclasses import replace

import pytest
import torch
from oracles.ragged import flat, loss_arguments, random_batch
from oracles.worth import random_worth

from outscore.algorithms.rows import ALGORITHMS, Algorithm, algorithm
from outscore.objectives.batch import GroupRewards, batch_advantages
from outscore.objectives.kl import kl_per_completion
from outscore.objectives.loss import policy_loss
from outscore.objectives.preferences import Pairs, ranked_pairs
from outscore.objectives.reward_models import label_loss, reward_model_loss

LENGTHS = [3, 8, 1, 5, 2, 6, 4]
BATCH = random_batch(LENGTHS, seed=7)
GROUPS = [random_worth(LENGTHS[:4], seed=1), random_worth(LENGTHS[4:], seed=2)]
SAME_CELLS = {("dapo", "dapo-loss")}
"""They differ in `refills` and `overlong_buffer`: tests/test_config.py."""

SOURCE_ONLY = {("pretrain", "rft"), ("pretrain", "sft"), ("rft", "sft")}
"""All maximise the likelihood of what they are given. Where that comes from: tests/train/test_pretraining.py and
test_rejection.py."""

ONE_FACTOR = {("dr-grpo", "lite-ppo")}
"""Within a batch one number apart, the batch's deviation times a length, which is another in the next batch."""


def _coefficients(name: str) -> torch.Tensor:
    """The coefficient on grad log pi of each token, from rewards on."""
    row = algorithm(name, **({"aggregation_constant": 16} if ALGORITHMS[name].aggregation == "constant" else {}))
    arguments = loss_arguments(BATCH)
    if row.source in GIVEN:
        arguments["advantages"] = None
    elif row.source == "preferences":
        arguments = {key: value for key, value in arguments.items() if key in OF_PAIRS} | {"pairs": _pairs()}
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


def _pairs() -> Pairs:
    """All pairs of each group, in the order of its rewards."""
    rewards = [worth.tensors().rewards.tolist() for worth in GROUPS]
    return ranked_pairs([[sorted(own, reverse=True).index(each) for each in own] for own in rewards], ties="drop")


def _score_coefficients(name: str) -> torch.Tensor:
    """The coefficient on the score at each token: of steps that end there, or of completions at their last token."""
    row, index = algorithm(name), torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    scores = torch.linspace(-2.0, 1.5, sum(LENGTHS), dtype=torch.float64).sin()
    rewards = torch.cat([worth.tensors().rewards for worth in GROUPS]).double()
    ends = torch.tensor(LENGTHS).cumsum(0) - 1
    read = torch.arange(sum(LENGTHS)) if row.supervision == "process" else ends
    if row.source == "preferences":
        numbers = torch.arange(len(LENGTHS))
        terms = reward_model_loss(scores[ends], numbers, _pairs(), row.pair_objective, num_completions=len(LENGTHS))
    else:
        labels = (rewards > rewards.mean()).double()[index[read]]
        terms = label_loss(scores[read], labels, "cross_entropy", num_labels=len(read))
    return torch.zeros_like(scores).index_copy(0, read, terms.coefficients)


GIVEN = ("texts", "demonstrations", "samples")
OF_PAIRS = ("completion_index", "completion_lengths", "num_completions", "num_tokens", "ref_logprobs")
COEFFICIENTS = {name: _coefficients(name) for name, row in ALGORITHMS.items() if row.trains == "policy"}
SCORE_COEFFICIENTS = {name: _score_coefficients(name) for name, row in ALGORITHMS.items() if row.trains != "policy"}


def test_every_row_is_compared_with_every_other_that_trains_the_same_model() -> None:
    assert {*COEFFICIENTS, *SCORE_COEFFICIENTS} == set(ALGORITHMS) and len(SCORE_COEFFICIENTS) == 3


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(sorted(COEFFICIENTS), 2)))
def test_every_two_presets_differ_on_an_off_policy_batch_of_unequal_lengths(first: str, second: str) -> None:
    mine, theirs = COEFFICIENTS[first], COEFFICIENTS[second]
    cells = [replace(ALGORITHMS[name], name="") for name in (first, second)]
    if (first, second) in SAME_CELLS:
        assert cells[0] == cells[1] and torch.equal(mine, theirs)
    elif (first, second) in SOURCE_ONLY:
        assert cells[0] != cells[1] and replace(cells[0], source=cells[1].source) == cells[1]
        assert torch.equal(mine, theirs)
    else:
        assert cells[0] != cells[1]
        assert (mine - theirs).norm() > 1e-3 * mine.norm()
        # Not even a learning rate apart: the directions differ, too.
        cosine = torch.nn.functional.cosine_similarity(mine, theirs, dim=0).item()
        assert (cosine < 1.0 - 1e-6) == ((first, second) not in ONE_FACTOR), cosine


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(sorted(SCORE_COEFFICIENTS), 2)))
def test_every_two_rows_of_reward_models_pull_scores_elsewhere(first: str, second: str) -> None:
    mine, theirs = SCORE_COEFFICIENTS[first], SCORE_COEFFICIENTS[second]
    assert torch.nn.functional.cosine_similarity(mine, theirs, dim=0).item() < 1.0 - 1e-6
