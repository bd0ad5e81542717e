"""The presets as data: each names the cells in which it differs from GRPO, and says what it is and who says so."""

from outscore.algorithms.preset import Preset
from outscore.algorithms.presets_given import GIVEN
from outscore.algorithms.presets_sampled import SAMPLED

PRESETS: dict[str, Preset] = {row.name: row for row in (*GIVEN, *SAMPLED)}
"""The presets by name, in the order of the table."""
