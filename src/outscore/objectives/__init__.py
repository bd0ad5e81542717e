"""The mathematics: tensors in, tensors out. No model, no file, no process group."""

from outscore.objectives.advantages import Baseline, Scale, group_advantages, is_zero_variance
from outscore.objectives.aggregation import Aggregation, token_weights
from outscore.objectives.algorithms import ALGORITHMS, Algorithm, Source, algorithm
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
from outscore.objectives.populations import (
    ascend_populations,
    checked_weights,
    importance_weights,
    population_counts,
    population_losses,
    population_shares,
    relative_weights,
    trade_off,
)
from outscore.objectives.preferences import (
    PairLoss,
    PairObjective,
    Pairs,
    Ties,
    completion_log_ratios,
    pair_accuracy,
    pair_losses,
    preference_loss,
    preference_metrics,
    ranked_pairs,
)
from outscore.objectives.ratios import RatioLevel, completion_sums, log_ratio, truncated_importance_weights
from outscore.objectives.reward_models import calibration_error, normalisation, rating_loss, reward_model_loss
from outscore.objectives.surrogates import Surrogate, clipped_surrogate, clipped_tokens, log_likelihood

__all__ = [
    "ALGORITHMS",
    "Aggregation",
    "Algorithm",
    "Baseline",
    "Estimate",
    "KlEstimator",
    "KlPlace",
    "LossTerms",
    "PairLoss",
    "PairObjective",
    "Pairs",
    "RatioLevel",
    "Scale",
    "Source",
    "Surrogate",
    "Ties",
    "add_loss_terms",
    "algorithm",
    "ascend_populations",
    "bootstrap_interval",
    "calibration_error",
    "checked_weights",
    "clipped_surrogate",
    "clipped_tokens",
    "completion_log_ratios",
    "completion_sums",
    "group_advantages",
    "importance_weights",
    "is_zero_variance",
    "kl_estimate",
    "kl_per_completion",
    "log_likelihood",
    "log_ratio",
    "maj_at_k",
    "mean_interval",
    "normalisation",
    "pair_accuracy",
    "pair_losses",
    "pass_at_k",
    "policy_loss",
    "population_counts",
    "population_losses",
    "population_shares",
    "preference_loss",
    "preference_metrics",
    "ranked_pairs",
    "rating_loss",
    "relative_weights",
    "reward_model_loss",
    "token_weights",
    "trade_off",
    "truncated_importance_weights",
    "wilson_interval",
]
