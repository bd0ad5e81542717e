"""What stages are put together from: optimizer, sampling, critic, texts, populations; and what a recipe gets where
it leaves these out."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from outscore.settings import Settings

LR_SFT, LR_POLICY, LR_LORA_FACTOR, LR_CRITIC_FACTOR = 2e-5, 1e-5, 10.0, 2.0
"""Peak learning rates where a recipe gives none. SFT of all weights: as Stanford Alpaca and Tulu 2 for 7B. GRPO of all
weights: DeepSeekMath's 1e-6 is for 7B, and models that a laptop trains want more. LoRA: ten times the rate of all
weights, for both ("LoRA Without Regret", Schulman et al. 2025; QLoRA's 2e-4 for SFT). A critic: twice the policy's, as
in VC-PPO (arXiv 2503.01491) and VAPO (arXiv 2504.05118)."""
WARMUP_SHARE, WARMUP_MOST = 0.05, 10
"""Warm-up where a recipe gives none: this share of the stage's optimizer steps, at most so many. Adam's second moment
is an average over few steps at first; Alpaca and Tulu 2 warm up over 3 % of theirs."""


Decay = Annotated[float, Field(ge=0, lt=1)]
"""How much of a running mean is kept at each step."""


class OptimizerSettings(Settings):
    """AdamW and its schedule."""

    lr: float = Field(LR_POLICY, gt=0, allow_inf_nan=False)
    """Peak learning rate; a recipe that leaves it out gets 2e-5 for SFT, else 1e-5, and ten times that with LoRA."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps of linear warm-up; a recipe that leaves it out gets 5 % of the stage's, at most 10."""
    final_fraction: float = Field(0.1, ge=0, le=1)
    """The rate at the end as a fraction of the peak (`linear`, `cosine`)."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Decoupled weight decay, on matrices only."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = Field(1e-8, gt=0, allow_inf_nan=False)
    """Added to the root of the second moment."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    states: Literal["fp32", "8bit"] = "fp32"
    """Adam's moments: `8bit` takes a quarter of the memory, blocks of 256 quantised by bitsandbytes; on a GPU only."""


class SamplingSettings(Settings):
    """How completions are drawn."""

    max_new_tokens: int = Field(256, ge=1)
    """Limit on new tokens, the stop token included."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Divides the logits, when sampling and when training."""
    top_k: int = Field(0, ge=0)
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the smallest set of tokens whose probability reaches p."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Keep tokens at least this fraction as probable as the most probable."""
    max_rows: int = Field(256, ge=1)
    """Completions decoded at the same time. Memory grows with the tokens that differ between them."""


POLICY = "policy"
"""What a critic may begin as besides a model's directory and an earlier stage's."""


COEF_VALUE = 0.1
"""c1 of a trunk that policy and critic share, where a recipe gives none: as in Huang et al., arXiv 2403.17031."""


class CriticSettings(Settings):
    """The value model, which is trained beside the policy."""

    trunk: Literal["own", "shared"] = "own"
    """A model of its own, or a scalar head on the policy's last hidden states, which both losses then shape."""
    coef: float | None = Field(None, gt=0)
    """With `trunk: shared`: c1, the weight of the value loss in the common loss (PPO, eq. 9). A recipe that leaves it
    out gets 0.1."""
    start: str = POLICY
    """What it begins as: `policy`, a copy of the policy with a head that predicts 0; the name of an earlier stage,
    whose reward model or critic it takes; or the directory of a reward model. The last two keep their head."""
    lr: float = Field(LR_CRITIC_FACTOR * LR_POLICY, gt=0, allow_inf_nan=False)
    """Peak learning rate; the rest of its optimizer is the stage's. A recipe that leaves it out gets twice the
    policy's rate, without LoRA's factor of ten, because all weights of a critic are trained."""
    warmup_steps: int = Field(0, ge=0)
    """Steps at the beginning in which only the critic learns (value pre-training); with a shared trunk, only the
    head."""

    @model_validator(mode="after")
    def _fits_the_trunk(self) -> "CriticSettings":
        if self.trunk == "own" and self.coef is not None:
            raise ValueError(
                f"coef = {self.coef:g} weighs the value loss in a trunk that both share; a critic with a trunk of its "
                "own has a loss of its own: leave it out, or use trunk: shared"
            )
        if self.trunk == "shared" and self.start != POLICY:
            raise ValueError(
                f"start = {self.start!r}, but with trunk: shared the critic is a head on the policy, and begins at 0; "
                "leave start out, or use trunk: own"
            )
        return self


class PtxSettings(Settings):
    """The pretraining mix of PPO-ptx: every update of the policy also predicts plain text, so that it does not forget
    what it could write before (InstructGPT, arXiv 2203.02155, eq. 2); docs/algorithms/ppo.md."""

    coef: float = Field(ge=0, allow_inf_nan=False)
    """The weight of the text's loss (its mean negative log-likelihood per token) in the loss of each update; 0 leaves
    it out. InstructGPT's gamma."""
    batch_size: int = Field(32, ge=1)
    """Pieces of text in an update."""
    piece: int = Field(256, ge=2)
    """Tokens of a piece at most, as in `pretrain`."""
    task: Mapping[str, Any] | None = None
    """The task that the texts come from; without it, the stage's task."""

    @model_validator(mode="after")
    def _task_has_a_kind(self) -> "PtxSettings":
        if self.task is not None and "kind" not in self.task:
            raise ValueError("task: `kind` is missing; for example {kind: text, path: corpus.txt}")
        return self


class SolutionSampling(Settings):
    """Sampling the policy that the stage begins with; a sample's label is whether it is right."""

    num_prompts: int = Field(0, ge=0)
    """Training problems to sample for; 0 takes all."""
    group_size: int = Field(4, ge=1)
    """Solutions of each problem."""
    sampling: SamplingSettings = SamplingSettings()
    """How solutions, and their completions from a step on, are drawn."""
    held_out: float = Field(0.1, ge=0, lt=1)
    """The share of these problems whose solutions are used for evaluation and not trained on."""


class StepSampling(SolutionSampling):
    """Math-Shepherd's labels: each step of a solution is labelled by whether completions from there on end right."""

    completions: int = Field(8, ge=1)
    """Completions from each step, N."""
    estimate: Literal["soft", "hard"] = "soft"
    """The label of a step: the share of its completions that are right (`soft`), or 1 if one of them is (`hard`)."""


def _known_weights(value: Any, *, words: tuple[str, ...]) -> Any:
    """The word or the mapping; ValueError for another word, and for weights that are none."""
    if isinstance(value, str) and value in words:
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"must be {', '.join(words)}, or a weight for each population, such as {{a: 0.3, b: 0.7}}")
    for name, weight in value.items():
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight <= 1:
            raise ValueError(f"the weight of population {name!r} is {weight!r}; it must be between 0 and 1")
    if abs(sum(value.values()) - 1.0) > 1e-6:
        raise ValueError(f"the weights of the populations add up to {sum(value.values()):.9g}; they must add up to 1")
    return {str(name): float(weight) for name, weight in value.items()}


