"""Every entry of the table in outscore.objectives.kl, by enumeration of what can be sampled, in float64."""

import pytest
import torch
from torch import Tensor

from outscore.algorithms.choices import KlEstimator
from outscore.algorithms.rows import algorithm
from outscore.objectives.kl import kl_estimate, kl_per_completion
from outscore.objectives.loss import policy_loss

LOGITS = torch.tensor([0.3, -0.9, 1.2, 0.0], dtype=torch.float64)
REF = torch.softmax(torch.tensor([-0.4, 0.8, 0.5, 0.1], dtype=torch.float64), -1)
POLICY = torch.softmax(LOGITS, -1)


def _kl(first: Tensor, second: Tensor) -> float:
    return sum(float(p) * float(torch.log(p / q)) for p, q in zip(first, second, strict=True))


# Closed forms of the gradients with respect to softmax logits.
REVERSE = POLICY * (torch.log(POLICY / REF) - _kl(POLICY, REF))  # grad KL(pi || ref)
FORWARD = POLICY - REF  # grad KL(ref || pi)


def _close(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=0.0, atol=1e-12)


def test_the_closed_forms_themselves_by_autograd_of_the_exact_kl() -> None:
    for expected, exact in (
        (REVERSE, lambda p: (p * (p / REF).log()).sum()),
        (FORWARD, lambda p: (REF * (REF / p).log()).sum()),
    ):
        leaf = LOGITS.clone().requires_grad_(True)
        _close(torch.autograd.grad(exact(torch.softmax(leaf, -1)), leaf)[0], expected)


@pytest.mark.parametrize(("estimator", "is_kl"), [("k1", True), ("k2", False), ("k3", True)])
def test_expected_value(estimator: KlEstimator, is_kl: bool) -> None:
    value = float(POLICY @ kl_estimate(torch.log(POLICY / REF), estimator=estimator))
    assert (abs(value - _kl(POLICY, REF)) < 1e-12) == is_kl


@pytest.mark.parametrize(
    ("estimator", "expected"), [("k1", torch.zeros_like(LOGITS)), ("k2", REVERSE), ("k3", FORWARD)]
)
def test_expected_gradient_as_a_term_of_the_loss(estimator: KlEstimator, expected: Tensor) -> None:
    """Sampling is not differentiated: the gradient reaches the policy only through log pi of what was sampled."""
    row = algorithm("dr-grpo", aggregation_constant=1, kl_coef=1.0, kl_estimator=estimator)
    total = torch.zeros_like(LOGITS)
    for action in range(len(LOGITS)):
        leaf = LOGITS.clone().requires_grad_(True)
        terms = policy_loss(
            torch.log_softmax(leaf, -1)[[action]],
            algorithm=row,
            completion_index=torch.tensor([0]),
            completion_lengths=torch.tensor([1]),
            num_completions=1,
            num_tokens=1,
            advantages=torch.zeros(1, dtype=torch.float64),
            ref_logprobs=REF.log()[[action]],
        )
        total += POLICY[action] * torch.autograd.grad(terms.loss, leaf)[0]
    _close(total, expected)


@pytest.mark.parametrize(("estimator", "expected"), [("k1", REVERSE), ("k3", REVERSE - FORWARD)])
def test_expected_gradient_as_a_part_of_the_reward(estimator: KlEstimator, expected: Tensor) -> None:
    """REINFORCE with the estimate as cost: E[k grad log pi]."""
    cost = kl_estimate(torch.log(POLICY / REF), estimator=estimator)
    _close(POLICY * (cost - POLICY @ cost), expected)


def test_k2_in_the_reward_is_the_gradient_of_no_kl_in_the_table() -> None:
    cost = kl_estimate(torch.log(POLICY / REF), estimator="k2")
    gradient = POLICY * (cost - POLICY @ cost)
    for other in (REVERSE, FORWARD, REVERSE - FORWARD):
        assert (gradient - other).abs().max() > 1e-2


# Sequences of two tokens over two symbols: logits of the first token, then of the second after each first.
SEQUENCE_LOGITS = torch.tensor([[0.4, -0.2], [1.0, 0.1], [-0.7, 0.3]], dtype=torch.float64)
SEQUENCE_REF = torch.log_softmax(torch.tensor([[-0.1, 0.6], [0.2, 0.9], [0.5, -1.0]], dtype=torch.float64), -1)


def _sequence_logprobs(table: Tensor, first: int, second: int) -> Tensor:
    return torch.stack([table[0, first], table[1 + first, second]])


