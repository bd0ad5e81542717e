"""A whole step of PPO, two epochs of two mini-batches for policy and critic, with two trunks or a shared one, against a
loop of torch alone: a forward for each completion through the models' own attention, Python loops for rewards, returns
and advantages."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from train.building import plan_of, prompt_of, tiny_policy

from outscore.algorithms.rows import algorithm
from outscore.model.adapters import trainable_parameters
from outscore.model.precision import MasterWeights
from outscore.rewards import Rewards
from outscore.rollout import ScriptedSampler
from outscore.stage_parts import CriticSettings, OptimizerSettings
from outscore.stages import PolicySettings
from outscore.train.critic import CriticValues, critic_learner, update_both, update_shared
from outscore.train.optim import make_optimizer
from outscore.train.passes import pass_order
from outscore.train.penalty import RewardKl
from outscore.train.sources import RolloutSource
from outscore.train.step import Learner, Reference

# An epsilon that is not small against gradients: Adam's step is then smooth in them, and rounding stays rounding.
OPTIMIZER = OptimizerSettings(lr=2e-2, eps=1e-2, schedule="linear", max_grad_norm=1e3)
CRITIC_LR = 5e-2
BETA, LAMBDA, CRITIC_LAMBDA, CLIP, VALUE_CLIP = 0.05, 0.9, 0.6, 0.1, 0.05
EPOCHS, MINIBATCHES, TOTAL = 2, 2, 10
COEF = 0.5
TEXTS = ["1+1", "9", "27=2", "1=1", "70", "3", "8+8=", "222", "6", "1-1", "12345678", "=="]
SETTINGS = PolicySettings(
    algorithm="ppo",
    steps=1,
    prompts_per_step=4,
    group_size=3,
    minibatches=MINIBATCHES,
    epochs=EPOCHS,
    sampling={"max_new_tokens": 6},
    truncated_score=-1.0,
    token_budget=40,
)


def shaken(module: nn.Module, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def plain(module: nn.Module) -> nn.Module:
    """A copy that runs the model's own attention."""
    copied = copy.deepcopy(module)
    copied.set_attn_implementation("eager")
    return copied


class Scratch:
    """PPO's step on lists."""

    coef = 1.0
    """Of no effect with two models."""

    def __init__(self, policy: nn.Module, ref: nn.Module, critic: nn.Module) -> None:
        self.policy, self.ref, self.critic = policy, ref, critic

    @staticmethod
    def logprobs(model: nn.Module, prompt: list[int], ids: list[int]) -> Tensor:
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        return torch.stack([row.log_softmax(-1)[token] for row, token in zip(logits, ids, strict=True)])

    def values(self, prompt: list[int], ids: list[int]) -> Tensor:
        hidden = self.critic.base_model(torch.tensor([prompt + ids])).last_hidden_state[0]
        return (hidden @ self.critic.score.weight[0])[len(prompt) - 1 : -1]

    @torch.no_grad()
    def step(self, groups: list[tuple[list[int], list[list[int]], list[float]]]) -> None:
        flat = [(prompt, ids, score) for prompt, own, scores in groups for ids, score in zip(own, scores, strict=True)]
        anchor = [self.logprobs(self.policy, prompt, ids) for prompt, ids, _ in flat]
        ref = [self.logprobs(self.ref, prompt, ids) for prompt, ids, _ in flat]
        before = [self.values(prompt, ids) for prompt, ids, _ in flat]
        paid = []
        for (_, ids, score), now, then in zip(flat, anchor, ref, strict=True):
            own = [-BETA * float(a - b) for a, b in zip(now, then, strict=True)]
            own[len(ids) - 1] += score
            paid.append(own)
        scale = math.sqrt(variance([r for own in paid for r in own]) + 1e-8)
        mean = sum(r for own in paid for r in own) / sum(map(len, paid))
        paid = [[(r - mean) / scale + mean for r in own] for own in paid]
        known = [v.tolist() for v in before]
        advantages = [estimates(r, v, LAMBDA) for r, v in zip(paid, known, strict=True)]
        returns = [
            [a + b for a, b in zip(estimates(r, v, CRITIC_LAMBDA), v, strict=True)]
            for r, v in zip(paid, known, strict=True)
        ]
        every = [a for own in advantages for a in own]
        middle, spread = sum(every) / len(every), math.sqrt(variance(every) + 1e-8)
        advantages = [[(a - middle) / spread for a in own] for own in advantages]
        with torch.enable_grad():
            self.updates(flat, anchor, before, advantages, returns)

    def updates(self, flat, anchor, before, advantages, returns) -> None:
        actor = torch.optim.AdamW(self.policy.parameters(), lr=1.0, eps=OPTIMIZER.eps, weight_decay=0.0)
        critic = torch.optim.AdamW(self.critic.parameters(), lr=1.0, eps=OPTIMIZER.eps, weight_decay=0.0)
        # Two updates of two groups each, of three completions; which groups the second pass puts together is drawn.
        order = [*range(4), *pass_order(0, 0, MINIBATCHES, 4)]
        for number in range(EPOCHS * MINIBATCHES):
            members = [3 * group + sample for group in order[2 * number : 2 * number + 2] for sample in range(3)]
            loss, value_loss, num_tokens = torch.zeros(()), torch.zeros(()), sum(len(flat[i][1]) for i in members)
            for i in members:
                prompt, ids, _ = flat[i]
                ratio = (self.logprobs(self.policy, prompt, ids) - anchor[i]).exp()
                gain = torch.tensor(advantages[i])
                kept = torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain)
                loss = loss - kept.mean() / len(members)
                values, target = self.values(prompt, ids), torch.tensor(returns[i])
                held = before[i] + (values - before[i]).clamp(-VALUE_CLIP, VALUE_CLIP)
                worst = torch.maximum((values - target) ** 2, (held - target) ** 2)
                value_loss = value_loss + 0.5 * worst.sum() / num_tokens
            actor.zero_grad()
            critic.zero_grad()
            (loss + self.coef * value_loss).backward()
            for optimizer, module, peak in ((actor, self.policy, OPTIMIZER.lr), (critic, self.critic, CRITIC_LR)):
                optimizer.param_groups[0]["lr"] = peak * (1 - 0.9 * number / TOTAL)
                nn.utils.clip_grad_norm_(module.parameters(), OPTIMIZER.max_grad_norm)
                optimizer.step()


