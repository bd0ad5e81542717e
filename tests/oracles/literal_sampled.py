"""The presets that learn from the policy's own samples: for each one loop with its numbers in it, written from the
equation that `outscore algorithms` prints and that stands above it here."""

import math

from oracles.literal import (
    LiteralBatch,
    Ragged,
    Said,
    clip,
    clipped,
    in_groups,
    k3,
    less_mean,
    log_ratio,
    mean,
    of_tokens,
    ratio,
    sigma,
    standardised,
    std,
)


def grpo(b: LiteralBatch) -> Said:
    """1/|o| sum_t { min(rho_t A, clip(rho_t, 1-eps, 1+eps) A) - beta k3_t }, A = (r - mean) / std"""
    a, total = in_groups(b, b.rewards, standardised), 0.0
    for i in b.completions:
        for t in b.tokens(i):
            gain = clipped(ratio(b.policy, b.anchor, i, t), a[i], 0.8, 1.2)
            total += (gain - 0.04 * k3(b.policy[i][t] - b.ref[i][t])) / len(b.policy[i])
    return Said(loss=-total / b.num_completions, advantages=of_tokens(b, a))


def grpo_r1(b: LiteralBatch) -> Said:
    """min(rho A, clip(rho, 1-eps, 1+eps) A) - beta k3, rho = pi(o) / anchor(o)"""
    a, total = in_groups(b, b.rewards, standardised), 0.0
    for i in b.completions:
        total += clipped(math.exp(log_ratio(b.policy, b.anchor, i)), a[i], 1 - 10, 1 + 10)
        total -= 0.001 * k3(log_ratio(b.policy, b.ref, i))
    return Said(loss=-total / b.num_completions, advantages=of_tokens(b, a))


def dr_grpo(b: LiteralBatch) -> Said:
    """1/L sum_t min(rho_t A, clip(rho_t, 1-eps, 1+eps) A), A = r - mean"""
    a, total = in_groups(b, b.rewards, less_mean), 0.0
    for i in b.completions:
        for t in b.tokens(i):
            total += clipped(ratio(b.policy, b.anchor, i, t), a[i], 0.8, 1.2) / 32
    return Said(loss=-total / b.num_completions, advantages=of_tokens(b, a))


def dapo_loss(b: LiteralBatch) -> Said:
    """N/sum|o| sum_t min(rho_t A, clip(rho_t, 1-0.2, 1+0.28) A)"""
    a = in_groups(b, b.rewards, standardised)
    return Said(loss=_dapo(b, a), advantages=of_tokens(b, a))


def dapo(b: LiteralBatch) -> Said:
    """N/sum|o| sum_t min(rho_t A, clip(rho_t, 1-0.2, 1+0.28) A)"""
    # Of at most 32 tokens the last 6, a fifth, cost: (|o| - (32 - 6)) / 6 (eq. 13).
    late = [clip((len(own) - (32 - 6)) / 6, 0, 1) for own in b.policy]
    a = in_groups(b, [reward - cost for reward, cost in zip(b.rewards, late, strict=True)], standardised)
    return Said(loss=_dapo(b, a), advantages=of_tokens(b, a))


def _dapo(b: LiteralBatch, a: list[float]) -> float:
    total = 0.0
    for i in b.completions:
        for t in b.tokens(i):
            total += clipped(ratio(b.policy, b.anchor, i, t), a[i], 0.8, 1.28)
    return -total / b.num_tokens


def maxrl(b: LiteralBatch) -> Said:
    """A = (r - mean) / mean"""
    a, total = in_groups(b, b.rewards, lambda own: [(r - mean(own)) / (mean(own) + 1e-6) for r in own]), 0.0
    for i in b.completions:
        for t in b.tokens(i):
            total += clipped(ratio(b.policy, b.anchor, i, t), a[i], 0.8, 1.2) / len(b.policy[i])
    return Said(loss=-total / b.num_completions, advantages=of_tokens(b, a))


def lite_ppo(b: LiteralBatch) -> Said:
    """A = (r - mean of group) / (std of all rewards of the batch)"""
    a, total = [each / (std(b.rewards) + 1e-6) for each in in_groups(b, b.rewards, less_mean)], 0.0
    for i in b.completions:
        for t in b.tokens(i):
            total += clipped(ratio(b.policy, b.anchor, i, t), a[i], 0.8, 1.2)
    return Said(loss=-total / b.num_tokens, advantages=of_tokens(b, a))


