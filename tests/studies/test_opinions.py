"""The study of opinions, small: what it compares, and what it hands back."""

import pytest

from outscore.config import parse_recipe
from outscore.studies import opinions
from outscore.studies.opinions import METHODS, NUM_EVAL, SFT_STEPS, STEPS, Outcome, recipe, run
from outscore.studies.registry import STUDIES
from outscore.tasks.synthetic_opinions import SIZES


def test_the_methods_differ_in_the_weights_of_the_populations_alone() -> None:
    parsed = parse_recipe(recipe(3, SFT_STEPS, STEPS, NUM_EVAL, 256))
    _, *methods = parsed.stages
    assert [stage.label for stage in methods] == list(METHODS)
    rest = [stage.model_dump(exclude={"name", "populations"}) for stage in methods]
    assert rest[0] == rest[1] == rest[2] and rest[0]["start"] == "sft"
    weights = [stage.populations.weights for stage in methods if stage.populations is not None]
    assert weights == ["shares", "equal", "robust"]


@pytest.mark.slow
def test_a_small_run_has_a_row_for_each_method_and_judges_every_claim() -> None:
    heard: list[str] = []
    result = run(
        num_seeds=2,
        progress=lambda part, done, total: heard.append(part),
        sft_steps=1,
        steps=2,
        num_eval=2,
        hidden_size=32,
    )
    assert heard == ["seed 0", "seed 1", "done"]
    assert [row["method"] for row in result.summary] == list(METHODS)
    assert {(row["method"], row["seed"], row["step"]) for row in result.curves} == {
        (name, seed, step) for name in METHODS for seed in (0, 1) for step in (1, 2)
    }
    for row in result.curves:
        losses = [row[f"preference_loss/{name}"] for name in SIZES]
        assert row["worst/preference_loss"] == max(losses)
        assert row["spread/preference_loss"] == pytest.approx(max(losses) - min(losses))
        assert sum(row[f"last_weight/{name}"] for name in SIZES) == pytest.approx(1.0)
    last = [row["worst/preference_loss"] for row in result.curves if row["method"] == "IPO" and row["step"] == 2]
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
        return [Outcome(evaluations=[found], weights=weights)] * 2

    claims = opinions._claims({"IPO": outcomes(3.0), "IS-IPO": outcomes(2.0), "GR-IPO": outcomes(1.0)})
    assert [claim.holds for claim in claims] == [True, False, False, False, True]
    assert "1, 2, 3; IPO - GR-IPO = 2 ± 0 by seed, > 0 in 2 of 2" in claims[0].measured
