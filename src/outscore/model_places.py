"""What a key of a stage says of another model: an earlier stage of the run, a path, or an id on a hub, in this order
(docs/pipelines.md has which key takes what)."""

from collections.abc import Sequence
from pathlib import Path

from outscore.inputs import from_here, nearest
from outscore.stages import BASE


def names_other_model(place: str, stages: Sequence[str]) -> bool:
    """Whether a place is that of another model than this run's, which is `base` and these stages."""
    return place not in ("", BASE, *stages)


def check_model_place(place: str, stages: Sequence[str], *, where: str) -> None:
    """ValueError, beginning with `where` it is written, for what is none of these stages, nothing that is there, and no
    id of a model on a hub either, which has one slash."""
    path = Path(place).expanduser()
    if place not in stages and not path.exists() and place.count("/") != 1:
        raise ValueError(f"{where} is neither an earlier stage nor a model{nearest(place, stages)}{from_here(path)}")
