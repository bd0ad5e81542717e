"""Metrics of a step's groups, by hand."""

import pytest
from train.test_rejection import group_of

from outscore.train.sources import rollout_metrics


def test_the_error_of_a_groups_mean_is_its_sample_deviation_over_the_root_of_its_size() -> None:
    one = group_of(("a", 1.0, "stop"), ("b", 0.0, "stop"), ("c", 0.0, "stop"), ("d", 1.0, "stop"))
    two = group_of(("a", 2.0, "stop"), ("b", 4.0, "stop"), ("c", None, "stop"))  # one could not be scored
    alone = group_of(("a", 1.0, "stop"), ("b", None, "stop"))
    total, count = rollout_metrics([one, two, alone], 0)["reward_mean_error"]
    # sqrt(4 * 0.25 / 3) / 2 and sqrt(2) / sqrt(2); of one score nothing can be said.
    assert (total, count) == (pytest.approx(0.288675 + 1.0, abs=1e-6), 2.0)
