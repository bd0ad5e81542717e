"""Identities between the rows, by enumeration and in float64."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles.ragged import flat, index_of, library_loss, loss_arguments, random_batch
from torch import Tensor

from outscore.algorithms.rows import Algorithm, algorithm
from outscore.objectives.advantages import group_advantages
from outscore.objectives.batch import GroupRewards, batch_advantages
from outscore.objectives.loss import policy_loss

LOGITS = torch.tensor([0.3, -0.5, 1.1, 0.0], dtype=torch.float64)
REWARDS = torch.tensor([1.0, 0.2, -0.7, 0.4], dtype=torch.float64)
DRAWN = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
"""Answers of one token as an anchor with chances 4/8, 2/8, 1/8, 1/8 draws them on average: their mean is exact."""
ANCHOR = torch.tensor([4, 2, 1, 1], dtype=torch.float64) / 8


def _expected_gradient(row: Algorithm, logits: Tensor, advantages: Tensor) -> Tensor:
    """Ascent direction averaged over what the anchor draws."""
    leaf = logits.clone().requires_grad_(True)
    terms = policy_loss(
        torch.log_softmax(leaf, -1)[DRAWN],
        algorithm=row,
        completion_index=torch.arange(8),
        completion_lengths=torch.ones(8, dtype=torch.long),
        num_completions=8,
        num_tokens=8,
        advantages=advantages[DRAWN],
        anchor_logprobs=ANCHOR.log()[DRAWN],
    )
    return torch.autograd.grad(-terms.loss, leaf)[0]


@pytest.mark.parametrize("tau", [0.5, 3.0])
def test_kimis_loss_has_its_minimum_at_the_exponential_tilt(tau: float) -> None:
    """With A = r - tau log Z the mean gradient vanishes at pi_i exp(r / tau) / Z, and descent ends there."""
    partition = (ANCHOR * (REWARDS / tau).exp()).sum()
    tilted = ANCHOR * (REWARDS / tau).exp() / partition
    row = algorithm("kimi-k1.5", kl_coef=tau)
    advantages = REWARDS - tau * partition.log()
    at_minimum = _expected_gradient(row, tilted.log(), advantages)
    torch.testing.assert_close(at_minimum, torch.zeros_like(at_minimum), rtol=0.0, atol=1e-12)
    logits = LOGITS.clone()
    for _ in range(300):
        logits = logits + 2.0 / tau * _expected_gradient(row, logits, advantages)
    torch.testing.assert_close(torch.softmax(logits, -1), tilted, rtol=0.0, atol=1e-6)


def test_kimis_first_step_is_dr_grpos() -> None:
    """At pi = pi_i the squared term has neither value nor gradient: what is left is A grad log pi of whole answers."""
    batch = random_batch((2, 8, 1, 5), seed=4)
    batch = replace(batch, anchor=batch.policy)
    _, kimi = library_loss(batch, algorithm("kimi-k1.5"))
    _, dr_grpo = library_loss(batch, algorithm("dr-grpo", aggregation_constant=1))
    torch.testing.assert_close(kimi, dr_grpo, rtol=1e-12, atol=1e-14)


def test_on_policy_gspo_is_grpo_for_any_length_and_off_policy_for_answers_of_one_token() -> None:
    clips = {"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0}
    rows = [algorithm(name, **clips) for name in ("grpo", "gspo")]
    on_policy = random_batch((2, 8, 1, 5), seed=4)
    on_policy = replace(on_policy, anchor=on_policy.policy)
    for batch in (on_policy, random_batch((1, 1, 1), seed=5)):
        first, second = (library_loss(batch, row)[1] for row in rows)
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)
    off_policy = random_batch((2, 8, 1, 5), seed=4)
    first, second = (library_loss(off_policy, row)[1] for row in rows)
    assert (first - second).norm() > 1e-2 * first.norm()


def test_gspos_token_form_is_gspo_where_tokens_share_an_advantage_and_only_there() -> None:
    batch = random_batch((2, 8, 1, 5), seed=4, spread=0.01)
    cells: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2}
    rows = [algorithm("gspo", **cells), algorithm("gspo", ratio_level="sequence_mean_token", **cells)]
    (terms, whole), (token_terms, token) = (library_loss(batch, row) for row in rows)
    assert token_terms.loss.item() == pytest.approx(terms.loss.item(), abs=1e-14)
    torch.testing.assert_close(token, whole, rtol=1e-12, atol=1e-15)
    advantages = torch.linspace(-1.0, 1.0, 16, dtype=torch.float64)
    whole, token = (library_loss(batch, row, advantages=advantages)[1] for row in rows)
    assert (token - whole).norm() > 0.1 * whole.norm()


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_dr_grpos_gradient_is_rloos_shrunk_by_g_minus_one_over_g(group_size: int) -> None:
    """On sampled groups with answers of unequal lengths."""
    lengths = [2, 8, 1, 5][:group_size]
    batch = random_batch(lengths, seed=group_size)
    batch = replace(batch, anchor=batch.policy)
    rewards = REWARDS[:group_size]
    index, arguments = index_of(lengths), loss_arguments(batch)
    gradients = []
    for row in (algorithm("dr-grpo", aggregation_constant=1), algorithm("rloo", kl_coef=0.0)):
        values = group_advantages(rewards, baseline=row.baseline, scale=row.scale, eps=row.advantage_eps)
        gradients.append(library_loss(batch, row, **(arguments | {"advantages": values[index]}))[1])
    torch.testing.assert_close(gradients[0], gradients[1] * (group_size - 1) / group_size, rtol=1e-12, atol=1e-14)


def test_over_all_groups_rloo_with_kl_in_the_reward_ascends_reward_less_kl() -> None:
    """E over all groups of three of the library's gradient is that of J - beta KL(pi || ref), exactly."""
    beta, size = 0.3, 3
    logits, rewards = LOGITS[:3], REWARDS[:3]
    ref = torch.softmax(torch.tensor([-0.4, 0.8, 0.5], dtype=torch.float64), -1)
    policy = torch.softmax(logits, -1)
    row = algorithm("rloo", kl_coef=beta)
    shaped = rewards - beta * (policy / ref).log()
    total = torch.zeros_like(logits)
    for group in itertools.product(range(3), repeat=size):
        actions = torch.tensor(group)
        leaf = logits.clone().requires_grad_(True)
        terms = policy_loss(
            torch.log_softmax(leaf, -1)[actions],
            algorithm=row,
            completion_index=torch.arange(size),
            completion_lengths=torch.ones(size, dtype=torch.long),
            num_completions=size,
            num_tokens=size,
            advantages=group_advantages(shaped[actions], baseline=row.baseline, scale=row.scale, eps=0.0),
        )
        total += policy[actions].prod() * torch.autograd.grad(-terms.loss, leaf)[0]
    torch.testing.assert_close(total, policy * (shaped - policy @ shaped), rtol=0.0, atol=1e-12)


