"""What the cells of an algorithm may be."""

from dataclasses import dataclass
from typing import Literal

Source = Literal["texts", "demonstrations", "samples", "policy", "preferences", "labels"]
"""Where completions come from: a data set of responses, samples of the model as a stage finds it, samples of the policy
as it is trained, a data set of ranked responses, or one of responses, or their steps, with a number each."""
Trained = Literal["policy", "reward_model"]
"""Which model an update moves."""
Supervision = Literal["outcome", "process"]
"""Whether a completion has one reward, or one for each of its steps."""
BatchNorm = Literal["none", "completions", "tokens", "whiten"]
"""Whether advantages are shifted and divided by mean and standard deviation of the batch's, and over what; `whiten` is
over tokens, as in PPO: with 1e-8 under the root."""
RewardKind = Literal["total", "parts", "correct", "none"]
"""Which reward is compared: the weighted total, each reward alone (GDPO), whether the answer is right, 1 or 0, or none,
so that the penalty alone teaches."""
RatioBase = Literal["anchor", "sampler"]
"""What the policy is divided by: the trainer's policy when the update began, or what the tokens were drawn with."""
Baseline = Literal["group_mean", "leave_one_out", "shrunk_mean", "critic", "none"]
"""What a reward is compared with: the group's mean, the mean of the *other* completions (RLOO), that mean drawn towards
the batch's by how uncertain it is (`outscore.objectives.shrinkage`), what a critic expects at each token (PPO), or
nothing."""
Scale = Literal["population_std", "sample_std", "mean", "batch_std", "none"]
"""What the difference is divided by: the group's standard deviation with /n, with /(n - 1), its mean (MaxRL), the
population standard deviation of all rewards of the batch (Lite PPO), or nothing."""
PairLoss = Literal["logistic", "squared"]
"""What is made small on each pair; `outscore.objectives.preferences` has both."""
PointLoss = Literal["cross_entropy", "squared_error"]
"""How a score is held against a number: as the log-odds of a chance, or as the number itself."""
Surrogate = Literal[
    "clipped", "log_likelihood", "capped_weight", "tv_masked", "soft_gate", "logistic", "squared", PointLoss
]
"""PPO's clipped ratio times the advantage; the log-likelihood times a coefficient, or times the advantage and a capped
ratio (CISPO); the ratio, masked by total variation (DPPO) or through a soft gate (SAPO); of pairs, what
`outscore.objectives.preferences` has; of scores, what `outscore.objectives.reward_models` has."""
RatioLevel = Literal["token", "sequence", "sequence_mean", "sequence_mean_token"]
"""Whether a ratio belongs to one token (DeepSeekMath), to the whole completion (DeepSeek-R1, eq. 1), or is the
geometric mean over the completion (GSPO), whose token form sends each token's gradient through that token alone."""
KlLevel = Literal["token", "sequence"]
"""Whether a KL estimate is that of a token or of the whole completion."""
MismatchLevel = Literal["token", "sequence", "sequence_mean"]
"""Whether anchor / sampler is that of a token, of the whole completion, or its geometric mean."""
MismatchMode = Literal["truncate", "mask"]
"""What becomes of a mismatch weight out of its bounds: set to the bound (TIS), or to 0 (MIS, IcePop)."""
Aggregation = Literal["completion_mean", "completion_sum", "token_mean", "prompt_mean", "constant"]
"""Mean over completions of their means (GRPO) or of their sums, mean over all tokens (DAPO), mean over prompts of the
means over all tokens of a group (ScaleRL), or a fixed length (Dr. GRPO). Of preferences, whose loss is a mean over
pairs: whether a completion's log-ratio is its tokens' mean or sum."""
KlEstimator = Literal["k1", "k2", "k3"]
"""Schulman's names; `outscore.objectives.kl` has their table."""
KlPlace = Literal["loss", "reward", "token_reward"]
"""Whether the penalty is a term of the loss, is taken off the reward before advantages are computed, or off the
advantage of each token, which pays for itself and for the tokens after it (PPO's per-token reward; REINFORCE++)."""
KlTarget = Literal["reference", "anchor", "teacher"]
"""Whom the penalty keeps the policy near: the reference, where the update began (Kimi k1.5), or another model, which it
is to become like."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairObjective:
    """What is made of the two completions of a pair.

    >>> PairObjective(kind="logistic", beta=0.1)
    """

    kind: PairLoss
    """The loss of a pair."""
    beta: float
    """How steep it is: the weight of the KL to the reference in the problem that DPO and IPO solve."""
    per_token: bool = False
    """Whether a completion's log-ratio is the mean over its tokens, not the sum."""
    label_smoothing: float = 0.0
    """The chance that a preference is the wrong way round."""
