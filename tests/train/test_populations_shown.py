"""What a person is told of populations outside of training: `outscore check`, `outscore eval`, and several ranks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from outscore.cli import app
from outscore.config import parse_recipe
from outscore.objectives.populations import population_losses
from outscore.report import RunDirectory
from outscore.stage_parts import PopulationSettings
from outscore.stages import PreferenceSettings
from outscore.train.check import check_recipe
from outscore.train.inspect import evaluate_target, last_population_weights
from outscore.train.populations import PopulationWeights, reward_pairs, stage_weights
from outscore.train.run import run_recipe
from outscore.train.setup import prepare

TINY = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
OPINIONS = {"kind": "synthetic_opinions", "sizes": {"a": 10, "b": 20}, "differences": {"a": 0.5, "b": 0.0}}
IPO: dict[str, Any] = {"algorithm": "ipo", "steps": 3, "batch_size": 4, "optimizer": {"lr": 1e-2}}
SFT = {"algorithm": "sft", "steps": 1, "batch_size": 4, "optimizer": {"lr": 1e-2}}


def recipe(**populations: Any) -> dict[str, Any]:
    stages = [SFT, {**IPO, "populations": populations}]
    return {"model": TINY, "task": OPINIONS, "stages": stages, "evaluation": {"problems": 9}}


def test_eval_compares_with_the_reference_of_the_stage_and_tells_the_last_weights(tmp_path: Path) -> None:
    run = RunDirectory.open(run_recipe(recipe(step_size=0.02), tmp_path / "run").path)
    after, last = run.evaluations()[-1], run.metrics("ipo")[-1]
    assert after.metrics["preference_loss"] != pytest.approx(25.0)  # the policy has left its reference
    for target in (run.path, run.checkpoint_path("ipo", 3)):
        found, _ = evaluate_target(str(target))
        assert found.metrics == pytest.approx(after.metrics)
        assert last_population_weights(str(target)) == {name: last[f"population_weight/{name}"] for name in ("a", "b")}
    # Of another stage there is no reference, and nothing was weighed.
    found, _ = evaluate_target(str(run.checkpoint_path("sft", 1)))
    assert "likelihood_accuracy/a" in found.metrics and "preference_loss" not in found.metrics
    assert last_population_weights(str(run.checkpoint_path("sft", 1))) == {}
    said = CliRunner().invoke(app, ["eval", str(run.path)]).output
    assert "weight %" in said and "spread" in said and f"{100 * last['population_weight/a']:.1f}" in said
    data = json.loads(CliRunner().invoke(app, ["eval", str(run.path), "--json"]).output)
    assert data["population_weights"]["b"] == last["population_weight/b"]
    assert data["metrics"]["worst/preference_loss"] == pytest.approx(after.metrics["worst/preference_loss"])


def test_check_tells_the_populations_their_sizes_and_first_weights() -> None:
    told = [each for each in check_recipe(parse_recipe(recipe())) if each.what == "populations"]
    assert [(each.status, each.detail) for each in told] == [
        (
            "ok",
            "stage ipo: training examples of each (and its weight): a 8 (50%), b 16 (50%); robust, from these weights",
        ),
        ("warn", "stage ipo: population 'a' has 1 held-out example, so evaluations say little of it"),
    ]
    fixed = parse_recipe(recipe(weights={"a": 0.25, "b": 0.75}))
    assert any("a 8 (25%), b 16 (75%); these weights stay" in each.detail for each in check_recipe(fixed))


@pytest.mark.parametrize(
    ("cells", "step_size", "told"),
    [
        ({"kl_coef": 0.1}, 0.04, ""),  # 25 * 0.04 = 1
        (
            {"kl_coef": 0.1},
            0.05,
            r"step_size = 0.05 times the loss .* with \(25\) is 1.25: .* 0.04 ",
        ),
        ({"kl_coef": 0.01}, 0.01, r"\(2500\) is 25: a single batch may multiply a weight by e\^25; .* below 0.0004 "),
    ],
)
def test_a_step_size_that_makes_the_weights_jump_is_told(cells: dict[str, float], step_size: float, told: str) -> None:
    settings = recipe(step_size=step_size)
    settings["stages"][1]["cells"] = cells
    [*notices] = [notice for notice in prepare(parse_recipe(settings)).notices if "step_size" in notice]
    assert len(notices) == bool(told) and all(re.search(told, notice) for notice in notices)


@pytest.mark.parametrize(
    ("populations", "message"),
    [
        ({"step_size": -0.1}, "step_size"),
        ({"step_size": float("inf")}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"trade_off": -0.1}, "trade_off"),
        ({"initial": {"a": 0.0, "b": 1.0}}, r"population 'a' would stay 0 whatever it loses"),
        ({"draw": "uniform"}, "draw"),
    ],
)
def test_settings_that_would_lose_the_weights_are_refused(populations: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe(recipe(**populations))


NAMES = ["a", "b", "b", "a", "c", "b", "c", "a"]


def weights(**settings: Any) -> PopulationWeights:
    made = stage_weights(PreferenceSettings(steps=1, populations=PopulationSettings(**settings)), NAMES)
    assert made is not None
    return made[0]


def parts(values: torch.Tensor, index: torch.Tensor, own: PopulationWeights, num_ranks: int) -> list[torch.Tensor]:
    """What each rank finds of its part of an update; the second has no example of one population."""
    places = [list(range(rank, len(index), num_ranks)) for rank in range(num_ranks)]
    return [own.sums(values[:, place], index[place]) for place in places]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_that_add_up_their_sums_have_the_weights_of_one_process(num_ranks: int) -> None:
    """The law for several ranks: the state is a function of the reduced (sum, count) pairs alone, so it is identical
    on all of them, and that of a process which has the whole batch. The losses are divided by global counts."""
    whole = weights(step_size=0.3, trade_off=0.8)
    ranks = [weights(step_size=0.3, trade_off=0.8) for _ in range(num_ranks)]
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        index = whole.index(NAMES)[torch.randint(len(NAMES), (6,), generator=generator)]
        losses = torch.rand(6, generator=generator, dtype=torch.float64)
        found = torch.stack([losses / 6, torch.full((6,), 1 / 6, dtype=torch.float64)])
        whole.take(whole.sums(found, index))
        reduced = torch.stack(parts(found, index, whole, num_ranks)).sum(0)
        for rank in ranks:
            rank.take(reduced)
        # `population_losses` on the whole batch is what the climb is by
        exact = population_losses(losses, index, shares=whole.drawn, num_examples=6)
        assert torch.allclose(reduced[0] / whole.drawn, exact, atol=1e-12)
        assert all(torch.equal(rank.log_weights, ranks[0].log_weights) for rank in ranks)
        assert torch.allclose(ranks[0].log_weights, whole.log_weights, atol=1e-12, rtol=0)
        assert ranks[0].report.keys() == whole.report.keys()
        for name, (total, count) in whole.report.items():
            assert ranks[0].report[name] == (pytest.approx(total), pytest.approx(count)), name


def test_rewards_of_ranks_add_up_too() -> None:
    whole, rank = weights(step_size=2.0), weights(step_size=2.0)
    rewards, index = [0.2, None, 1.0, 0.5, 0.0], whole.index(["a", "b", "b", "c", "a"])
    whole.take_rewards(whole.sums(reward_pairs(rewards), index), 5)
    halves = [rank.sums(reward_pairs(rewards[part]), index[part]) for part in (slice(0, 2), slice(2, 5))]
    rank.take_rewards(halves[0] + halves[1], 5)
    assert torch.allclose(rank.log_weights, whole.log_weights, atol=1e-14)
    # shares 3/8, 3/8, 2/8 of eight examples: alpha ~ exp(-2 * sum / (5 s))
    powers = torch.tensor([-2 * 0.2 / (5 * 3 / 8), -2 * 1.0 / (5 * 3 / 8), -2 * 0.5 / (5 * 2 / 8)], dtype=torch.float64)
    assert torch.allclose(whole.weights, torch.softmax(powers, 0), atol=1e-12)
    assert whole.report["population_reward/b"] == (1.0, 1.0)