FixedWeights = Annotated[
    Literal["equal", "shares"] | Mapping[str, float],
    BeforeValidator(partial(_known_weights, words=("equal", "shares"))),
]
"""Weights of populations: all the same (importance sampling), as many as their examples are (the plain mean over
examples), or a number for each by name."""
AnyWeights = Annotated[
    Literal["robust", "equal", "shares"] | Mapping[str, float],
    BeforeValidator(partial(_known_weights, words=("robust", "equal", "shares"))),
]
"""The same, or weights that climb."""


class PopulationSettings(Settings):
    """Weights of populations in a stage's loss; docs/algorithms/group-robust.md."""

    column: str = ""
    """The column of the data that names an example's population; empty takes the population that the task names."""
    weights: AnyWeights = "robust"
    """`robust` climbs towards the worst-off population; `equal`, `shares` or a weight for each name stay as they
    are."""
    initial: FixedWeights = "equal"
    """What robust weights begin with, and the fixed weights of `trade_off`: `equal`, `shares` or one for each name."""
    step_size: float = Field(0.01, ge=0, allow_inf_nan=False)
    """Step size of robust weights, in units of 1 / loss: at each optimizer step they are multiplied by
    exp(step_size * loss)."""
    trade_off: float = Field(1.0, ge=0, le=1)
    """The share of the robust weights in those that are used (1: the worst case); those of `initial` are the rest."""
    draw: Literal["shares", "equal"] = "shares"
    """How many examples of each population a batch has: in proportion to the data (`shares`), or equally many
    (`equal`)."""

    @model_validator(mode="after")
    def _consistent(self) -> "PopulationSettings":
        of_robust = ("initial", "step_size", "trade_off")
        given = [key for key in of_robust if getattr(self, key) != type(self).model_fields[key].default]
        if self.weights != "robust" and given:
            raise ValueError(f"{given[0]} has no effect on weights: {self.weights}, which are fixed; it is of `robust`")
        if isinstance(self.initial, Mapping) and (nothing := [name for name, own in self.initial.items() if own == 0]):
            raise ValueError(
                f"initial: robust weights are multiplied, so that of population {nothing[0]!r} would stay 0 whatever "
                "it loses; begin with more, or leave its examples out"
            )
        return self


class PlateauSettings(Settings):
    """Smaller steps where evaluations within a stage no longer get better."""

    metric: str = "preference_loss"
    """Which metric of the evaluations; `worst/METRIC` is that of the worst-off population."""
    evaluations: int = Field(2, ge=1)
    """How many evaluations in a row without a new best value make a plateau."""
    lr_factor: float = Field(0.1, gt=0, le=1)
    """At a plateau the learning rate is multiplied by this."""
    step_size_factor: float = Field(0.5, gt=0, le=1)
    """At a plateau the step size of robust weights is multiplied by this."""
