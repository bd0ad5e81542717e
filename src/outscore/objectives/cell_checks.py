"""Cells that do not go together, where a row's completions come with what is said of them."""

from collections.abc import Mapping, Sequence
from typing import Any


def check_labels(cells: Mapping[str, Any], without_sampling: Mapping[str, Any], pointwise: Sequence[str]) -> None:
    """ValueError for a cell that means nothing where a reward model learns the numbers that completions have.

    Args:
        cells: all cells of the row.
        without_sampling: the only choice of some cells where nothing is sampled.
        pointwise: the surrogates that compare a score with a number.
    """
    wanted = {**without_sampling, "baseline": "none", "scale": "none", "trains": "reward_model"}
    wanted |= {"kl_coef": 0.0, "label_smoothing": 0.0, "mismatch_cap": None, "entropy_coef": 0.0}
    for key, only in wanted.items():
        if key not in ("surrogate", "supervision") and cells[key] != only:
            raise ValueError(f"{key}={cells[key]!r} has no meaning where source='labels'; use {key}={only!r}")
    if cells["surrogate"] not in pointwise:
        listed = " or ".join(map(repr, pointwise))
        raise ValueError(f"surrogate={cells['surrogate']!r} has no meaning where source='labels'; use {listed}")
