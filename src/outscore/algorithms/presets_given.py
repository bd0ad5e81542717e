"""Presets that learn from completions somebody or something has called good: imitation, preferences, labels."""

from collections.abc import Mapping
from typing import Any

from outscore.algorithms.preset import Preset

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
_LIKELIHOOD: Mapping[str, Any] = {
    "baseline": "none",
    "scale": "none",
    "surrogate": "log_likelihood",
    "aggregation": "token_mean",
    "kl_coef": 0.0,
}
_POINTS: Mapping[str, Any] = {
    "source": "labels",
    "trains": "reward_model",
    "baseline": "none",
    "scale": "none",
    "surrogate": "cross_entropy",
    "kl_coef": 0.0,
}

GIVEN = (
    Preset(
        name="pretrain",
        family=_IMITATION,
        summary="the log-likelihood of plain text",
        equation="1/T sum_t log pi(x_t | x_<t)",
        paper="next-token prediction, as GPT-3, arXiv 2005.14165, 2.1",
        cells={**_LIKELIHOOD, "source": "texts"},
    ),
    Preset(
        name="sft",
        family=_IMITATION,
        summary="the log-likelihood of demonstrations",
        equation="1/sum|o| sum_t log pi(o_t)",
        paper="InstructGPT, arXiv 2203.02155; DeepSeekMath, arXiv 2402.03300, 5.2: the coefficient is 1",
        cells={**_LIKELIHOOD, "source": "demonstrations"},
    ),
    Preset(
        name="rft",
        family=_IMITATION,
        summary="the same of right samples of the model it begins with",
        equation="1/sum|o| sum_t I(o) log pi(o_t), o ~ pi as the stage found it",
        paper="DeepSeekMath, arXiv 2402.03300, 5.2.1 and A.1.2",
        left_out="the mean is over the tokens of what is kept, as in sft",
        cells={**_LIKELIHOOD, "source": "samples"},
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
)
"""The rows, in the order of the table."""
