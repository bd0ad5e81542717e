"""Estimates of KL(policy || reference) from the log-probs of what the policy sampled.

With x = log(policy / reference) of a token (or of a whole completion) drawn from the policy, and pi, ref their
distributions:

    name  value            E[value]       E[grad value]: in the loss  E[value * grad log pi]: in the reward
    k1    x                KL(pi || ref)  0                           grad KL(pi || ref)
    k2    x^2 / 2          not a KL       grad KL(pi || ref)          not a KL's
    k3    exp(-x) - 1 + x  KL(pi || ref)  grad KL(ref || pi)          grad KL(pi || ref) - grad KL(ref || pi)

So as a term of the loss, whose gradient reaches the policy only through log pi of the tokens already sampled, k1 does
*nothing* on average but add noise, k2 pulls with the reverse KL's gradient, and k3, though its value estimates the
reverse KL, pulls with the forward KL's: E[(1 - ref/pi) grad log pi] = -sum ref grad log pi. Near pi = ref the two
agree to first order. In the reward, k1 is the right one. `tests/oracles/test_objective_kl_enumerated.py` checks every
entry by enumeration.

All this is about samples of the policy itself; after the first mini-batch of an update it holds only nearly. Weighted
by the ratio policy / base, gradient and all (`kl_weighted`; DeepSeek-V3.2), every estimate of value KL has the gradient
of KL(pi || ref) as a term of the loss, on samples of the base, however far the policy has moved. Per token, k2's
gradient takes each prefix as given; that a token also changes which prefixes come next is counted only by k2 of whole
completions, or by k1 in the reward.
"""

from jaxtyping import Float, Int
from torch import Tensor

from outscore.algorithms.choices import KlEstimator, KlLevel
from outscore.objectives.ratios import bounded_expm1, completion_sums


def kl_estimate(ref_log_ratio: Float[Tensor, " *shape"], *, estimator: KlEstimator) -> Float[Tensor, " *shape"]:
    """The estimate for each entry of `ref_log_ratio` = log(policy / reference), in nats.

    k3 is free of cancellation near 0, and beyond reference / policy = 4.9e8 goes on along its tangent (`bounded_exp`).
    """
    if estimator == "k1":
        return ref_log_ratio
    if estimator == "k2":
        return ref_log_ratio.square() / 2
    return bounded_expm1(-ref_log_ratio) + ref_log_ratio


def kl_per_completion(
    anchor_logprobs: Float[Tensor, " token"],
    ref_logprobs: Float[Tensor, " token"],
    completion_index: Int[Tensor, " token"],
    *,
    estimator: KlEstimator,
    level: KlLevel,
    num_completions: int,
) -> Float[Tensor, " completion"]:
    """What to take off each completion's reward, before the coefficient: a constant, without gradient, in nats per
    completion.

    `level="token"` sums the estimates of the tokens, `level="sequence"` is the estimate of the whole completion; for
    k1 they are the same number. Longer completions pay more: the KL of a sequence is the sum over its tokens.
    """
    difference = (anchor_logprobs - ref_logprobs).detach()
    if level == "token":
        return completion_sums(kl_estimate(difference, estimator=estimator), completion_index, num_completions)
    return kl_estimate(completion_sums(difference, completion_index, num_completions), estimator=estimator)
