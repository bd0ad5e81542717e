"""The bandit study: exact laws per seed, what it hands back on few seeds, and the paper's orderings on all twenty."""

import csv
import json
from pathlib import Path

import pytest
import torch

from outscore.studies.group_robust.bandit import SCENARIOS, draw
from outscore.studies.group_robust.log_linear import PairData, feature_margins, margin_losses
from outscore.studies.group_robust.log_linear_optimum import fixed_weight_optimum, robust_optimum
from outscore.studies.group_robust.measure import mean_and_sem, measure
from outscore.studies.group_robust.settings import CHIS, METHODS, SETUPS, Steps
from outscore.studies.group_robust.study import methods_of
from outscore.studies.records import StudyResult
from outscore.studies.registry import run_study

KINDS = {"logistic": 1.0, "squared": 0.1}


@pytest.fixture(scope="module")
def figure_6() -> StudyResult:
    return run_study("group-robust-bandit", num_seeds=3, overrides=["figures=[6]"])


def pairs(scenario: str, num_seeds: int = 20) -> PairData:
    data = draw(SCENARIOS[scenario], "swapped", num_seeds)
    return PairData.of(data.train, data.train_index)


def worst_and_mean(data: PairData, theta: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    margins = feature_margins(data.differences, theta)
    losses = margin_losses(margins, kind=kind, beta=KINDS[kind]) @ data.averaging  # type: ignore[arg-type]
    return losses.amax(-1), losses.mean(-1)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_on_the_training_pairs_robust_is_best_in_every_seed(scenario: str, kind: str) -> None:
    """By definition of the saddle point: no other weights have a smaller worst loss."""
    data = pairs(scenario)
    robust, _ = worst_and_mean(data, robust_optimum(data, kind=kind, beta=KINDS[kind])[0], kind)  # type: ignore[arg-type]
    for weights in (data.shares, torch.full((2,), 0.5, dtype=torch.float64)):
        theta = fixed_weight_optimum(data, weights.expand(20, -1), kind=kind, beta=KINDS[kind])  # type: ignore[arg-type]
        assert bool((robust <= worst_and_mean(data, theta, kind)[0] + 1e-9).all())


@pytest.mark.parametrize("kind", list(KINDS))
def test_chi_trades_the_mean_for_the_worst_case_in_every_seed(kind: str) -> None:
    """Exact optima of (1 - chi) mean + chi max: the maximum never rises with chi, and the mean never falls."""
    data = pairs("uneven-imbalanced", 5)
    found = [
        worst_and_mean(data, robust_optimum(data, kind=kind, beta=KINDS[kind], tradeoff=chi)[0], kind)  # type: ignore[arg-type]
        for chi in CHIS
    ]
    worst, mean = torch.stack([w for w, _ in found]), torch.stack([m for _, m in found])
    assert bool((worst.diff(dim=0) <= 1e-6).all()) and bool((mean.diff(dim=0) >= -1e-6).all())
    assert bool((worst[0] > worst[-1]).all()) and bool((mean[0] < mean[-1]).all())


def test_at_the_optimum_the_order_of_the_means_is_the_papers() -> None:
    """GR < IS < plain in the largest validation loss over 20 seeds, in scenario (iii) at convergence."""
    data = draw(SCENARIOS["uneven-imbalanced"], "swapped", 20)
    for family, beta in (("DPO", 1.0), ("IPO", 0.1)):
        steps = Steps(beta=beta, step_size=0.5, weight_step=0.01, num_steps=1)
        found = measure(data, METHODS[family], family, steps, lambda step: None)  # type: ignore[index, arg-type]
        plain, sampled, robust = found.optimum["max_loss"].mean(dim=-1).tolist()
        assert robust < sampled < plain


def test_mean_and_standard_error_by_hand() -> None:
    mean, sem = mean_and_sem(torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64))
    assert mean.tolist() == [3.0] and sem.tolist() == pytest.approx([(7 / 3) ** 0.5], abs=1e-12)


def test_balanced_data_leave_importance_sampling_out() -> None:
    assert [method.name for method in methods_of(SETUPS[5], "DPO")] == ["DPO", "GR-DPO"]
    assert [method.name for method in methods_of(SETUPS[2], "IPO")] == ["IPO", "IS-IPO", "GR-IPO"]


def test_the_figures_of_the_paper() -> None:
    of = {number: (setup.scenario, setup.features) for number, setup in SETUPS.items()}
    assert of[2] == of[6] == ("uneven-imbalanced", "swapped") and of[4] == ("even-imbalanced", "swapped")
    assert of[5] == ("uneven-balanced", "swapped")
    for first, features in ((7, "same"), (10, "flipped")):
        scenarios = ["even-imbalanced", "uneven-balanced", "uneven-imbalanced"]
        assert [of[first + place] for place in range(3)] == [(name, features) for name in scenarios]


def test_a_study_is_deterministic_and_complete(figure_6: StudyResult) -> None:
    again = run_study("group-robust-bandit", num_seeds=3, overrides=["figures=[6]"])
    assert again == figure_6
    assert [row["method"] for row in figure_6.summary[::2]] == [f"χ={chi:g}" for chi in CHIS]
    assert {row["at"] for row in figure_6.summary} == {"100", "exact"}
    assert len(figure_6.curves) == len(CHIS) * 51
    assert figure_6.claims and all(claim.where == "fig. 6" for claim in figure_6.claims)
    first = figure_6.curves[0]
    assert first["step"] == 0 and first["weight_0"] == 0.5


def test_options_are_checked(figure_6: StudyResult) -> None:
    for overrides, message in (
        (["figures=[3]"], r"figures=\[3\]: the paper's figures are 2, 4, 5, 6, 7"),
        (["figures=[2]", "features=same"], "with features=same are 7, 8, 9"),
        (["features=swaped"], "swapped"),
        (["figure=[2]"], "did you mean `figures`"),
        (["settings=script"], "scripts"),
        (["num_seeds=4"], "the number of seeds is --seeds"),
    ):
        with pytest.raises(ValueError, match=message):
            run_study("group-robust-bandit", num_seeds=2, overrides=overrides)
    with pytest.raises(ValueError, match="did you mean `group-robust-bandit`"):
        run_study("group-robust-bandits")
    with pytest.raises(ValueError, match="at least 2"):
        run_study("group-robust-bandit", num_seeds=1)


@pytest.mark.slow
def test_figure_2_on_twenty_seeds(tmp_path: Path) -> None:
    """The orderings of the main figure, and the ranges within which this implementation's means lie."""
    from outscore.studies.output import write_result

    result = run_study("group-robust-bandit", overrides=["figures=[2]"])
    assert all(claim.holds for claim in result.claims if " < " in claim.claim)
    write_result(result, tmp_path / "out")
    with open(tmp_path / "out" / "summary.csv", encoding="utf-8") as file:
        loss = {(row["method"], row["at"]): float(row["loss"]) for row in csv.DictReader(file)}
    for family, published in (("DPO", "10000"), ("IPO", "100")):
        # The weights and theta have come near to where they lead.
        assert loss[f"GR-{family}", published] == pytest.approx(loss[f"GR-{family}", "exact"], rel=0.02)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["settings"]["seeds"] == 20
