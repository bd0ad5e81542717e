"""Totals by hand, several rewards together, asynchronous ones at the same time."""

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewards.building import group

from outscore.records import Score, ScoringFailure
from outscore.rewards import Reward, RewardError, Rewards, background
from outscore.rewards.totals import group_totals


def constant(name, *values, weight=1.0):
    return Reward(name=name, weight=weight, function=lambda completions: list(values))


def test_the_total_is_the_weighted_sum_of_the_parts():
    rewards = Rewards(
        [constant("a", 1.0, 0.0), constant("b", 0.5, 0.25, weight=2.0), constant("c", 3.0, 4.0, weight=-0.5)]
    )
    result = rewards.score([group("x", "y")], step=1)
    # 1 + 2 * 0.5 - 0.5 * 3 = 0.5 and 0 + 2 * 0.25 - 0.5 * 4 = -1.5
    assert result.groups[0].scores == (
        Score(reward=0.5, parts={"a": 1.0, "b": 0.5, "c": 3.0}),
        Score(reward=-1.5, parts={"a": 0.0, "b": 0.25, "c": 4.0}),
    )
    assert result.metrics == {"reward/a": (1.0, 2.0), "reward/b": (0.75, 2.0), "reward/c": (7.0, 2.0)}


def test_groups_keep_their_order_and_their_own_scores():
    rewards = Rewards([lambda completions: [float(text) for text in completions]])
    result = rewards.score([group("1", "2"), group("3", id="p/2", slot=1)], step=1)
    assert [[score.reward for score in each.scores] for each in result.groups] == [[1.0, 2.0], [3.0]]


def test_a_part_that_does_not_apply_counts_as_its_group_s_mean():
    # The third completion gets a = (1 + 0) / 2 in its own group; the other group has no a at all, and none from here.
    a = constant("a", 1.0, 0.0, None, None, None)
    b = constant("b", 0.5, 0.5, 0.25, 1.0, 0.0)
    result = Rewards([a, b]).score([group("1", "2", "3"), group("4", "5", id="p/2", slot=1)], step=1)
    assert [[score.reward for score in each.scores] for each in result.groups] == [[1.5, 0.5, 0.75], [1.0, 0.0]]
    assert result.groups[0].scores[2].parts == {"a": None, "b": 0.25}
    assert result.metrics["reward/a"] == (1.0, 2.0)
    assert result.metrics["not_applicable/a"] == (3.0, 5.0)
    assert "not_applicable/b" not in result.metrics


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.none() | st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=6),
    st.floats(0.1, 3),
    st.floats(0.1, 3),
)
def test_a_part_that_does_not_apply_moves_no_completion_relative_to_its_group(parts, first, second):
    """Its share of total minus group mean is 0: what is left is the other part's."""
    totals = group_totals(parts, [first, second])
    known = [a for a, _ in parts if a is not None]
    mean_a, mean_b = math.fsum(known) / len(known) if known else 0.0, math.fsum(b for _, b in parts) / len(parts)
    mean = math.fsum(totals) / len(totals)
    for (a, b), total in zip(parts, totals, strict=True):
        from_a = 0.0 if a is None else first * (a - mean_a)
        assert total - mean == pytest.approx(from_a + second * (b - mean_b), abs=1e-9)


@settings(deadline=None)
@given(st.floats(-5, 5), st.lists(st.booleans(), min_size=2, max_size=8).filter(any))
def test_equal_parts_make_equal_totals_whichever_of_them_apply(value, applies):
    totals = group_totals([(value if each else None, 0.7) for each in applies], [1.0, 0.3])
    assert len(set(totals)) == 1


def test_a_completion_that_no_reward_applies_to_is_a_failure_not_a_zero():
    rewards = Rewards([constant("a", 1.0, None), constant("shown", 1.0, 1.0, weight=0.0)], on_failure="exclude")
    result = rewards.score([group("x", "y")], step=1)
    assert result.groups[0].scores[0] == Score(reward=1.0, parts={"a": 1.0, "shown": 1.0})
    assert result.groups[0].scores[1] == ScoringFailure(
        reward_name="a, shown", reason="does not apply to this completion"
    )
    with pytest.raises(RewardError, match=r"reward 'a, shown' does not apply .*completion 2 of 2"):
        rewards.score([group("x", "y")], step=1, on_failure="stop")


def test_data_without_gold_answers_stop_the_run_and_say_what_to_map():
    with pytest.raises(RewardError, match=r"'last_number' does not apply .* no gold answer; .*task\.answer"):
        Rewards(["last_number"]).score([group("7", answer=None)], step=1)


