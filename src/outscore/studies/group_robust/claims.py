"""What the paper says of each figure, held against the means over seeds: at its number of iterations, and exactly."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from outscore.studies.group_robust.measure import Found
from outscore.studies.group_robust.settings import Family, Setup
from outscore.studies.records import Claim

_SMALL_GAP = 0.25
"""A gap is small if it is less than this part of the other one."""
_FLAT = 0.01
"""Between values of chi, less than this part of the whole change is no change."""
_OVERFITTING = (8, 9)
"""Figures in which the paper says that GR-IPO's reward error is worse than IPO's."""


def judge(setup: Setup, families: dict[Family, Found]) -> list[Claim]:
    """The claims about a figure."""
    where = f"fig. {setup.figure}"
    claims = []
    for at in ("", ", exact"):
        if setup.ablation:
            claims += _ablation(where, setup, families["IPO"], at)
            continue
        for family, found in families.items():
            losses = _values(found, "max_loss", at)
            if not at:  # the axes show the published iterations
                claims.append(_band(where, f"{family} loss", losses, setup.bands[family]))
            claims.append(_ordering(where, f"loss{at}", _names(found)[::-1], losses.flip(0)))
            if setup.scenario == "even-imbalanced":
                claims.append(_small_gap(where, family, losses, at))
        errors = [(found, _values(found, "max_error", at)) for found in families.values()]
        every = [value for _, values in errors for value in values]
        if not at:
            claims.append(_band(where, "reward error", every, setup.bands["error"]))
        if setup.figure in _OVERFITTING:
            found, values = errors[-1]
            ends = [found.methods[0].name, found.methods[-1].name]
            claims.append(_ordering(where, f"reward error{at}", ends, values[[0, -1]]))
    return claims


def _values(found: Found, metric: str, at: str) -> Float[Tensor, "method seed"]:
    return found.optimum[metric] if at else found.curves[metric][-1]


def _names(found: Found) -> list[str]:
    return [method.name for method in found.methods]


def _band(where: str, what: str, values: Sequence[Tensor] | Tensor, band: tuple[float, float]) -> Claim:
    """Whether the means of all methods lie on the published axis."""
    means = [float(value.mean()) for value in values]
    return Claim(
        where=where,
        claim=f"{what} {band[0]:g} to {band[1]:g}",
        measured=f"{min(means):.3g} to {max(means):.3g}",
        holds=band[0] <= min(means) and max(means) <= band[1],
    )


def _ordering(where: str, what: str, names: Sequence[str], values: Float[Tensor, "method seed"]) -> Claim:
    """Whether the means ascend in the given order; and in how many seeds each does."""
    means = values.mean(dim=-1).tolist()
    shown = ", ".join(f"{mean:.3g}" for mean in means)
    ascending = (values[1:] > values[:-1]).all(dim=0)
    return Claim(
        where=where,
        claim=f"{what}: {' < '.join(names)}",
        measured=f"{shown}; so in {int(ascending.sum())} of {len(ascending)} seeds",
        holds=all(low < high for low, high in pairwise(means)),
    )


def _small_gap(where: str, family: Family, losses: Float[Tensor, "method seed"], at: str) -> Claim:
    """Whether importance sampling already does most of what the robust method does."""
    plain, sampled, robust = losses.mean(dim=-1).tolist()
    return Claim(
        where=where,
        claim=f"small gap GR-{family} to IS-{family}{at}",
        measured=f"{sampled - robust:.3g}, {family} to IS-{family} {plain - sampled:.3g}",
        holds=abs(sampled - robust) < _SMALL_GAP * (plain - sampled),
    )


def _ablation(where: str, setup: Setup, found: Found, at: str) -> list[Claim]:
    largest, average = _values(found, "max_loss", at), _values(found, "mean_loss", at)
    monotone = [
        _monotone(where, f"max loss falls or stays in χ (given from χ=1 to 0){at}", largest.flip(0)),
        _monotone(where, f"mean loss rises or stays in χ{at}", average),
    ]
    if at:
        return monotone
    return [
        _band(where, "max loss", largest, setup.bands["IPO"]),
        _band(where, "mean loss", average, setup.bands["average"]),
        *monotone,
    ]


def _monotone(where: str, claim: str, ascending: Float[Tensor, "method seed"]) -> Claim:
    """Whether the means, from the smallest expected to the largest, never fall and end higher."""
    means = ascending.mean(dim=-1).tolist()
    whole = means[-1] - means[0]
    return Claim(
        where=where,
        claim=claim,
        measured=", ".join(f"{mean:.2f}" for mean in means),
        holds=whole > 0 and all(high - low > -_FLAT * whole for low, high in pairwise(means)),
    )
