"""The study of a reward model's generalisation: what it measures, against numbers worked by hand."""

import math

import pytest

from outscore.config import parse_recipe
from outscore.stages import PolicySettings
from outscore.studies.reward_quality.generalisation import (
    CHOSEN,
    KINDS,
    Judged,
    _figure,
    claims,
    measures,
    recipe,
)


def test_a_right_sample_should_score_above_each_wrong_one_of_its_problem() -> None:
    mixed = Judged(scores=(2.0, -1.0, 0.5, 0.5), right=(True, False, True, False))
    # Pairs (right, wrong): 2 > -1, 2 > 0.5, 0.5 > -1, 0.5 = 0.5.
    assert mixed.ranking == pytest.approx(3.5 / 4)
    assert mixed.best == Judged(scores=(2.0,), right=(True,))
    assert Judged(scores=(1.0, 2.0), right=(True, True)).ranking is None
    assert Judged(scores=(1.0, 1.0), right=(False, True)).best.right == (False,)


def test_measures_are_over_samples_and_the_ranking_is_over_problems() -> None:
    odds = math.log(3.0)  # a chance of 3/4
    found = measures(
        [Judged(scores=(odds, -odds), right=(True, False)), Judged(scores=(odds, odds), right=(False, False))]
    )
    assert found["right"] == 0.25 and found["said"] == pytest.approx((3 * 0.75 + 0.25) / 4)
    assert found["label accuracy"] == 0.5 and found["ranking"] == 1.0
    # Two bins: three of 3/4, of which a third is right, and one of 1/4 that is wrong.
    assert found["calibration error"] == pytest.approx(3 / 4 * (0.75 - 1 / 3) + 1 / 4 * 0.25)
    assert measures([Judged(scores=(odds,), right=(True,))])["ranking"] is None


def test_the_reward_model_sees_sums_alone_and_policies_differ_in_their_reward_alone() -> None:
    made = {stage.label: stage for stage in parse_recipe(recipe(2)).stages}
    assert list(dict(made["judge"].task or {})["operations"]) == ["+"]
    rule, learned = made["rule"], made["learned"]
    assert isinstance(rule, PolicySettings) and isinstance(learned, PolicySettings)
    rest = {"name", "rewards"}
    assert rule.model_dump(exclude=rest) == learned.model_dump(exclude=rest)
    assert {stage for stage, _ in KINDS.values()} == {"sft", "rule", "learned"}


def test_claims_are_about_the_kind_it_was_trained_on() -> None:
    def found(ranking: float, said: float) -> dict[str, float | None]:
        return {"right": 0.5, "said": said, "label accuracy": 0.5, "ranking": ranking, "calibration error": 0.1}

    worse = {kind: [found(0.6, 0.5), found(0.62, 0.5)] for kind in KINDS}
    worse |= {"as trained on": [found(0.9, 0.5), found(0.91, 0.5)], CHOSEN: [found(0.9, 0.8), found(0.9, 0.81)]}
    assert [claim.holds for claim in claims(worse)] == [True] * 4
    assert not any(claim.holds for claim in claims({kind: [found(0.6, 0.5)] * 2 for kind in KINDS}))
    # A seed without a pair of right and wrong counts for nothing; one seed alone says nothing.
    unranked = {**found(0.6, 0.5), "ranking": None}
    [first, *_] = claims(
        worse
        | {
            "other questions": [found(0.6, 0.5), found(0.62, 0.5), unranked],
            "as trained on": [found(0.9, 0.5), found(0.91, 0.5), found(0.9, 0.5)],
            "stronger": [unranked] * 3,
            "paid by it": [unranked] * 3,
        }
    )
    assert first.holds
    [_, second, *_] = claims({kind: [found(0.6, 0.5), unranked] for kind in KINDS})
    assert not second.holds and second.measured == "nothing to rank in most seeds"


def test_what_only_one_seed_could_rank_is_not_drawn() -> None:
    told: dict[str, float | None] = {"label accuracy": 0.5, "ranking": 0.9, "calibration error": 0.1}
    [ranking, accuracy, _] = _figure(
        {"as trained on": [told] * 3, "paid by it": [told, {**told, "ranking": None}]}
    ).panels
    assert [series.label for series in ranking.series] == ["as trained on"]
    assert [series.label for series in accuracy.series] == ["as trained on", "paid by it"]
