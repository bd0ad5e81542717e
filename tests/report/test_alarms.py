"""Alarms name what was seen and what to do, once."""

import math

import pytest

from outscore.report.alarms import AlarmWatch, find_alarms


def steps(count, **metrics):
    return [metrics] * count


def sampled(count, **metrics):
    """Steps that sampled groups, half of which had equal rewards."""
    return steps(count, zero_variance=0.5, **metrics)


@pytest.mark.parametrize(
    ("history", "kind", "remedy"),
    [
        (steps(5, zero_variance=0.95), "zero_variance", "larger group_size"),
        (steps(5, zero_variance=0.95, accuracy=0.97), "zero_variance", "nearly solved"),
        (steps(5, truncated=0.51), "truncated", "max_new_tokens"),
        (sampled(5, entropy=2.0) + sampled(5, entropy=0.1), "entropy", "learning rate"),
        (steps(5, **{"scoring_failures": 0.06, "scoring_failures/mine": 0.06}), "scoring_failures", "scored by mine."),
        (sampled(5, entropy=0.7) + sampled(5, entropy=1.5), "entropy_rise", "rose from 0.7 to 1.5 nats"),
        (steps(5, ref_kl=1.1), "ref_kl", "kl_coef"),
        (steps(5, ratio_max=25.0), "ratio", "some 25 times"),
        # The geometric mean of 1, 1000, 1000, 1000 and 1000 is 10^2.4.
        (steps(1, ratio_max=1.0) + steps(4, ratio_max=1000.0), "ratio", "some 251 times"),
        (steps(5, sampler_kl=0.02), "mismatch", "mismatch_cap: 2.0"),
        (steps(1, loss=math.nan, grad_norm=1.0), "not_finite", "loss is nan"),
        (steps(1, grad_norm=math.inf), "not_finite", "precision: fp32"),
    ],
)
def test_each_alarm_names_its_remedy(history, kind, remedy):
    (alarm,) = find_alarms(history)
    assert alarm.kind == kind
    assert remedy in alarm.sentence


@pytest.mark.parametrize(
    "history",
    [
        [],
        steps(5, zero_variance=0.9, truncated=0.5),
        steps(4, zero_variance=1.0, truncated=1.0),
        sampled(5, entropy=2.0) + sampled(5, entropy=0.3),
        sampled(5, entropy=2.0, accuracy=0.1) + sampled(5, entropy=0.01, accuracy=0.95),
        # Demonstrations: no groups are sampled, and entropy falls because they are learnt.
        steps(5, entropy=2.0) + steps(5, entropy=0.01),
        steps(5, loss=None, zero_variance=None),
        steps(4, truncated=0.0) + steps(1, truncated=1.0),
        steps(4, scoring_failures=0.0) + steps(1, scoring_failures=0.2),
        # It doubled and more, but is still small; it rose by more than half a nat, but from a large one.
        sampled(5, entropy=0.05) + sampled(5, entropy=0.4),
        sampled(5, entropy=3.0) + sampled(5, entropy=4.0),
        sampled(5, entropy=0.5, accuracy=0.5) + sampled(5, entropy=2.0, accuracy=0.95),
        steps(5, ref_kl=0.2, ratio_max=8.0, sampler_kl=0.005),
        # One wild token in one step.
        steps(4, ratio_max=2.0) + steps(1, ratio_max=10_000.0),
        steps(5, ref_kl=None, ratio_max=None, sampler_kl=None),
        steps(4, ref_kl=9.0, ratio_max=900.0, sampler_kl=1.0),
    ],
)
def test_no_alarm_without_cause(history):
    assert find_alarms(history) == []


def test_an_alarm_is_raised_when_it_begins_and_again_when_it_returns():
    watch, history, raised = AlarmWatch(), [], []
    for share in [1.0] * 7 + [0.0] * 5 + [1.0] * 6:
        history.append({"truncated": share})
        raised.append(len(watch.update(history)))
    # A mean over 5 steps passes one half with the third step of a second spell.
    assert [index + 1 for index, count in enumerate(raised) if count] == [5, 15]
