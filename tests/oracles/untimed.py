"""Hypothesis without its clocks: a busy machine is no failure."""

from hypothesis import HealthCheck, settings

UNTIMED = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
"""Settings for every property test here."""
