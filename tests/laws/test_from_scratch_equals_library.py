"""examples/grpo_from_scratch.py and the library are the same algorithm."""

import ast
import copy
import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from outscore.objectives import algorithm, group_advantages, policy_loss

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
    ref: torch.nn.Module
    prompts: list[list[int]]
    completions: list[list[int]]
    rewards: Tensor
    anchor_logprobs: Tensor


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
    with torch.no_grad():
        anchor_logprobs, _ = scratch.token_logprobs(_perturbed(model, 0.05), prompts, completions)
    return _Case(model, _perturbed(model, 0.05), prompts, completions, rewards, anchor_logprobs)


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
def test_loss_and_gradients_are_equal_on_one_off_policy_batch(scratch: ModuleType, case: _Case, kl_coef: float) -> None:
    config = scratch.Config(kl_coef=kl_coef)
    with torch.no_grad():
        ref_logprobs, _ = scratch.token_logprobs(case.ref, case.prompts, case.completions)

    advantages = scratch.group_advantages(case.rewards, config.advantage_eps).flatten()
    policy_logprobs, counts = scratch.token_logprobs(case.model, case.prompts, case.completions)
    their_loss = scratch.grpo_loss(policy_logprobs, case.anchor_logprobs, ref_logprobs, advantages, counts, config)
    their_loss.backward()
    their_gradients = _gradients(case.model)

    case.model.zero_grad()
    policy_logprobs, counts = scratch.token_logprobs(case.model, case.prompts, case.completions)
    lengths = torch.tensor([len(completion) for completion in case.completions])
    index = torch.arange(len(lengths)).repeat_interleave(lengths)
    terms = policy_loss(
        policy_logprobs[counts],
        algorithm=algorithm(
            "grpo",
            clip_low=config.clip,
            clip_high=config.clip,
            kl_coef=config.kl_coef,
            advantage_eps=config.advantage_eps,
        ),
        completion_index=index,
        completion_lengths=lengths,
        num_completions=len(lengths),
        num_tokens=int(lengths.sum()),
        advantages=_library_advantages(case.rewards, config.advantage_eps).flatten()[index],
        anchor_logprobs=case.anchor_logprobs[counts],
        ref_logprobs=ref_logprobs[counts],
    )
    terms.loss.backward()
    our_gradients = _gradients(case.model)

    clipped = terms.means["clip_fraction_low"][0] + terms.means["clip_fraction_high"][0]
    assert 0 < clipped.item() < int(lengths.sum()), "the batch must have tokens on both sides of the clip"
    assert terms.loss.item() == pytest.approx(their_loss.item(), rel=1e-6, abs=1e-7)
    assert _relative(our_gradients, their_gradients) < 1e-6


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
