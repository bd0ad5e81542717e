"""What becomes of a reward's values before they are added up."""

from itertools import product

import pytest
from rewards.building import group

from outscore.records import Score, ScoringFailure
from outscore.rewards import Rewards, make_reward
from outscore.rewards.shaping import Shaper, Shaping


def totals(specs, *texts, **problem):
    [scored] = Rewards(specs).score([group(*texts, **problem)], step=1).groups
    return [score.reward for score in scored.scores if isinstance(score, Score)]


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.1, 0.2), (0.3, 0.0), (0.45, 0.45)])
@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_backward_correction_is_unbiased_by_enumeration(rates, truth):
    """E[r̂ | r] = r under class-conditional flips."""
    high, low = rates
    seen = {1.0: 1 - low, 0.0: low} if truth else {1.0: high, 0.0: 1 - high}
    corrected = Shaping(flip_rates=rates)
    assert sum(p * corrected.one(value) for value, p in seen.items()) == pytest.approx(truth, abs=1e-12)


def test_the_mean_of_a_group_is_unbiased_over_all_flips_of_it():
    truths, (high, low) = (1.0, 0.0, 0.0), (0.1, 0.2)
    shaper = Shaper(["r"], [1.0], [Shaping(flip_rates=(high, low))])
    expected = 0.0
    for seen in product((0.0, 1.0), repeat=3):
        p = 1.0
        for truth, value in zip(truths, seen, strict=True):
            rate = low if truth else high
            p *= rate if value != truth else 1 - rate
        expected += p * sum(row[0] for row in shaper([[[value] for value in seen]])[0]) / 3
    assert expected == pytest.approx(1 / 3, abs=1e-12)


def test_a_reward_counts_only_if_another_holds():
    specs = [{"name": "format_tags", "weight": 0.5}, {"name": "last_number", "only_if": "format_tags"}]
    tagged = "<reasoning>\nx\n</reasoning>\n<answer>\n277\n</answer>\n"
    assert totals(specs, tagged, "277", tagged.replace("277", "305")) == [1.25, 0.0, 0.25]


def test_a_gate_of_partial_credit_holds_only_in_full():
    gate = {"name": "format_tags", "tags": ["think"], "soft": True, "weight": 0}
    specs = [gate, {"name": "last_number", "only_if": "format_tags"}]
    assert totals(specs, "<think>x</think> 277", "<think> 277") == [1.0, 0.0]


def test_a_gate_of_unknown_greatest_value_holds_above_zero_and_one_that_does_not_apply_lets_pass():
    def polite(completions):
        return [None if "?" in text else float("please" in text) for text in completions]

    specs = [{"name": polite, "weight": 0}, {"name": "last_number", "only_if": "polite"}]
    assert totals(specs, "please 277", "277", "277?") == [1.0, 0.0, 1.0]


def test_a_gate_looks_at_what_its_reward_said_before_shaping():
    specs = [{"name": "format_tags", "clip": [-1, 0]}, {"name": "last_number", "only_if": "format_tags"}]
    assert totals(specs, "<reasoning>\nx\n</reasoning>\n<answer>\n277\n</answer>\n") == [1.0]


def test_clipping_comes_after_the_correction():
    spec = {"name": "last_number", "flip_rates": [0.1, 0.2], "clip": [0, 1]}
    assert totals([spec], "277", "305") == [1.0, 0.0]
    unclipped = {"name": "last_number", "flip_rates": [0.1, 0.2]}
    assert totals([unclipped], "277", "305") == pytest.approx([0.9 / 0.7, -0.1 / 0.7])


def test_parts_stay_what_the_reward_said():
    rewards = Rewards([{"name": "last_number", "flip_rates": [0.1, 0.2]}])
    [scored] = rewards.score([group("277", "305")], step=1).groups
    assert [score.parts["last_number"] for score in scored.scores] == [1.0, 0.0]


def test_full_is_the_greatest_shaped_total():
    assert Rewards([{"name": "last_number", "clip": [0, 0.5], "weight": 2}]).full == 1.0
    assert Rewards([{"name": "last_number", "flip_rates": [0.1, 0.2]}]).full == pytest.approx(0.9 / 0.7)
    assert Rewards([{"name": "last_number", "normalise": "group"}]).full is None


def test_normalised_rewards_keep_apart_what_a_sum_makes_alike():
    """GDPO's example (2601.05242): of two binary rewards, (1, 0) against (0, 0) and (1, 1) against (0, 0) differ only
    once each reward is normalised by itself: sums 0 and 1 or 0 and 2 both become -1 and 1."""
    shaper = Shaper(["a", "b"], [1.0, 1.0], [Shaping(normalise="group")] * 2)
    assert [sum(row) for row in shaper([[[0, 0], [1, 0]]])[0]] == [-1.0, 1.0]
    assert [sum(row) for row in shaper([[[0, 0], [1, 1]]])[0]] == [-2.0, 2.0]


def test_a_normalised_reward_that_is_equal_throughout_says_nothing():
    shaper = Shaper(["a"], [None], [Shaping(normalise="group")])
    assert shaper([[[0.1], [0.1], [0.1]]]) == [[[0.0], [0.0], [0.0]]]
    assert shaper([[[1.0], [None], [3.0]]]) == [[[-1.0], [None], [1.0]]]


