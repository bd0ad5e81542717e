"""TRL's own loss code on the same logits, unequal lengths and all: loss and gradient agree.

TRL pads; here nothing is padded. Its model and its trainer are replaced by the least its `_compute_loss` asks for.
"""

from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracles.peer import run_lines
from oracles.ragged import index_of
from torch import Tensor

from outscore.algorithms.rows import Algorithm, algorithm
from outscore.objectives.advantages import group_advantages
from outscore.objectives.loss import policy_loss

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),  # TRL's imports warn; that is not ours to mend
]

LENGTHS = [3, 1, 6, 4]
MASK = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
NUM_ACTIONS = 9


def _trl_loss(
    logits: Tensor,
    actions: Tensor,
    advantages: Tensor,
    *,
    anchor: Tensor,
    ref: Tensor,
    weights: Tensor | None = None,
    args: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Tensor:
    """GRPOTrainer._compute_loss with `logits[completion, position, action]` in place of a model; `weights` are its
    `importance_sampling_ratio`, `settings` and `args` what it reads of the trainer and of its arguments."""
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    logprobs = torch.log_softmax(logits, -1)
    sampled = logprobs.gather(-1, actions[..., None])[..., 0]
    same = SimpleNamespace(num_processes=1, reduce=lambda values, reduction: values, gather=lambda values: values)
    own: dict[str, Any] = {
        "_get_per_token_logps_and_entropies": lambda *_, **__: (sampled, -(logprobs.exp() * logprobs).sum(-1), None),
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "get_off_policy_mask": grpo_trainer.GRPOTrainer.get_off_policy_mask,
        "importance_sampling_level": "token",
        "args": SimpleNamespace(
            **{
                "use_bias_correction_kl": False,
                "delta": None,
                "steps_per_generation": 1,
                "report_to": [],
                **(args or {}),
            }
        ),
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "use_vllm": weights is not None,
        "vllm_importance_sampling_correction": weights is not None,
        "model": SimpleNamespace(training=True),
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": 16,
        "_entropy_bonus_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        "accelerator": same,
    }
    prompt = torch.zeros(len(LENGTHS), 2, dtype=torch.long)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": actions,
        "completion_mask": MASK.long(),
        "advantages": advantages,
        "old_per_token_logps": anchor,
        "ref_per_token_logps": ref,
        "num_items_in_batch": MASK.sum(),
        "importance_sampling_ratio": weights,
    }
    loss: Tensor = grpo_trainer.GRPOTrainer._compute_loss(SimpleNamespace(**(own | settings)), None, inputs)
    return loss


def _trl_weights(anchor: Tensor, sampler: Tensor, *, mode: str, floor: float | None, cap: float) -> Tensor:
    """What TRL multiplies the loss of tokens by where a sampler is not the trainer. Its lines stand in the middle of a
    long method, so they are taken from there."""
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    known = {
        "self": SimpleNamespace(
            use_vllm=True,
            vllm_importance_sampling_correction=True,
            vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_min=floor,
            vllm_importance_sampling_clip_max=cap,
        ),
        "completion_mask": MASK.long(),
        "tool_mask": None,
        "old_per_token_logps": anchor,
        "sampling_per_token_logps": sampler,
    }
    run_lines(
        grpo_trainer.GRPOTrainer._generate_and_score_completions,
        "# Compute the importance sampling ratio when using vLLM",
        "# Compute the per-token log probabilities for the reference model",
        known,
    )
    weights: Tensor = known["vllm_importance_sampling_ratio"]
    return weights


def _trl_advantages(rewards: Tensor) -> Tensor:
    """As TRL's `_generate_and_score_completions`: its own nanstd (n - 1) plus 1e-4."""
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    std: Tensor = grpo_trainer.nanstd(rewards.view(1, -1), dim=1)
    return (rewards - rewards.mean()) / (std + 1e-4)


REWARDS = torch.tensor([1.0, 0.0, 0.0, 0.5], dtype=torch.float64)


