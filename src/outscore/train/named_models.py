"""Whether the other models that a stage names, to be taught by or to sample, are there: asked before anything is
loaded."""

from collections.abc import Sequence
from pathlib import Path

from outscore.algorithms.rows import Algorithm
from outscore.model.load import source_kind
from outscore.model_places import check_model_place, names_other_model
from outscore.stages import PolicySettings, RejectionSettings, StageSettings


def check_models(stage: StageSettings, row: Algorithm, before: Sequence[str]) -> None:
    """ValueError where a stage's teacher is missing, has no effect, or is none of the stages before and no model, and
    where what it samples from is no model."""
    if isinstance(stage, RejectionSettings) and names_other_model(stage.samples_from, before):
        _check_place(stage, "samples_from", stage.samples_from, before)
    teacher = stage.teacher if isinstance(stage, PolicySettings) else ""
    if row.needs_teacher and not teacher:
        raise ValueError(
            f"stage `{stage.label}`: kl_to = 'teacher' needs `teacher`: an earlier stage, or a model's directory"
        )
    if teacher and not row.needs_teacher:
        raise ValueError(
            f"stage `{stage.label}`: teacher = {teacher!r} has no effect, because kl_to is {row.kl_to!r} with kl_coef "
            f"{row.kl_coef:g}; use algorithm: distillation, or cells: {{kl_to: teacher, kl_coef: 1.0}}"
        )
    if teacher and teacher not in before:
        _check_place(stage, "teacher", teacher, before)


def newest_in(place: str) -> Path:
    """A model's directory, given it or a directory of a stage's checkpoints, of which it is the last."""
    folder = Path(place).expanduser()
    return max(folder.glob("step-*/config.json"), default=folder / "config.json").parent


def _check_place(stage: StageSettings, key: str, place: str, before: Sequence[str]) -> None:
    """ValueError for what is no model's place, and for an id that is meant as a path."""
    where = f"stage `{stage.label}`: {key} = {place!r}"
    check_model_place(place, before, where=where)
    try:
        source_kind(place)
    except ValueError as error:
        raise ValueError(f"{where} is neither an earlier stage nor a model: {error}") from None