def test_a_batch_is_normalised_over_everything_that_is_scored_together():
    shaper = Shaper(["a", "b"], [None, 1.0], [Shaping(normalise="batch"), Shaping()])
    shaped = shaper([[[1.0, 1.0], [3.0, 0.0]], [[5.0, 0.0], [None, 1.0]]])
    deviation = (8 / 3) ** 0.5  # of 1, 3 and 5, population
    assert [[row[1] for row in group] for group in shaped] == [[1.0, 0.0], [0.0, 1.0]]
    assert shaped[0][0][0] == pytest.approx(-2 / deviation) and shaped[1][0][0] == pytest.approx(2 / deviation)
    assert (shaped[0][1][0], shaped[1][1][0]) == (0.0, None)


def test_a_batch_counts_the_completions_of_all_groups_of_a_step():
    rewards = Rewards([{"name": length, "normalise": "batch"}])
    sampled = [group("1", "1" * 3), group("1" * 5, "1" * 7, id="p/2", slot=1)]
    scored = rewards.score(sampled, step=1).groups
    found = [score.reward for each in scored for score in each.scores]
    assert found == pytest.approx([(n - 4) / 5**0.5 for n in (1, 3, 5, 7)])


def length(completions):
    return [float(len(text)) for text in completions]


def unsure(completions, log_extra):
    """As sure as the text is short."""
    log_extra("uncertainty", [len(text) / 10 for text in completions])
    return [float(text) for text in completions]


def test_what_a_reward_is_unsure_of_is_taken_off_and_kept():
    """277 - 2 * 0.3, 5 - 2 * 0.1: the lower confidence bound; the parts stay the means."""
    rewards = Rewards([{"name": unsure, "uncertainty": 2}])
    result = rewards.score([group("277", "5")], step=1)
    [scored] = result.groups
    assert [score.reward for score in scored.scores] == pytest.approx([276.4, 4.8])
    assert [score.parts["unsure"] for score in scored.scores] == [277.0, 5.0]
    assert result.metrics["uncertainty/unsure"] == pytest.approx((0.4, 2.0))
    assert result.extra_columns == {"unsure_uncertainty": [0.3, 0.1]}


def test_the_bound_is_clipped_after_it_is_lowered():
    assert totals([{"name": unsure, "uncertainty": 10, "clip": [0, 3]}], "5", "277", "1") == [3.0, 3.0, 0.0]


def test_two_rewards_may_each_be_unsure():
    again = {"name": unsure, "label": "again", "uncertainty": 1}
    result = Rewards([unsure, again]).score([group("5")], step=1)
    assert result.groups[0].scores[0].reward == pytest.approx(5 + 4.9)
    assert sorted(result.extra_columns) == ["again_uncertainty", "unsure_uncertainty"]


def test_a_reward_that_does_not_say_how_unsure_it_is_cannot_be_shaped_by_it():
    with pytest.raises(ValueError, match=r"reward 'length': uncertainty = 1 needs to know .*log_extra\(\"uncertainty"):
        totals([{"name": length, "uncertainty": 1}], "277")


@pytest.mark.parametrize("wrong", [float("nan"), -1.0, "much"])
def test_an_uncertainty_that_is_none_is_a_failure_of_its_completion(wrong):
    def doubtful(completions, log_extra):
        log_extra("uncertainty", [wrong if text == "277" else 0.5 for text in completions])
        return [1.0] * len(completions)

    rewards = Rewards([{"name": doubtful, "uncertainty": 1}], on_failure="exclude")
    [scored] = rewards.score([group("277", "305")], step=1).groups
    failure, score = scored.scores
    assert isinstance(failure, ScoringFailure) and failure.reason == f"logged {wrong!r} as its uncertainty"
    assert score.reward == 0.5


def test_weights_scale_and_signs_are_left_alone():
    specs = [{"name": "last_number", "normalise": "group", "weight": -2}]
    assert totals(specs, "277", "305") == [-2.0, 2.0]


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"flip_rates": [0.6, 0.5]}, r"flip_rates = \[0.6, 0.5\] must be the rates"),
        ({"flip_rates": [-0.1, 0.5]}, r"flip_rates = \[-0.1, 0.5\]"),
        ({"flip_rates": 0.1}, r"flip_rates = 0.1 must be"),
        ({"clip": [1, 0]}, r"clip = \[1.0, 0.0\] must be \[least, greatest\]"),
        ({"normalise": "bath"}, r"normalise = 'bath' must be 'group' or 'batch'"),
        ({"uncertainty": -1}, r"uncertainty = -1.* must be 0 or above"),
    ],
)
def test_impossible_shaping_is_named(entry, complaint):
    with pytest.raises(ValueError, match=f"reward 'last_number': {complaint}"):
        make_reward({"name": "last_number", **entry})


def test_flip_rates_are_for_rewards_that_are_0_or_1():
    with pytest.raises(ValueError, match=r"'format_tags': flip_rates is for rewards that are 0 or 1, .* up to 0\.5"):
        make_reward({"name": "format_tags", "flip_rates": [0.1, 0.1]})


def test_a_gate_that_is_no_reward_is_named():
    with pytest.raises(ValueError, match=r"only_if = 'format_tag' is no other reward; did you mean `format_tags`"):
        Rewards(["format_tags", {"name": "last_number", "only_if": "format_tag"}])
    with pytest.raises(ValueError, match=r"only_if = 'last_number' is no other reward"):
        Rewards([{"name": "last_number", "only_if": "last_number"}])
