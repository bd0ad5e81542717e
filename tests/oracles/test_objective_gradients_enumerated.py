"""Gradients of the objective against closed forms and exhaustive enumeration, in float64."""

import itertools

import pytest
import torch
from oracles.ragged import index_of
from torch import Tensor

from outscore.algorithms.rows import Algorithm, algorithm
from outscore.objectives.advantages import group_advantages
from outscore.objectives.loss import policy_loss

LENGTHS = [1, 4, 2]
NUM_STATES, NUM_ACTIONS = 7, 5


def _tabular_case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A tabular softmax policy: token t of the batch is drawn in state t, so gradients have a closed form."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(NUM_STATES, NUM_ACTIONS, generator=generator, dtype=torch.float64)
    ref_logits = torch.randn(NUM_STATES, NUM_ACTIONS, generator=generator, dtype=torch.float64)
    actions = torch.randint(NUM_ACTIONS, (NUM_STATES,), generator=generator)
    advantages = torch.tensor([1.3, -0.4, -0.9], dtype=torch.float64)
    return logits, torch.log_softmax(ref_logits, -1), actions, advantages, index_of(LENGTHS)


@pytest.mark.parametrize("clip", [0.0, 0.2, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_on_policy_gradient_equals_deepseekmaths_coefficient_form(clip: float, seed: int) -> None:
    """Eq. 20-21: 1/G sum 1/|o| sum [A + beta (ref/pi - 1)] grad log pi, where grad log pi(a) = onehot(a) - pi."""
    logits, ref, actions, advantages, index = _tabular_case(seed)
    beta = 0.04
    probabilities = torch.softmax(logits, -1)
    rows = torch.arange(NUM_STATES)
    expected = torch.zeros_like(logits)
    for t in range(NUM_STATES):
        i, action = int(index[t]), int(actions[t])
        ref_over_policy = float(ref[t, action].exp() / probabilities[t, action])
        coefficient = float(advantages[i]) + beta * (ref_over_policy - 1)
        for other in range(NUM_ACTIONS):
            slope = float(other == action) - float(probabilities[t, other])
            expected[t, other] = coefficient * slope / (3 * LENGTHS[i])

    leaf = logits.clone().requires_grad_(True)
    terms = policy_loss(
        torch.log_softmax(leaf, -1)[rows, actions],
        algorithm=algorithm("grpo", kl_coef=beta, clip_low=clip, clip_high=clip),
        completion_index=index,
        completion_lengths=torch.tensor(LENGTHS),
        num_completions=3,
        num_tokens=7,
        advantages=advantages[index],
        ref_logprobs=ref[rows, actions],
    )
    (gradient,) = torch.autograd.grad(-terms.loss, leaf)
    torch.testing.assert_close(gradient, expected, rtol=0.0, atol=1e-12)


def _expected_gradient(row: Algorithm, logits: Tensor, rewards: Tensor, group_size: int) -> Tensor:
    """The ascent direction averaged over all |A|^G groups of a bandit, each with its probability."""
    probabilities = torch.softmax(logits, -1)
    total = torch.zeros_like(logits)
    for group in itertools.product(range(len(logits)), repeat=group_size):
        actions = torch.tensor(group)
        leaf = logits.clone().requires_grad_(True)
        terms = policy_loss(
            torch.log_softmax(leaf, -1)[actions],
            algorithm=row,
            completion_index=torch.arange(group_size),
            completion_lengths=torch.ones(group_size, dtype=torch.long),
            num_completions=group_size,
            num_tokens=group_size,
            advantages=group_advantages(
                rewards[actions], baseline=row.baseline, scale=row.scale, eps=row.advantage_eps
            ),
        )
        (gradient,) = torch.autograd.grad(-terms.loss, leaf)
        total += probabilities[actions].prod() * gradient
    return total


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_over_all_groups_of_a_bandit_the_mean_baseline_shrinks_the_policy_gradient_by_one_minus_one_over_g(
    group_size: int,
) -> None:
    logits = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.2, -0.7], dtype=torch.float64)
    probabilities = torch.softmax(logits, -1)
    policy_gradient = probabilities * (rewards - probabilities @ rewards)  # of J = sum pi r
    group_mean = algorithm("dr-grpo", aggregation_constant=1)
    leave_one_out = algorithm("dr-grpo", aggregation_constant=1, baseline="leave_one_out")
    torch.testing.assert_close(
        _expected_gradient(group_mean, logits, rewards, group_size),
        (1 - 1 / group_size) * policy_gradient,
        rtol=0.0,
        atol=1e-12,
    )
    torch.testing.assert_close(
        _expected_gradient(leave_one_out, logits, rewards, group_size), policy_gradient, rtol=0.0, atol=1e-12
    )


@pytest.mark.parametrize("group_size", [2, 3, 5])
def test_over_all_groups_maxrl_ascends_the_truncated_series_of_log_p(group_size: int) -> None:
    """E[gradient] = sum over k < G - 1 of (1 - p)^k, times grad p: the first terms of grad log p = grad p / p.

    The right answers alone, weighed 1/K, give G terms; the baseline takes the last one away, since it is only there
    in groups with a right answer.
    """
    logits = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64)
    right = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    probabilities = torch.softmax(logits, -1)
    p = probabilities @ right
    gradient_of_p = probabilities * (right - p)
    series = sum((1 - p) ** k for k in range(group_size - 1))
    row = algorithm("maxrl", aggregation="constant", aggregation_constant=1, advantage_eps=0.0)
    torch.testing.assert_close(
        _expected_gradient(row, logits, right, group_size), series * gradient_of_p, rtol=0.0, atol=1e-12
    )


@pytest.mark.parametrize("cap", [0.3, 1.2, 1e9])
def test_a_mismatch_weight_without_cap_undoes_a_wrong_sampler_and_a_cap_leaves_the_stated_bias(cap: float) -> None:
    """E over the sampler of min(anchor/sampler, C) A grad log pi, by enumeration of the actions."""
    logits = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64)
    sampler = torch.softmax(torch.tensor([1.0, 0.5, -0.8], dtype=torch.float64), -1)
    values = torch.tensor([1.0, 0.2, -0.7], dtype=torch.float64)
    policy = torch.softmax(logits, -1)
    row = algorithm("dr-grpo", aggregation_constant=1, mismatch_cap=cap)
    total = torch.zeros_like(logits)
    for action in range(3):
        leaf = logits.clone().requires_grad_(True)
        terms = policy_loss(
            torch.log_softmax(leaf, -1)[[action]],
            algorithm=row,
            completion_index=torch.tensor([0]),
            completion_lengths=torch.tensor([1]),
            num_completions=1,
            num_tokens=1,
            advantages=values[[action]],
            sampler_logprobs=sampler.log()[[action]],
        )
        total += sampler[action] * torch.autograd.grad(-terms.loss, leaf)[0]
    seen = torch.minimum(policy, cap * sampler)  # sampler * min(policy / sampler, C)
    expected = seen * values - policy * (seen @ values)
    torch.testing.assert_close(total, expected, rtol=0.0, atol=1e-12)
    if cap > 1e6:
        torch.testing.assert_close(total, policy * (values - policy @ values), rtol=0.0, atol=1e-12)
