"""What a reward model learns from, and how sure of itself it may be: Bradley-Terry on pairs, cross-entropy on chances,
squares on ratings.

A score is defined by preferences up to a number that is added to all of them, so only differences enter the loss of
pairs; `normalisation` chooses that number, and the scale, afterwards.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from outscore.algorithms.choices import PairObjective, PointLoss
from outscore.objectives.example_losses import spread_pairs
from outscore.objectives.loss import LossTerms
from outscore.objectives.preferences import Pairs, pair_accuracy, pair_losses


def reward_model_loss(
    scores: Float[Tensor, " completion"],
    numbers: Int[Tensor, " completion"],
    pairs: Pairs,
    objective: PairObjective,
    *,
    num_completions: int,
) -> LossTerms:
    """Sum over the pairs of weight * loss of the difference of scores, of a micro-batch in which pairs lie whole: with
    the logistic loss and beta 1 it is -log sigmoid(r_better - r_worse), InstructGPT (arXiv 2203.02155) eq. 1.

    `numbers` says which completion of the batch each score belongs to, `num_completions` how many the batch has. The
    coefficients are -d loss / d score. Metrics are means over the pairs that are no ties, and of the scores; `loss`
    is the share of the batch's. Raises ValueError where only one side of a pair is there.
    """
    scores, flat, here = _laid_out(scores, numbers, pairs, num_completions)
    differences = flat[here.better] - flat[here.worse]
    coefficients = _slopes(flat, here, objective)
    loss = (here.weights * pair_losses(differences, here.labels, objective)).sum()
    with torch.no_grad():
        strict = here.labels != 0.5
        sure = differences[strict]
        means = {
            "preference_accuracy": pair_accuracy(sure),
            "margin": sure,
            "chosen_score": flat[here.better][strict],
            "rejected_score": flat[here.worse][strict],
            "score": scores,
        }
        return LossTerms(
            loss=loss,
            coefficients=coefficients[numbers],
            parts={"preferences": loss.detach()},
            means={name: (value.detach().sum(), value.numel()) for name, value in means.items()},
            maxima={},
        )


def pair_score_losses(
    scores: Float[Tensor, " completion"],
    numbers: Int[Tensor, " completion"],
    pairs: Pairs,
    objective: PairObjective,
    *,
    num_completions: int,
) -> Float[Tensor, "2 batch_completion"]:
    """The losses of these pairs by completion, as `example_losses` gives those of a policy; arguments are those of
    `reward_model_loss`. Carries no gradient."""
    _, flat, here = _laid_out(scores.detach(), numbers, pairs, num_completions)
    return spread_pairs(
        pair_losses(flat[here.better] - flat[here.worse], here.labels, objective), here, num_completions
    )


def _laid_out(scores: Tensor, numbers: Tensor, pairs: Pairs, num_completions: int) -> tuple[Tensor, Tensor, Pairs]:
    """The scores in single precision at least, the same by the batch's completions, and the pairs that are here."""
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    present = torch.zeros(num_completions, dtype=torch.bool, device=scores.device)
    present[numbers] = True
    return scores, scores.new_zeros(num_completions).index_copy(0, numbers, scores), pairs.to(scores).within(present)


def _slopes(scores: Tensor, pairs: Pairs, objective: PairObjective) -> Tensor:
    """-d loss / d score of each completion, with the scores taken as free variables."""
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_(True)
        losses = pair_losses(leaf[pairs.better] - leaf[pairs.worse], pairs.labels, objective)
        (gradient,) = torch.autograd.grad((pairs.weights * losses).sum(), leaf)
    return -gradient


def rating_loss(
    scores: Float[Tensor, " completion"], ratings: Float[Tensor, " completion"], *, num_completions: int
) -> Float[Tensor, ""]:
    """Sum of squared errors over the completions here, divided by how many the whole batch has."""
    return (scores - ratings).square().sum() / num_completions


def label_losses(
    scores: Float[Tensor, " label"], labels: Float[Tensor, " label"], kind: PointLoss
) -> Float[Tensor, " label"]:
    """The loss of each score: with `cross_entropy` -y log sigma(s) - (1 - y) log sigma(-s), where the label y is the
    chance in [0, 1] that a step is right (Math-Shepherd, arXiv 2312.08935, eq. 3, hard or soft); with `squared_error`
    (s - y)^2."""
    if kind == "squared_error":
        return (scores - labels).square()
    return binary_cross_entropy_with_logits(scores, labels, reduction="none")


