"""A critic in a run: its values on group rows, what it begins as, what moves it and what does not."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from train.building import SGD_LIKE, batch_of, learner_of, plan_of, prompt_of, tiny_policy

from outscore.algorithms.rows import algorithm
from outscore.config import parse_recipe
from outscore.model.adapters import add_lora
from outscore.model.heads import RewardModel, load_reward_model, reward_model_from
from outscore.model.policy import Policy
from outscore.records import Completion
from outscore.rewards import Rewards
from outscore.rollout import ScriptedSampler
from outscore.stage_parts import CriticSettings
from outscore.stage_rows import stage_algorithm
from outscore.stages import PolicySettings
from outscore.train.critic import CriticValues, batch_values, critic_learner, update_both, update_critic
from outscore.train.memory import num_scalar_parameters
from outscore.train.sources import RolloutSource
from outscore.train.step import Batch, CriticTargets, Learner

PPO = algorithm("ppo", kl_coef=0.0)
ADVANTAGES = [[1.0, -1.0, 0.5], [0.0, 0.0, 0.0], [0.3, 0.0, -0.9]]
LENGTHS = [[3, 9, 1], [4, 4, 2], [7, 2, 5]]
SAME = "1+1=2"


def critic_of(policy: Policy) -> Learner:
    """A critic whose head says something."""
    critic = critic_learner(policy, CriticSettings(), SGD_LIKE)
    head = critic.policy.head.weight
    with torch.no_grad():
        head.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(3)))
    return critic


def batch_with_returns(policy: Policy, *, seed: int = 0) -> Batch:
    batch = batch_of(policy, ADVANTAGES, LENGTHS, seed=seed)
    generator = torch.Generator().manual_seed(9)
    values, returns = torch.randn(2, batch.starts[-1], generator=generator)
    return replace(batch, critic=CriticTargets(values=values, returns=returns))


def weights(learner: Learner) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learner.masters.parameters.values()]).clone()


@pytest.mark.parametrize("layout", ["group_rows", "separate_rows"])
def test_values_on_group_rows_are_those_of_a_forward_for_each_completion(layout: str) -> None:
    policy = tiny_policy()
    policy.layout = layout  # type: ignore[assignment]
    critic = critic_of(policy).policy
    assert isinstance(critic, RewardModel) and critic.layout == layout
    critic.rescale(2.0, 0.25)  # a reward model's bias comes along
    batch = batch_of(policy, ADVANTAGES, LENGTHS)
    # Completions 1 and 2 begin like 0, and a token in the middle of 1 carries no loss.
    ids = batch.completions[0].token_ids
    counts = tuple(t != 2 for t in range(6))
    ones = (
        Completion(token_ids=(*ids, 5, 6, 7), text="", counts=counts),
        Completion(token_ids=ids[:2], text="", counts=(True, True)),
    )
    completions = (batch.completions[0], *ones, *batch.completions[3:])
    first = replace(batch.groups[0], completions=completions[:3])
    batch = replace(batch, completions=completions, groups=(first, *batch.groups[1:]))
    plain = copy.deepcopy(critic.model)
    plain.set_attn_implementation("eager")
    expected: list[float] = []
    for group in batch.groups:
        for completion in group.completions:
            tokens = torch.tensor([(*group.prompt_ids, *completion.token_ids)])
            hidden = plain.base_model(tokens).last_hidden_state[0]
            states = (hidden @ plain.score.weight[0] + 0.25)[len(group.prompt_ids) - 1 : -1].tolist()
            expected += [value for value, counts in zip(states, completion.counts, strict=True) if counts]
    for budget in (10_000, 1):
        found = batch_values(critic, batch, budget)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert found.std() > 0.1


@pytest.mark.parametrize("token_budget", [25, 1])
def test_micro_batches_change_no_update(token_budget: int) -> None:
    moved = []
    for budget in (10_000, token_budget):
        policy = tiny_policy(dtype=torch.float64)
        critic = critic_of(policy)
        metrics = update_critic(critic, batch_with_returns(policy), plan_of(PPO, token_budget=budget))
        moved.append((metrics, weights(critic)))
    for name, (total, count) in moved[0][0].items():
        assert moved[1][0][name] == (pytest.approx(total, rel=1e-5), count), name
    assert moved[0][0]["value_grad_norm"][0] > 0
    assert ((moved[0][1] - moved[1][1]).abs() > 1e-6).double().mean() < 0.01  # Adam turns rounding of a few near 0


def test_what_carries_no_loss_does_not_touch_the_critic_and_what_has_no_advantage_does() -> None:
    policy = tiny_policy()
    batch = batch_with_returns(policy)
    assert batch.critic is not None
    mute = Completion(token_ids=(1, 2, 3), text="", counts=(False,) * 3)
    group = replace(batch.groups[0], completions=(mute, mute), completion_index=(9, 10))
    longer = replace(batch, groups=(*batch.groups, group), completions=(*batch.completions, mute, mute))
    first, second = critic_of(policy), critic_of(policy)
    found = [update_critic(each, b, plan_of(PPO)) for each, b in ((first, batch), (second, longer))]
    assert found[0] == found[1] and torch.equal(weights(first), weights(second))
    # The group in the middle has advantage 0 throughout: its returns still count.
    starts, returns = batch.starts, batch.critic.returns.clone()
    returns[starts[3] : starts[6]] += 1.0
    third = critic_of(policy)
    update_critic(third, replace(batch, critic=replace(batch.critic, returns=returns)), plan_of(PPO))
    assert not torch.equal(weights(first), weights(third))


def test_while_the_critic_warms_up_the_policy_stays() -> None:
    policy = tiny_policy()
    learner = learner_of(policy)
    learner.critic = critic_of(policy)
    batch, plan, before = batch_with_returns(policy), plan_of(PPO, epochs=2, minibatches=2), weights(learner)
    coefficients, shares = torch.zeros(batch.starts[-1]), []
    for expected in (0, 4):
        started = weights(learner.critic)
        metrics = update_both(learner, batch, plan, shares.append, coefficients, critic_plan=plan, warmup_updates=4)
        assert learner.num_updates == policy.version == expected
        assert ("loss" in metrics) == bool(expected) == bool(coefficients.any())
        assert torch.equal(weights(learner), before) == (not expected)
        assert not torch.equal(weights(learner.critic), started) and shares[-1] == 1.0
        assert shares == sorted(shares)
        shares.clear()
    assert learner.critic.num_updates == 8


def source_of(policy: Policy, critic: Learner, reward: Any, row: Any = PPO, **settings: Any) -> RolloutSource:
    given = {"algorithm": "ppo", "steps": 5, "prompts_per_step": 2, "group_size": 2, **settings}
    return RolloutSource(
        prompts=[prompt_of(policy, f"{n}+{n}=", str(2 * n), n) for n in range(1, 3)],
        sampler=ScriptedSampler(lambda prompt, sample: [SAME, "9"][sample], policy.tokenizer),
        rewards=Rewards([reward], on_failure="exclude"),
        settings=PolicySettings(**{"sampling": {"max_new_tokens": 4}, **given}),
        algorithm=row,
        seed=0,
        stage=0,
        values=CriticValues(critic, 10_000),
    )


def fails_on_nine(completions: list[str]) -> list[float | None]:
    return [None if text == "9" else 3.0 for text in completions]


def test_returns_are_those_of_the_completions_that_are_trained_on() -> None:
    policy = tiny_policy()
    critic = critic_of(policy)
    row = algorithm("ppo", kl_coef=0.0, gae_lambda=1.0)
    collected = source_of(policy, critic, fails_on_nine, row).collect(1)
    batch = collected.batch
    assert batch.critic is not None and [sum(c.counts) for c in batch.completions] == [4, 0, 4, 0]
    assert batch.critic.returns.tolist() == pytest.approx([3.0] * 8, abs=1e-6)  # lambda 1: what is still to come
    model = critic.policy
    assert isinstance(model, RewardModel)
    torch.testing.assert_close(batch.critic.values, batch_values(model, batch, 10_000))
    assert collected.metrics["explained_variance"] == (0.0, 0.0)  # returns do not vary: nothing to explain
    cut = source_of(policy, critic, fails_on_nine, row, truncated_score=-1.0).collect(1)
    assert cut.batch.critic is not None
    assert cut.batch.critic.returns.tolist() == pytest.approx([-1.0] * 8, abs=1e-6)
    assert cut.metrics["reward"] == (6.0, 2.0)  # the record keeps what it was scored


def test_a_group_of_one_is_enough() -> None:
    policy = tiny_policy()
    collected = source_of(policy, critic_of(policy), fails_on_nine, group_size=1).collect(1)
    assert collected.batch.advantages is not None and bool(collected.batch.advantages.any())
    assert collected.metrics["zero_variance"] == (0.0, 0.0)


def test_it_begins_as_a_copy_of_the_policy_that_expects_nothing() -> None:
    policy = tiny_policy()
    critic = critic_learner(policy, CriticSettings(), SGD_LIKE).policy
    assert isinstance(critic, RewardModel)
    assert not batch_values(critic, batch_of(policy, ADVANTAGES, LENGTHS), 10_000).any()
    ours, theirs = critic.base.base_model.state_dict(), policy.base.base_model.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert num_scalar_parameters(policy) == sum(p.numel() for p in critic.model.parameters())
    counted = num_scalar_parameters(policy)
    add_lora(policy.model, rank=2, alpha=4.0)
    assert num_scalar_parameters(policy) == counted
    assert critic_learner(policy, CriticSettings(), SGD_LIKE).policy.model.num_parameters() == counted


def test_it_may_begin_as_a_reward_model_of_the_same_tokens(tmp_path: Path) -> None:
    policy = tiny_policy()
    scorer = reward_model_from(policy, seed=4, end_token_id=1)
    scorer.rescale(1.0, 0.5)
    scorer.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    critic = critic_learner(policy, CriticSettings(start=str(tmp_path)), SGD_LIKE).policy
    assert isinstance(critic, RewardModel) and critic.layout == "group_rows"
    batch = batch_of(policy, ADVANTAGES, LENGTHS)
    expected = batch_values(load_reward_model(tmp_path), batch, 10_000)
    torch.testing.assert_close(batch_values(critic, batch, 10_000), expected, rtol=1e-4, atol=1e-5)
    other = copy.copy(policy)
    other.tokenizer = copy.deepcopy(policy.tokenizer)
    other.tokenizer.add_tokens(["<more>"])
    with pytest.raises(ValueError, match="its tokens are not the policy's"):
        critic_learner(other, CriticSettings(start=str(tmp_path)), SGD_LIKE)


def stage_of(**given: Any) -> PolicySettings:
    stages = [
        {"algorithm": "sft", "steps": 3},
        {"name": "scorer", "algorithm": "reward-model", "steps": 3},
        {"name": "verifier", "algorithm": "outcome-reward-model", "steps": 3},
        {"name": "stepper", "algorithm": "process-reward-model", "steps": 3},
        {"algorithm": "ppo", "steps": 400, **given},
    ]
    parsed = parse_recipe({"task": {"kind": "arithmetic"}, "rewards": ["tag_answer"], "stages": stages}).stages[-1]
    assert isinstance(parsed, PolicySettings)
    return parsed


def test_settings_that_a_recipe_leaves_out() -> None:
    assert stage_of(optimizer={"lr": 3e-4}).critic == CriticSettings(lr=6e-4)
    assert stage_of(critic={"warmup_steps": 7}).critic == CriticSettings(lr=2e-5, warmup_steps=7)
    pretrained = stage_of(algorithm="vapo", epochs=2)
    assert pretrained.critic == CriticSettings(lr=2e-5, warmup_steps=50) and pretrained.num_updates == 700
    short = stage_of(algorithm="vc-ppo", steps=5, critic={"start": "scorer"}).critic
    assert short == CriticSettings(start="scorer", lr=2e-5, warmup_steps=2)
    learnt = stage_of(critic={"start": "verifier"}).critic  # a reward model of labels, as good as one of preferences
    assert learnt == CriticSettings(start="verifier", lr=2e-5)
    assert stage_algorithm(stage_of(algorithm="kimi-k1.5", epochs=2, cells={"kl_coef": 0.2})).kl_coef == 0.2
    by_cell = {"baseline": "critic", "scale": "none"}
    assert stage_of(algorithm="grpo", cells=by_cell).critic == CriticSettings()
    assert stage_of(algorithm="ppo", cells={"baseline": "group_mean"}).critic is None
    assert stage_of(algorithm="grpo").critic is None
    # A model of which LoRA trains a little: the critic is trained whole.
    recipe = {"model": {"source": "a/b", "lora": {}}, "task": {"kind": "arithmetic"}, "rewards": ["tag_answer"]}
    [adapted] = parse_recipe({**recipe, "stages": [{"algorithm": "ppo", "steps": 9}]}).stages
    assert isinstance(adapted, PolicySettings) and adapted.critic is not None
    assert adapted.optimizer.lr == pytest.approx(1e-4) and adapted.critic.lr == pytest.approx(2e-5)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"critic": {"warmup_steps": 400}}, "critic.warmup_steps = 400 leaves none of steps = 400"),
        ({"critic": {"start": "sft"}}, "one that leaves neither a reward model of whole completions nor"),
        ({"critic": {"start": "stepper"}}, "one that leaves neither a reward model of whole completions nor"),
        ({"critic": {"start": "scorers"}}, "did you mean `scorer`?"),
        ({"critic": {"star": "scorer"}}, "did you mean `start`?"),
        ({"algorithm": "sft", "critic": {}}, "`stages.last.critic` has no effect on supervised fine-tuning"),
        ({"algorithm": "grpo", "critic": {}}, "critic has no effect, because the baseline of grpo is 'group_mean'"),
        ({"algorithm": "rloo", "group_size": 1}, "group_size = 1, but rloo compares the completions of a group"),
        (
            {"algorithm": "kimi-k1.5", "cells": {"kl_coef": 0.2}},
            "cells.kl_coef = 0.2 has no effect with one update a step",
        ),
        (
            {"truncated_score": -1.0, "cells": {"supervision": "process"}},
            "truncated_score = -1 takes the place of a completion's one reward, which `supervision: process`",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError) as caught:
        stage_algorithm(stage_of(**{"name": "last", **given}))
    assert part in str(caught.value)
