"""A critic that is a head on the policy: one backward pass of two losses, what it moves and what not, whole runs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from train.building import SGD_LIKE, learner_of, plan_of, tiny_policy
from train.test_critic import PPO, batch_with_returns, stage_of, weights
from train.test_ppo import MODEL, RECIPE, contents, digits
from train.test_ppo import PPO as STAGE

from outscore.config import ModelSettings, parse_recipe
from outscore.model.attention import ATTENTION_NAME
from outscore.model.heads import ValueHead
from outscore.model.policy import Policy
from outscore.report import RunDirectory
from outscore.stage_parts import CriticSettings
from outscore.tasks import make_task
from outscore.train.critic import batch_values, critic_learner, update_shared
from outscore.train.plan import stage_memory
from outscore.train.run import resume, run_recipe
from outscore.train.setup import load_policy, prepare
from outscore.train.step import Batch, Learner, accumulate

COEF = 0.7
SHARED = CriticSettings(trunk="shared", coef=COEF)
SHARED_STAGE = {**STAGE, "critic": {"trunk": "shared", "warmup_steps": 1, "lr": 1e-2}}


def learner_with_head(policy: Policy) -> Learner:
    learner = learner_of(policy)
    learner.critic = critic_learner(policy, SHARED, SGD_LIKE)
    head = head_of(learner)
    with torch.no_grad():
        head.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(3)))
    return learner


def head_of(learner: Learner) -> Tensor:
    assert learner.critic is not None and isinstance(learner.critic.policy, ValueHead)
    return learner.critic.policy.head.weight


def gradients(parameters: Any) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


def value_gradients(policy: Policy, head: Tensor, batch: Batch, clip: float) -> tuple[list[Tensor], Tensor]:
    """Those of the mean clipped value loss, a forward for each completion through the model's own attention."""
    model = policy.base
    model.set_attn_implementation("eager")
    assert batch.critic is not None
    losses, starts = [], batch.starts
    for group in batch.groups:
        for completion, number in zip(group.completions, group.completion_index, strict=True):
            ids = [*group.prompt_ids, *completion.token_ids]
            states = model.get_decoder()(torch.tensor([ids])).last_hidden_state[0]
            values = states[len(group.prompt_ids) - 1 : -1] @ head[0]
            before, target = (each[starts[number] : starts[number + 1]] for each in _targets(batch))
            held = before + (values - before).clamp(-clip, clip)
            losses.append(0.5 * torch.maximum((values - target) ** 2, (held - target) ** 2))
    loss = torch.cat(losses).mean()
    parameters = list(policy.model.parameters())
    *trunk, own = torch.autograd.grad(loss, [*parameters, head], allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, trunk, strict=True)], own


