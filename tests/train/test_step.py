"""Laws of an update: how a batch is cut, ordered or thinned out changes nothing."""

import math

import pytest
import torch
from torch import Tensor
from train.building import batch_of, learner_of, plan_of, tiny_policy

import outscore.train.step as step_module
from outscore.algorithms.rows import algorithm
from outscore.model.adapters import add_lora, trainable_parameters
from outscore.model.policy import Policy
from outscore.train.step import Reference, accumulate, batch_logprobs, live_groups, update

ADVANTAGES = [[1.0, -1.0, 0.5], [0.0, 0.0, 0.0], [0.3, 0.0, -0.9]]
LENGTHS = [[3, 9, 1], [4, 4, 2], [7, 2, 5]]


def gradient(policy: Policy, row=None, **changes) -> Tensor:
    learner = learner_of(policy)
    batch = batch_of(policy, ADVANTAGES, LENGTHS)
    policy.model.zero_grad()
    known = {"advantages": batch.advantages, "sampler_logprobs": batch.sampler_logprobs}
    accumulate(learner, batch, batch.groups, plan_of(row, **changes), known)
    return torch.cat([p.grad.flatten() for p in learner.masters.parameters.values()])


@pytest.mark.parametrize("preset", ["grpo", "dapo-loss", "dr-grpo", "grpo-r1", "prompts"])
@pytest.mark.parametrize("token_budget", [60, 25, 1])
def test_micro_batches_change_no_gradient(preset: str, token_budget: int) -> None:
    cells = {"kl_coef": 0.0} | ({"aggregation_constant": 16} if preset == "dr-grpo" else {})
    row = ROWS["prompt_mean"] if preset == "prompts" else algorithm(preset, **cells)
    whole = gradient(tiny_policy(dtype=torch.float64), row)
    parts = gradient(tiny_policy(dtype=torch.float64), row, token_budget=token_budget)
    # Llama norms compute in fp32 whatever the weights are, so agreement is to fp32 rounding.
    assert (whole - parts).norm() <= 1e-6 * whole.norm()
    assert whole.norm() > 0


def test_leaving_out_what_cannot_move_the_policy_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    thinned = gradient(tiny_policy(dtype=torch.float64))
    monkeypatch.setattr(step_module, "live_groups", lambda batch, groups, row: list(groups))
    everything = gradient(tiny_policy(dtype=torch.float64))
    assert (thinned - everything).norm() <= 1e-12 * everything.norm()


ROWS = {
    "completion_mean": algorithm("grpo", kl_coef=0.0),
    "token_mean": algorithm("dapo-loss"),
    "constant": algorithm("dr-grpo", aggregation_constant=16),
    "prompt_mean": algorithm("grpo", kl_coef=0.0, aggregation="prompt_mean"),
    "completion_sum": algorithm("grpo", kl_coef=0.0, aggregation="completion_sum"),
    "sequence_ratio": algorithm("gspo"),
    "capped_weight": algorithm("cispo"),
    "mismatch": algorithm("grpo", kl_coef=0.0, mismatch_cap=1.5),
    "kl_in_reward": algorithm("grpo", kl_coef=0.1, kl_place="reward"),
}


