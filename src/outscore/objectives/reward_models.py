"""What a reward model learns from, and how sure of itself it may be: Bradley-Terry on pairs, squares on ratings.

A score is defined by preferences up to a number that is added to all of them, so only differences enter the loss of
pairs; `normalisation` chooses that number, and the scale, afterwards.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from outscore.objectives.example_losses import spread_pairs
from outscore.objectives.loss import LossTerms
from outscore.objectives.preferences import PairObjective, Pairs, pair_accuracy, pair_losses


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
