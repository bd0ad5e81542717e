"""A stage's row of the table of algorithms, its own cells put in, and what of its settings does not go with that."""

from collections.abc import Mapping

from outscore.algorithms.choices import Source
from outscore.algorithms.rows import Algorithm, algorithm
from outscore.stages import (
    OutcomeRewardModelSettings,
    PolicySettings,
    PreferenceSettings,
    ProcessRewardModelSettings,
    RejectionSettings,
    RewardModelSettings,
    SftSettings,
    StageSettings,
    TextSettings,
)

SOURCES: Mapping[type[StageSettings], Source] = {
    TextSettings: "texts",
    SftSettings: "demonstrations",
    PreferenceSettings: "preferences",
    RejectionSettings: "samples",
    RewardModelSettings: "preferences",
    OutcomeRewardModelSettings: "labels",
    ProcessRewardModelSettings: "labels",
}
"""Where a kind of stage has its completions from; the policy where it is not named."""


def stage_algorithm(stage: StageSettings) -> Algorithm:
    """The stage's row of the table, its own cells put in.

    Raises:
        ValueError: naming the stage, if the algorithm or a cell is not known or does not fit the stage.
    """
    cells = dict(stage.cells)
    source = SOURCES.get(type(stage), "policy")
    if cells.get("source", source) != source:
        raise ValueError(
            f"stage `{stage.label}`: cells.source = {cells['source']!r} does not fit algorithm {stage.algorithm!r}, "
            f"whose completions come from {source!r}; leave it out (algorithm: sft trains on demonstrations)"
        )
    try:
        row = algorithm(stage.algorithm)
        if isinstance(stage, PolicySettings) and row.aggregation == "constant":
            cells.setdefault("aggregation_constant", stage.sampling.max_new_tokens)
        row = algorithm(stage.algorithm, **cells)
    except ValueError as error:
        raise ValueError(f"stage `{stage.label}`: {error}") from None
    if isinstance(stage, PolicySettings):
        _check_settings(stage, row, algorithm(stage.algorithm))
    return row


def _check_settings(stage: PolicySettings, row: Algorithm, own: Algorithm) -> None:
    """ValueError for a setting that does not go with the stage's row, which without its cells is its `own`, or has no
    effect beside it."""
    where = f"stage `{stage.label}`:"
    if stage.refresh_reference_every and not row.needs_reference:
        raise ValueError(
            f"{where} refresh_reference_every = {stage.refresh_reference_every} has no effect, because kl_coef is 0; "
            "give cells: {kl_coef: 0.04} or leave it out"
        )
    pulls = [key for key in stage.cells if key.startswith("kl_") and stage.cells[key] != getattr(own, key)]
    if pulls and row.kl_to == "anchor" and row.kl_coef > 0.0 and stage.updates_per_step == 1:
        raise ValueError(
            f"{where} cells.{pulls[0]} = {stage.cells[pulls[0]]!r} has no effect with one update a step: kl_to = "
            "'anchor' is the policy itself there; give epochs or minibatches above 1"
        )
    if row.compares_completions and stage.group_size < 2:
        raise ValueError(
            f"{where} group_size = {stage.group_size}, but {row.name} compares the completions of a group; give at "
            "least 2, or an algorithm with a critic (algorithm: ppo)"
        )
    if stage.critic is not None and not row.has_critic:
        raise ValueError(
            f"{where} critic has no effect, because the baseline of {row.name} is {row.baseline!r}; leave it out, or "
            "use an algorithm with a critic (algorithm: ppo)"
        )
    if stage.truncated_score is not None and (row.supervision == "process" or row.reward == "parts"):
        cell = "supervision: process" if row.supervision == "process" else "reward: parts"
        raise ValueError(
            f"{where} truncated_score = {stage.truncated_score:g} takes the place of a completion's one reward, which "
            f"`{cell}` does not have; leave one of them out"
        )
