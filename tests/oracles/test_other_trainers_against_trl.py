"""TRL's trainers of other kinds on the same tensors, with unequal lengths: RLOO, the reward model, distillation."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracles.peer import run_lines
from oracles.ragged import index_of
from torch import Tensor

from outscore.algorithms.rows import Algorithm, algorithm
from outscore.objectives.batch import GroupRewards, batch_advantages
from outscore.objectives.kl import kl_per_completion
from outscore.objectives.loss import policy_loss
from outscore.objectives.preferences import ranked_pairs
from outscore.objectives.reward_models import reward_model_loss

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),  # TRL's imports warn; that is not ours to mend
]

LENGTHS = [3, 1, 6, 4, 2, 5]
MASK = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
REWARDS = torch.tensor([1.0, 0.0, 0.5, 0.0, 0.0, 1.0], dtype=torch.float64)
NUM_ACTIONS = 7
BETA = 0.03


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


NOW, ANCHOR, REF = (-normal(seed, *MASK.shape).abs() for seed in (1, 2, 3))


def ours(row: Algorithm, now: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
    """The library's loss and advantages of two groups of three completions."""
    index, lengths = index_of(LENGTHS), torch.tensor(LENGTHS)
    kl = kl_per_completion(
        anchor[MASK], REF[MASK], index, estimator=row.kl_estimator, level=row.kl_level, num_completions=len(LENGTHS)
    )
    groups = [
        GroupRewards(rewards=own, valid=torch.ones(3, dtype=torch.bool), num_tokens=num_tokens)
        for own, num_tokens in zip((REWARDS - row.kl_coef * kl).split(3), lengths.split(3), strict=True)
    ]
    advantages = batch_advantages(groups, row)
    loss = policy_loss(
        now[MASK],
        algorithm=row,
        completion_index=index,
        completion_lengths=lengths,
        num_completions=len(LENGTHS),
        num_tokens=sum(LENGTHS),
        advantages=advantages,
        anchor_logprobs=anchor[MASK],
    ).loss
    return loss, advantages


def trl_rloo_advantages(anchor: Tensor) -> Tensor:
    """The lines of RLOOTrainer that make advantages of rewards: they stand in the middle of a long method."""
    rloo_trainer = pytest.importorskip("trl.trainer.rloo_trainer")
    known: dict[str, Any] = {
        "self": SimpleNamespace(beta=BETA, normalize_advantages=False),
        "rewards": REWARDS.clone(),
        "old_per_token_logps": anchor,
        "ref_per_token_logps": REF,
        "completion_mask": MASK.long(),
        "num_generations": 3,
        "gather": lambda values: values,
    }
    first, last = "# Include the KL penalty in the reward", "# Unscorable completions carry no learning signal"
    run_lines(rloo_trainer.RLOOTrainer._generate_and_score_completions, first, last, known)
    advantages: Tensor = known["advantages"]
    return advantages


def trl_rloo_loss(now: Tensor, anchor: Tensor, advantages: Tensor) -> Tensor:
    rloo_trainer = pytest.importorskip("trl.trainer.rloo_trainer")
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, torch.zeros_like(now), None),
        aux_loss_enabled=False,
        epsilon_low=0.2,
        epsilon_high=0.2,
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(reduce=lambda values, reduction: values, gather=lambda values: values),
    )
    prompt = torch.zeros(len(LENGTHS), 2, dtype=torch.long)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": torch.zeros_like(MASK, dtype=torch.long),
        "completion_mask": MASK.long(),
        "old_logps": (anchor * MASK).sum(1),
        "advantages": advantages,
    }
    loss: Tensor = rloo_trainer.RLOOTrainer._compute_loss(trainer, None, inputs)
    return loss


def test_rloos_advantages_and_first_update_equal_trls() -> None:
    # TRL has a clipped ratio where the paper has log pi(o): before the first update the gradient is the same.
    now = NOW.clone().requires_grad_(True)
    loss, advantages = ours(algorithm("rloo"), now, NOW)
    theirs = trl_rloo_advantages(NOW)
    torch.testing.assert_close(advantages, theirs[index_of(LENGTHS)], rtol=0.0, atol=1e-12)
    (expected,) = torch.autograd.grad(trl_rloo_loss(now, NOW, theirs), now)
    torch.testing.assert_close(torch.autograd.grad(loss, now)[0], expected, rtol=0.0, atol=1e-12)
    assert expected.abs().max() > 0.01


