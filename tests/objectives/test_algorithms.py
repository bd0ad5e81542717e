"""The table of presets, frozen here so that a change to it is a decision."""

import dataclasses
import math

import pytest

from outscore.objectives import ALGORITHMS, Algorithm, algorithm


def _cells(name: str) -> tuple[object, ...]:
    row = ALGORITHMS[name]
    return row.baseline, row.scale, row.ratio_level, row.clip_low, row.clip_high, row.aggregation, row.kl_coef


def test_the_presets() -> None:
    assert {name: _cells(name) for name in ALGORITHMS if name != "sft"} == {
        "grpo": ("group_mean", "population_std", "token", 0.2, 0.2, "completion_mean", 0.04),
        "grpo-r1": ("group_mean", "population_std", "sequence", 10.0, 10.0, "completion_mean", 0.001),
        "dr-grpo": ("group_mean", "none", "token", 0.2, 0.2, "constant", 0.0),
        "maxrl": ("group_mean", "mean", "token", 0.2, 0.2, "completion_mean", 0.0),
        "dapo-loss": ("group_mean", "population_std", "token", 0.2, 0.28, "token_mean", 0.0),
        "dpo": ("none", "none", "token", 0.2, 0.2, "completion_sum", 0.1),
        "dpo-mean": ("none", "none", "token", 0.2, 0.2, "completion_mean", 2.0),
        "cdpo": ("none", "none", "token", 0.2, 0.2, "completion_sum", 0.1),
        "ipo": ("none", "none", "token", 0.2, 0.2, "completion_sum", 0.1),
        "reward-model": ("none", "none", "token", 0.2, 0.2, "completion_sum", 0.0),
    }
    pairwise = {row.name: (row.surrogate, row.label_smoothing) for row in ALGORITHMS.values() if row.is_pairwise}
    assert pairwise == {
        "dpo": ("logistic", 0.0),
        "dpo-mean": ("logistic", 0.0),
        "cdpo": ("logistic", 0.1),
        "ipo": ("squared", 0.0),
        "reward-model": ("logistic", 0.0),
    }
    assert {row.name for row in ALGORITHMS.values() if row.trains == "reward_model"} == {"reward-model"}
    assert set(pairwise) == {name for name, row in ALGORITHMS.items() if row.source == "preferences"}
    assert all(row.kl_estimator == "k3" and row.kl_place == "loss" for row in ALGORITHMS.values())
    assert {name for name, row in ALGORITHMS.items() if row.source == "demonstrations"} == {"sft"}
    sft = ALGORITHMS["sft"]
    assert (sft.surrogate, sft.aggregation, sft.baseline) == ("log_likelihood", "token_mean", "none")


def test_what_a_row_needs() -> None:
    assert algorithm("grpo").needs_reference and not algorithm("grpo", kl_coef=0.0).needs_reference
    assert algorithm("grpo").compares_completions and not algorithm("sft").compares_completions


def test_overrides_replace_cells_and_leave_the_preset_alone() -> None:
    row = algorithm("grpo", clip_high=0.28, kl_coef=0)
    assert (row.clip_high, row.kl_coef, row.clip_low) == (0.28, 0, 0.2)
    assert ALGORITHMS["grpo"].clip_high == 0.2
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.clip_high = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("gpro", {}, r"'gpro' is not known; did you mean `grpo`\?"),
        ("zzz", {}, "known: sft, grpo, grpo-r1, dr-grpo, maxrl, dapo-loss, dpo"),
        ("grpo", {"clip_hihg": 0.3}, "'clip_hihg' is not a cell of an algorithm; did you mean `clip_high`"),
        ("grpo", {"name": "mine"}, "'name' is not a cell"),
        ("grpo", {"ratio_level": "tokens"}, "ratio_level='tokens' is not known; did you mean `token`"),
        ("grpo", {"scale": ["x"]}, "scale="),
        ("grpo", {"clip_low": -0.1}, "clip_low=-0.1"),
        ("grpo", {"clip_low": "0.2"}, "clip_low='0.2': must be a number"),
        ("grpo", {"clip_high": math.nan}, "clip_high=nan"),
        ("grpo", {"kl_coef": math.inf}, "kl_coef=inf"),
        ("grpo", {"advantage_eps": True}, "advantage_eps=True"),
        ("grpo", {"mismatch_cap": 0.0}, "mismatch_cap=0.0"),
        ("grpo", {"entropy_coef": math.nan}, "entropy_coef=nan"),
        ("dr-grpo", {"aggregation_constant": 0}, "aggregation_constant=0"),
        ("dr-grpo", {"aggregation_constant": 1.5}, "aggregation_constant=1.5"),
        ("grpo", {"source": "demonstrations"}, "source='demonstrations'"),
        ("sft", {"mismatch_cap": 2.0}, "mismatch_cap=2.0 .*sampler's log-probs"),
        ("sft", {"kl_coef": 0.1, "kl_place": "reward"}, "kl_place='reward' .*use kl_place='loss'"),
        ("sft", {"baseline": "group_mean"}, "baseline='group_mean' .*groups of one"),
    ],
)
def test_wrong_names_and_values_are_refused_with_the_nearest_right_one(
    name: str, overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm(name, **overrides)


def test_every_cell_has_a_docstring() -> None:
    import ast
    import inspect

    (row,) = ast.parse(inspect.getsource(Algorithm)).body
    assert isinstance(row, ast.ClassDef)
    for cell, below in zip(row.body, row.body[1:], strict=False):
        if isinstance(cell, ast.AnnAssign):
            assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant), ast.unparse(cell)
