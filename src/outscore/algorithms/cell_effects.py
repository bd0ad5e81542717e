"""Where each cell is read: one that is set and not read would promise what does not happen, and is refused."""

from collections.abc import Mapping
from typing import Any, Final, Literal

ABOVE_ZERO: Final = "above 0"
GIVEN: Final = "not null"
Wanted = tuple[Any, ...] | Literal["above 0", "not null"]
"""The values of a cell with which another is read: some, or any above 0, or any but None."""
Case = Mapping[str, Wanted]
"""Cells that must all have such values."""

_POLICY: Case = {"source": ("policy",)}
_PAID: Case = {"reward": ("total", "parts", "correct")}
_TOKENS_PAY: Case = {"kl_place": ("token_reward",), "kl_coef": ABOVE_ZERO}
_OF_ADVANTAGES: tuple[Case, ...] = (_PAID, _TOKENS_PAY)
"""Completions, or their tokens, differ in advantage."""
_OF_CRITIC: tuple[Case, ...] = ({"baseline": ("critic",)},)
_OF_KL: Case = {"kl_coef": ABOVE_ZERO, "source": ("policy", "texts", "demonstrations", "samples")}
_BOUNDED = ("clipped", "capped_weight", "tv_masked")
_WITH_RATIO = (*_BOUNDED, "soft_gate")


def _each(cases: tuple[Case, ...], **more: Wanted) -> tuple[Case, ...]:
    return tuple({**case, **more} for case in cases)


READ: Mapping[str, tuple[Case, ...]] = {
    "supervision": (_POLICY,),
    "reward": (_POLICY,),
    "baseline": ({**_POLICY, **_PAID},),
    "scale": ({**_POLICY, **_PAID},),
    "advantage_eps": (
        {**_PAID, "scale": ("population_std", "sample_std", "mean", "batch_std")},
        *_each(_OF_ADVANTAGES, batch_norm=("completions", "tokens")),
    ),
    "batch_norm": _each(_OF_ADVANTAGES, source=("policy",)),
    "gae_lambda": _each(_OF_CRITIC, lambda_alpha=(None,)),
    "critic_lambda": _OF_CRITIC,
    "lambda_alpha": _OF_CRITIC,
    "value_clip": _OF_CRITIC,
    "whiten_rewards": _OF_CRITIC,
    "zero_negative": _each(_OF_ADVANTAGES, source=("policy",)),
    "ratio_level": _each(_OF_ADVANTAGES, surrogate=("log_likelihood", *_WITH_RATIO)),
    "ratio_base": (
        *_each(_OF_ADVANTAGES, surrogate=_WITH_RATIO),
        *_each(_OF_ADVANTAGES, stale_threshold=GIVEN),
        {"kl_weighted": (True,), "kl_coef": ABOVE_ZERO, "kl_place": ("loss",)},
    ),
    "surrogate": _OF_ADVANTAGES,
    "clip_low": _each(_OF_ADVANTAGES, surrogate=_BOUNDED),
    "clip_high": _each(_OF_ADVANTAGES, surrogate=_BOUNDED),
    "gate_positive": _each(_OF_ADVANTAGES, surrogate=("soft_gate",)),
    "gate_negative": _each(_OF_ADVANTAGES, surrogate=("soft_gate",)),
    "aggregation": ({"trains": ("policy",)},),
    "aggregation_constant": ({"aggregation": ("constant",)},),
    "kl_estimator": (_OF_KL,),
    "kl_coef": ({"trains": ("policy",)},),
    "kl_place": (_OF_KL,),
    "kl_level": (_OF_KL,),
    "kl_to": (_OF_KL,),
    "kl_adapt_to": ({"kl_coef": ABOVE_ZERO, "kl_place": ("token_reward", "reward")},),
    "kl_horizon": ({"kl_adapt_to": GIVEN},),
    "kl_weighted": ({"kl_coef": ABOVE_ZERO, "kl_place": ("loss",)},),
    "mismatch_cap": _each(_OF_ADVANTAGES, source=("policy",)),
    "mismatch_floor": ({"mismatch_cap": GIVEN, "mismatch_mode": ("mask",)},),
    "mismatch_mode": ({"mismatch_cap": GIVEN},),
    "mismatch_level": ({"mismatch_cap": GIVEN},),
    "stale_threshold": _each(_OF_ADVANTAGES, source=("policy",)),
    "entropy_coef": ({"trains": ("policy",)},),
    "label_smoothing": ({"source": ("preferences",)},),
}
"""Cell -> the cases in any of which it is read. Those that are not here (`source`, `trains`) always are."""


def is_read(cell: str, cells: Mapping[str, Any]) -> bool:
    """Whether anything reads a cell beside the others of its row."""
    return any(not _missing(case, cells) for case in READ.get(cell, ({},)))


def check_read(cells: Mapping[str, Any], own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """ValueError for a cell that is `given`, other than as the row's `own`, and that nothing reads beside the others.

    The message says what stands in its way and with what it would count.
    """
    for key in given:
        if given[key] == own[key] or is_read(key, cells):
            continue
        wanted = min((_missing(case, cells) for case in READ[key]), key=len)
        there = " and ".join(f"{other}={cells[other]!r}" for other in wanted)
        due = " and ".join(f"{other} {_in_words(choices)}" for other, choices in wanted.items())
        raise ValueError(f"{key}={given[key]!r} has no effect with {there}; it counts where {due}")


def _missing(case: Case, cells: Mapping[str, Any]) -> Case:
    """What of a case is not so."""
    return {key: wanted for key, wanted in case.items() if not _is(cells[key], wanted)}


def _is(value: Any, wanted: Wanted) -> bool:
    if isinstance(wanted, tuple):
        return value in wanted
    return value is not None if wanted == GIVEN else value > 0


def _in_words(wanted: Wanted) -> str:
    return f"is {' or '.join(map(repr, wanted)) if isinstance(wanted, tuple) else wanted}"
