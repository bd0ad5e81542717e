"""TRL's own loss code on the same logits, unequal lengths and all: loss and gradient agree.

TRL pads; here nothing is padded. Its model and its trainer are replaced by the least its `_compute_loss` asks for.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracles.ragged import index_of
from torch import Tensor

from outscore.objectives import algorithm, group_advantages, policy_loss

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),  # TRL's imports warn; that is not ours to mend
]

LENGTHS = [3, 1, 6, 4]
NUM_ACTIONS = 9


def _trl_loss(
    logits: Tensor, actions: Tensor, anchor: Tensor, ref: Tensor, advantages: Tensor, **settings: Any
) -> Tensor:
    """GRPOTrainer._compute_loss with `logits[completion, position, action]` in place of a model."""
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    mask = (torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]).long()
    logprobs = torch.log_softmax(logits, -1)
    sampled = logprobs.gather(-1, actions[..., None])[..., 0]
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (sampled, -(logprobs.exp() * logprobs).sum(-1), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        args=SimpleNamespace(
            use_bias_correction_kl=False, delta=None, steps_per_generation=1, report_to=[], epsilon=0.2
        ),
        epsilon_low=0.2,
        epsilon_high=settings.pop("epsilon_high", 0.2),
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=16,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(
            num_processes=1, reduce=lambda values, reduction: values, gather=lambda values: values
        ),
        **settings,
    )
    prompt = torch.zeros(len(LENGTHS), 2, dtype=torch.long)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": actions,
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": anchor,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }
    loss: Tensor = grpo_trainer.GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


def _trl_advantages(rewards: Tensor) -> Tensor:
    """As TRL's `_generate_and_score_completions`: its own nanstd (n - 1) plus 1e-4."""
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    std: Tensor = grpo_trainer.nanstd(rewards.view(1, -1), dim=1)
    return (rewards - rewards.mean()) / (std + 1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("loss_type", "preset", "cells", "settings"),
    [
        ("grpo", "grpo", {}, {}),
        ("dapo", "dapo-loss", {}, {"epsilon_high": 0.28}),
        ("dr_grpo", "dr-grpo", {"aggregation_constant": 16}, {}),
    ],
)
def test_loss_and_gradient_equal_trls(
    beta: float, loss_type: str, preset: str, cells: dict[str, Any], settings: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (len(LENGTHS), max(LENGTHS))
    logits = torch.randn(*shape, NUM_ACTIONS, generator=generator, dtype=torch.float64)
    actions = torch.randint(NUM_ACTIONS, shape, generator=generator)
    now = torch.log_softmax(logits, -1).gather(-1, actions[..., None])[..., 0]
    anchor = now + 0.3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    ref = now + 0.3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.5], dtype=torch.float64)

    advantages = group_advantages(rewards, baseline="group_mean", scale="sample_std", eps=1e-4)
    # TRL forms n / (n - 1) in float32.
    torch.testing.assert_close(advantages, _trl_advantages(rewards), rtol=1e-7, atol=0.0)

    theirs = logits.clone().requires_grad_(True)
    their_loss = _trl_loss(theirs, actions, anchor, ref, advantages, loss_type=loss_type, beta=beta, **settings)
    (their_gradient,) = torch.autograd.grad(their_loss, theirs)

    ours = logits.clone().requires_grad_(True)
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    index = index_of(LENGTHS)
    terms = policy_loss(
        torch.log_softmax(ours, -1).gather(-1, actions[..., None])[..., 0][mask],
        algorithm=algorithm(preset, kl_coef=beta, **cells),
        completion_index=index,
        completion_lengths=torch.tensor(LENGTHS),
        num_completions=len(LENGTHS),
        num_tokens=sum(LENGTHS),
        advantages=advantages[index],
        anchor_logprobs=anchor[mask],
        ref_logprobs=ref[mask],
    )
    (our_gradient,) = torch.autograd.grad(terms.loss, ours)
    assert terms.loss.item() == pytest.approx(their_loss.item(), abs=1e-12)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0.0, atol=1e-12)