class Drawn:
    """Logits, what was drawn with them, and the log-probs of others."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = MASK.shape
        self.logits = torch.randn(*shape, NUM_ACTIONS, generator=generator, dtype=torch.float64)
        self.actions = torch.randint(NUM_ACTIONS, shape, generator=generator)
        now = self.sampled(self.logits)
        self.anchor, self.ref, self.sampler = (
            now + 0.3 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(3)
        )

    def sampled(self, logits: Tensor) -> Tensor:
        """Log-probs of what was drawn."""
        return torch.log_softmax(logits, -1).gather(-1, self.actions[..., None])[..., 0]

    def ours(self, row: Algorithm, advantages: Tensor) -> tuple[float, Tensor]:
        """The library's loss, and its gradient with respect to the logits."""
        logits, index = self.logits.clone().requires_grad_(True), index_of(LENGTHS)
        loss = policy_loss(
            self.sampled(logits)[MASK],
            algorithm=row,
            completion_index=index,
            completion_lengths=torch.tensor(LENGTHS),
            num_completions=len(LENGTHS),
            num_tokens=sum(LENGTHS),
            advantages=advantages[index],
            anchor_logprobs=self.anchor[MASK],
            ref_logprobs=self.ref[MASK],
            sampler_logprobs=self.sampler[MASK],
        ).loss
        return loss.item(), torch.autograd.grad(loss, logits)[0]

    def theirs(self, advantages: Tensor, **settings: Any) -> tuple[float, Tensor]:
        """TRL's."""
        logits = self.logits.clone().requires_grad_(True)
        loss = _trl_loss(logits, self.actions, advantages, anchor=self.anchor, ref=self.ref, **settings)
        return loss.item(), torch.autograd.grad(loss, logits)[0]


def agree(ours: tuple[float, Tensor], theirs: tuple[float, Tensor]) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=1e-12)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0.0, atol=1e-12)


def test_advantages_equal_trls() -> None:
    advantages = group_advantages(REWARDS, baseline="group_mean", scale="sample_std", eps=1e-4)
    # TRL forms n / (n - 1) in float32.
    torch.testing.assert_close(advantages, _trl_advantages(REWARDS), rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("preset", "cells", "settings"),
    [
        ("grpo", {}, {"loss_type": "grpo"}),
        ("dapo-loss", {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
        ("dr-grpo", {"aggregation_constant": 16}, {"loss_type": "dr_grpo"}),
        (
            "gspo",
            {},
            {
                "loss_type": "grpo",
                "importance_sampling_level": "sequence",
                "epsilon_low": 3e-4,
                "epsilon_high": 4e-4,
            },
        ),
        ("cispo", {}, {"loss_type": "cispo", "epsilon_high": 5.0}),
        ("cispo", {"clip_high": 0.1}, {"loss_type": "cispo", "epsilon_high": 1.1}),
        # TRL makes float32 of its temperatures: 1.0625 instead of 1.05 is the same number there.
        (
            "sapo",
            {"gate_negative": 1.0625},
            {"loss_type": "sapo", "args": {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.0625}},
        ),
        (
            "deepseek-v3.2",
            {"stale_threshold": 0.05},
            {"loss_type": "grpo", "off_policy_mask_threshold": 0.05, "args": {"use_bias_correction_kl": True}},
        ),
    ],
)
def test_loss_and_gradient_equal_trls(
    beta: float, preset: str, cells: dict[str, Any], settings: dict[str, Any]
) -> None:
    drawn, row = Drawn(seed=1), algorithm(preset, kl_coef=beta, **cells)
    advantages = group_advantages(REWARDS, baseline="group_mean", scale="sample_std", eps=1e-4)
    agree(drawn.ours(row, advantages), drawn.theirs(advantages, beta=beta, **settings))


@pytest.mark.parametrize("level", ["token", "sequence"])
# TRL can also raise small weights to a bound; here only masks have a lower one.
@pytest.mark.parametrize(("mode", "floor"), [("truncate", None), ("mask", None), ("mask", 0.7)])
def test_weights_for_a_sampler_that_is_not_the_trainer_equal_trls(mode: str, floor: float | None, level: str) -> None:
    drawn, cap = Drawn(seed=15), 1.2
    cells: dict[str, Any] = {"mismatch_cap": cap, "mismatch_mode": mode, "mismatch_level": level}
    row = algorithm("grpo", **cells, mismatch_floor=floor or 0.0)
    weights = _trl_weights(drawn.anchor, drawn.sampler, mode=f"{level}_{mode}", floor=floor, cap=cap)
    own = weights.expand(MASK.shape)[MASK]
    bound = cap if mode == "truncate" else 0.0
    assert (own == bound).any() and ((own > 0.7) & (own < cap)).any() and (own < 0.7).any()
    advantages = group_advantages(REWARDS, baseline="group_mean", scale="sample_std", eps=1e-4)
    theirs = drawn.theirs(advantages, weights=weights, loss_type="grpo", beta=0.04)
    agree(drawn.ours(row, advantages), theirs)
