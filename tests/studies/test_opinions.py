"""The study of opinions, small: what it compares, and what it hands back."""

import pytest

from outscore.config import parse_recipe
from outscore.studies import opinions
from outscore.studies.opinions import METHODS, NUM_EVAL, SFT_STEPS, STEPS, Outcome, recipe, run
from outscore.studies.registry import STUDIES
from outscore.tasks.synthetic_opinions import SIZES


def test_the_methods_differ_where_the_papers_do() -> None:
    """Section 5.2 and its appendix: weights, twice the rate for GR-IPO, and whose validation loss is watched."""
    parsed = parse_recipe(recipe(3, SFT_STEPS, STEPS, NUM_EVAL, 256))
    _, *methods = parsed.stages
    assert [stage.label for stage in methods] == list(METHODS)
    rest = [stage.model_dump(exclude={"name", "populations", "optimizer", "plateau"}) for stage in methods]
    assert rest[0] == rest[1] == rest[2] and rest[0]["start"] == "sft"
    assert rest[0]["cells"] == {"kl_coef": 0.01} and rest[0]["batch_size"] == 2 * 16
    rates = [stage.optimizer.lr for stage in methods]
    assert rates[2] == 2 * rates[0] == 2 * rates[1]
    assert {stage.optimizer.model_copy(update={"lr": 1.0}) for stage in methods} == {
        methods[0].optimizer.model_copy(update={"lr": 1.0})
    }
    plateaus = [stage.plateau for stage in methods if stage.plateau is not None]
    assert [each.metric for each in plateaus] == ["preference_loss", "preference_loss", "worst/preference_loss"]
    assert {(each.lr_factor, each.step_size_factor) for each in plateaus} == {(0.1, 0.5)}
    # The authors' alpha takes 5e-7 times N sum_i l_i / N_g of 16 pairs, twice an optimizer step; ours the mean of 32.
    robust = methods[2].populations
    assert robust is not None and robust.step_size == pytest.approx(2 * 5e-7 * 16)
    assert parsed.task["held_out"] == "validation"
    weights = [stage.populations.weights for stage in methods if stage.populations is not None]
    assert weights == ["shares", "equal", "robust"]


@pytest.mark.slow
def test_a_small_run_has_a_row_for_each_method_and_judges_every_claim() -> None:
    heard: list[str] = []
    result = run(
        num_seeds=2,
        progress=lambda part, done, total: heard.append(part),
        sft_steps=1,
        steps=6,
        num_eval=2,
        hidden_size=32,
    )
    assert heard == ["seed 0", "seed 1", "done"]
    assert [row["method"] for row in result.summary] == list(METHODS)
    places = [*(("validation", step) for step in range(1, 7)), ("test", 6)]
    assert [(row["method"], row["seed"], row["split"], row["step"]) for row in result.curves] == [
        (name, seed, *place) for name in METHODS for seed in (0, 1) for place in places
    ]
    for row in result.curves:
        losses = [row[f"preference_loss/{name}"] for name in SIZES]
        assert row["worst/preference_loss"] == max(losses)
        assert row["spread/preference_loss"] == pytest.approx(max(losses) - min(losses))
        assert sum(row[f"last_weight/{name}"] for name in SIZES) == pytest.approx(1.0)
    last = [row["worst/preference_loss"] for row in result.curves if (row["method"], row["split"]) == ("IPO", "test")]
    assert result.summary[0]["worst loss"] == pytest.approx(sum(last) / 2)
    assert result.summary[0]["± worst loss"] == pytest.approx(abs(last[0] - last[1]) / 2)
    assert len(result.claims) == 5 and len(result.figures[0].panels) == 3
    assert STUDIES["group-robust-opinions"].num_seeds == 5


def test_a_claim_holds_where_the_means_are_in_order() -> None:
    def outcomes(worst: float) -> list[Outcome]:
        metrics = dict.fromkeys(opinions.MEASURES, 0.5) | {"worst/preference_loss": worst}
        found = opinions.Evaluation(
            label="", stage="", step=1, policy_version=1, num_problems=1, samples=0, metrics=metrics
        )
        weights = dict.fromkeys(SIZES, 0.1) | {"China": 0.6}
        return [Outcome(evaluations=[found], test=found, weights=weights)] * 2

    claims = opinions._claims({"IPO": outcomes(3.0), "IS-IPO": outcomes(2.0), "GR-IPO": outcomes(1.0)})
    assert [claim.holds for claim in claims] == [True, False, False, False, True]
    assert "1, 2, 3; IPO - GR-IPO = 2 ± 0 by seed, > 0 in 2 of 2" in claims[0].measured
