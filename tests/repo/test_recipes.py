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
