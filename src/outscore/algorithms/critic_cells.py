"""Cells that go with a critic, or with the steering of a KL coefficient, and those they exclude."""

import math
import sys
from collections.abc import Mapping
from typing import Any

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("gae_lambda", 0.0, 1.0),
    ("critic_lambda", 0.0, 1.0),
    ("lambda_alpha", math.ulp(0.0), sys.float_info.max),
    ("value_clip", math.ulp(0.0), math.inf),
    ("kl_adapt_to", math.ulp(0.0), sys.float_info.max),
    ("kl_horizon", 1.0, sys.float_info.max),
)
"""Cell, least and greatest value."""
_OPTIONAL = ("critic_lambda", "lambda_alpha", "kl_adapt_to")
"""Those that may be None."""


def check_critic(cells: Mapping[str, Any]) -> None:
    """ValueError for a number about a critic or the steering of `kl_coef` that is out of range, and for a cell that a
    critic excludes."""
    for key, low, high in _RANGES:
        value = cells[key]
        if value is None and key in _OPTIONAL:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            bound = f"between {low:g} and {high:g}" if high == 1.0 else "of at least 1" if low == 1.0 else "above 0"
            raise ValueError(f"{key}={value!r}: must be a number {bound}")
    if cells["baseline"] == "critic":
        wanted = {"source": ("policy",), "scale": ("none",), "reward": ("total", "correct")}
        wanted |= {"batch_norm": ("none", "tokens", "whiten")}
        for key, choices in wanted.items():
            if cells[key] not in choices:
                raise ValueError(
                    f"{key}={cells[key]!r} does not go with baseline='critic', where each token has an advantage "
                    f"of its own; use {' or '.join(map(repr, choices))}"
                )
        if cells["lambda_alpha"] is not None and cells["critic_lambda"] is None:
            raise ValueError(
                f"lambda_alpha={cells['lambda_alpha']} is the policy's alone; give critic_lambda too, 1.0 in VAPO"
            )
