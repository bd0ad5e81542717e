"""A recipe's first line is the comment with the command that runs it, and the rest is a valid recipe."""

import pytest
import yaml
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


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_is_a_mapping_without_double_keys(path):
    class Loader(yaml.SafeLoader):
        pass

    def construct(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"double key among {keys}"
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, construct)
    assert isinstance(yaml.load(path.read_text(encoding="utf-8"), Loader), dict)