def gdpo(b: LiteralBatch) -> Said:
    """S = sum_k w_k (r_k - mean_k) / std_k, A = (S - mean of batch) / (std of batch)"""
    first, second = (in_groups(b, [own[k] for own in b.parts], standardised) for k in range(2))
    a, total = standardised([1.0 * s + 0.4 * w for s, w in zip(first, second, strict=True)]), 0.0
    for i in b.completions:
        for t in b.tokens(i):
            total += clipped(ratio(b.policy, b.anchor, i, t), a[i], 0.8, 1.2) / len(b.policy[i])
    return Said(loss=-total / b.num_completions, advantages=of_tokens(b, a))


def deepseek_v32(b: LiteralBatch) -> Said:
    """1/|o| sum_t { M min(rho_t A, clip(rho_t) A) - beta rho_t k3_t }, A = r - mean, M = 0 if A < 0 and
    mean_t log(anchor/pi) > delta, else 1"""
    a, total = in_groups(b, b.rewards, less_mean), 0.0
    for i in b.completions:
        gap = mean([b.anchor[i][t] - b.still[i][t] for t in b.tokens(i)])
        kept = 0 if a[i] < 0 and gap > 0.1 else 1
        for t in b.tokens(i):
            rho = ratio(b.policy, b.anchor, i, t)
            total += kept * clipped(rho, a[i], 0.8, 1.2) / len(b.policy[i])
            total -= 0.04 * rho * k3(b.policy[i][t] - b.ref[i][t]) / len(b.policy[i])
    return Said(loss=-total / b.num_completions, advantages=of_tokens(b, a))


def gspo(b: LiteralBatch) -> Said:
    """min(s A, clip(s, 1-3e-4, 1+4e-4) A), s = (pi(o) / anchor(o))^(1/|o|)"""
    a, total = in_groups(b, b.rewards, standardised), 0.0
    for i in b.completions:
        s = math.exp(log_ratio(b.policy, b.anchor, i)) ** (1 / len(b.policy[i]))
        total += clipped(s, a[i], 0.9997, 1.0004)
    return Said(loss=-total / b.num_completions, advantages=of_tokens(b, a))


def cispo(b: LiteralBatch) -> Said:
    """N/sum|o| sum_t sg[min(rho_t, 5)] A log pi(o_t)"""
    a, total = in_groups(b, b.rewards, standardised), 0.0
    for i in b.completions:
        for t in b.tokens(i):
            total += min(ratio(b.still, b.anchor, i, t), 5) * a[i] * b.policy[i][t]
    return Said(loss=-total / b.num_tokens, advantages=of_tokens(b, a))


def scalerl(b: LiteralBatch) -> Said:
    """CISPO's term, A = (r - mean of group) / (std of all of these), each prompt the same."""
    a, total = standardised(in_groups(b, b.rewards, less_mean)), 0.0
    for group in b.groups:
        num_tokens = sum(len(b.policy[i]) for i in group)
        for i in group:
            for t in b.tokens(i):
                total += min(ratio(b.still, b.anchor, i, t), 5) * a[i] * b.policy[i][t] / num_tokens
    return Said(loss=-total / len(b.groups), advantages=of_tokens(b, a))


def sapo(b: LiteralBatch) -> Said:
    """1/|o| sum_t (4/tau) sigmoid(tau (rho_t - 1)) A, tau = 1 where A > 0, else 1.05"""
    a, total = in_groups(b, b.rewards, standardised), 0.0
    for i in b.completions:
        tau = 1 if a[i] > 0 else 1.05
        for t in b.tokens(i):
            gate = 4 / tau * sigma(tau * (ratio(b.policy, b.anchor, i, t) - 1))
            total += gate * a[i] / len(b.policy[i])
    return Said(loss=-total / b.num_completions, advantages=of_tokens(b, a))


