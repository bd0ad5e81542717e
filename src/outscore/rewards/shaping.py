"""Shaping: what becomes of a reward's values before they are weighted and added up.

In a recipe these are keys of a reward's entry: `flip_rates`, `uncertainty`, `clip`, `only_if`, `normalise`, applied in
this order. The parts that are kept and shown, and what is correct, stay what the reward said.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any, Literal

from outscore.inputs import checked_options, nearest

_ROUNDING = 1e-9

UNCERTAINTY = "uncertainty"
"""The column under which a reward logs how unsure it is of each completion: a standard deviation of its value."""

Parts = Sequence[Sequence[float | None]]
"""parts[completion][reward] of one group; None where a reward does not apply."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shaping:
    """How the values of one reward are shaped.

    >>> Shaping(only_if="format_tags", clip=(0.0, 1.0))
    """

    flip_rates: tuple[float, float] | None = None
    """(ρ0, ρ1) of a reward that is 0 or 1 and known to err: P(1 | truly 0) and P(0 | truly 1)."""
    uncertainty: float = 0.0
    """κ: so many standard deviations are taken off, where the reward says how unsure it is. value - κ·std is the lower
    confidence bound of an ensemble."""
    clip: tuple[float, float] | None = None
    """The least and the greatest value that counts."""
    only_if: str | None = None
    """The reward that has to hold for this one to count: else it is 0."""
    normalise: Literal["group", "batch"] | None = None
    """Less the mean and divided by the population standard deviation of the reward in its group, or in all groups that
    are scored together."""

    def one(self, value: float, std: float = 0.0) -> float:
        """A single value corrected, lowered by what the reward is unsure of, and clipped.

        The backward correction r̂ = (r̃ - ρ0) / (1 - ρ0 - ρ1) makes E[r̂ | r] = r (arXiv 2510.00915). Clipping it
        afterwards would bring a bias back.
        """
        if self.flip_rates is not None:
            wrongly_high, wrongly_low = self.flip_rates
            value = (value - wrongly_high) / (1.0 - wrongly_high - wrongly_low)
        value -= self.uncertainty * std
        if self.clip is not None:
            value = min(max(value, self.clip[0]), self.clip[1])
        return value

    def full(self, greatest: float | None) -> float | None:
        """The greatest shaped value, from the greatest value of the reward; None where it is not known."""
        return None if greatest is None or self.normalise else self.one(greatest)


def make_shaping(
    *,
    flip_rates: tuple[float, float] | None = None,
    uncertainty: float = 0.0,
    clip: tuple[float, float] | None = None,
    only_if: str | None = None,
    normalise: Literal["group", "batch"] | None = None,
) -> Shaping:
    """Shaping from the keys of a reward's entry. ValueError says which value cannot be."""
    if flip_rates is not None and (min(flip_rates) < 0 or not sum(flip_rates) < 1):
        raise ValueError(
            f"flip_rates = {list(flip_rates)} must be the rates [0 seen as 1, 1 seen as 0], neither below 0 and "
            "together below 1: beyond that the reward says nothing, or the opposite"
        )
    if not 0 <= uncertainty < math.inf:
        raise ValueError(f"uncertainty = {uncertainty!r} must be 0 or above: so many standard deviations are taken off")
    if clip is not None and not clip[0] < clip[1]:
        raise ValueError(f"clip = {list(clip)} must be [least, greatest], the first below the second")
    return Shaping(
        flip_rates=flip_rates, uncertainty=float(uncertainty), clip=clip, only_if=only_if, normalise=normalise
    )


SHAPING_KEYS = ("flip_rates", "uncertainty", "clip", "only_if", "normalise")
"""The keys of a reward's entry that shape it."""


def shaping_of(name: str, entry: Mapping[str, Any], full: float | None) -> Shaping:
    """The shaping that a reward's entry asks for.

    Raises:
        ValueError: naming reward, key and value; also for flip rates of a reward whose greatest value is not 1.
    """
    given = {key: entry[key] for key in SHAPING_KEYS if entry.get(key) is not None}
    checked = checked_options(make_shaping, given, where=f"reward {name!r}")
    try:
        shaping = make_shaping(**checked)
    except ValueError as error:
        raise ValueError(f"reward {name!r}: {error}") from None
    if shaping.flip_rates is not None and full not in (None, 1.0):
        raise ValueError(
            f"reward {name!r}: flip_rates is for rewards that are 0 or 1, and this one gives up to {full:g}"
        )
    return shaping


class Shaper:
    """Shapes the parts of groups.

    Args:
        names: the rewards' names.
        fulls: their greatest values, None where not known.
        shapings: what becomes of their values.

    Raises:
        ValueError: if `only_if` names no other reward.
    """

    def __init__(self, names: Sequence[str], fulls: Sequence[float | None], shapings: Sequence[Shaping]) -> None:
        self._shapings = tuple(shapings)
        self._fulls = tuple(fulls)
        self._gates: list[int | None] = []
        for name, shaping in zip(names, shapings, strict=True):
            others = [other for other in names if other != name]
            if shaping.only_if is not None and shaping.only_if not in others:
                hint = nearest(shaping.only_if, others)
                raise ValueError(f"reward {name!r}: only_if = {shaping.only_if!r} is no other reward{hint}")
            self._gates.append(None if shaping.only_if is None else list(names).index(shaping.only_if))

    def __call__(self, groups: Sequence[Parts], stds: Sequence[Parts] | None = None) -> list[list[list[float | None]]]:
        """Shaped parts of groups that are scored together; what does not apply stays None.

        A gate holds where its reward, before any shaping, has its greatest value, or is above 0 if that is not known;
        one that does not apply to a completion lets it pass.

        Args:
            groups: the parts of each group.
            stds: how unsure the rewards are of these parts, None where they do not say; without it none does.
        """
        unsure = stds or [[[None] * len(row) for row in group] for group in groups]
        shaped = [
            [self._row(row, std) for row, std in zip(group, own, strict=True)]
            for group, own in zip(groups, unsure, strict=True)
        ]
        for k, shaping in enumerate(self._shapings):
            everything = [row for group in shaped for row in group]
            for rows in {"group": shaped, "batch": [everything], None: []}[shaping.normalise]:
                for row, value in zip(rows, _standardised([row[k] for row in rows]), strict=True):
                    row[k] = value
        return shaped

    def _row(self, row: Sequence[float | None], stds: Sequence[float | None]) -> list[float | None]:
        """The shaped parts of one completion, before any normalisation."""
        return [None if value is None else self._single(k, value, stds[k] or 0.0, row) for k, value in enumerate(row)]

    def _single(self, k: int, value: float, std: float, row: Sequence[float | None]) -> float:
        gate = self._gates[k]
        if gate is not None and not self._holds(gate, row[gate]):
            return 0.0
        return self._shapings[k].one(value, std)

    def _holds(self, gate: int, value: float | None) -> bool:
        full = self._fulls[gate]
        if value is None:
            return True
        return value > 0 if full is None else value >= full - _ROUNDING


def _standardised(values: Sequence[float | None]) -> list[float | None]:
    """(r - mean) / population standard deviation over what applies; exactly 0 where all are equal."""
    present = [value for value in values if value is not None]
    if not present or min(present) == max(present):
        return [None if value is None else 0.0 for value in values]
    mean, spread = fmean(present), pstdev(present)
    if not (math.isfinite(spread) and spread > 0):
        return [None if value is None else 0.0 for value in values]
    return [None if value is None else (value - mean) / spread for value in values]
