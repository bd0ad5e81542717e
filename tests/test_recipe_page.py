"""docs/recipe.md has every key of a recipe, as the settings have it now."""

import re
from pathlib import Path

import pytest
from repo.tree import ROOT

from outscore.recipe_page import recipe_page

PAGE = ROOT / "docs" / "recipe.md"


def test_the_page_is_what_the_settings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == recipe_page(), "python -m outscore.recipe_page > docs/recipe.md"


@pytest.mark.parametrize(
    "row",
    [
        "| `patience` | `0` |",
        "| `lr` | `1e-5` |",
        "| `betas` | `[0.9, 0.999]` |",
        "| `allow_pickle` | `false` |",
        '| `separators` | `["\\n"]` |',
        "| `steps` | required |",
        "| `lora` | none; else [its own](#modellora) |",
        "| `sample` | none; else [its own](#stagesnamesample-of-process-reward-model) |",
    ],
)
def test_a_key_stands_there_with_its_default(row: str) -> None:
    assert row in recipe_page()


def test_a_setting_with_words_names_each_of_them() -> None:
    (line,) = [line for line in recipe_page().splitlines() if line.startswith("| `schedule` |")]
    assert all(f"`{word}`" in line for word in ("constant", "linear", "cosine"))


def test_every_link_of_the_page_leads_somewhere() -> None:
    page = recipe_page()
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    # GitHub's anchors: lower case, no marks but hyphens, hyphens for spaces.
    anchors = {re.sub(r"[^a-z0-9_\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(anchors) == len(headings)
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert link[1:] in anchors if link.startswith("#") else Path(PAGE.parent, link).is_file(), link