def test_asynchronous_rewards_wait_at_the_same_time_and_share_a_loop():
    """Each waits until all three have begun: one after the other would never end."""
    loops = []
    begun: list[str] = []
    everyone = asyncio.Event()

    def waiting(name):
        async def reward(completions, **_):
            loops.append(asyncio.get_running_loop())
            begun.append(name)
            if len(begun) == 3:
                everyone.set()
            await asyncio.wait_for(everyone.wait(), timeout=120)
            return [float(len(begun))] * len(completions)

        return Reward(name=name, function=reward)

    class Callable_:
        def __call__(self, completions):
            return [1.0] * len(completions)

    result = Rewards([waiting("a"), waiting("b"), waiting("c"), Callable_()]).score([group("x")], step=1)
    assert result.groups[0].scores[0].parts == {"a": 3.0, "b": 3.0, "c": 3.0, "Callable_": 1.0}
    assert len(set(map(id, loops))) == 1


def test_threads_that_come_first_together_share_one_loop(monkeypatch):
    made = []

    def slowly():
        time.sleep(0.05)  # long enough for every thread to have found no loop yet
        made.append(new_event_loop())
        return made[-1]

    new_event_loop = asyncio.new_event_loop
    background._started.cache_clear()
    monkeypatch.setattr(asyncio, "new_event_loop", slowly)
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(background.submit, asyncio.sleep(0, result=n)) for n in range(4)]
        assert [future.result().result() for future in futures] == [0, 1, 2, 3]
    assert len(made) == 1


def test_asynchronous_rewards_work_inside_a_running_loop():
    """As in a notebook."""

    async def reward(completions):
        return [1.0] * len(completions)

    async def cell():
        return Rewards([reward]).score([group("x")], step=1)

    assert asyncio.run(cell()).groups[0].scores[0].reward == 1.0


def test_an_object_with_an_asynchronous_call_and_a_function_that_returns_an_awaitable():
    class Judge:
        async def __call__(self, completions):
            return [2.0] * len(completions)

    judge = Judge()
    rewards = Rewards([judge, {"name": lambda completions: judge(completions), "label": "wrapped"}])
    assert rewards.score([group("x")], step=1).groups[0].scores[0].parts == {"Judge": 2.0, "wrapped": 2.0}


def test_full_is_the_weighted_sum_of_greatest_values_where_all_are_known():
    assert Rewards(["tag_answer", {"name": "format_tags", "weight": 0.5}]).full == 1.25
    assert Rewards(["tag_answer", constant("a", 1.0)]).full is None
    assert Rewards(["tag_answer", constant("a", 1.0, weight=0.0)]).full == 1.0
    assert Rewards(["tag_answer", {"name": "format_tags", "weight": -1}]).full is None


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"two are called 'last_number'; give one of them another `label`"):
        Rewards(["last_number", "last_number"])
    with pytest.raises(ValueError, match="every weight is 0"):
        Rewards([{"name": "last_number", "weight": 0}])
    with pytest.raises(ValueError, match="there is none to score with"):
        Rewards([]).score([group("x")], step=1)
    with pytest.raises(ValueError, match=r"no reward is called 'last_nmber'; did you mean `last_number`"):
        Rewards(["last_number"]).named("last_nmber")


def test_the_extractor_is_the_reward_s_own_place_for_an_answer():
    rewards = Rewards(["last_number", "tag_answer", constant("own", 1.0)])
    text = "<answer>7</answer> 8"
    assert [rewards.named(name).extract(text) for name in rewards.names] == ["8", "7", "7"]


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (["tag_answer", "format_tags"], "tag_answer"),
        (["format_tags", "last_number", "tag_answer"], "tag_answer"),
        ([constant("own", 1.0), "format_tags"], "own"),
        ([constant("own", 1.0), "tag_answer", constant("other", 1.0)], "tag_answer"),
        (["format_tags"], "format_tags"),
        ([{"name": "format_tags", "reward": 1.0, "label": "tags"}, "format_tags"], "tags"),
    ],
)
def test_what_says_correct_is_an_answer_reward_rather_than_one_s_own_rather_than_a_format(specs, expected):
    assert Rewards(specs).says_correct().name == expected


def test_without_rewards_nothing_says_correct():
    assert Rewards([]).says_correct() is None


def test_no_groups_make_an_empty_result():
    result = Rewards(["last_number"]).score([], step=1)
    assert (result.groups, dict(result.extra_columns)) == ([], {})


def test_a_reward_that_is_only_watched_excludes_nothing_when_it_fails():
    def seen(completions):
        return [math.nan if text == "x" else 1.0 for text in completions]

    rewards = Rewards([constant("a", 1.0, 0.5), {"name": seen, "weight": 0.0}], on_failure="exclude")
    first, second = rewards.score([group("x", "y")], step=1).groups[0].scores
    assert first.reward == 1.0 and first.parts == {"a": 1.0, "seen": None} and list(first.failures) == ["seen"]
    assert second == Score(reward=0.5, parts={"a": 0.5, "seen": 1.0})
