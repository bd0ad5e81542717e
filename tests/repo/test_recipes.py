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


def test_grpo_takes_the_place_of_ppo_by_one_override():
    from outscore.config import load_recipe
    from outscore.train.setup import check_before_loading

    recipe = load_recipe(ROOT / "recipes" / "instructgpt.yaml", ["stages.policy.algorithm=grpo"])
    check_before_loading(recipe)
    assert recipe.stages[-1].algorithm == "grpo" and recipe.stages[-1].critic is None
    assert load_recipe(ROOT / "recipes" / "instructgpt.yaml").stages[-1].critic is not None


def test_the_judge_that_the_r1_recipe_leaves_out_can_be_put_in_as_it_says():
    from outscore.config import parse_recipe
    from outscore.rewards import Rewards

    text = (ROOT / "recipes" / "r1.yaml").read_text(encoding="utf-8")
    judged = text.replace("# - {name: llm_judge", "- {name: llm_judge").replace(
        "filters: {tag_answer: 1,", "filters: {llm_judge: 1, tag_answer: 1,"
    )
    stage = next(each for each in parse_recipe(yaml.safe_load(judged)).stages if each.label == "dev3")
    assert "llm_judge" in stage.filters
    assert Rewards(stage.rewards).named("llm_judge").where == {"domain": "reasoning"}
