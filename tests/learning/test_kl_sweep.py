"""The KL penalty does what it is for: the larger its weight, the nearer the policy stays to the reference."""

import pytest
import torch
from torch import Tensor
from train.building import learner_of, plan_of, prompt_of, tiny_policy

from outscore.algorithms.rows import algorithm
from outscore.model.adapters import trainable_parameters
from outscore.model.attention import TreeAttention
from outscore.model.forest import Segment
from outscore.model.policy import Policy
from outscore.rewards import Rewards
from outscore.rollout import make_sampler
from outscore.stage_parts import OptimizerSettings
from outscore.stages import PolicySettings
from outscore.train.sources import RolloutSource
from outscore.train.step import Reference, update

STEPS = 30
SETTINGS = PolicySettings(
    algorithm="grpo", steps=STEPS, prompts_per_step=4, group_size=16, sampling={"max_new_tokens": 1}
)


def sevens(completions: list[str], **columns: object) -> list[float]:
    return [float(text == "7") for text in completions]


def next_logprobs(policy: Policy, prompt_ids: tuple[int, ...]) -> Tensor:
    """The distribution of the only token that is drawn."""
    tree = TreeAttention([Segment(start=0, length=len(prompt_ids), parent=-1)])
    with torch.no_grad():
        hidden = policy.hidden(torch.tensor([prompt_ids]), tree.positions[None], tree)
        return policy.logits(hidden[0, -1]).double().log_softmax(-1)


def train(kl_coef: float) -> tuple[float, float]:
    """(exact KL to the reference at the end by summing over the vocabulary, the last one reported)."""
    policy = tiny_policy()
    prompts = [prompt_of(policy, f"{number}+{number}=", "7", number) for number in range(4)]
    learner = learner_of(policy, Reference(trainable_parameters(policy.model)))
    row = algorithm("grpo", kl_coef=kl_coef)
    plan = plan_of(row, optimizer=OptimizerSettings(lr=1e-2), total_updates=STEPS)
    source = RolloutSource(
        prompts=prompts,
        sampler=make_sampler(policy, 64),
        rewards=Rewards([sevens]),
        settings=SETTINGS,
        algorithm=row,
        seed=0,
        stage=0,
    )
    for step in range(1, STEPS + 1):
        metrics = update(learner, source.collect(step).batch, plan)
    distances = []
    for prompt in prompts:
        now = next_logprobs(policy, prompt.token_ids)
        with learner.reference.in_place():
            ref = next_logprobs(policy, prompt.token_ids)
        distances.append(float((now.exp() * (now - ref)).sum()))
    reported, count = metrics["ref_kl"]
    return sum(distances) / len(distances), reported / count


@pytest.mark.learning
def test_a_larger_weight_ends_nearer_to_the_reference() -> None:
    (far, reported_far), (middle, reported_middle), (near, reported_near) = map(train, (0.01, 1.0, 10.0))
    assert far > 1.5 * middle > 1.5**2 * near > 0
    assert reported_far > reported_middle > reported_near > 0
    assert middle == pytest.approx(reported_middle, rel=0.5)
