"""The page of every key of a recipe, written from the settings themselves: docs/recipe.md.

`python -m outscore.recipe_page > docs/recipe.md` writes it anew.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from outscore.config import Recipe
from outscore.settings import Settings
from outscore.stages import PolicySettings, StageSettings, kinds_of_stage

STAGE = "stages.NAME"
"""How the page writes the place of a stage's key: as an override does."""
HEAD = """# The keys of a recipe

A recipe is a YAML file of these keys. On the command line a key is a dotted path, in which a stage goes by its name or
its place: `outscore train recipe.yaml seed=1 model.lora.rank=8 stages.grpo.steps=200`. A key that is not here, or has
no effect on its kind of stage, is refused, and the nearest right one is named. A run's `config.yaml` has every key with
the value that was used.

The options of a task are in [tasks.md](tasks.md), those of a reward in [rewards.md](rewards.md), the cells of an
algorithm's row in `outscore algorithms NAME`; what stages are for is in [pipelines.md](pipelines.md).

(This page is written from the settings: `python -m outscore.recipe_page > docs/recipe.md`.)
"""


def recipe_page() -> str:
    """The whole page: a table for the recipe, for each group of settings in it, and for each kind of stage."""
    kinds = kinds_of_stage()
    whole: dict[type[Settings], str] = {Recipe: "The whole recipe"}
    whole |= {own: f"`{path}`" for path, own in _below(Recipe, "")}
    whole[StageSettings] = "Every stage"
    whole |= {kind: _title(kind, rows) for kind, rows in kinds.items()}
    stages: list[tuple[type[Settings], tuple[str, ...]]] = [(StageSettings, ()), *kinds.items()]
    for kind, rows in stages:
        for path, own in _below(kind, f"{STAGE}."):
            taken = f"`{path}`" in whole.values()
            whole.setdefault(own, f"`{path}` of {_listed(rows)}" if taken else f"`{path}`")
    inherited = set(StageSettings.model_fields)
    return "\n".join(
        [HEAD, *(_section(own, whole, inherited if own in kinds else set()) for own in whole)],
    )


def _title(kind: type[Settings], rows: tuple[str, ...]) -> str:
    others = "" if kind is not PolicySettings else " and every other row of the table: samples of the policy"
    return f"Stages: {_listed(rows)}{others}"


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _below(settings: type[Settings], prefix: str) -> Iterator[tuple[str, type[Settings]]]:
    """Settings within settings, each with the path of its key, in the order of the keys."""
    for key, field in settings.model_fields.items():
        for own in _settings_in(field):
            yield prefix + key, own
            yield from _below(own, f"{prefix}{key}.")


def _settings_in(field: FieldInfo) -> list[type[Settings]]:
    found = [part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type)]
    return [part for part in found if issubclass(part, Settings) and not issubclass(part, StageSettings)]


def _section(settings: type[Settings], titles: Mapping[type[Settings], str], hidden: set[str]) -> str:
    said = _prose(settings.__doc__ or "")
    lines = [f"## {titles[settings]}", "", said, "", "| key | default | meaning |", "|---|---|---|"]
    for key, field in settings.model_fields.items():
        if key not in hidden:
            lines.append(f"| `{key}` | {_default(field, titles)} | {_meaning(field)} |")
    return "\n".join([*lines, ""])


def _default(field: FieldInfo, titles: Mapping[type[Settings], str]) -> str:
    own = _settings_in(field)
    links = ", ".join(f"[its own](#{_anchor(titles[each])})" for each in own)
    if own and field.default is not None:
        return links
    if field.is_required():
        return "required" + (f" ({links})" if own else "")
    value = field.get_default(call_default_factory=True)
    none = value is None or value in ("", (), {})
    return ("none" if none else f"`{_yaml(value)}`") + (f"; else {links}" if own else "")


def _yaml(value: Any) -> str:
    """A value as YAML and an override would have it."""
    if isinstance(value, tuple):
        return json.dumps(value)
    if isinstance(value, float):
        return re.sub(r"e([-+])0", r"e\1", f"{value:.10g}" if value % 1 or abs(value) >= 1e6 else f"{value:.1f}")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _meaning(field: FieldInfo) -> str:
    """What is written below the setting, and the words it may be where that leaves one out."""
    said = _prose(field.description or "")
    annotations = (field.annotation, *get_args(field.annotation))
    words = tuple(str(word) for each in annotations if get_origin(each) is Literal for word in get_args(each))
    if all(f"`{word}`" in said for word in words):
        return said
    return f"{said} One of {_listed(words)}."


def _prose(text: str) -> str:
    """A docstring as a cell of a table: one line, other pages as links."""
    line = " ".join(text.split()).replace("|", "\\|").replace("docs/recipe.md", "this page")
    return re.sub(r"\bdocs/([\w/-]+\.md)", r"[\1](\1)", line)


def _anchor(title: str) -> str:
    """A heading's address within its page, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    sys.stdout.write(recipe_page())
