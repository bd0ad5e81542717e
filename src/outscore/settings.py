"""Settings that rooms below the recipe know by name: the base of all, and how rewards run."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


def _known_policy(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value in ("stop", "exclude") or (is_number and math.isfinite(value)):
        return value
    raise ValueError("must be `stop`, `exclude`, or a finite number that a failed reward counts as")


OnFailure = Annotated[Literal["stop", "exclude"] | float, BeforeValidator(_known_policy)]
"""What a reward that fails on a completion means: `stop` ends the run, `exclude` leaves the completion out, a number is
what the reward counts as."""


class ScoringLimits(Settings):
    """What a reward in a worker process may take; docs/rewards.md says what happens beyond."""

    seconds: float = Field(10.0, gt=0)
    """For one completion. A call for n of them may take n times as long, up to `batch_seconds`."""
    batch_seconds: float = Field(120.0, gt=0)
    """The most that a call for many completions may take."""
    memory_gb: float = Field(4.0, gt=0)
    """Memory of a worker, in GiB."""
    retries: int = Field(0, ge=0)
    """How often a call that failed is made again: for what may pass, such as a server that does not answer."""
    workers: int = Field(2, ge=1)
    """Worker processes of a reward with `batched: false`; one that takes whole batches has one."""


class ScoringSettings(ScoringLimits):
    """Where rewards run. A reward's own `isolate` and `limits` come before these."""

    isolate: bool = True
    """Run rewards that are not built in in worker processes, so that none can stop, hang or fill up the run."""
