"""The table of presets, frozen here so that a change to it is a decision."""

import dataclasses
import math
import re

import pytest

from outscore.algorithms.presets import PRESETS
from outscore.algorithms.rows import ALGORITHMS, Algorithm, algorithm

GRPO = {
    "source": "policy",
    "trains": "policy",
    "supervision": "outcome",
    "reward": "total",
    "baseline": "group_mean",
    "scale": "population_std",
    "advantage_eps": 1e-6,
    "batch_norm": "none",
    "gae_lambda": 0.95,
    "critic_lambda": None,
    "lambda_alpha": None,
    "value_clip": 0.2,
    "whiten_rewards": False,
    "zero_negative": False,
    "ratio_level": "token",
    "ratio_base": "anchor",
    "surrogate": "clipped",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "gate_positive": 1.0,
    "gate_negative": 1.05,
    "aggregation": "completion_mean",
    "aggregation_constant": None,
    "kl_estimator": "k3",
    "kl_coef": 0.04,
    "kl_place": "loss",
    "kl_level": "token",
    "kl_to": "reference",
    "kl_adapt_to": None,
    "kl_horizon": 10_000,
    "kl_weighted": False,
    "mismatch_cap": None,
    "mismatch_floor": 0.0,
    "mismatch_mode": "truncate",
    "mismatch_level": "token",
    "stale_threshold": None,
    "entropy_coef": 0.0,
    "label_smoothing": 0.0,
}
WHOLE = {"ratio_level": "sequence", "mismatch_level": "sequence"}
POINTS: dict[str, object] = {
    "source": "labels",
    "trains": "reward_model",
    "baseline": "none",
    "scale": "none",
    "surrogate": "cross_entropy",
    "kl_coef": 0.0,
}
PAIRS: dict[str, object] = {
    "source": "preferences",
    "baseline": "none",
    "scale": "none",
    "surrogate": "logistic",
    "aggregation": "completion_sum",
    "kl_coef": 0.1,
}
PPO: dict[str, object] = {"baseline": "critic", "scale": "none", "batch_norm": "whiten"}
VC: dict[str, object] = PPO | {"critic_lambda": 1.0, "aggregation": "token_mean", "kl_coef": 0.0}
OTHERS: dict[str, dict[str, object]] = {
    "sft": {
        "source": "demonstrations",
        "baseline": "none",
        "scale": "none",
        "surrogate": "log_likelihood",
        "aggregation": "token_mean",
        "kl_coef": 0.0,
    },
    "pretrain": {
        "source": "texts",
        "baseline": "none",
        "scale": "none",
        "surrogate": "log_likelihood",
        "aggregation": "token_mean",
        "kl_coef": 0.0,
    },
    "rft": {
        "source": "samples",
        "baseline": "none",
        "scale": "none",
        "surrogate": "log_likelihood",
        "aggregation": "token_mean",
        "kl_coef": 0.0,
    },
    "distillation": {
        "reward": "none",
        "baseline": "none",
        "scale": "none",
        "surrogate": "log_likelihood",
        "aggregation": "token_mean",
        "kl_to": "teacher",
        "kl_estimator": "k2",
        "kl_coef": 1.0,
    },
    "dpo": PAIRS,
    "dpo-mean": PAIRS | {"aggregation": "completion_mean", "kl_coef": 2.0},
    "cdpo": PAIRS | {"label_smoothing": 0.1},
    "ipo": PAIRS | {"surrogate": "squared"},
    "reward-model": PAIRS | {"trains": "reward_model", "kl_coef": 0.0},
    "process-reward-model": POINTS | {"supervision": "process"},
    "outcome-reward-model": POINTS,
    "online-rft": {
        "reward": "correct",
        "baseline": "none",
        "scale": "none",
        "surrogate": "log_likelihood",
        "kl_coef": 0.0,
    },
    "grpo-r1": WHOLE | {"kl_level": "sequence", "clip_low": 10.0, "clip_high": 10.0, "kl_coef": 0.001},
    "dr-grpo": {"scale": "none", "aggregation": "constant", "kl_coef": 0.0},
    "maxrl": {"scale": "mean", "kl_coef": 0.0},
    "dapo-loss": {"aggregation": "token_mean", "clip_high": 0.28, "kl_coef": 0.0},
    "dapo": {"aggregation": "token_mean", "clip_high": 0.28, "kl_coef": 0.0},
    "lite-ppo": {"scale": "batch_std", "aggregation": "token_mean", "kl_coef": 0.0},
    "gdpo": {"reward": "parts", "batch_norm": "completions", "kl_coef": 0.0},
    "deepseek-v3.2": {"scale": "none", "kl_weighted": True, "stale_threshold": 0.1},
    "gspo": {"ratio_level": "sequence_mean", "clip_low": 3e-4, "clip_high": 4e-4, "kl_coef": 0.0},
    "cispo": {
        "surrogate": "capped_weight",
        "clip_low": math.inf,
        "clip_high": 4.0,
        "aggregation": "token_mean",
        "kl_coef": 0.0,
    },
    "sapo": {"surrogate": "soft_gate", "kl_coef": 0.0},
    "dppo": {
        "surrogate": "tv_masked",
        "ratio_base": "sampler",
        "clip_low": 0.15,
        "clip_high": 0.15,
        "scale": "none",
        "aggregation": "constant",
        "kl_coef": 0.0,
    },
    "rloo": WHOLE
    | {
        "baseline": "leave_one_out",
        "scale": "none",
        "surrogate": "log_likelihood",
        "kl_estimator": "k1",
        "kl_place": "reward",
        "kl_coef": 0.03,
    },
    "reinforce++": {
        "baseline": "none",
        "scale": "none",
        "batch_norm": "tokens",
        "aggregation": "token_mean",
        "kl_estimator": "k1",
        "kl_place": "token_reward",
        "kl_coef": 0.001,
    },
    "reinforce++-baseline": {
        "scale": "none",
        "batch_norm": "tokens",
        "aggregation": "token_mean",
        "kl_estimator": "k2",
        "kl_coef": 0.001,
    },
    "kimi-k1.5": WHOLE
    | {
        "scale": "none",
        "surrogate": "log_likelihood",
        "kl_to": "anchor",
        "kl_level": "sequence",
        "kl_estimator": "k2",
        "kl_coef": 0.1,
    },
    "ppo": PPO | {"kl_estimator": "k1", "kl_place": "token_reward", "kl_coef": 0.05},
    "vc-ppo": VC,
    "vapo": VC | {"lambda_alpha": 0.05, "clip_high": 0.28},
}
"""What each preset has that GRPO has not."""