def _targets(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.critic is not None
    return batch.critic.values.double(), batch.critic.returns.double()


@pytest.mark.parametrize("layout", ["group_rows", "separate_rows"])
@pytest.mark.parametrize("token_budget", [10_000, 1])
def test_one_backward_pass_has_the_gradient_of_the_policys_loss_plus_c1_times_the_value_loss(
    layout: str, token_budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 (but for the model's norms, which compute in fp32), against the two gradients computed apart. Groups
    without advantage count in the value loss."""
    policies = [tiny_policy(dtype=torch.float64) for _ in range(3)]
    for policy in policies:
        policy.layout = layout  # type: ignore[assignment]
        policy.base.set_attn_implementation("sdpa" if layout == "separate_rows" else ATTENTION_NAME)
    batch = batch_with_returns(policies[0])
    plan = plan_of(PPO, token_budget=token_budget)
    known = {"advantages": batch.advantages, "anchor_logprobs": None, "sampler_logprobs": None, "ref_logprobs": None}
    alone = learner_of(policies[0])
    accumulate(alone, batch, batch.groups, plan, known)
    of_policy = gradients(policies[0].model.parameters())

    learner = learner_with_head(policies[1])
    head = head_of(learner).detach().clone().requires_grad_(True)
    of_trunk, of_head = value_gradients(policies[2], head, batch, PPO.value_clip)

    # The gradients as they stand when the steps are taken.
    seen: dict[str, list[Tensor]] = {}

    def take(optimizer: Any, parameters: Any, lr: float, norm: float) -> Tensor:
        members = list(parameters)
        seen["head" if members[0] is head_of(learner) else "trunk"] = gradients(members)
        return torch.zeros(())

    monkeypatch.setattr("outscore.train.step.take_step", take)
    metrics = update_shared(learner, batch, plan, critic_plan=plan, warmup_updates=0, coef=COEF)
    expected = [a + COEF * b for a, b in zip(of_policy, of_trunk, strict=True)]
    for found, wanted in zip(seen["trunk"], expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=5e-6)
    torch.testing.assert_close(seen["head"][0], COEF * of_head, rtol=1e-4, atol=5e-6)
    # Neither part is small beside the other.
    norms = [torch.cat([g.flatten() for g in part]).norm() for part in (of_policy, of_trunk)]
    assert 0.01 < norms[0] / norms[1] < 100
    mean = metrics["value_loss"][0] / metrics["value_loss"][1]
    assert metrics["loss/value"] == (pytest.approx(COEF * mean), 1.0)
    assert metrics["loss"][0] == pytest.approx(metrics["loss/policy"][0] + COEF * mean)


def test_while_the_head_warms_up_the_trunk_stays() -> None:
    policy = tiny_policy()
    learner = learner_with_head(policy)
    batch, plan, before = batch_with_returns(policy), plan_of(PPO, epochs=2, minibatches=2), weights(learner)
    coefficients, shares = torch.zeros(batch.starts[-1]), []
    for expected in (0, 4):
        started = head_of(learner).clone()
        metrics = update_shared(
            learner, batch, plan, shares.append, coefficients, critic_plan=plan, warmup_updates=4, coef=COEF
        )
        assert learner.num_updates == policy.version == expected
        assert ("loss" in metrics) == bool(expected) == bool(coefficients.any())
        assert torch.equal(weights(learner), before) == (not expected)
        assert not torch.equal(head_of(learner), started) and shares[-1] == 1.0
        assert {"value_loss", "value_grad_norm", "value_lr", "values", "returns"} < metrics.keys()
        assert all(parameter.grad is None for parameter in policy.model.parameters())
        assert shares == sorted(shares)
        shares.clear()
    assert learner.critic is not None and learner.critic.num_updates == 8


def test_it_begins_by_expecting_nothing_and_has_no_weights_but_its_head() -> None:
    policy = tiny_policy()
    critic = critic_learner(policy, SHARED, SGD_LIKE)
    assert isinstance(critic.policy, ValueHead)
    assert not batch_values(critic.policy, batch_with_returns(policy), 10_000).any()
    assert [weight.numel() for weight in critic.masters.parameters.values()] == [16]


@pytest.mark.parametrize("kind", ["fp32", "bf16", "lora"])
def test_a_run_resumes_exactly_with_its_head(tmp_path: Path, kind: str) -> None:
    model = {**MODEL, "precision": "bf16" if kind == "bf16" else "fp32"}
    if kind == "lora":
        base, _ = load_policy(ModelSettings(**model), make_task(**RECIPE["task"]), seed=3)
        base.save(tmp_path / "base")
        model = {"source": str(tmp_path / "base"), "precision": "fp32", "lora": {"rank": 2}}
    stage = {**SHARED_STAGE, "steps": 3, "prompts_per_step": 2, "epochs": 1}
    recipe = {**RECIPE, "model": model, "stages": [stage]}
    whole = RunDirectory.open(run_recipe(recipe, tmp_path / "whole", rewards=[digits]).path)
    lines = whole.metrics("ppo")
    assert "loss" not in lines[0] and [line["policy_version"] for line in lines] == [0, 2, 4]
    assert all(line["value_loss"] > 0 and "explained_variance" in line for line in lines)
    # c1 by default; one is a mean over updates, the other over tokens.
    assert lines[1]["loss/value"] == pytest.approx(0.1 * lines[1]["value_loss"], rel=0.1)
    files = {file.name for file in (whole.checkpoints()[-1].path / "critic").iterdir()}
    assert files == {"value_head.safetensors", "trainer.safetensors"}
    stopped = tmp_path / "stopped"
    shutil.copytree(whole.path, stopped)
    for step in (2, 3):
        shutil.rmtree(RunDirectory.open(stopped).checkpoint_path("ppo", step))
    resume(stopped, rewards=[digits])
    assert contents(stopped) == contents(whole.path)


def test_memory_has_a_head_instead_of_a_second_model() -> None:
    counted = []
    for stage in (STAGE, SHARED_STAGE):
        recipe = parse_recipe({**RECIPE, "stages": [stage]})
        counted.append(stage_memory(recipe, 0, prepare(recipe)).phases)
    own, shared = counted
    assert "critic begins" in own and "critic begins" not in shared
    assert shared["backward ends"]["critic"] == 4 * 4 * 16  # head, gradient, two moments of 16 weights
    rest = [{key: value for key, value in phases["backward ends"].items() if key != "critic"} for phases in counted]
    assert rest[0] == rest[1]


def test_settings() -> None:
    assert stage_of(critic={"trunk": "shared"}).critic == CriticSettings(trunk="shared", coef=0.1, lr=2e-5)
    assert stage_of(critic={"trunk": "shared", "coef": 1}).critic == CriticSettings(trunk="shared", coef=1, lr=2e-5)
    for given, part in (
        ({"coef": 0.5}, "leave it out, or use trunk: shared"),
        ({"trunk": "shared", "start": "scorer"}, "the critic is a head on the policy, and begins at 0"),
        ({"trunk": "both"}, "trunk"),
        ({"trunk": "shared", "coef": 0}, "coef"),
    ):
        with pytest.raises(ValueError, match=part):
            stage_of(critic=given)


def test_no_later_critic_begins_as_a_head() -> None:
    first = {**SHARED_STAGE, "name": "first"}
    second = {**STAGE, "name": "second", "critic": {"start": "first"}}
    with pytest.raises(ValueError, match="is an earlier stage, but one whose critic is a head on its policy"):
        parse_recipe({**RECIPE, "stages": [first, second]})
