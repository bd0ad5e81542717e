"""The studies that are runs of recipes, each whole with few steps: it starts, ends, and has what a reader looks for."""

from pathlib import Path

import pytest

from outscore.config import Recipe, load_recipe
from outscore.studies import refreshed, supervision
from outscore.studies.registry import run_study
from outscore.studies.reward_quality import generalisation

FEW = (
    *("stages.sft.steps=20", "stages.rm-1.steps=2", "stages.grpo-1.steps=2", "stages.rm-2.steps=2"),
    *("stages.grpo-2.steps=2", "stages.grpo-1.prompts_per_step=2", "stages.grpo-2.prompts_per_step=2"),
    *("stages.rm-1.sample.num_prompts=20", "stages.rm-2.sample.num_prompts=20"),
    *("evaluation.problems=8", "evaluation.samples=8"),
)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(path: Path) -> Recipe:
        return load_recipe(path, FEW)

    monkeypatch.setattr(refreshed, "load_recipe", loaded)
    for module, name, value in (
        *((supervision, "SFT_STEPS", 4), (supervision, "STEPS", 4), (supervision, "PROBLEMS", 8)),
        (supervision, "PROMPTS", 2),
        *((generalisation, "SFT_STEPS", 4), (generalisation, "RM_STEPS", 2), (generalisation, "GRPO_STEPS", 2)),
        *((generalisation, "RM_PROBLEMS", 10), (generalisation, "PROBLEMS", 12), (generalisation, "PROMPTS", 2)),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("short")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_rows", "num_claims"),
    [("process-supervision", 4, 2), ("refreshed-reward", 5, 3), ("reward-generalisation", 5, 4)],
)
def test_a_study_of_few_steps_gives_tables_figures_and_claims(name: str, num_rows: int, num_claims: int) -> None:
    told: list[tuple[int, int]] = []
    result = run_study(name, num_seeds=2, progress=lambda part, done, total: told.append((done, total)))
    assert result.settings["study"] == name and result.settings["seeds"] == 2
    assert len(result.summary) == num_rows and len({tuple(row) for row in result.summary}) == 1
    assert len(result.claims) == num_claims and result.notes and told[0] == (0, 2) and told[-1] == (2, 2)
    assert {row["seed"] for row in result.curves} == {0, 1} and len({tuple(row) for row in result.curves}) == 1
    for figure in result.figures:
        for panel in figure.panels:
            assert all(len(series.x) == len(series.mean) == len(series.sem) for series in panel.series)