def test_online_rft_is_supervised_fine_tuning_on_the_right_answers() -> None:
    """The coefficient is I(o); wrong answers only count in the denominator."""
    batch = replace(random_batch((2, 8, 1, 5), seed=4), advantages=[1.0, 0.0, 0.0, 1.0])
    _, gradient = library_loss(batch, algorithm("online-rft"))
    right = replace(
        batch, **{name: [getattr(batch, name)[i] for i in (0, 3)] for name in ("policy", "anchor", "ref", "sampler")}
    )
    sft = algorithm("sft", aggregation="completion_mean")
    _, imitated = library_loss(replace(right, advantages=[1.0, 1.0]), sft)
    kept = torch.cat([gradient[:2], gradient[11:]])
    torch.testing.assert_close(kept, imitated * 2 / 4, rtol=1e-12, atol=1e-14)
    assert not gradient[2:11].any()


def test_without_negative_advantages_and_scale_grpo_is_a_weighted_online_rft() -> None:
    """On rewards 0 and 1: right answers alone, weighed by how rare they are in their group."""
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    group = GroupRewards(rewards=rewards, valid=torch.ones(4, dtype=torch.bool), num_tokens=torch.tensor([2, 8, 1, 5]))
    row = algorithm("grpo", scale="none", kl_coef=0.0, zero_negative=True)
    batch = random_batch((2, 8, 1, 5), seed=4)
    batch = replace(batch, anchor=batch.policy)
    _, ablated = library_loss(batch, row, advantages=batch_advantages([group], row))
    _, imitated = library_loss(replace(batch, advantages=rewards.tolist()), algorithm("online-rft"))
    torch.testing.assert_close(ablated, 0.5 * imitated, rtol=1e-12, atol=1e-14)


def test_against_the_sampler_a_ratio_is_anchors_ratio_times_the_mismatch_weight() -> None:
    """Off-policy: pi / mu = (pi / anchor) (anchor / mu); where nothing is clipped or capped the two rows are one."""
    batch = random_batch((2, 8, 1, 5), seed=4)
    free: dict[str, Any] = {"clip_low": float("inf"), "clip_high": float("inf"), "kl_coef": 0.0}
    _, direct = library_loss(batch, algorithm("grpo", ratio_base="sampler", **free))
    for mode in ("truncate", "mask"):
        _, product = library_loss(batch, algorithm("grpo", mismatch_cap=float("inf"), mismatch_mode=mode, **free))
        torch.testing.assert_close(direct, product, rtol=1e-12, atol=1e-14)


def test_a_surrogates_coefficients_on_policy_are_the_advantages_whatever_the_row() -> None:
    """At pi = anchor = mu every surrogate but a gated one pulls with A alone: eq. 20's coefficient without its KL."""
    batch = random_batch((2, 8, 1, 5), seed=4)
    batch = replace(batch, anchor=batch.policy, sampler=batch.policy, ref=batch.policy)
    expected = loss_arguments(batch)["advantages"] / (4 * torch.tensor([2, 8, 1, 5])[index_of([2, 8, 1, 5])])
    for name in ("grpo", "gspo", "cispo", "sapo", "dppo", "deepseek-v3.2"):
        terms = policy_loss(
            flat(batch.policy), algorithm=algorithm(name, aggregation="completion_mean"), **loss_arguments(batch)
        )
        torch.testing.assert_close(terms.coefficients, expected, rtol=1e-12, atol=1e-14)
