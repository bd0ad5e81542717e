"""Presets that learn by comparing the policy's own samples: GRPO and its relatives, REINFORCE, PPO."""

import math
from collections.abc import Mapping
from typing import Any

from outscore.algorithms.preset import Part, Preset

_GRPO = "group-relative, clipped"
_LEVEL = "other ratios, other clips"
_REINFORCE = "REINFORCE with a baseline"
_SCALE = "other baselines, other scales"
_CRITIC = "PPO: a critic as baseline"

_PPO: Mapping[str, Any] = {"baseline": "critic", "scale": "none", "batch_norm": "whiten"}
_PRETRAINED: Mapping[str, Any] = {"critic": {"warmup_steps": Part(of="steps", divisor=2, most=50)}}
"""Value pre-training of VAPO's 50 steps (arXiv 2504.05118, 5.1), of short stages a half."""

SAMPLED = (
    Preset(
        name="grpo",
        family=_GRPO,
        summary="group mean and deviation, clip, KL in the loss",
        equation="1/|o| sum_t { min(rho_t A, clip(rho_t, 1-eps, 1+eps) A) - beta k3_t }, A = (r - mean) / std",
        paper="DeepSeekMath, arXiv 2402.03300, eq. 3, beta as in 4.2",
        left_out="open there: which standard deviation (here the population's), its epsilon (1e-6), the clip (0.2)",
        cells={},
    ),
    Preset(
        name="grpo-r1",
        family=_GRPO,
        summary="ratio and KL of whole answers",
        equation="min(rho A, clip(rho, 1-eps, 1+eps) A) - beta k3, rho = pi(o) / anchor(o)",
        paper="DeepSeek-R1, arXiv 2501.12948, eq. 1; clip and beta of its first RL stage",
        cells={
            "ratio_level": "sequence",
            "kl_level": "sequence",
            "mismatch_level": "sequence",
            "clip_low": 10.0,
            "clip_high": 10.0,
            "kl_coef": 0.001,
        },
    ),
    Preset(
        name="dr-grpo",
        family=_GRPO,
        summary="neither the standard deviation nor 1/|o|",
        equation="1/L sum_t min(rho_t A, clip(rho_t, 1-eps, 1+eps) A), A = r - mean",
        paper="Dr. GRPO, arXiv 2503.20783",
        left_out="L is max_new_tokens unless aggregation_constant says otherwise",
        cells={"scale": "none", "aggregation": "constant", "kl_coef": 0.0},
    ),
    Preset(
        name="dapo-loss",
        family=_GRPO,
        summary="DAPO's loss alone: clip-higher, mean over tokens",
        equation="N/sum|o| sum_t min(rho_t A, clip(rho_t, 1-0.2, 1+0.28) A)",
        paper="DAPO, arXiv 2503.14476, eq. 8",
        left_out="its dynamic sampling and overlong shaping: algorithm `dapo`",
        cells={"aggregation": "token_mean", "clip_high": 0.28, "kl_coef": 0.0},
    ),
    Preset(
        name="dapo",
        family=_GRPO,
        summary="that, dynamic sampling and overlong shaping",
        equation="N/sum|o| sum_t min(rho_t A, clip(rho_t, 1-0.2, 1+0.28) A)",
        paper="DAPO, arXiv 2503.14476, eq. 8 (loss), 3.2 (dynamic sampling), eq. 13 (overlong)",
        left_out="the cells are those of dapo-loss; the rest are settings of the stage, refills and overlong_buffer, "
        "which have DAPO's values where a recipe gives none",
        cells={"aggregation": "token_mean", "clip_high": 0.28, "kl_coef": 0.0},
        # verl's recipe draws up to 10 batches; the buffer is to the limit as DAPO's 4096 to 20480 tokens.
        stage_defaults={"refills": 10, "overlong_buffer": Part(of="max_new_tokens", divisor=5, least=1)},
    ),
    Preset(
        name="maxrl",
        family=_SCALE,
        summary="divided by the group's mean: maximises log p(right)",
        equation="A = (r - mean) / mean",
        paper="MaxRL, arXiv 2602.02710",
        left_out="rewards must not be negative; 0 and 1 in the paper",
        cells={"scale": "mean", "kl_coef": 0.0},
    ),
    Preset(
        name="lite-ppo",
        family=_SCALE,
        summary="group mean, deviation of the batch, mean over tokens",
        equation="A = (r - mean of group) / (std of all rewards of the batch)",
        paper="Lite PPO, arXiv 2508.08221",
        cells={"scale": "batch_std", "aggregation": "token_mean", "kl_coef": 0.0},
    ),
    Preset(
        name="gdpo",
        family=_SCALE,
        summary="each reward normalised alone, their sum over the batch",
        equation="S = sum_k w_k (r_k - mean_k) / std_k, A = (S - mean of batch) / (std of batch)",
        paper="GDPO, arXiv 2601.05242",
        left_out="conditioning an easy reward on a hard one",
        cells={"reward": "parts", "batch_norm": "completions", "kl_coef": 0.0},
    ),
    Preset(
        name="deepseek-v3.2",
        family=_SCALE,
        summary="unbiased KL; bad answers left far behind are masked",
        equation="1/|o| sum_t { M min(rho_t A, clip(rho_t) A) - beta rho_t k3_t }, A = r - mean, "
        "M = 0 if A < 0 and mean_t log(anchor/pi) > delta, else 1",
        paper="DeepSeek-V3.2, arXiv 2512.02556, 3.1",
        left_out="its keep-routing and keep-sampling-mask; beta, clip and delta are not published: 0.04, 0.2 and 0.1 "
        "are ours",
        cells={"scale": "none", "kl_weighted": True, "stale_threshold": 0.1},
    ),
    Preset(
        name="gspo",
        family=_LEVEL,
        summary="the ratio is the geometric mean over the answer",
        equation="min(s A, clip(s, 1-3e-4, 1+4e-4) A), s = (pi(o) / anchor(o))^(1/|o|)",
        paper="GSPO, arXiv 2507.18071, eq. 5 and 7, clip as in 5.1",
        left_out="GSPO-token is cells: {ratio_level: sequence_mean_token}",
        cells={"ratio_level": "sequence_mean", "clip_low": 3e-4, "clip_high": 4e-4, "kl_coef": 0.0},
    ),
    Preset(
        name="cispo",
        family=_LEVEL,
        summary="the ratio is a capped weight: no token is clipped away",
        equation="N/sum|o| sum_t sg[min(rho_t, 5)] A log pi(o_t)",
        paper="MiniMax-M1, arXiv 2506.13585, 3.1; the cap of 5 is ScaleRL's, arXiv 2510.13786",
        cells={
            "surrogate": "capped_weight",
            "clip_low": math.inf,
            "clip_high": 4.0,
            "aggregation": "token_mean",
            "kl_coef": 0.0,
        },
    ),
    Preset(
        name="sapo",
        family=_LEVEL,
        summary="a soft gate instead of the clip",
        equation="1/|o| sum_t (4/tau) sigmoid(tau (rho_t - 1)) A, tau = 1 where A > 0, else 1.05",
        paper="SAPO, arXiv 2511.20347",
        cells={"surrogate": "soft_gate", "kl_coef": 0.0},
    ),
    Preset(
        name="dppo",
        family=_LEVEL,
        summary="masks where the probability left the sampler's",
        equation="1/L sum_t M_t rho_t A, rho = pi/mu, M_t = 0 if A > 0 and pi - mu > 0.15, or A < 0 and mu - pi > 0.15",
        paper="DPPO, arXiv 2602.04879 (Binary-TV)",
        left_out="the KL and top-k divergences; A = r - mean and 1/L as in the authors' Dr. GRPO are our choice",
        cells={
            "surrogate": "tv_masked",
            "ratio_base": "sampler",
            "clip_low": 0.15,
            "clip_high": 0.15,
            "scale": "none",
            "aggregation": "constant",
            "kl_coef": 0.0,
        },
    ),
    Preset(
        name="rloo",
        family=_REINFORCE,
        summary="baseline: mean of the others; KL in the reward",
        equation="A log pi(o), A_i = R_i - mean of R_j (j != i), R = r - beta log(pi(o)/ref(o))",
        paper="RLOO, arXiv 2402.14740; beta as in its experiments",
        cells={
            "baseline": "leave_one_out",
            "scale": "none",
            "surrogate": "log_likelihood",
            "ratio_level": "sequence",
            "mismatch_level": "sequence",
            "kl_estimator": "k1",
            "kl_place": "reward",
            "kl_coef": 0.03,
        },
    ),
    Preset(
        name="reinforce++",
        family=_REINFORCE,
        summary="no group: returns normalised over the batch",
        equation="min(rho_t A_t, clip(rho_t) A_t), A_t = norm over the batch of r - beta sum_(s>=t) log(pi_s/ref_s)",
        paper="REINFORCE++, arXiv 2501.03262",
        left_out="beta is ours; statistics are over all tokens of the batch, as in OpenRLHF",
        cells={
            "baseline": "none",
            "scale": "none",
            "batch_norm": "tokens",
            "aggregation": "token_mean",
            "kl_estimator": "k1",
            "kl_place": "token_reward",
            "kl_coef": 0.001,
        },
    ),
    Preset(
        name="reinforce++-baseline",
        family=_REINFORCE,
        summary="group mean as baseline, then normalised over the batch",
        equation="min(rho_t A_t, clip(rho_t) A_t) - beta k2_t, A = norm over the batch of r - mean of group",
        paper="REINFORCE++, arXiv 2501.03262, the form with a baseline",
        left_out="beta is ours; statistics are over all tokens of the batch, as in OpenRLHF",
        cells={
            "scale": "none",
            "batch_norm": "tokens",
            "aggregation": "token_mean",
            "kl_estimator": "k2",
            "kl_coef": 0.001,
        },
    ),
    Preset(
        name="kimi-k1.5",
        family=_REINFORCE,
        summary="mirror descent: a squared log-ratio as leash",
        equation="A log pi(o) - tau/2 log(pi(o)/anchor(o))^2, A = r - mean",
        paper="Kimi k1.5, arXiv 2501.12599, eq. 3",
        left_out="tau is not published: 0.1 is ours; length reward and optimizer reset; one update a batch has no pull",
        cells={
            "scale": "none",
            "surrogate": "log_likelihood",
            "ratio_level": "sequence",
            "mismatch_level": "sequence",
            "kl_to": "anchor",
            "kl_level": "sequence",
            "kl_estimator": "k2",
            "kl_coef": 0.1,
        },
    ),
    Preset(
        name="ppo",
        family=_CRITIC,
        summary="a critic says what each token adds; KL in its reward",
        equation="1/|o| sum_t min(rho_t A_t, clip(rho_t) A_t), A = GAE of r_t = -beta log(pi_t/ref_t) + [t last] r, "
        "whitened",
        paper="DeepSeekMath, arXiv 2402.03300, eq. 1 and 2; PPO, arXiv 1707.06347; beta, lambda and clips as in Huang "
        "et al., arXiv 2403.17031",
        left_out="the paper's trunk that both share, and so c1, is a setting of the stage: critic: {trunk: shared}",
        cells={**_PPO, "kl_estimator": "k1", "kl_place": "token_reward", "kl_coef": 0.05},
        stage_defaults={"critic": {"warmup_steps": 0}},
    ),
    Preset(
        name="vc-ppo",
        family=_CRITIC,
        summary="the critic is trained first, and looks to the end",
        equation="as ppo, the critic's targets with lambda 1",
        paper="VC-PPO, arXiv 2503.01491",
        left_out="no KL, and a mean over tokens, are our choice; value pre-training is the stage's "
        "critic.warmup_steps, 50 where a recipe gives none, at most half of the stage",
        cells={**_PPO, "critic_lambda": 1.0, "aggregation": "token_mean", "kl_coef": 0.0},
        stage_defaults=_PRETRAINED,
    ),
    Preset(
        name="vapo",
        family=_CRITIC,
        summary="that, with a lambda that grows with the answer",
        equation="as vc-ppo, the policy's lambda 1 - 1/(0.05 |o|), clip(rho_t, 1-0.2, 1+0.28)",
        paper="VAPO, arXiv 2504.05118",
        left_out="the likelihood of right answers beside the loss (its mu)",
        cells={
            **_PPO,
            "critic_lambda": 1.0,
            "lambda_alpha": 0.05,
            "clip_high": 0.28,
            "aggregation": "token_mean",
            "kl_coef": 0.0,
        },
        stage_defaults=_PRETRAINED,
    ),
)
"""The rows, in the order of the table."""