class SharedScratch(Scratch):
    """With a linear head on the policy for a critic."""

    coef = COEF

    def values(self, prompt: list[int], ids: list[int]) -> Tensor:
        hidden = self.policy.base_model(torch.tensor([prompt + ids])).last_hidden_state[0]
        return (hidden @ self.critic.weight[0])[len(prompt) - 1 : -1]


def variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def estimates(rewards: list[float], values: list[float], lam: float) -> list[float]:
    found, rest = [], 0.0
    for t in reversed(range(len(rewards))):
        following = values[t + 1] if t + 1 < len(values) else 0.0
        rest = rewards[t] + following - values[t] + lam * rest
        found.append(rest)
    return found[::-1]


def vowels(completion_ids: list[list[int]]) -> list[float]:
    """A reward that differs between completions, of odd token ids."""
    return [sum(token % 2 for token in ids) / len(ids) for ids in completion_ids]


@pytest.mark.parametrize("trunk", ["own", "shared"])
def test_a_step_of_ppo_is_that_of_a_loop_over_completions(trunk: str) -> None:
    shared = trunk == "shared"
    policy = tiny_policy()
    reference, ref = Reference(trainable_parameters(policy.model)), plain(policy.model)
    shaken(policy.model, 0.03, seed=1)
    critic = critic_learner(policy, CriticSettings(trunk=trunk), OPTIMIZER.model_copy(update={"lr": CRITIC_LR}))
    valued = critic.policy.head if shared else critic.policy.model
    shaken(valued, 0.05, seed=2)
    if shared:
        scratch = SharedScratch(plain(policy.model), ref, copy.deepcopy(valued))
    else:
        scratch = Scratch(plain(policy.model), ref, plain(valued))
    row = algorithm(
        "ppo",
        **{"gae_lambda": LAMBDA, "critic_lambda": CRITIC_LAMBDA, "kl_coef": BETA, "whiten_rewards": True},
        **{"clip_low": CLIP, "clip_high": CLIP, "value_clip": VALUE_CLIP},
    )
    masters = MasterWeights(policy.model, policy.compute_dtype)
    optimizer = make_optimizer(masters.parameters.values(), OPTIMIZER)
    learner = Learner(
        policy=policy, masters=masters, optimizer=optimizer, reference=reference, kl_coef=BETA, critic=critic
    )
    source = RolloutSource(
        prompts=[prompt_of(policy, f"{n}+{n}=", str(2 * n), n) for n in range(4)],
        sampler=ScriptedSampler(
            lambda prompt, sample: TEXTS[3 * int(prompt.problem.id[1:]) + sample], policy.tokenizer
        ),
        rewards=Rewards([vowels]),
        settings=SETTINGS,
        algorithm=row,
        seed=0,
        stage=0,
        penalty=RewardKl(learner, SETTINGS, row),
        values=CriticValues(critic, SETTINGS.token_budget),
    )
    collected = source.collect(1)
    groups = []
    for group in collected.groups:
        drawn = group.sampled.completions
        scores = [-1.0 if d.finish == "length" else s.reward for d, s in zip(drawn, group.scores, strict=True)]
        groups.append((list(group.sampled.prompt.token_ids), [list(d.completion.token_ids) for d in drawn], scores))
    assert sum(score == -1.0 for _, _, scores in groups for score in scores) == 1
    plan = plan_of(
        row, optimizer=OPTIMIZER, total_updates=TOTAL, epochs=EPOCHS, minibatches=MINIBATCHES, token_budget=40
    )
    critic_plan = plan_of(
        row,
        optimizer=OPTIMIZER.model_copy(update={"lr": CRITIC_LR}),
        **{"total_updates": TOTAL, "epochs": EPOCHS, "minibatches": MINIBATCHES, "token_budget": 40},
    )
    first = copy.deepcopy(policy.model.state_dict()), copy.deepcopy(valued.state_dict())
    take = partial(update_shared, coef=COEF) if shared else update_both
    take = partial(take, critic_plan=critic_plan, warmup_updates=0)
    metrics = take(learner, collected.batch, plan)
    scratch.step(groups)
    for before, ours, theirs in zip(first, (policy.model, valued), (scratch.policy, scratch.critic), strict=True):
        expected = theirs.state_dict()
        for name, weight in ours.state_dict().items():
            moved = (expected[name] - before[name]).abs().max()
            assert (weight - expected[name]).abs().max() <= 1e-3 * moved + 1e-6, name
            assert moved > 1e-4, name
    # Both clips took part, so that they were compared too.
    clipped = sum(metrics[f"clip_fraction_{side}"][0] for side in ("low", "high"))
    assert clipped > 0 and 0 < metrics["value_clip_fraction"][0] < metrics["value_clip_fraction"][1]
    assert metrics["value_lr"][0] / metrics["value_lr"][1] == pytest.approx(CRITIC_LR * (1 - 0.9 * 1.5 / TOTAL))
