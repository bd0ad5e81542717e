"""Weights of populations: the worst-off one counts most, for whatever objective.

A population is a set of examples whose losses are averaged by themselves: the people who were asked, a language, a
domain of problems. With L_g the mean loss of population g, shares s_g and weights w on the simplex, one loss is made of
all of them,

    sum_g w_g L_g                   w = s: the plain mean over examples; w = 1/K: importance sampling;
                                    w = alpha, and alpha maximises: max_g L_g (group DRO, GR-DPO, GR-IPO)
    w = (1 - chi) mu + chi alpha    between fixed weights mu and the worst case

and alpha follows the losses by mirror ascent, alpha_g <- alpha_g exp(eta chi L_g) / Z (Ramesh et al., arXiv 2405.20304,
Algorithms 1 to 3 and eq. 30 to 32; Sagawa et al., arXiv 1911.08731). Nothing here knows what a loss is: the loss of an
example may be that of a demonstration, a pair, or minus the reward of a completion.

Weights live as logarithms in float64: a product of thousands of exponentials neither overflows nor becomes 0.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

_SUM_TOLERANCE = 1e-6
"""How far weights that people write may add up to something else than 1."""


def population_counts(population_index: Int[Tensor, " example"], names: Sequence[str]) -> Int[Tensor, " population"]:
    """N_g: how many examples each population has; `population_index[example]` is a place in `names`.

    Raises ValueError when there is no population, an index is not a place in `names`, or a population has no example.
    """
    if not names:
        raise ValueError("populations: there must be at least one")
    outside = (population_index < 0) | (population_index >= len(names))
    if bool(outside.any()):
        where = int(outside.nonzero()[0])
        raise ValueError(
            f"population_index[{where}] is {int(population_index[where])}; with {len(names)} populations it must be "
            f"between 0 and {len(names) - 1}"
        )
    counts = torch.bincount(population_index, minlength=len(names))
    empty = [repr(name) for name, count in zip(names, counts.tolist(), strict=True) if count == 0]
    if empty:
        raise ValueError(
            f"no example of population {', '.join(empty)}: a mean over nothing has no loss; leave the population out "
            "or give it examples"
        )
    return counts


def population_shares(counts: Int[Tensor, " population"]) -> Float[Tensor, " population"]:
    """s_g = N_g / N in float64, the weights under which sum_g w_g L_g is the mean over all examples."""
    _check_counts(counts)
    return counts.double() / counts.sum()


def importance_weights(counts: Int[Tensor, " population"]) -> Float[Tensor, " population"]:
    """(1/N_g) / sum_h (1/N_h) in float64: what ONE EXAMPLE of each population weighs under importance sampling.

    These weigh examples. The weights of the populations' means that do the same are all equal:
    `relative_weights(1/K, shares)` is proportional to this.
    """
    _check_counts(counts)
    inverse = counts.double().reciprocal()
    return inverse / inverse.sum()


def checked_weights(weights: Float[Tensor, " population"], names: Sequence[str]) -> Float[Tensor, " population"]:
    """The weights in float64, scaled to add up to 1.

    Raises ValueError unless there is one for each name, none is negative, NaN or infinite, and they add up to 1 within
    1e-6.
    """
    if weights.numel() != len(names):
        raise ValueError(f"{weights.numel()} weights for {len(names)} populations ({', '.join(names)}): give one each")
    exact = weights.detach().double()
    for name, weight in zip(names, exact.tolist(), strict=True):
        if not 0.0 <= weight <= 1.0 + _SUM_TOLERANCE:
            raise ValueError(f"the weight of population {name!r} is {weight:g}; it must be between 0 and 1")
    total = float(exact.sum())
    if abs(total - 1.0) > _SUM_TOLERANCE:
        raise ValueError(f"the weights of the populations add up to {total:.9g}; they must add up to 1")
    return exact / total


def population_losses(
    losses: Float[Tensor, " example"],
    population_index: Int[Tensor, " example"],
    *,
    shares: Float[Tensor, " population"],
    num_examples: int,
) -> Float[Tensor, " population"]:
    """An unbiased estimate of each L_g from a batch: the sum over its examples of g of l / (s_g num_examples).

    `shares[g]` is the chance that a drawn example is of population g, and `num_examples` counts the whole batch, over
    micro-batches and ranks, whose results add up. A population that the batch lacks gets 0, and its weight is not
    pushed. The published forms are these:

        all data, num_examples = N       the mean loss of each population (Algorithm 2)
        s_g = N_g/N, num_examples = 1    one example: N l / N_g (Algorithm 1); a batch: the sum of that, the authors'
                                         `divide_by_totalcount`
        s_g = 1, num_examples = 1        one example of a population drawn uniformly: l (Algorithm 3, whose eta is thus
                                         K times that of s_g = 1/K)

    Gradients flow through it. Raises ValueError for a share that is not above 0 or a count below 1.
    """
    if num_examples < 1:
        raise ValueError(f"num_examples={num_examples}: a batch has at least 1")
    _check_shares(shares)
    zeros = losses.new_zeros(shares.shape, dtype=torch.promote_types(losses.dtype, shares.dtype))
    return zeros.index_add(0, population_index, losses.to(zeros.dtype)) / (shares * num_examples)


def ascend_populations(
    log_weights: Float[Tensor, "*run population"],
    losses: Float[Tensor, "*run population"],
    *,
    step_size: float | Float[Tensor, "*run 1"],
    tradeoff: float | Float[Tensor, "*run 1"] = 1.0,
) -> Float[Tensor, "*run population"]:
    """The logarithms of alpha_g exp(eta chi L_g) / Z in float64: a step of mirror ascent on the populations' weights.

    `tradeoff` is chi: alpha climbs the objective it stands in, whose derivative by alpha_g is chi L_g (arXiv
    2405.20304, eq. 30). Step size 0 leaves the weights as they are, so a baseline with fixed weights is a row of the
    same table. Leading axes, if any, are independent runs. Carries no gradient.

    Raises ValueError when a loss is NaN or infinite: every weight would be lost.
    """
    losses = losses.detach().double()
    if not bool(torch.isfinite(losses).all()):
        raise ValueError(f"the losses of the populations are {losses.tolist()}; their weights need finite losses")
    return torch.log_softmax(log_weights.detach().double() + step_size * tradeoff * losses, dim=-1)


def trade_off(
    weights: Float[Tensor, "*run population"],
    fixed: Float[Tensor, "*#run population"],
    tradeoff: float | Float[Tensor, "*#run 1"],
) -> Float[Tensor, "*run population"]:
    """(1 - chi) mu + chi alpha: the worst case at chi = 1, the fixed weights mu at chi = 0 (arXiv 2405.20304, eq. 30).

    Raises ValueError for a chi outside [0, 1].
    """
    inside = (tradeoff >= 0.0) & (tradeoff <= 1.0) if isinstance(tradeoff, Tensor) else 0.0 <= tradeoff <= 1.0
    if not bool(torch.as_tensor(inside).all()):
        raise ValueError(f"tradeoff={tradeoff}: must be between 0 (fixed weights) and 1 (the worst case)")
    return (1.0 - tradeoff) * fixed + tradeoff * weights


def relative_weights(
    weights: Float[Tensor, "*run population"], shares: Float[Tensor, " population"]
) -> Float[Tensor, "*run population"]:
    """w_g / s_g: the factor on each example of g that turns a mean over examples into sum_g w_g L_g.

    It is 1 everywhere at w = s, and its mean over the data is always 1, so learning rates keep their meaning. An
    objective that already divides by its own global counts (tokens, completions, pairs) is weighted by this factor and
    nothing else.
    """
    _check_shares(shares)
    return weights / shares


def _check_counts(counts: Tensor) -> None:
    if not counts.numel() or bool((counts < 1).any()):
        raise ValueError(f"the populations have {counts.tolist()} examples; each must have at least 1")


def _check_shares(shares: Tensor) -> None:
    if not bool((shares > 0).all()):
        raise ValueError(f"shares={shares.tolist()}: every population must have a share above 0")