def dppo(b: LiteralBatch) -> Said:
    """1/L sum_t M_t rho_t A, rho = pi/mu, M_t = 0 if A > 0 and pi - mu > 0.15, or A < 0 and mu - pi > 0.15"""
    a, total = in_groups(b, b.rewards, less_mean), 0.0
    for i in b.completions:
        for t in b.tokens(i):
            rise = math.exp(b.still[i][t]) - math.exp(b.sampler[i][t])
            kept = 0 if (a[i] > 0 and rise > 0.15) or (a[i] < 0 and -rise > 0.15) else 1
            total += kept * ratio(b.policy, b.sampler, i, t) * a[i] / 32
    return Said(loss=-total / b.num_completions, advantages=of_tokens(b, a))


def rloo(b: LiteralBatch) -> Said:
    """A log pi(o), A_i = R_i - mean of R_j (j != i), R = r - beta log(pi(o)/ref(o))"""
    worth = [b.rewards[i] - 0.03 * log_ratio(b.anchor, b.ref, i) for i in b.completions]
    a, total = [], 0.0
    for i in b.completions:
        a.append(worth[i] - mean([worth[j] for j in b.group_of(i) if j != i]))
        total += a[i] * sum(b.policy[i])
    return Said(loss=-total / b.num_completions, advantages=of_tokens(b, a))


def reinforce_pp(b: LiteralBatch) -> Said:
    """min(rho_t A_t, clip(rho_t) A_t), A_t = norm over the batch of r - beta sum_(s>=t) log(pi_s/ref_s)"""
    worth = [
        [b.rewards[i] - 0.001 * sum(b.anchor[i][s] - b.ref[i][s] for s in b.tokens(i) if s >= t) for t in b.tokens(i)]
        for i in b.completions
    ]
    a, total = _over_all_tokens(worth), 0.0
    for i in b.completions:
        for t in b.tokens(i):
            total += clipped(ratio(b.policy, b.anchor, i, t), a[i][t], 0.8, 1.2)
    return Said(loss=-total / b.num_tokens, advantages=a)


def reinforce_pp_baseline(b: LiteralBatch) -> Said:
    """min(rho_t A_t, clip(rho_t) A_t) - beta k2_t, A = norm over the batch of r - mean of group"""
    a, total = _over_all_tokens(of_tokens(b, in_groups(b, b.rewards, less_mean))), 0.0
    for i in b.completions:
        for t in b.tokens(i):
            total += clipped(ratio(b.policy, b.anchor, i, t), a[i][t], 0.8, 1.2)
            total -= 0.001 * (b.policy[i][t] - b.ref[i][t]) ** 2 / 2
    return Said(loss=-total / b.num_tokens, advantages=a)


def _over_all_tokens(worth: Ragged) -> Ragged:
    flat = iter(standardised([value for own in worth for value in own]))
    return [[next(flat) for _ in own] for own in worth]


def kimi(b: LiteralBatch) -> Said:
    """A log pi(o) - tau/2 log(pi(o)/anchor(o))^2, A = r - mean"""
    a, total = in_groups(b, b.rewards, less_mean), 0.0
    for i in b.completions:
        total += a[i] * sum(b.policy[i]) - 0.1 / 2 * log_ratio(b.policy, b.anchor, i) ** 2
    return Said(loss=-total / b.num_completions, advantages=of_tokens(b, a))


def online_rft(b: LiteralBatch) -> Said:
    """1/|o| sum_t I(o) log pi(o_t), I(o) = 1 if o is right, else 0"""
    a, total = [1.0 if right else 0.0 for right in b.right], 0.0
    for i in b.completions:
        for t in b.tokens(i):
            total += a[i] * b.policy[i][t] / len(b.policy[i])
    return Said(loss=-total / b.num_completions, advantages=of_tokens(b, a))


def distillation(b: LiteralBatch) -> Said:
    """- 1/sum|o| sum_t 1/2 (log pi(o_t) - log teacher(o_t))^2: the coefficient is log teacher - log pi"""
    total = 0.0
    for i in b.completions:
        for t in b.tokens(i):
            total -= (b.policy[i][t] - b.teacher[i][t]) ** 2 / 2
    return Said(loss=-total / b.num_tokens, advantages=of_tokens(b, [0.0] * b.num_completions))