@pytest.mark.parametrize("name", ROWS)
def test_groups_without_advantage_cost_nothing_and_change_nothing_at_any_update(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later update of several (µ > 1): the anchor is not the policy. Every aggregation keeps its denominators."""
    row, found = ROWS[name], []
    forwarded: list[list[int]] = []
    pack = step_module.pack

    def watched(*given):  # type: ignore[no-untyped-def]
        rows = pack(*given)
        forwarded.append(sorted(set(rows.completion_index.tolist())))
        return rows

    for keeps_all in (False, True):
        if keeps_all:
            monkeypatch.setattr(step_module, "live_groups", lambda batch, groups, row: list(groups))
        policy = tiny_policy(dtype=torch.float64)
        learner, batch = learner_of(policy), batch_of(policy, ADVANTAGES, LENGTHS)
        anchor = batch_logprobs(policy, batch, batch.groups, 10_000)
        noise = torch.rand(len(anchor), generator=torch.Generator().manual_seed(1), dtype=anchor.dtype)
        known = {
            "advantages": batch.advantages,
            "sampler_logprobs": batch.sampler_logprobs,
            "anchor_logprobs": anchor + 0.2 * (noise - 0.5),
        }
        with monkeypatch.context() as patched:
            patched.setattr(step_module, "pack", watched)
            accumulate(learner, batch, batch.groups, plan_of(row, epochs=2, minibatches=1), known)
        found.append(torch.cat([p.grad.flatten() for p in learner.masters.parameters.values()]))
    assert (found[0] - found[1]).norm() <= 1e-12 * found[1].norm() and found[1].norm() > 0
    # The second group is not forwarded at all, nor the completion of the third that is worth nothing.
    assert forwarded == [[0, 1, 2, 6, 8], list(range(9))]


def test_whatever_else_is_in_the_loss_keeps_every_group() -> None:
    policy = tiny_policy()
    batch = batch_of(policy, ADVANTAGES, LENGTHS)
    everything = [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    for cells in (
        {"kl_coef": 0.1},
        {"kl_coef": 0.1, "kl_to": "teacher"},
        {"kl_coef": 0.1, "kl_to": "anchor"},
        {"kl_coef": 0.0, "entropy_coef": 0.01},
        {"kl_coef": 0.0, "entropy_coef": -0.01},
    ):
        kept = live_groups(batch, batch.groups, algorithm("grpo", **cells))
        assert [group.completion_index for group in kept] == everything, cells


def test_what_is_left_out() -> None:
    policy = tiny_policy()
    batch = batch_of(policy, ADVANTAGES, LENGTHS)
    kept = [group.completion_index for group in live_groups(batch, batch.groups, algorithm("grpo", kl_coef=0.0))]
    assert kept == [(0, 1, 2), (6, 8)]
    with_kl = live_groups(batch, batch.groups, algorithm("grpo", kl_coef=0.1))
    assert [group.completion_index for group in with_kl] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    in_reward = live_groups(batch, batch.groups, algorithm("grpo", kl_coef=0.1, kl_place="reward"))
    assert [group.completion_index for group in in_reward] == kept


def test_the_first_update_of_several_has_ratio_one_and_later_ones_do_not() -> None:
    policy = tiny_policy()
    learner, batch = learner_of(policy), batch_of(policy, ADVANTAGES, LENGTHS)
    first = update(learner, batch, plan_of(epochs=1))
    assert first["ratio_max"] == (1.0, 1.0)
    assert learner.num_updates == 1 and policy.version == 1
    update(learner, batch, plan_of(epochs=2, minibatches=3))
    assert learner.num_updates == 7 and policy.version == 7


@pytest.mark.parametrize("preset", ["rloo", "online-rft", "grpo"])
def test_the_mismatch_weight_is_that_of_the_anchor_at_every_update_of_a_step(preset: str) -> None:
    row = algorithm(preset, kl_coef=0.0, mismatch_cap=math.inf)
    found = []
    for epochs in (1, 3):
        policy = tiny_policy()
        metrics = update(learner_of(policy), batch_of(policy, ADVANTAGES, LENGTHS), plan_of(row, epochs=epochs))
        found.append(metrics["mismatch_weight"])
    (once, count), (thrice, counts) = found
    assert counts == 3 * count and thrice == pytest.approx(3 * once, rel=1e-5)


def test_an_anchor_equal_to_the_policy_gives_the_gradient_of_no_anchor() -> None:
    policy = tiny_policy(dtype=torch.float64)
    batch = batch_of(policy, ADVANTAGES, LENGTHS)
    anchor = batch_logprobs(policy, batch, batch.groups, 10_000)
    learner = learner_of(policy)
    found = []
    for given in (None, anchor):
        policy.model.zero_grad()
        known = {"advantages": batch.advantages, "anchor_logprobs": given}
        accumulate(learner, batch, batch.groups, plan_of(), known)
        found.append(torch.cat([p.grad.flatten() for p in learner.masters.parameters.values()]))
    assert (found[0] - found[1]).norm() <= 1e-10 * found[0].norm()


def test_progress_of_an_update_rises_to_one_with_every_micro_batch() -> None:
    policy = tiny_policy()
    shares: list[float] = []
    # Two updates of a group each, both in micro-batches of one completion.
    batch = batch_of(policy, [[1.0, -1.0], [1.0, -1.0]], [[3, 4], [5, 2]])
    update(learner_of(policy), batch, plan_of(minibatches=2, token_budget=1), shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_a_batch_without_signal_still_counts_as_an_update() -> None:
    policy = tiny_policy()
    learner = learner_of(policy)
    before = [p.detach().clone() for p in policy.model.parameters()]
    update(learner, batch_of(policy, [[0.0, 0.0]], [[3, 4]]), plan_of())
    assert learner.num_updates == 1
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))


def test_inputs_are_not_changed() -> None:
    policy = tiny_policy()
    batch = batch_of(policy, ADVANTAGES, LENGTHS)
    before = batch.advantages.clone(), batch.sampler_logprobs.clone()
    update(learner_of(policy), batch, plan_of(epochs=2))
    assert torch.equal(before[0], batch.advantages) and torch.equal(before[1], batch.sampler_logprobs)


def test_the_kl_penalty_pulls_towards_the_reference_and_a_refresh_makes_it_zero() -> None:
    policy = tiny_policy()
    reference = Reference(trainable_parameters(policy.model))
    learner = learner_of(policy, reference)
    batch = batch_of(policy, ADVANTAGES, LENGTHS)
    plan = plan_of(algorithm("grpo", kl_coef=0.1))
    first = update(learner, batch, plan)
    assert first["ref_kl"][0] == pytest.approx(0.0, abs=1e-9)
    moved = update(learner, batch, plan)
    assert moved["ref_kl"][0] > 1e-6
    reference.refresh()
    assert update(learner, batch, plan)["ref_kl"][0] == pytest.approx(0.0, abs=1e-9)


def test_the_reference_leaves_the_policy_as_it_was() -> None:
    policy = tiny_policy()
    reference = Reference(trainable_parameters(policy.model))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(1.0)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    with reference.in_place():
        inside = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    assert all(torch.equal(inside[name] + 1.0, before[name]) for name in before)
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())


def test_with_fresh_adapters_the_reference_is_the_adapter_switched_off() -> None:
    policy = tiny_policy()
    add_lora(policy.model, rank=2, alpha=4.0)
    reference = Reference(trainable_parameters(policy.model))
    with torch.no_grad():
        for parameter in trainable_parameters(policy.model).values():
            parameter.add_(0.5 * torch.randn_like(parameter))
    batch = batch_of(policy, ADVANTAGES, LENGTHS)
    changed = batch_logprobs(policy, batch, batch.groups, 10_000)
    with reference.in_place():
        snapshot = batch_logprobs(policy, batch, batch.groups, 10_000)
    policy.model.disable_adapters()
    switched_off = batch_logprobs(policy, batch, batch.groups, 10_000)
    assert torch.equal(snapshot, switched_off)
    assert (changed - snapshot).abs().max() > 1e-3


def test_sums_add_up_and_of_maxima_the_largest_stays() -> None:
    reports = [{"loss": (1.0, 1.0), "ratio_max": (1.5, 1.0)}, {"loss": (3.0, 1.0), "ratio_max": (1.2, 1.0)}]
    assert step_module.merge(reports) == {"loss": (4.0, 2.0), "ratio_max": (1.5, 1.0)}
