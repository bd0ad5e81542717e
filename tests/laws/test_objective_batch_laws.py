"""What may not change the loss, and what must."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.ragged import RaggedBatch, flat, library_loss, loss_arguments, random_batch
from oracles.untimed import UNTIMED

from outscore.algorithms.rows import Algorithm, algorithm
from outscore.objectives.loss import policy_loss

ROWS: dict[str, Algorithm] = {
    "grpo": algorithm("grpo", mismatch_cap=1.2),
    "grpo-r1": algorithm("grpo-r1", kl_coef=0.1),
    "dr-grpo": algorithm("dr-grpo", aggregation_constant=16),
    "dapo-loss": algorithm("dapo-loss", kl_coef=0.1, kl_estimator="k2"),
    "sft": algorithm("sft"),
    "gspo": algorithm("gspo", mismatch_cap=1.2, mismatch_level="sequence"),
    "cispo": algorithm("cispo", clip_high=0.1),
    "sapo": algorithm("sapo"),
    "dppo": algorithm("dppo", aggregation_constant=16, clip_low=0.02, clip_high=0.02),
    "rloo": algorithm("rloo"),
    "kimi-k1.5": algorithm("kimi-k1.5"),
    "deepseek-v3.2": algorithm("deepseek-v3.2", stale_threshold=0.02),
}
PER_TOKEN = ("completion_index", "advantages", "anchor_logprobs", "ref_logprobs", "sampler_logprobs")


def _of_tokens(arguments: dict[str, Any], kept: torch.Tensor) -> dict[str, Any]:
    return arguments | {name: arguments[name][kept] for name in PER_TOKEN}


def _micro_batched(batch: RaggedBatch, row: Algorithm, chunks: list[list[int]]) -> tuple[float, torch.Tensor]:
    """Loss and gradient accumulated over micro-batches that hold these tokens of the flat axis."""
    policy, arguments = flat(batch.policy).requires_grad_(True), loss_arguments(batch)
    total = 0.0
    for chunk in chunks:
        kept = torch.tensor(chunk, dtype=torch.long)
        terms = policy_loss(policy[kept], algorithm=row, **_of_tokens(arguments, kept))
        terms.loss.backward()  # type: ignore[no-untyped-call]
        total += terms.loss.item()
    assert policy.grad is not None
    return total, policy.grad


@pytest.mark.parametrize("name", ROWS)
@settings(UNTIMED, max_examples=20)
@given(lengths=st.lists(st.integers(1, 7), min_size=2, max_size=5), seed=st.integers(0, 1000))
def test_any_split_into_micro_batches_gives_the_same_loss_and_gradient(
    name: str, lengths: list[int], seed: int
) -> None:
    """Tokens are dealt out at random; where a row needs them whole, completions are: a half has another ratio."""
    row, batch, draw = ROWS[name], random_batch(lengths, seed=seed), random.Random(seed)
    owner = loss_arguments(batch)["completion_index"].tolist()
    home = [draw.randrange(3) for _ in lengths]
    chunks: list[list[int]] = [[], [], []]
    for token, completion in enumerate(owner):
        chunks[home[completion] if row.needs_whole_completions else draw.randrange(3)].append(token)
    terms, gradient = library_loss(batch, row)
    loss, accumulated = _micro_batched(batch, row, chunks)
    assert loss == pytest.approx(terms.loss.item(), abs=1e-12)
    torch.testing.assert_close(accumulated, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ROWS)
def test_the_order_of_tokens_and_of_completions_does_not_matter(name: str) -> None:
    batch = random_batch((2, 8, 1, 5), seed=2)
    terms, gradient = library_loss(batch, ROWS[name])
    order = torch.randperm(16)
    policy = flat(batch.policy).requires_grad_(True)
    shuffled = policy_loss(policy[order], algorithm=ROWS[name], **_of_tokens(loss_arguments(batch), order))
    (shuffled_gradient,) = torch.autograd.grad(shuffled.loss, policy)
    torch.testing.assert_close(shuffled_gradient, gradient, rtol=1e-12, atol=1e-14)

    moved = [2, 0, 3, 1]
    permuted = RaggedBatch(
        **{
            field: [getattr(batch, field)[i] for i in moved]
            for field in ("policy", "anchor", "ref", "sampler", "advantages")
        }
    )
    assert library_loss(permuted, ROWS[name])[0].loss.item() == pytest.approx(terms.loss.item(), abs=1e-12)


@pytest.mark.parametrize("name", ROWS)
def test_inputs_are_never_mutated(name: str) -> None:
    batch = random_batch((2, 8, 1, 5))
    policy, arguments = flat(batch.policy).requires_grad_(True), loss_arguments(batch)
    before = {key: value.clone() for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    versions = {key: value._version for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    policy_loss(policy, algorithm=ROWS[name], **arguments).loss.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(policy.detach(), flat(batch.policy))
    for key, value in before.items():
        assert torch.equal(arguments[key], value) and arguments[key]._version == versions[key], key


def test_nobody_but_the_policy_receives_a_gradient() -> None:
    batch = random_batch((2, 3))
    arguments = loss_arguments(batch)
    constants = [arguments[name].requires_grad_(True) for name in PER_TOKEN[1:]]
    terms = policy_loss(flat(batch.policy).requires_grad_(True), algorithm=ROWS["grpo"], **arguments)
    terms.loss.backward()  # type: ignore[no-untyped-call]
    assert all(constant.grad is None for constant in constants)


def test_the_sequence_form_equals_the_token_form_when_completions_have_one_token_and_only_then() -> None:
    for lengths, equal in (((1, 1, 1), True), ((1, 2, 1), False)):
        batch = random_batch(lengths, seed=4)
        levels = ("token", "sequence")
        rows = [algorithm("grpo-r1", ratio_level=level, kl_level=level, kl_coef=0.1) for level in levels]
        (_, by_token), (_, by_sequence) = (library_loss(batch, row) for row in rows)
        assert torch.allclose(by_token, by_sequence, rtol=1e-12, atol=0.0) == equal


def test_the_sequence_form_counts_each_completion_once_whatever_its_length() -> None:
    """DeepSeek-R1 eq. 1 has no 1/|o|: 1/G sum over completions of min(ratio A, clip(ratio) A)."""
    batch = replace(random_batch((2, 8), seed=1), advantages=[1.0, 1.0])
    batch = replace(batch, anchor=batch.policy)
    terms, gradient = library_loss(batch, algorithm("grpo-r1", kl_coef=0.0))
    assert terms.loss.item() == pytest.approx(-1.0, abs=1e-12)
    torch.testing.assert_close(gradient, torch.full_like(gradient, -0.5), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize(("name", "ratio"), [("grpo", 4.0), ("dapo-loss", 1.0), ("dr-grpo", 1.0)])
def test_a_wrong_long_answers_tokens_are_penalised_less_only_by_one_over_length(name: str, ratio: float) -> None:
    """Lengths 2 and 8, both with advantage -1."""
    batch = replace(random_batch((2, 8)), advantages=[-1.0, -1.0])
    batch = replace(batch, anchor=batch.policy)
    _, gradient = library_loss(batch, replace(ROWS[name], kl_coef=0.0, mismatch_cap=None))
    assert (gradient[0] / gradient[-1]).item() == pytest.approx(ratio, rel=1e-12)


def test_a_mismatch_weight_is_one_when_sampler_and_trainer_agree() -> None:
    batch = random_batch((2, 8, 1))
    batch = replace(batch, sampler=batch.anchor)
    _, plain = library_loss(batch, algorithm("grpo"))
    _, weighted = library_loss(batch, algorithm("grpo", mismatch_cap=2.0))
    assert torch.equal(plain, weighted)
