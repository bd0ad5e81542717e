"""What a script hands over in the place of what a recipe names: a task, reward functions."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from outscore.config import Recipe, dump_recipe, load_recipe, parse_recipe
from outscore.records import PYTHON
from outscore.rewards import Reward, Rewards
from outscore.rewards.contract import RewardFunction
from outscore.tasks import Task, make_task

RewardSpec = str | Mapping[str, Any] | RewardFunction | Reward
"""A reward by name, with options, as a function or as a record."""
TaskSpec = str | Mapping[str, Any] | Task | Iterable[Mapping[str, Any]]
"""A task by kind, with options, as an object or as rows."""


def with_objects(recipe: object, task: object, rewards: object) -> tuple[Recipe, Task | None, Rewards | None]:
    """The recipe with a name in the place of each object, and the objects: whatever a script hands over as a recipe, a
    mapping or a file, as a task (`TaskSpec`) and as a list of rewards (`RewardSpec`), None for those of the recipe.

    Raises:
        ValueError: if one of these is of no kind that is taken, or the recipe is not valid.
    """
    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe)
    if not isinstance(recipe, Recipe | Mapping):
        raise ValueError(f"recipe = {recipe!r} must be a recipe, the same as nested mappings, or the path of its file")
    data = dump_recipe(recipe) if isinstance(recipe, Recipe) else dict(recipe)
    own_task: Task | None = None
    if isinstance(task, str | Mapping):
        data["task"] = {"kind": task} if isinstance(task, str) else dict(task)
    elif task is not None:
        if not isinstance(task, Task | Iterable):
            raise ValueError(f"task = {task!r} must be a kind of task, a mapping with `kind`, a task object, or rows")
        own_task = task if isinstance(task, Task) else make_task("data", rows=task)
        data["task"] = {"kind": PYTHON, "name": own_task.name}
    own_rewards = None
    if rewards is not None:
        if isinstance(rewards, str | Mapping) or not isinstance(rewards, Sequence):
            raise ValueError(f"rewards = {rewards!r} must be a list of rewards, also where it is one: rewards=[…]")
        own_rewards = Rewards(
            rewards, on_failure=data.get("on_reward_failure", "stop"), scoring=data.get("scoring", {})
        )
        data["rewards"] = [_recorded(spec, made) for spec, made in zip(rewards, own_rewards.rewards, strict=True)]
    return parse_recipe(data), own_task, own_rewards


def missing_objects(recipe: Recipe, *, task: object = None, rewards: object = None) -> dict[str, str]:
    """What a recipe says was an object and is not given now: `task` and `rewards`, each with words for a message."""
    missing = {"task": "task"} if task is None and recipe.task["kind"] == PYTHON else {}
    functions = [each["name"] for each in recipe.rewards if isinstance(each, Mapping) and each.get("kind") == PYTHON]
    if rewards is None and functions:
        missing["rewards"] = f"rewards ({', '.join(functions)})"
    return missing


def _recorded(spec: RewardSpec, made: Reward) -> str | Mapping[str, Any]:
    """What config.yaml says of a reward: the spec where it names one, and for an object that it was one."""
    named = spec.get("name") if isinstance(spec, Mapping) else spec
    if isinstance(named, str) and isinstance(spec, str | Mapping):
        return spec
    return {"kind": PYTHON, "name": made.name, "weight": made.weight}