def _cells(name: str) -> dict[str, object]:
    cells = dataclasses.asdict(ALGORITHMS[name])
    assert cells.pop("name") == name
    return cells


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets(name: str) -> None:
    assert _cells(name) == GRPO | OTHERS.get(name, {})


def test_every_preset_is_described_and_says_who_says_so() -> None:
    assert list(PRESETS) == [name for name in ALGORITHMS if name in PRESETS]
    for preset in PRESETS.values():
        assert re.search(r"arXiv \d{4}\.\d{5}", preset.paper), preset.name
        assert preset.equation and len(preset.name) <= 20 and len(preset.summary) <= 56
        assert all(preset.cells[cell] != GRPO[cell] for cell in preset.cells), preset.name


def test_what_a_row_needs() -> None:
    assert algorithm("grpo").needs_reference and not algorithm("grpo", kl_coef=0.0).needs_reference
    assert not algorithm("kimi-k1.5").needs_reference and algorithm("kimi-k1.5").needs_anchor
    assert algorithm("grpo").needs_anchor and not algorithm("rloo").needs_anchor and not algorithm("sft").needs_anchor
    distilled = algorithm("distillation")
    assert distilled.needs_teacher and not (distilled.needs_reference or distilled.needs_anchor)
    assert not algorithm("grpo").needs_teacher
    assert algorithm("dppo").needs_sampler and not algorithm("dppo").needs_anchor
    assert algorithm("grpo", mismatch_cap=2.0).needs_sampler and not algorithm("grpo").needs_sampler
    assert {name for name, row in ALGORITHMS.items() if row.needs_whole_completions} == {
        *("grpo-r1", "gspo", "rloo", "kimi-k1.5", "deepseek-v3.2"),
        *("dpo", "dpo-mean", "cdpo", "ipo", "reward-model"),
    }
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
        (
            "zzz",
            {},
            "known: pretrain, sft, rft, online-rft, distillation, dpo, dpo-mean, cdpo, ipo, reward-model",
        ),
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
        ("sft", {"zero_negative": True}, "zero_negative=True .*use zero_negative=False"),
        ("sft", {"reward": "correct"}, "reward='correct' .*use reward='total'"),
        ("grpo", {"zero_negative": 1}, "zero_negative=1: must be true or false"),
        ("grpo", {"mismatch_floor": 0.5}, "mismatch_floor=0.5 .*mismatch_mode='mask'"),
        ("grpo", {"mismatch_floor": 3.0, "mismatch_cap": 2.0, "mismatch_mode": "mask"}, "mismatch_cap above it"),
        (
            "grpo",
            {"mismatch_mode": "mask"},
            "mismatch_mode='mask' has no effect with mismatch_cap=None; it counts where mismatch_cap is not null",
        ),
        ("dppo", {"mismatch_cap": 2.0}, "leave one of them out"),
        ("dppo", {"ratio_level": "sequence"}, "surrogate='tv_masked' does not go with ratio_level='sequence'"),
        ("distillation", {"kl_place": "token_reward"}, "kl_to='teacher' does not go with kl_place='token_reward'"),
        ("kimi-k1.5", {"kl_place": "reward"}, "kl_to='anchor' does not go with kl_place='reward'"),
        ("gdpo", {"supervision": "process"}, "supervision='process' does not go with reward='parts'"),
        ("rloo", {"supervision": "process"}, "does not go with baseline='leave_one_out': .*use 'group_mean'"),
        ("grpo", {"baseline": "shrunk_mean"}, "does not go with scale='population_std': .*use 'none' or 'batch_std'"),
        ("gdpo", {"baseline": "shrunk_mean"}, "reward='parts' does not go with baseline='shrunk_mean'"),
        ("dr-grpo", {"baseline": "shrunk_mean", "supervision": "process"}, "baseline='shrunk_mean': .*'group_mean'"),
        ("sapo", {"gate_positive": 0.0}, "gate_positive=0.0"),
        ("grpo", {"stale_threshold": math.inf}, "stale_threshold=inf"),
        ("grpo", {"surrogate": "cross_entropy"}, "surrogate='cross_entropy' is of scores, but source='policy' has no"),
        ("outcome-reward-model", {"surrogate": "clipped"}, "source='labels'; use 'cross_entropy' or 'squared_error'"),
        ("process-reward-model", {"kl_coef": 0.1}, "kl_coef=0.1 has no meaning where source='labels'"),
        ("process-reward-model", {"trains": "policy"}, "use trains='reward_model'"),
        ("sft", {"aggregation": "prompt_mean"}, "source='demonstrations' has none; use aggregation='token_mean'"),
        ("sft", {"baseline": "group_mean"}, "baseline='group_mean' .*groups of one"),
        (
            "distillation",
            {"kl_coef": 0.0},
            "reward='none' with kl_coef=0.0 and kl_place='loss' leaves nothing to learn",
        ),
        ("grpo", {"reward": "none", "kl_place": "reward"}, "kl_place='reward' leaves nothing to learn"),
        ("process-reward-model", {"surrogate": "squared_error"}, "labels of steps are chances; use 'cross_entropy'"),
        ("gspo", {"supervision": "process"}, "supervision='process' .*sequence_mean'.*use 'sequence_mean_token'"),
        ("grpo-r1", {"supervision": "process"}, "supervision='process' .*ratio_level='sequence'.*use 'token'"),
        ("ppo", {"ratio_level": "sequence"}, "baseline='critic' does not go with ratio_level='sequence'"),
        ("reinforce++", {"ratio_level": "sequence_mean"}, "kl_place='token_reward' does not go with ratio_level"),
        ("sft", {"clip_high": 0.3}, "clip_high=0.3 has no effect with surrogate='log_likelihood'; it counts where"),
        ("dpo", {"clip_low": 0.3}, "surrogate is 'clipped' or 'capped_weight' or 'tv_masked'"),
        ("grpo", {"gate_positive": 2.0}, "gate_positive=2.0 has no effect .* surrogate is 'soft_gate'"),
        ("grpo", {"aggregation_constant": 99}, "no effect with aggregation='completion_mean'"),
        ("grpo", {"mismatch_level": "sequence"}, "no effect with mismatch_cap=None"),
        ("grpo", {"kl_horizon": 9}, "kl_horizon=9 has no effect with kl_adapt_to=None"),
        ("grpo", {"kl_weighted": True, "kl_coef": 0.0}, "kl_weighted=True has no effect with kl_coef=0.0"),
        (
            "grpo",
            {"kl_weighted": True, "kl_place": "reward"},
            "no effect with kl_place='reward'; .* kl_place is 'loss'",
        ),
        ("rloo", {"ratio_base": "sampler"}, "ratio_base='sampler' has no effect with surrogate='log_likelihood'"),
        ("vapo", {"gae_lambda": 0.9}, "gae_lambda=0.9 has no effect with lambda_alpha=0.05"),
        (
            "outcome-reward-model",
            {"supervision": "process"},
            "supervision='process' has no effect with source='labels'",
        ),
    ],
)
def test_wrong_names_and_values_are_refused_with_the_nearest_right_one(
    name: str, overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm(name, **overrides)


def test_a_cell_that_nothing_reads_may_be_given_as_it_is() -> None:
    """A recipe may say what its row has anyway, and leave standing what another row of it would need."""
    assert algorithm("sft", clip_high=0.2, kl_estimator="k3") == ALGORITHMS["sft"]
    assert algorithm("deepseek-v3.2", kl_coef=0.0).kl_weighted
    assert algorithm("distillation", kl_coef=0.0, entropy_coef=0.1).needs_teacher is False


def test_every_cell_has_a_docstring() -> None:
    import ast
    import inspect

    (row,) = ast.parse(inspect.getsource(Algorithm)).body
    assert isinstance(row, ast.ClassDef)
    for cell, below in zip(row.body, row.body[1:], strict=False):
        if isinstance(cell, ast.AnnAssign):
            assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant), ast.unparse(cell)
