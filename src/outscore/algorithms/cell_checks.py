"""Cells that do not go together, and values out of their range: each is an error that names the cell and what would be
right."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from outscore.algorithms.choices import PairLoss, PointLoss, Surrogate

PAIRWISE: tuple[Surrogate, ...] = get_args(PairLoss)
"""The surrogates that compare two completions whose order is given."""
POINTWISE: tuple[Surrogate, ...] = get_args(PointLoss)
"""The surrogates that compare a score with a number that is given."""

_OF_DEMONSTRATIONS = {
    "surrogate": "log_likelihood",
    "kl_place": "loss",
    "kl_to": "reference",
    "kl_weighted": False,
    "supervision": "outcome",
    "reward": "total",
    "batch_norm": "none",
    "zero_negative": False,
    "stale_threshold": None,
}
"""The only choice of these cells where nothing is sampled."""

_EXCLUDED: tuple[tuple[tuple[str, str], tuple[str, str], str], ...] = (
    (("supervision", "process"), ("reward", "parts"), "steps are those of the total; use reward='total'"),
    (("supervision", "process"), ("reward", "correct"), "steps are those of the total; use reward='total'"),
    (("supervision", "process"), ("baseline", "leave_one_out"), "a step's pool is the group's; use 'group_mean'"),
    (("supervision", "process"), ("baseline", "shrunk_mean"), "a step's pool is the group's; use 'group_mean'"),
    (("supervision", "process"), ("scale", "batch_std"), "use batch_norm='tokens', or scale='population_std'"),
    (("supervision", "process"), ("batch_norm", "completions"), "tokens differ in advantage; use 'tokens'"),
    (("reward", "parts"), ("scale", "batch_std"), "each part is normalised in its group; use 'population_std'"),
    (("reward", "parts"), ("baseline", "shrunk_mean"), "each part is normalised in its group; use 'group_mean'"),
    (("reward", "none"), ("baseline", "shrunk_mean"), "there is no reward to compare; use 'group_mean'"),
    *(
        (("baseline", "shrunk_mean"), ("scale", scale), "a group of equal rewards has none; use 'none' or 'batch_std'")
        for scale in ("population_std", "sample_std", "mean")
    ),
    (("reward", "parts"), ("kl_place", "reward"), "the parts are compared each alone; use kl_place='loss'"),
    (("kl_place", "token_reward"), ("batch_norm", "completions"), "tokens differ in advantage; use 'tokens'"),
    (("kl_place", "token_reward"), ("kl_level", "sequence"), "each token pays its own KL; use kl_level='token'"),
    (("supervision", "process"), ("reward", "none"), "there is nothing to be paid for; use 'outcome'"),
    (("kl_to", "teacher"), ("kl_place", "reward"), "each token has a teacher's log-prob; use kl_place='loss'"),
    (("kl_to", "teacher"), ("kl_place", "token_reward"), "a token answers for itself alone; use kl_place='loss'"),
    (("kl_to", "anchor"), ("kl_place", "reward"), "before the update the two are one; use kl_place='loss'"),
    (("kl_to", "anchor"), ("kl_place", "token_reward"), "before the update the two are one; use kl_place='loss'"),
    (("surrogate", "tv_masked"), ("ratio_level", "sequence"), "it compares probabilities of tokens; use 'token'"),
    (("surrogate", "tv_masked"), ("ratio_level", "sequence_mean"), "it compares probabilities of tokens; use 'token'"),
    (("surrogate", "tv_masked"), ("ratio_level", "sequence_mean_token"), "it compares tokens; use 'token'"),
    (("supervision", "process"), ("surrogate", "squared_error"), "labels of steps are chances; use 'cross_entropy'"),
    *(
        (differing, ("ratio_level", level), f"a ratio of the whole has one advantage for all its tokens; use {other!r}")
        for differing in (("supervision", "process"), ("baseline", "critic"), ("kl_place", "token_reward"))
        for level, other in (("sequence", "token"), ("sequence_mean", "sequence_mean_token"))
    ),
)
"""Two choices that exclude each other, and why."""


def check_together(cells: Mapping[str, Any]) -> None:
    """ValueError for two cells that exclude each other, and for cells that together leave nothing to learn."""
    for (key, choice), (other, excluded), why in _EXCLUDED:
        if cells[key] == choice and cells[other] == excluded:
            raise ValueError(f"{key}={choice!r} does not go with {other}={excluded!r}: {why}")
    if cells["aggregation"] == "prompt_mean" and cells["source"] != "policy":
        raise ValueError(
            f"aggregation='prompt_mean' is over the samples of a prompt, but source={cells['source']!r} has none; use "
            "aggregation='token_mean'"
        )
    floor, cap = cells["mismatch_floor"], cells["mismatch_cap"]
    if floor > 0.0 and (cap is None or cells["mismatch_mode"] != "mask" or floor > cap):
        raise ValueError(
            f"mismatch_floor={floor} bounds a masked weight from below: it needs mismatch_mode='mask' and a "
            f"mismatch_cap above it, found {cells['mismatch_mode']!r} and {cap}"
        )
    penalty_teaches = cells["kl_coef"] > 0.0 and cells["kl_place"] != "reward"
    if cells["reward"] == "none" and not penalty_teaches and cells["entropy_coef"] == 0.0:
        raise ValueError(
            f"reward='none' with kl_coef={cells['kl_coef']} and kl_place={cells['kl_place']!r} leaves nothing to "
            "learn: give a reward, or kl_coef above 0 with kl_place='loss'"
        )
    if cap is not None and cells["ratio_base"] == "sampler" and cells["surrogate"] != "log_likelihood":
        raise ValueError(
            f"mismatch_cap={cap} corrects anchor / sampler, which ratio_base='sampler' has in its ratio already; leave "
            "one of them out"
        )


def check_demonstrations(cells: Mapping[str, Any]) -> None:
    """ValueError for a cell that compares completions, or needs a sampler's log-probs or a reward: demonstrations are
    groups of one and have neither."""
    for key, only in _OF_DEMONSTRATIONS.items():
        if cells[key] != only:
            raise ValueError(
                f"{key}={cells[key]!r} needs completions sampled from the policy, but source={cells['source']!r}; "
                f"use {key}={only!r}"
            )
    for key in ("baseline", "scale"):
        if cells[key] != "none":
            raise ValueError(
                f"{key}={cells[key]!r} compares the completions of a group, but source={cells['source']!r} has groups "
                f"of one; use {key}='none'"
            )
    if cells["mismatch_cap"] is not None:
        raise ValueError(
            f"mismatch_cap={cells['mismatch_cap']} weighs tokens by their sampler's log-probs, which "
            f"source={cells['source']!r} does not have; leave it out"
        )


def check_preferences(cells: Mapping[str, Any]) -> None:
    """ValueError for a cell that means nothing where completions come in a given order."""
    wanted: dict[str, tuple[Any, ...]] = {
        **{key: (only,) for key, only in _OF_DEMONSTRATIONS.items()},
        "surrogate": PAIRWISE,
        "baseline": ("none",),
        "scale": ("none",),
        "ratio_level": ("token",),
        "aggregation": ("completion_sum", "completion_mean"),
        "mismatch_cap": (None,),
    }
    for key, choices in wanted.items():
        if cells[key] not in choices:
            raise ValueError(
                f"{key}={cells[key]!r} has no meaning where source='preferences'; use {' or '.join(map(repr, choices))}"
            )
    if cells["trains"] == "reward_model" and cells["kl_coef"]:
        raise ValueError(f"kl_coef={cells['kl_coef']}: a reward model has no reference to be near to; leave it at 0")
    if cells["trains"] == "policy" and not cells["kl_coef"] > 0:
        raise ValueError(f"kl_coef={cells['kl_coef']}: it is the beta of the loss of preferences, and must be above 0")


def check_number(key: str, value: object, *, low: float, or_infinite: bool = False) -> None:
    """ValueError unless `value` is a number of at least `low`, and finite unless infinity means something."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{key}={value!r}: must be a number")
    if not value >= low or (math.isinf(value) and not or_infinite):
        bound = "" if math.isinf(low) else " and above 0" if 0.0 < low < 1e-300 else f" and at least {low:g}"
        raise ValueError(f"{key}={value}: must be a number{'' if or_infinite else ', finite'}{bound}")


def check_labels(cells: Mapping[str, Any]) -> None:
    """ValueError for a cell that means nothing where a reward model learns the numbers that completions have."""
    wanted = {**_OF_DEMONSTRATIONS, "baseline": "none", "scale": "none", "trains": "reward_model"}
    wanted |= {"kl_coef": 0.0, "label_smoothing": 0.0, "mismatch_cap": None, "entropy_coef": 0.0}
    for key, only in wanted.items():
        if key not in ("surrogate", "supervision") and cells[key] != only:
            raise ValueError(f"{key}={cells[key]!r} has no meaning where source='labels'; use {key}={only!r}")
    if cells["surrogate"] not in POINTWISE:
        listed = " or ".join(map(repr, POINTWISE))
        raise ValueError(f"surrogate={cells['surrogate']!r} has no meaning where source='labels'; use {listed}")
