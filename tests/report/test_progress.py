"""The time left, by hand."""

import math

import pytest

from outscore.report.progress import Progress, seconds_per_step


def test_steady_steps():
    progress = Progress(total_steps=10)
    assert math.isnan(progress.seconds_left)
    for step in (1, 2, 3, 4):
        progress.advance(step, {"sample": 2.0, "update": 1.0})
    assert progress.seconds_left == 18.0
    assert progress.seconds_spent == 12.0


def test_one_hiccup_in_ten_moves_nothing():
    history = [{"sample": 2.0}] * 9 + [{"sample": 1000.0}]
    assert seconds_per_step(history) == 2.0


def test_only_recent_steps_count():
    assert seconds_per_step([{"sample": 100.0}] * 50 + [{"sample": 2.0}] * 20) == 2.0


def test_occasional_phases_are_spread_over_all_steps():
    # 40 steps of 2 s, an evaluation of 12 s in every tenth: 2 + 12 / 10.
    history = [{"sample": 2.0} | ({"evaluate": 12.0} if step % 10 == 0 else {}) for step in range(1, 41)]
    assert seconds_per_step(history) == pytest.approx(3.2)


def test_what_precedes_the_first_step_is_not_expected_again():
    # An evaluation of 60 s before the first step, and none after it.
    assert seconds_per_step([{"update": 2.0, "evaluate": 60.0}, {"update": 2.0}]) == 2.0


def test_a_stage_that_was_stopped_early_is_over():
    progress = Progress(total_steps=10)
    progress.advance(1, {"update": 4.0})
    assert not progress.is_over
    progress.has_ended = True
    assert progress.is_over


def test_after_a_resume_the_steps_before_count_as_done():
    progress = Progress(total_steps=10, steps_done=8)
    progress.advance(9, {"update": 4.0})
    assert progress.seconds_left == 4.0
