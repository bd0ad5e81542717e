"""The loss against naive loops, finite differences and hand-worked metrics."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles.ragged import (
    RaggedBatch,
    finite_differences,
    flat,
    library_loss,
    loss_arguments,
    naive_loss,
    random_batch,
)

from outscore.algorithms.rows import ALGORITHMS, algorithm
from outscore.objectives.loss import add_loss_terms, policy_loss

LENGTHS = (2, 8, 1, 5)
ROWS: dict[str, dict[str, Any]] = {
    name: {"aggregation_constant": 16} if row.aggregation == "constant" else {}
    for name, row in ALGORITHMS.items()
    if row.trains == "policy" and not row.is_pairwise
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"kl_estimator": "k1", "kl_coef": 0.3},
    {"kl_estimator": "k2", "kl_coef": 0.3},
    {"kl_estimator": "k3", "kl_coef": 0.3},
    {"kl_level": "sequence", "kl_coef": 0.3},
    {"kl_coef": 0.3, "kl_place": "reward"},
    {"kl_coef": 0.3, "kl_to": "anchor"},
    {"kl_coef": 0.3, "kl_to": "teacher", "kl_weighted": True, "kl_estimator": "k1"},
    {"kl_coef": 0.3, "kl_weighted": True},
    {"kl_coef": 0.3, "kl_weighted": True, "kl_estimator": "k1", "kl_level": "sequence"},
    {"mismatch_cap": 1.1, "kl_coef": 0.3},
    {"ratio_level": "sequence", "mismatch_cap": 1.5, "mismatch_level": "sequence"},
    {"mismatch_cap": 1.2, "mismatch_mode": "mask"},
    {"mismatch_cap": 1.2, "mismatch_floor": 0.8, "mismatch_mode": "mask", "mismatch_level": "sequence_mean"},
    {"ratio_level": "sequence_mean"},
    {"ratio_level": "sequence_mean_token"},
    {"ratio_base": "sampler"},
    {"aggregation": "prompt_mean"},
    {"stale_threshold": 0.05},
    {"surrogate": "log_likelihood", "ratio_level": "sequence_mean_token"},
    {"surrogate": "capped_weight", "ratio_level": "sequence"},
    {"surrogate": "soft_gate", "gate_positive": 3.0, "gate_negative": 0.5},
]


WITH_VARIANTS = ("grpo", "gspo", "cispo", "dppo", "sft")


def _cases() -> list[tuple[str, dict[str, Any]]]:
    """Every preset, and some with every variant, but for combinations that `algorithm` refuses."""
    cases = []
    pairs = [*((name, {}) for name in ROWS if name not in WITH_VARIANTS), *itertools.product(WITH_VARIANTS, VARIANTS)]
    for name, variant in pairs:
        try:
            algorithm(name, **(ROWS[name] | variant))
        except ValueError:
            continue
        cases.append((name, variant))
    return cases


def _cut(arguments: dict[str, Any], kept: slice) -> dict[str, Any]:
    """The per-token arguments of some of the tokens."""
    return {key: value[kept] for key, value in arguments.items() if key.endswith(("logprobs", "index", "advantages"))}


@pytest.mark.parametrize(("name", "variant"), _cases(), ids=str)
def test_value_and_gradient_equal_the_printed_equations(name: str, variant: dict[str, Any]) -> None:
    row = algorithm(name, **(ROWS[name] | variant))
    batch = random_batch(LENGTHS, seed=3)
    terms, gradient = library_loss(batch, row)
    assert terms.loss.item() == pytest.approx(naive_loss(batch, row), abs=1e-12)
    torch.testing.assert_close(
        gradient, finite_differences(lambda moved: naive_loss(moved, row, held=batch), batch), rtol=1e-7, atol=1e-9
    )
    torch.testing.assert_close(terms.coefficients, -gradient, rtol=1e-12, atol=1e-14)
    assert sum(part.item() for part in terms.parts.values()) == pytest.approx(terms.loss.item(), abs=1e-12)


def test_only_combinations_that_exclude_each_other_are_left_out() -> None:
    cases = _cases()
    assert {name for name, _ in cases} == set(ROWS)
    assert len(cases) > len(ROWS) + 0.7 * len(WITH_VARIANTS) * len(VARIANTS)


def test_without_an_anchor_every_ratio_is_exactly_one() -> None:
    batch = random_batch(LENGTHS)
    row = algorithm("grpo", kl_coef=0.0)
    fresh, gradient = library_loss(batch, row, anchor_logprobs=None)
    same, expected = library_loss(replace(batch, anchor=batch.policy), row)
    assert torch.equal(gradient, expected) and torch.equal(fresh.loss, same.loss)
    assert fresh.maxima["ratio_max"].item() == 1.0
    assert fresh.means["approx_kl"][0].item() == 0.0
    assert fresh.means["clip_fraction_low"][0].item() == fresh.means["clip_fraction_high"][0].item() == 0.0


def test_supervised_fine_tuning_is_the_mean_cross_entropy() -> None:
    logits = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (7,))
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
    terms = policy_loss(
        logprobs,
        algorithm=algorithm("sft"),
        completion_index=torch.tensor([0, 0, 0, 0, 1, 1, 1]),
        completion_lengths=torch.tensor([4, 3]),
        num_completions=2,
        num_tokens=7,
    )
    expected = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(terms.loss, expected, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(
        torch.autograd.grad(terms.loss, logits, retain_graph=True)[0], torch.autograd.grad(expected, logits)[0]
    )
    assert set(terms.parts) == {"policy"} and set(terms.means) == {"nll"} and not terms.maxima
    torch.testing.assert_close(terms.coefficients, torch.full((7,), 1 / 7, dtype=torch.float64))


def test_the_entropy_bonus_is_averaged_as_the_objective_is() -> None:
    batch = random_batch((2, 8))
    entropy = torch.arange(10, dtype=torch.float64).requires_grad_(True)
    row = algorithm("grpo", kl_coef=0.0, entropy_coef=0.5)
    without, _ = library_loss(batch, replace(row, entropy_coef=0.0))
    terms = policy_loss(flat(batch.policy), algorithm=row, **loss_arguments(batch), entropy=entropy)
    # 1/2 (mean of 0, 1) + 1/2 (mean of 2 .. 9) = 0.25 + 2.75
    assert terms.loss.item() - without.loss.item() == pytest.approx(-0.5 * 3.0, abs=1e-12)
    assert terms.parts["entropy"].item() == pytest.approx(-1.5, abs=1e-12)
    (gradient,) = torch.autograd.grad(terms.loss, entropy)
    torch.testing.assert_close(
        gradient, torch.tensor([-0.5 / 4] * 2 + [-0.5 / 16] * 8, dtype=torch.float64), rtol=1e-12, atol=0.0
    )
    assert terms.means["entropy"][0].item() == 45.0 and terms.means["entropy"][1] == 10


def test_metrics_by_hand() -> None:
    ln = math.log
    batch = RaggedBatch(
        policy=[[ln(0.5), ln(0.3)], [ln(0.2)]],
        anchor=[[ln(0.25), ln(0.3)], [ln(0.4)]],  # ratios 2, 1 and 1/2
        ref=[[ln(0.5), ln(0.6)], [ln(0.2)]],  # reference / policy 1, 2, 1
        sampler=[[ln(0.25), ln(0.3)], [ln(0.1)]],  # anchor / sampler 1, 1, 4
        advantages=[1.0, -1.0],
    )
    terms, _ = library_loss(batch, algorithm("grpo", mismatch_cap=2.0))
    means = {name: total.item() / count for name, (total, count) in terms.means.items()}
    assert all(count == 3 for _, count in terms.means.values())
    assert means == pytest.approx(
        {
            "nll": -(ln(0.5) + ln(0.3) + ln(0.2)) / 3,
            "clip_fraction_high": 1 / 3,  # ratio 2, A > 0
            "clip_fraction_low": 1 / 3,  # ratio 1/2, A < 0
            "approx_kl": ((2 - 1 - ln(2)) + (0.5 - 1 - ln(0.5))) / 3,  # ratio - 1 - ln ratio
            "ref_kl": (2 - 1 - ln(2)) / 3,
            "sampler_kl": (4 - 1 - ln(4)) / 3,
            "mismatch_weight": (1 + 1 + 2) / 3,
            "mismatch_capped": 1 / 3,
        },
        abs=1e-12,
    )
    assert {name: value.item() for name, value in terms.maxima.items()} == pytest.approx(
        {"ratio_max": 2.0, "mismatch_max": ln(4)}, abs=1e-12
    )


def test_metrics_of_micro_batches_add_up_and_maxima_stay_maxima() -> None:
    batch, row = random_batch(LENGTHS, seed=5), algorithm("grpo", mismatch_cap=1.1)
    arguments = loss_arguments(batch)
    whole = add_loss_terms([policy_loss(flat(batch.policy), algorithm=row, **arguments)])
    parts = []
    for chunk in (slice(0, 3), slice(3, 11), slice(11, 16)):
        cut = _cut(arguments, chunk)
        parts.append(policy_loss(flat(batch.policy)[chunk], algorithm=row, **(arguments | cut)))
    together = add_loss_terms(parts)
    assert together.keys() == whole.keys()
    assert {"loss", "loss/policy", "loss/kl", "ratio_max"} <= together.keys()
    for name, pair in whole.items():
        assert together[name] == pytest.approx(pair, abs=1e-12), name
    assert add_loss_terms([]) == {}


def test_half_precision_is_raised_to_float32() -> None:
    batch = random_batch((3, 4))
    arguments = {
        key: value.to(torch.bfloat16) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in loss_arguments(batch).items()
    }
    policy = flat(batch.policy).to(torch.bfloat16).requires_grad_(True)
    terms = policy_loss(policy, algorithm=algorithm("grpo"), **arguments)
    terms.loss.backward()  # type: ignore[no-untyped-call]
    assert terms.loss.dtype == terms.coefficients.dtype == torch.float32
    assert policy.grad is not None and policy.grad.dtype == torch.bfloat16


def test_an_empty_micro_batch_has_loss_zero() -> None:
    arguments = loss_arguments(random_batch((3, 4)))
    cut = _cut(arguments, slice(0, 0))
    empty = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    for name in ("grpo", "grpo-r1"):
        terms = policy_loss(empty, algorithm=algorithm(name), **(arguments | cut))
        assert terms.loss.item() == 0.0 and terms.coefficients.shape == (0,)


@pytest.mark.parametrize(
    ("missing", "cells"),
    [
        ("advantages", {}),
        ("ref_logprobs", {}),
        ("sampler_logprobs", {"mismatch_cap": 2.0}),
        ("entropy", {"entropy_coef": 0.1}),
    ],
)
def test_what_the_algorithm_uses_and_is_not_given_is_named(missing: str, cells: dict[str, float]) -> None:
    batch = random_batch((3, 4))
    arguments = loss_arguments(batch) | {missing: None}
    with pytest.raises(ValueError, match=missing):
        policy_loss(flat(batch.policy), algorithm=algorithm("grpo", **cells), **arguments)


def test_a_cut_completion_is_refused_at_sequence_level() -> None:
    arguments = loss_arguments(random_batch((3, 4)))
    cut = _cut(arguments, slice(0, 5))
    with pytest.raises(ValueError, match="completion 1 has 4 tokens but 2"):
        policy_loss(torch.zeros(5, dtype=torch.float64), algorithm=algorithm("grpo-r1"), **(arguments | cut))