def label_loss(
    scores: Float[Tensor, " label"],
    labels: Float[Tensor, " label"],
    kind: PointLoss,
    *,
    num_labels: int,
    factors: Float[Tensor, " label"] | None = None,
) -> LossTerms:
    """Sum of the losses of a micro-batch's scores, each times its factor where there are `factors` (`relative_weights`
    of populations), divided by how many labels the whole batch has.

    The coefficients are -d loss / d score: for `cross_entropy` (y - sigma(s)) / num_labels times the factor. Metrics
    are means over the labels here, without factors; `label_accuracy` is over those that are not 1/2.
    """
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    labels = labels.to(scores)
    shares = torch.full_like(scores, 1.0 / num_labels, requires_grad=False)
    shares = shares if factors is None else shares * factors.to(scores)
    loss = (shares * label_losses(scores, labels, kind)).sum()
    with torch.no_grad():
        now = scores.detach()
        slopes = 2.0 * (labels - now) if kind == "squared_error" else labels - torch.sigmoid(now)
        means = {"score": now, "label": labels}
        if kind == "cross_entropy":
            means["label_accuracy"] = label_accuracy(now, labels)
        return LossTerms(
            loss=loss,
            coefficients=slopes * shares,
            parts={"labels": loss.detach()},
            means={name: (value.sum(), value.numel()) for name, value in means.items()},
            maxima={},
        )


def label_score_losses(
    scores: Float[Tensor, " here"], numbers: Int[Tensor, " here"], labels: Float[Tensor, " label"], kind: PointLoss
) -> Float[Tensor, "2 label"]:
    """The losses of these scores by label, as `example_losses` gives those of a policy by completion; `numbers` says
    which of the batch's `labels` each score is of. Carries no gradient."""
    now = scores.detach().float() if scores.dtype in (torch.bfloat16, torch.float16) else scores.detach()
    losses = label_losses(now, labels.to(now)[numbers], kind)
    both = torch.stack([losses, torch.ones_like(losses)]) / labels.numel()
    return both.new_zeros(2, labels.numel()).index_copy(1, numbers, both)


def label_accuracy(scores: Float[Tensor, " label"], labels: Float[Tensor, " label"]) -> Float[Tensor, " some"]:
    """1 for each log-odds that is on its label's side of 1/2, 0 for others, 1/2 for a score of 0; labels of 1/2, which
    have no side, are left out."""
    sided = labels != 0.5
    towards = (scores * (labels - 0.5).sign())[sided]
    return (towards > 0).to(scores.dtype) + 0.5 * (towards == 0).to(scores.dtype)


def label_calibration_error(
    chances: Float[Tensor, " label"], labels: Float[Tensor, " label"], *, num_bins: int = 10
) -> float:
    """The expected calibration error of predicted chances: they are put into bins of equal width in [0, 1], and the
    error is the mean over labels of |mean label - mean chance| of their bin. Raises ValueError for no label."""
    if not chances.numel():
        raise ValueError("calibration needs at least one label")
    p, y = chances.detach().double(), labels.detach().double()
    bins = (p * num_bins).long().clamp(max=num_bins - 1)
    gaps = torch.zeros(num_bins, dtype=torch.float64, device=p.device).index_add(0, bins, y - p)
    return float(gaps.abs().sum() / p.numel())


def normalisation(scores: Float[Tensor, " completion"]) -> tuple[float, float]:
    """(gain, bias) such that gain * score + bias has mean 0 and variance 1 over these completions (population).

    Raises ValueError when all scores are equal.
    """
    std, mean = float(scores.double().std(correction=0)), float(scores.double().mean())
    if not std > 0.0:
        raise ValueError(f"{scores.numel()} completions have the same score: there is no scale to bring to 1")
    return 1.0 / std, -mean / std


def calibration_error(differences: Float[Tensor, " pair"], *, num_bins: int = 10) -> float:
    """How far the confidence of a reward model is from its accuracy: the expected calibration error over pairs.

    `differences` are the scores of the better completions less those of the worse. Of each pair the model is sure to a
    degree of sigmoid(|d|), which is at least 1/2, and right where d > 0 (half right where d = 0). Pairs are put into
    bins of equal width by how sure it is; the error is the mean over pairs of |accuracy - mean confidence| of their
    bin. Raises ValueError for no pair.
    """
    if not differences.numel():
        raise ValueError("calibration needs at least one pair")
    d = differences.detach().double()
    confidence, right = torch.sigmoid(d.abs()), pair_accuracy(d)
    bins = ((confidence - 0.5) * 2 * num_bins).long().clamp(max=num_bins - 1)
    gaps = torch.zeros(num_bins, dtype=torch.float64, device=d.device).index_add(0, bins, right - confidence)
    return float(gaps.abs().sum() / d.numel())