def test_rloo_with_a_clipped_ratio_of_whole_answers_is_trls_off_policy() -> None:
    now, anchor = NOW.clone().requires_grad_(True), NOW + 0.1 * normal(4, *MASK.shape)
    loss, advantages = ours(algorithm("rloo", surrogate="clipped"), now, anchor)
    theirs = trl_rloo_advantages(anchor)
    torch.testing.assert_close(advantages, theirs[index_of(LENGTHS)], rtol=0.0, atol=1e-12)
    their_loss = trl_rloo_loss(now, anchor, theirs)
    (expected,) = torch.autograd.grad(their_loss, now)
    assert loss.item() == pytest.approx(their_loss.item(), abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, now)[0], expected, rtol=0.0, atol=1e-12)


def test_the_reward_models_loss_and_gradient_equal_trls() -> None:
    reward_trainer = pytest.importorskip("trl.trainer.reward_trainer")
    row, scores = algorithm("reward-model"), normal(5, 8).requires_grad_(True)
    # Completions 2 k and 2 k + 1 are a pair; TRL has all better ones first.
    outputs = SimpleNamespace(logits=torch.cat([scores[0::2], scores[1::2]])[:, None])

    def model(**_: Any) -> Any:
        return outputs

    same = SimpleNamespace(gather=lambda values: values, gather_for_metrics=lambda values: values)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=same,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"attention_mask": torch.ones(8, 3)}
    theirs = reward_trainer.RewardTrainer.compute_loss(trainer, model, inputs)
    pairs = ranked_pairs([(0, 1)] * 4, ties="drop")
    terms = reward_model_loss(scores, torch.arange(8), pairs, row.pair_objective, num_completions=8)
    assert terms.loss.item() == pytest.approx(theirs.item(), abs=1e-12)
    (mine,), (expected,) = torch.autograd.grad(terms.loss, scores), torch.autograd.grad(theirs, scores)
    torch.testing.assert_close(mine, expected, rtol=0.0, atol=1e-12)


def test_distillations_gradient_is_in_the_mean_over_what_is_drawn_trls_reverse_kl() -> None:
    # TRL sums over the vocabulary, the library takes the token that was drawn: over all that could be, weighed by the
    # chance that they are, its gradient at each place is that of the sum.
    trainer = pytest.importorskip("trl.trainer.distillation_trainer")
    logits, teacher = normal(6, *MASK.shape, NUM_ACTIONS).requires_grad_(True), normal(7, *MASK.shape, NUM_ACTIONS)
    head = torch.eye(NUM_ACTIONS, dtype=torch.float64)  # hidden states that are the logits
    theirs, _, count = trainer._chunked_divergence_loss(logits, teacher, head, head, MASK.long(), beta=1.0)
    (expected,) = torch.autograd.grad(theirs, logits)
    assert count == sum(LENGTHS)

    now, ref = (torch.log_softmax(values, -1)[MASK] for values in (logits, teacher))
    gradient = torch.zeros_like(expected)
    for action in range(NUM_ACTIONS):
        terms = policy_loss(
            now[:, action],
            algorithm=algorithm("distillation"),
            completion_index=index_of(LENGTHS),
            completion_lengths=torch.tensor(LENGTHS),
            num_completions=len(LENGTHS),
            num_tokens=sum(LENGTHS),
            advantages=torch.zeros(sum(LENGTHS), dtype=torch.float64),
            ref_logprobs=ref[:, action],
        )
        drawn = -(now[:, action].detach().exp() * terms.coefficients * now[:, action]).sum()
        gradient += torch.autograd.grad(drawn, logits, retain_graph=True)[0]
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(gradient, expected, rtol=0.0, atol=1e-7)  # TRL's is computed in float32
