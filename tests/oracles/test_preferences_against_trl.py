"""TRL's own DPO code on the same log-probs, unequal lengths and all: loss and gradient agree.

TRL pads, and puts the better completions of a batch before the worse; here nothing is padded.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracles.ragged import index_of
from torch import Tensor

from outscore.algorithms.rows import algorithm
from outscore.objectives.loss import policy_loss
from outscore.objectives.preferences import ranked_pairs

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),  # TRL's imports warn; that is not ours to mend
]

CHOSEN, REJECTED = [3, 1, 6], [4, 5, 2]
NUM_PROMPT = 2


class _Model:
    """The least that `_compute_loss` asks of a model: log-probs for the tokens, 0 where padded."""

    training = True

    def __init__(self, logprobs: Tensor) -> None:
        padded = torch.nn.functional.pad(logprobs, (NUM_PROMPT - 1, 0))
        like = torch.zeros_like(padded).detach()
        self.outputs = SimpleNamespace(
            log_probs=padded, entropy=like, mean_logits=like, is_top1=like.bool(), log_sum_sq_probs=like
        )

    def __call__(self, **_: Any) -> Any:
        return self.outputs


def _trl_loss(now: Tensor, ref: Tensor, mask: Tensor, *, loss_type: str, beta: float) -> Tensor:
    dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")
    same = SimpleNamespace(gather_for_metrics=lambda v: v, gather=lambda v: v, device=torch.device("cpu"))
    model = _Model(now * mask)
    trainer = SimpleNamespace(
        model=model,
        accelerator=same,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    prompt = torch.zeros(len(mask), NUM_PROMPT, dtype=torch.long)
    better, worse = (ref * mask).sum(1).chunk(2)
    inputs = {
        "ref_chosen_logps": better,
        "ref_rejected_logps": worse,
        "input_ids": torch.zeros(len(mask), NUM_PROMPT + mask.shape[1], dtype=torch.long),
        "attention_mask": torch.cat([prompt + 1, mask], 1),
        "completion_mask": torch.cat([prompt, mask], 1),
    }
    loss: Tensor = dpo_trainer.DPOTrainer._compute_loss(trainer, model, inputs, False)
    return loss


@pytest.mark.parametrize(
    ("loss_type", "preset", "cells"),
    [
        ("sigmoid", "dpo", {}),
        ("sigmoid_norm", "dpo-mean", {}),
        ("ipo", "ipo", {"aggregation": "completion_mean"}),
    ],
)
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_loss_and_gradient_equal_trls(loss_type: str, preset: str, cells: dict[str, Any], beta: float) -> None:
    generator = torch.Generator().manual_seed(2)
    lengths = [*CHOSEN, *REJECTED]
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    now, ref = (-torch.rand(*mask.shape, generator=generator, dtype=torch.float64) for _ in range(2))

    theirs = now.clone().requires_grad_(True)
    their_loss = _trl_loss(theirs, ref, mask, loss_type=loss_type, beta=beta)
    (their_gradient,) = torch.autograd.grad(their_loss, theirs)

    ours = now.clone().requires_grad_(True)
    order = [0, 3, 1, 4, 2, 5]  # the better of each pair, then the worse
    terms = policy_loss(
        torch.cat([ours[i][: lengths[i]] for i in order]),
        algorithm=algorithm(preset, kl_coef=beta, **cells),
        completion_index=index_of([lengths[i] for i in order]),
        completion_lengths=torch.tensor([lengths[i] for i in order]),
        num_completions=6,
        num_tokens=sum(lengths),
        ref_logprobs=torch.cat([ref[i][: lengths[i]] for i in order]),
        pairs=ranked_pairs([(0, 1)] * 3, ties="drop"),
    )
    (our_gradient,) = torch.autograd.grad(terms.loss, ours)
    assert terms.loss.item() == pytest.approx(their_loss.item(), abs=1e-12)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0.0, atol=1e-12)
