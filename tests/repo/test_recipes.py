"""A recipe's first line is the comment with the command that runs it, and the rest is a valid recipe."""

import pytest
from repo.tree import ROOT, name_of

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_first_line_is_the_command_that_runs_it(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# outscore train {name_of(path)}")


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_parses(path):
    from outscore.config import load_recipe

    assert load_recipe(path).name


def test_grpo_takes_the_place_of_ppo_by_one_override():
    from outscore.config import load_recipe
    from outscore.train.setup import check_before_loading

    recipe = load_recipe(ROOT / "recipes" / "instructgpt.yaml", ["stages.policy.algorithm=grpo"])
    check_before_loading(recipe)
    assert recipe.stages[-1].algorithm == "grpo" and recipe.stages[-1].critic is None
    assert load_recipe(ROOT / "recipes" / "instructgpt.yaml").stages[-1].critic is not None
