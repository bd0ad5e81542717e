"""examples/grpo_from_scratch.py and the library are the same algorithm.

Compared in fp32, relative to the norm of the whole: of all log-probs, of the whole gradient. (A single element that
happens to be small is rounded worse than that.)
"""

import ast
import copy
import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from outscore.algorithms.rows import algorithm
from outscore.model.logprobs import token_logprobs
from outscore.model.policy import Policy
from outscore.model.rows import TrainingGroup, flat_starts, group_rows
from outscore.model.tiny import character_tokenizer
from outscore.objectives.advantages import group_advantages
from outscore.objectives.loss import LossTerms, policy_loss
from outscore.records import Completion

EXAMPLE = Path(__file__).parents[2] / "examples" / "grpo_from_scratch.py"
NUM_GROUPS, GROUP_SIZE = 3, 4


@pytest.fixture(scope="module")
def scratch() -> Iterator[ModuleType]:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("grpo_from_scratch", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class _Case(NamedTuple):
    """Prompts and completions of unequal lengths, scored; anchor and reference differ from the policy."""

    model: torch.nn.Module
    anchor: torch.nn.Module
    ref: torch.nn.Module
    prompts: list[list[int]]
    completions: list[list[int]]
    rewards: Tensor


def _perturbed(model: torch.nn.Module, scale: float) -> torch.nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += scale * torch.randn_like(parameter)
    return other


@pytest.fixture
def case(scratch: ModuleType) -> _Case:
    torch.manual_seed(3)
    draw = random.Random(3)
    model = scratch.build_model()
    prompts, completions = [], []
    for _ in range(NUM_GROUPS):
        prompt = [draw.randrange(10) for _ in range(draw.randint(1, 3))] + [scratch.ASK]
        for _ in range(GROUP_SIZE):
            prompts.append(prompt)
            completions.append([draw.randrange(10) for _ in range(draw.randint(0, 4))] + [scratch.STOP])
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.1, 0.1, 0.1, 0.1], [0.3, 0.9, 0.9, 0.2]])
    return _Case(model, _perturbed(model, 0.05), _perturbed(model, 0.05), prompts, completions, rewards)


def _library_advantages(rewards: Tensor, eps: float) -> Tensor:
    row = algorithm("grpo", advantage_eps=eps)
    groups = [group_advantages(group, baseline=row.baseline, scale=row.scale, eps=eps) for group in rewards]
    return torch.stack(groups)


def _gradients(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def test_advantages_are_equal_and_exactly_zero_for_equal_rewards(scratch: ModuleType, case: _Case) -> None:
    theirs = scratch.group_advantages(case.rewards, 1e-6)
    ours = _library_advantages(case.rewards, 1e-6)
    assert _relative(theirs, ours) < 1e-6
    assert torch.equal(theirs[1], torch.zeros(GROUP_SIZE)) and torch.equal(ours[1], torch.zeros(GROUP_SIZE))


def test_every_completion_token_counts_the_stop_token_included_and_nothing_else(
    scratch: ModuleType, case: _Case
) -> None:
    _, counts = scratch.token_logprobs(case.model, case.prompts, case.completions)
    for row, prompt, completion in zip(counts.tolist(), case.prompts, case.completions, strict=True):
        padding = len(row) - (len(prompt) - 1) - len(completion)
        assert row == [False] * (len(prompt) - 1) + [True] * len(completion) + [False] * padding


@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
def test_log_probs_loss_and_gradients_are_equal_on_one_off_policy_batch(
    scratch: ModuleType, case: _Case, kl_coef: float
) -> None:
    config = scratch.Config(kl_coef=kl_coef)
    with torch.no_grad():
        anchor_logprobs, _ = scratch.token_logprobs(case.anchor, case.prompts, case.completions)
        ref_logprobs, _ = scratch.token_logprobs(case.ref, case.prompts, case.completions)

    advantages = scratch.group_advantages(case.rewards, config.advantage_eps).flatten()
    policy_logprobs, counts = scratch.token_logprobs(case.model, case.prompts, case.completions)
    their_loss = scratch.grpo_loss(policy_logprobs, anchor_logprobs, ref_logprobs, advantages, counts, config)
    their_loss.backward()
    their_gradients = _gradients(case.model)

    our_logprobs, our_terms = _library_loss(scratch, case, config)
    clipped = our_terms.means["clip_fraction_low"][0] + our_terms.means["clip_fraction_high"][0]
    assert 0 < clipped.item() < int(counts.sum()), "the batch must have tokens on both sides of the clip"
    assert _relative(our_logprobs, policy_logprobs[counts].detach()) < 1e-6
    # Terms of both signs nearly cancel in the loss: its rounding is that of the terms, which are of order 1.
    assert our_terms.loss.item() == pytest.approx(their_loss.item(), rel=1e-6, abs=1e-7)
    case.model.zero_grad()
    our_terms.loss.backward()
    assert _relative(_gradients(case.model), their_gradients) < 1e-6


def _library_loss(scratch: ModuleType, case: _Case, config: Any) -> tuple[Tensor, LossTerms]:
    """The library's log-probs of the policy, and its loss: group rows, token log-probs, advantages, objective."""
    made = [Completion(token_ids=tuple(ids), text="", counts=(True,) * len(ids)) for ids in case.completions]
    groups = [
        TrainingGroup(
            prompt_ids=tuple(case.prompts[first]),
            completions=tuple(made[first : first + GROUP_SIZE]),
            completion_index=tuple(range(first, first + GROUP_SIZE)),
        )
        for first in range(0, len(made), GROUP_SIZE)
    ]
    rows = group_rows(groups, flat_starts(made))
    tokenizer = character_tokenizer("a", [])

    def logprobs(model: torch.nn.Module) -> Tensor:
        policy = Policy(model, tokenizer, stop_token_ids=frozenset({scratch.STOP}))
        return token_logprobs(policy, rows).logprobs

    with torch.no_grad():
        anchor, ref = logprobs(case.anchor), logprobs(case.ref)
    now = logprobs(case.model)
    lengths = torch.tensor([len(ids) for ids in case.completions])
    terms = policy_loss(
        now,
        algorithm=algorithm(
            "grpo",
            clip_low=config.clip,
            clip_high=config.clip,
            kl_coef=config.kl_coef,
            advantage_eps=config.advantage_eps,
        ),
        completion_index=rows.completion_index,
        completion_lengths=lengths,
        num_completions=len(lengths),
        num_tokens=int(lengths.sum()),
        advantages=_library_advantages(case.rewards, config.advantage_eps).flatten()[rows.completion_index],
        anchor_logprobs=anchor,
        ref_logprobs=ref,
    )
    return now.detach(), terms


def test_the_example_depends_on_torch_and_transformers_only_and_stays_short() -> None:
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 250
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch", "transformers"}
