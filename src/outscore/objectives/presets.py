"""The presets as data: each names the cells in which it differs from GRPO, and says what it is and who says so."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A row of the table in words, and the cells that make it.

    >>> PRESETS["gspo"].cells["clip_high"]
    0.0004
    """

    name: str
    """What a recipe calls it."""
    family: str
    """The heading it stands under."""
    summary: str
    """What sets it apart, in a few words."""
    equation: str
    """What is maximised for a completion, or what its advantage is, where that differs from GRPO."""
    paper: str
    """Where it comes from."""
    left_out: str = ""
    """What of that source is not in the row, or is our choice."""
    cells: Mapping[str, Any]
    """The cells in which it differs from `grpo`."""


_GRPO = "group-relative, clipped"
_LEVEL = "other ratios, other clips"
_REINFORCE = "REINFORCE with a baseline"
_SCALE = "other baselines, other scales"
_IMITATION = "imitation of what is good"
_PREFERENCES = "pairs of which one was liked better"
_LABELS = "reward models of completions with a number each"

_PAIRS: Mapping[str, Any] = {
    "source": "preferences",
    "baseline": "none",
    "scale": "none",
    "surrogate": "logistic",
}
_SUMS: Mapping[str, Any] = {**_PAIRS, "aggregation": "completion_sum", "kl_coef": 0.1}

_POINTS: Mapping[str, Any] = {
    "source": "labels",
    "trains": "reward_model",
    "baseline": "none",
    "scale": "none",
    "surrogate": "cross_entropy",
    "kl_coef": 0.0,
}

_ROWS = (
    Preset(
        name="sft",
        family=_IMITATION,
        summary="the log-likelihood of demonstrations",
        equation="1/sum|o| sum_t log pi(o_t)",
        paper="InstructGPT, arXiv 2203.02155; DeepSeekMath, arXiv 2402.03300, 5.2: the coefficient is 1",
        cells={
            "source": "demonstrations",
            "baseline": "none",
            "scale": "none",
            "surrogate": "log_likelihood",
            "aggregation": "token_mean",
            "kl_coef": 0.0,
        },
    ),
    Preset(
        name="rft",
        family=_IMITATION,
        summary="the same of right samples of the model it begins with",
        equation="1/sum|o| sum_t I(o) log pi(o_t), o ~ pi as the stage found it",
        paper="DeepSeekMath, arXiv 2402.03300, 5.2.1 and A.1.2",
        left_out="the mean is over the tokens of what is kept, as in sft",
        cells={
            "source": "samples",
            "baseline": "none",
            "scale": "none",
            "surrogate": "log_likelihood",
            "aggregation": "token_mean",
            "kl_coef": 0.0,
        },
    ),
    Preset(
        name="online-rft",
        family=_IMITATION,
        summary="the log-likelihood of the policy's own right answers",
        equation="1/|o| sum_t I(o) log pi(o_t), I(o) = 1 if o is right, else 0",
        paper="DeepSeekMath, arXiv 2402.03300, 5.2.1 and A.1.3",
        left_out="right is what the judging reward (evaluation.correct) calls right; N counts wrong answers too",
        cells={
            "reward": "correct",
            "baseline": "none",
            "scale": "none",
            "surrogate": "log_likelihood",
            "kl_coef": 0.0,
        },
    ),
    Preset(
        name="distillation",
        family=_IMITATION,
        summary="the policy's own samples, drawn towards a teacher",
        equation="- 1/sum|o| sum_t 1/2 (log pi(o_t) - log teacher(o_t))^2: the coefficient is log teacher - log pi",
        paper="GKD, arXiv 2306.13649 (on-policy, reverse KL); MiniLLM, arXiv 2306.08543",
        left_out="the sum over the vocabulary in place of the sampled token; a token answers for itself, not for what "
        "follows; a mix with given outputs",
        cells={
            "reward": "none",
            "baseline": "none",
            "scale": "none",
            "surrogate": "log_likelihood",
            "aggregation": "token_mean",
            "kl_to": "teacher",
            "kl_estimator": "k2",
            "kl_coef": 1.0,
        },
    ),
    Preset(
        name="dpo",
        family=_PREFERENCES,
        summary="the log-odds of the better of two answers",
        equation="log sigma(beta h), h = log pi(w)/ref(w) - log pi(l)/ref(l)",
        paper="DPO, arXiv 2305.18290, eq. 7, its beta",
        cells=_SUMS,
    ),
    Preset(
        name="dpo-mean",
        family=_PREFERENCES,
        summary="the same with log-ratios divided by |o|",
        equation="log sigma(beta h), h = log pi(w)/ref(w) / |w| - log pi(l)/ref(l) / |l|",
        paper="DeepSeekMath, arXiv 2402.03300, A.1.4",
        left_out="beta: a mean is |o| times smaller than a sum, and the paper gives none; 2 is ours",
        cells={**_PAIRS, "kl_coef": 2.0},
    ),
    Preset(
        name="cdpo",
        family=_PREFERENCES,
        summary="DPO where a tenth of the labels is wrong",
        equation="(1-eps) log sigma(beta h) + eps log sigma(-beta h)",
        paper="Mitchell, A note on DPO with noisy preferences, 2023; after DPO, arXiv 2305.18290",
        cells={**_SUMS, "label_smoothing": 0.1},
    ),
    Preset(
        name="ipo",
        family=_PREFERENCES,
        summary="the difference of log-ratios is to be 1/(2 beta)",
        equation="-(h - 1/(2 beta))^2",
        paper="IPO, arXiv 2310.12036, eq. 17, tau as kl_coef",
        cells={**_SUMS, "surrogate": "squared"},
    ),
    Preset(
        name="reward-model",
        family=_PREFERENCES,
        summary="a score instead of the log-ratio: Bradley-Terry",
        equation="log sigma(score(w) - score(l)), the mean over the pairs of a ranking",
        paper="InstructGPT, arXiv 2203.02155, eq. 1",
        cells={**_SUMS, "trains": "reward_model", "kl_coef": 0.0},
    ),
    Preset(
        name="process-reward-model",
        family=_LABELS,
        summary="the chance that each step of a solution is right",
        equation="y_t log sigma(score_t) + (1 - y_t) log sigma(-score_t), the mean over all steps t of the batch",
        paper="Math-Shepherd, arXiv 2312.08935, eq. 3; Lightman et al., arXiv 2305.20050",
        left_out="marks in the text at which a token is predicted: a score is read at the step's last token",
        cells={**_POINTS, "supervision": "process"},
    ),
    Preset(
        name="outcome-reward-model",
        family=_LABELS,
        summary="the chance that a whole solution is right",
        equation="y log sigma(score) + (1 - y) log sigma(-score), the mean over completions",
        paper="Cobbe et al., arXiv 2110.14168 (verifiers)",
        left_out="their loss at every token, and a loss of the language model beside it; ratings that are no chances "
        "take cells: {surrogate: squared_error}",
        cells=_POINTS,
    ),
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
)

PRESETS: dict[str, Preset] = {row.name: row for row in _ROWS}
"""The presets by name, in the order of the table."""