def _exact_sequence_gradient() -> Tensor:
    """Of KL(pi || ref) over whole sequences."""
    leaf = SEQUENCE_LOGITS.clone().requires_grad_(True)
    logprobs = torch.log_softmax(leaf, -1)
    total = torch.zeros((), dtype=torch.float64)
    for first in range(2):
        for second in range(2):
            policy = _sequence_logprobs(logprobs, first, second).sum()
            ref = _sequence_logprobs(SEQUENCE_REF, first, second).sum()
            total = total + policy.exp() * (policy - ref)
    return torch.autograd.grad(total, leaf)[0]


def _expected_loss_gradient(level: str) -> Tensor:
    """E of the gradient of k2 in the loss; weights are 1 per completion and level."""
    row = algorithm("dapo-loss", kl_level=level, kl_coef=1.0, kl_estimator="k2")
    index, lengths = torch.tensor([0, 0]), torch.tensor([2])
    total = torch.zeros_like(SEQUENCE_LOGITS)
    for first in range(2):
        for second in range(2):
            leaf = SEQUENCE_LOGITS.clone().requires_grad_(True)
            policy = _sequence_logprobs(torch.log_softmax(leaf, -1), first, second)
            terms = policy_loss(
                policy,
                algorithm=row,
                completion_index=index,
                completion_lengths=lengths,
                num_completions=1,
                num_tokens=2 if level == "sequence" else 1,
                advantages=torch.zeros(2, dtype=torch.float64),
                ref_logprobs=_sequence_logprobs(SEQUENCE_REF, first, second),
            )
            total += policy.sum().exp().detach() * torch.autograd.grad(terms.loss, leaf)[0]
    return total


def test_k2_of_whole_completions_has_the_whole_gradient_of_the_reverse_kl() -> None:
    _close(_expected_loss_gradient("sequence"), _exact_sequence_gradient())


def test_k2_of_tokens_leaves_out_that_a_token_changes_which_prefixes_come_next() -> None:
    exact, by_token = _exact_sequence_gradient(), _expected_loss_gradient("token")
    _close(by_token[1:], exact[1:])  # the last token has nothing after it
    assert (by_token[0] - exact[0]).abs().max() > 1e-2
    first = torch.softmax(SEQUENCE_LOGITS[0], -1)
    log_ratio = torch.log_softmax(SEQUENCE_LOGITS[0], -1) - SEQUENCE_REF[0]
    _close(by_token[0], first * (log_ratio - first @ log_ratio))  # KL of the first token alone


def test_k1_in_the_reward_has_the_whole_gradient_of_the_reverse_kl_over_sequences() -> None:
    leaf = SEQUENCE_LOGITS.clone().requires_grad_(True)
    logprobs = torch.log_softmax(leaf, -1)
    total = torch.zeros((), dtype=torch.float64)
    for first in range(2):
        for second in range(2):
            policy = _sequence_logprobs(logprobs, first, second)
            cost = kl_per_completion(
                policy,
                _sequence_logprobs(SEQUENCE_REF, first, second),
                torch.tensor([0, 0]),
                estimator="k1",
                level="token",
                num_completions=1,
            )
            total = total + policy.sum().exp().detach() * cost[0] * policy.sum()
    _close(torch.autograd.grad(total, leaf)[0], _exact_sequence_gradient())


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("base", ["anchor", "sampler"])
def test_weighted_by_the_ratio_the_estimate_is_unbiased_in_value_and_gradient_wherever_the_samples_come_from(
    estimator: KlEstimator, base: str
) -> None:
    """DeepSeek-V3.2: E over the base of pi/base * k is KL(pi || ref), and so is its gradient, far off-policy."""
    behaviour = torch.softmax(torch.tensor([1.0, 0.2, -0.8, 0.4], dtype=torch.float64), -1)
    row = algorithm(
        "dr-grpo", aggregation_constant=1, kl_coef=1.0, kl_estimator=estimator, kl_weighted=True, ratio_base=base
    )
    value, gradient = 0.0, torch.zeros_like(LOGITS)
    for action in range(len(LOGITS)):
        leaf = LOGITS.clone().requires_grad_(True)
        terms = policy_loss(
            torch.log_softmax(leaf, -1)[[action]],
            algorithm=row,
            completion_index=torch.tensor([0]),
            completion_lengths=torch.tensor([1]),
            num_completions=1,
            num_tokens=1,
            advantages=torch.zeros(1, dtype=torch.float64),
            ref_logprobs=REF.log()[[action]],
            **{f"{base}_logprobs": behaviour.log()[[action]]},
        )
        value += float(behaviour[action] * terms.loss.detach())
        gradient += behaviour[action] * torch.autograd.grad(terms.loss, leaf)[0]
    assert value == pytest.approx(_kl(POLICY, REF), abs=1e-12)
    _close(gradient, REVERSE)