def ppo(b: LiteralBatch) -> Said:
    """1/|o| sum_t min(rho_t A_t, clip(rho_t) A_t), A = GAE of r_t = -beta log(pi_t/ref_t) + [t last] r, whitened"""
    paid = [[-0.05 * (b.anchor[i][t] - b.ref[i][t]) for t in b.tokens(i)] for i in b.completions]
    a, total = _whitened([_gae(b, i, paid[i], 0.95) for i in b.completions]), 0.0
    returns = [_returns(b, i, paid[i], 0.95) for i in b.completions]
    for i in b.completions:
        for t in b.tokens(i):
            total += clipped(ratio(b.policy, b.anchor, i, t), a[i][t], 0.8, 1.2) / len(b.policy[i])
    return Said(loss=-total / b.num_completions, advantages=a, returns=returns, critic_loss=_critic(b, returns))


def vc_ppo(b: LiteralBatch) -> Said:
    """as ppo, the critic's targets with lambda 1"""
    a, total = _whitened([_gae(b, i, _free(b, i), 0.95) for i in b.completions]), 0.0
    returns = [_returns(b, i, _free(b, i), 1) for i in b.completions]
    for i in b.completions:
        for t in b.tokens(i):
            total += clipped(ratio(b.policy, b.anchor, i, t), a[i][t], 0.8, 1.2)
    return Said(loss=-total / b.num_tokens, advantages=a, returns=returns, critic_loss=_critic(b, returns))


def vapo(b: LiteralBatch) -> Said:
    """as vc-ppo, the policy's lambda 1 - 1/(0.05 |o|), clip(rho_t, 1-0.2, 1+0.28)"""
    lam, total = [max(1 - 1 / (0.05 * len(own)), 0) for own in b.policy], 0.0
    a = _whitened([_gae(b, i, _free(b, i), lam[i]) for i in b.completions])
    returns = [_returns(b, i, _free(b, i), 1) for i in b.completions]
    for i in b.completions:
        for t in b.tokens(i):
            total += clipped(ratio(b.policy, b.anchor, i, t), a[i][t], 0.8, 1.28)
    return Said(loss=-total / b.num_tokens, advantages=a, returns=returns, critic_loss=_critic(b, returns))


def _free(b: LiteralBatch, i: int) -> list[float]:
    """No token pays a KL."""
    return [0.0 for _ in b.tokens(i)]


def _gae(b: LiteralBatch, i: int, costs: list[float], lam: float) -> list[float]:
    """A_t = sum over s >= t of lambda^(s-t) (r_s + V_(s+1) - V_s), the reward at the last token, V = 0 behind it."""
    v, last = [*b.values_before[i], 0.0], len(costs) - 1
    delta = [costs[s] + (b.rewards[i] if s == last else 0) + v[s + 1] - v[s] for s in b.tokens(i)]
    return [sum(lam ** (s - t) * delta[s] for s in b.tokens(i) if s >= t) for t in b.tokens(i)]


def _returns(b: LiteralBatch, i: int, costs: list[float], lam: float) -> list[float]:
    return [a + v for a, v in zip(_gae(b, i, costs, lam), b.values_before[i], strict=True)]


def _whitened(worth: Ragged) -> Ragged:
    flat = [value for own in worth for value in own]
    return [[(value - mean(flat)) / math.sqrt(std(flat) ** 2 + 1e-8) for value in own] for own in worth]


def _critic(b: LiteralBatch, returns: Ragged) -> float:
    """1/2 max((V - R)^2, (clip(V, V_before - 0.2, V_before + 0.2) - R)^2), the mean over tokens."""
    total = 0.0
    for i in b.completions:
        for v, before, target in zip(b.values[i], b.values_before[i], returns[i], strict=True):
            total += max((v - target) ** 2, (clip(v, before - 0.2, before + 0.2) - target) ** 2) / 2
    return total / b.num_tokens


SAMPLED = {
    "grpo": grpo,
    "grpo-r1": grpo_r1,
    "dr-grpo": dr_grpo,
    "dapo-loss": dapo_loss,
    "dapo": dapo,
    "maxrl": maxrl,
    "lite-ppo": lite_ppo,
    "gdpo": gdpo,
    "deepseek-v3.2": deepseek_v32,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
    "dppo": dppo,
    "rloo": rloo,
    "reinforce++": reinforce_pp,
    "reinforce++-baseline": reinforce_pp_baseline,
    "kimi-k1.5": kimi,
    "online-rft": online_rft,
    "distillation": distillation,
    "ppo": ppo,
    "vc-ppo": vc_ppo,
    "vapo": vapo,
}
"""The loop of each preset."""
