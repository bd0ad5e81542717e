"""The mathematics: tensors in, tensors out. No model, no file, no process group."""

from outscore.objectives.advantages import Baseline, Scale, group_advantages, is_zero_variance
from outscore.objectives.aggregation import Aggregation, token_weights
from outscore.objectives.algorithms import ALGORITHMS, Algorithm, Source, algorithm
from outscore.objectives.batch import (
    GroupRewards,
    StepRewards,
    batch_advantages,
    is_silent,
    process_advantages,
)
from outscore.objectives.estimators import (
    Estimate,
    bootstrap_interval,
    maj_at_k,
    mean_interval,
    pass_at_k,
    wilson_interval,
)
from outscore.objectives.kl import KlEstimator, KlPlace, kl_estimate, kl_per_completion
from outscore.objectives.loss import LossTerms, add_loss_terms, policy_loss
from outscore.objectives.presets import PRESETS, Preset
from outscore.objectives.ratios import (
    RatioLevel,
    completion_sums,
    log_ratio,
    masked_importance_weights,
    stale_completions,
    truncated_importance_weights,
)
from outscore.objectives.returns import (
    adaptive_kl_coef,
    clipped_value_loss,
    gae,
    length_adaptive_lambda,
    suffix_sums,
    token_rewards,
    whiten,
)
from outscore.objectives.shaping import overlong_penalty
from outscore.objectives.surrogates import (
    Surrogate,
    capped_weights,
    clipped_surrogate,
    clipped_tokens,
    log_likelihood,
    soft_gate,
    soft_gate_weights,
    tv_masked_tokens,
)

__all__ = [
    "ALGORITHMS",
    "PRESETS",
    "Aggregation",
    "Algorithm",
    "Baseline",
    "Estimate",
    "GroupRewards",
    "KlEstimator",
    "KlPlace",
    "LossTerms",
    "Preset",
    "RatioLevel",
    "Scale",
    "Source",
    "StepRewards",
    "Surrogate",
    "adaptive_kl_coef",
    "add_loss_terms",
    "algorithm",
    "batch_advantages",
    "bootstrap_interval",
    "capped_weights",
    "clipped_surrogate",
    "clipped_tokens",
    "clipped_value_loss",
    "completion_sums",
    "gae",
    "group_advantages",
    "is_silent",
    "is_zero_variance",
    "kl_estimate",
    "kl_per_completion",
    "length_adaptive_lambda",
    "log_likelihood",
    "log_ratio",
    "maj_at_k",
    "masked_importance_weights",
    "mean_interval",
    "overlong_penalty",
    "pass_at_k",
    "policy_loss",
    "process_advantages",
    "soft_gate",
    "soft_gate_weights",
    "stale_completions",
    "suffix_sums",
    "token_rewards",
    "token_weights",
    "truncated_importance_weights",
    "tv_masked_tokens",
    "whiten",
    "wilson_interval",
]
