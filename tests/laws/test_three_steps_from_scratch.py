"""Three whole training steps in float64: the example in one file and the library end at the same parameters.

Nothing is shared but the batch: separate padded rows against group rows, one loss against micro-batches, Adam against
the learner.
"""

import copy
import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from outscore.algorithms.rows import algorithm
from outscore.model.adapters import trainable_parameters
from outscore.model.policy import Policy
from outscore.model.precision import MasterWeights
from outscore.model.rows import TrainingGroup
from outscore.model.tiny import character_tokenizer
from outscore.objectives.advantages import group_advantages
from outscore.records import Completion
from outscore.stage_parts import OptimizerSettings
from outscore.train.optim import make_optimizer
from outscore.train.step import Batch, Learner, Reference, UpdatePlan, update

EXAMPLE = Path(__file__).parents[2] / "examples" / "grpo_from_scratch.py"
NUM_GROUPS, GROUP_SIZE, NUM_STEPS, NUM_UPDATES, LR = 3, 4, 3, 2, 2e-3


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo_from_scratch_steps", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def draw_step(scratch: ModuleType, draw: random.Random) -> tuple[list[list[int]], list[list[int]], Tensor]:
    """Prompts and completions of unequal lengths, group after group, and their rewards."""
    prompts, completions = [], []
    for _ in range(NUM_GROUPS):
        prompt = [draw.randrange(10) for _ in range(draw.randint(1, 3))] + [scratch.ASK]
        for _ in range(GROUP_SIZE):
            prompts.append(prompt)
            completions.append([draw.randrange(10) for _ in range(draw.randint(0, 4))] + [scratch.STOP])
    rewards = [[draw.choice([0.0, 0.5, 1.0]) for _ in range(GROUP_SIZE)] for _ in range(NUM_GROUPS)]
    return prompts, completions, torch.tensor(rewards, dtype=torch.float64)


def library_batch(prompts: list[list[int]], completions: list[list[int]], rewards: Tensor, eps: float) -> Batch:
    made = [Completion(token_ids=tuple(ids), text="", counts=(True,) * len(ids)) for ids in completions]
    groups = tuple(
        TrainingGroup(
            prompt_ids=tuple(prompts[first]),
            completions=tuple(made[first : first + GROUP_SIZE]),
            completion_index=tuple(range(first, first + GROUP_SIZE)),
        )
        for first in range(0, len(made), GROUP_SIZE)
    )
    row = algorithm("grpo", advantage_eps=eps)
    values = [group_advantages(group, baseline=row.baseline, scale=row.scale, eps=eps) for group in rewards]
    lengths = torch.tensor([len(ids) for ids in completions])
    return Batch(
        groups=groups,
        completions=tuple(made),
        advantages=torch.cat(values).repeat_interleave(lengths),
        sampler_logprobs=None,
        temperature=1.0,
    )


def double_norm(module: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    """x / rms(x) · w in the precision of x. The module's own forward computes in fp32 whatever it is given.

    (So do the rotary angles, but as a function of the position alone: both sides get the same ones.)
    """
    assert hidden.dtype == torch.float64
    return module.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)


def test_three_steps_end_at_the_same_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaRMSNorm, "forward", double_norm)
    scratch, draw = load_example(), random.Random(5)
    torch.manual_seed(5)
    config = scratch.Config(num_updates=NUM_UPDATES, learning_rate=LR)
    theirs = scratch.build_model().double()
    ours = copy.deepcopy(theirs)
    start = copy.deepcopy(theirs)
    ref = copy.deepcopy(theirs)
    their_optimizer = torch.optim.Adam(theirs.parameters(), lr=LR)

    policy = Policy(ours, character_tokenizer("ab", []), stop_token_ids=frozenset({scratch.STOP}))
    settings = OptimizerSettings(lr=LR, max_grad_norm=1e9)
    masters = MasterWeights(ours, torch.float64)
    learner = Learner(
        policy=policy,
        masters=masters,
        optimizer=make_optimizer(masters.parameters.values(), settings),
        reference=Reference(trainable_parameters(ours)),
    )
    row = algorithm("grpo", kl_coef=config.kl_coef, advantage_eps=config.advantage_eps)
    plan = UpdatePlan(
        algorithm=row, optimizer=settings, total_updates=NUM_STEPS * NUM_UPDATES, token_budget=30, epochs=NUM_UPDATES
    )
    for _ in range(NUM_STEPS):
        prompts, completions, rewards = draw_step(scratch, draw)
        with torch.no_grad():
            anchor, _ = scratch.token_logprobs(theirs, prompts, completions)
        for _ in range(NUM_UPDATES):
            scratch.train_step(theirs, ref, their_optimizer, prompts, completions, rewards, anchor, config)
        update(learner, library_batch(prompts, completions, rewards, config.advantage_eps), plan)

    def flat(model: nn.Module) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    moved = (flat(theirs) - flat(start)).norm()
    assert moved > 0.1
    assert (flat(ours) - flat(theirs)).norm() <= 1e-10 * moved
