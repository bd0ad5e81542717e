"""A stage's row of the table of algorithms, its own cells put in; what of its settings does not go with that; what a
recipe leaves out of it, filled in."""

from collections.abc import Mapping
from typing import Any, TypeVar

from outscore.algorithms.preset import Part
from outscore.algorithms.presets import PRESETS
from outscore.algorithms.rows import Algorithm, algorithm
from outscore.settings import Settings
from outscore.stage_parts import (
    COEF_VALUE,
    LR_CRITIC_FACTOR,
    LR_LORA_FACTOR,
    WARMUP_MOST,
    WARMUP_SHARE,
    CriticSettings,
)
from outscore.stages import PolicySettings, StageSettings

SettingsType = TypeVar("SettingsType", bound=Settings)


def stage_algorithm(stage: StageSettings) -> Algorithm:
    """The stage's row of the table, its own cells put in.

    Raises:
        ValueError: naming the stage, if the algorithm or a cell is not known or does not fit the stage.
    """
    cells = dict(stage.cells)
    if cells.get("source", stage.source) != stage.source:
        raise ValueError(
            f"stage `{stage.label}`: cells.source = {cells['source']!r} does not fit algorithm {stage.algorithm!r}, "
            f"whose completions come from {stage.source!r}; leave it out (algorithm: sft trains on demonstrations)"
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


def with_defaults(stage: StageSettings, lora: bool) -> StageSettings:
    """The stage with what it leaves out and its algorithm asks for, with a rate and a warm-up, so that the run's config
    shows what was used."""
    if isinstance(stage, PolicySettings):
        stage = _filled(stage, _suggestions(stage))
    factor = LR_LORA_FACTOR if lora else 1.0
    warmup = min(int(WARMUP_SHARE * stage.num_updates), WARMUP_MOST)
    stage = _filled(stage, {"optimizer": {"lr": factor * stage.usual_lr, "warmup_steps": warmup}})
    if isinstance(stage, PolicySettings) and stage.critic is not None:
        coef = {"coef": COEF_VALUE} if stage.critic.trunk == "shared" else {}
        stage = _filled(stage, {"critic": {"lr": LR_CRITIC_FACTOR * stage.optimizer.lr / factor, **coef}})
    return stage


def _filled(given: SettingsType, suggested: Mapping[str, Any]) -> SettingsType:
    """The settings with values for keys that they leave out, also within settings that they hold."""
    chosen: dict[str, Any] = {}
    for key, value in suggested.items():
        own = getattr(given, key)
        if isinstance(own, Settings):
            chosen[key] = _filled(own, value)
        elif own is None or key not in given.model_fields_set:
            chosen[key] = value
    return given.model_copy(update=chosen)


def _suggestions(stage: PolicySettings) -> dict[str, Any]:
    """What the algorithm asks of the stage: a critic, to be filled in, where the row or a cell has one."""
    suggested = stage_defaults(stage)
    of_critic = suggested.pop("critic", None)
    row = "" if of_critic is None else "critic"
    if stage.critic is not None:
        suggested["critic"] = of_critic or {}
    elif stage.cells.get("baseline", row) == "critic":
        suggested["critic"] = CriticSettings(**(of_critic or {}))
    return suggested


def stage_defaults(stage: PolicySettings) -> dict[str, Any]:
    """What the stage's algorithm asks of it beside its row (`Preset.stage_defaults`), in numbers."""
    wholes = {"steps": stage.steps, "max_new_tokens": stage.sampling.max_new_tokens}

    def in_numbers(asked: Mapping[str, Any]) -> dict[str, Any]:
        nested = {key: in_numbers(value) for key, value in asked.items() if isinstance(value, Mapping)}
        parts = {key: value.number(wholes[value.of]) for key, value in asked.items() if isinstance(value, Part)}
        return {**asked, **nested, **parts}

    preset = PRESETS.get(stage.algorithm)
    return in_numbers(preset.stage_defaults) if preset else {}
