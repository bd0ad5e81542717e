"""The study of every row: its recipe is a fair one."""

from outscore.algorithms.rows import ALGORITHMS
from outscore.config import parse_recipe
from outscore.stages import PolicySettings, RejectionSettings
from outscore.studies.every_row import GROUP_SIZE, PROMPTS, STEPS, recipe, rows, variants
from outscore.train.setup import check_before_loading


def test_every_row_starts_at_the_same_weights_and_has_as_many_samples() -> None:
    made = parse_recipe(recipe(0))
    check_before_loading(made)
    assert {*rows(), "distillation"} == {name for name, row in ALGORITHMS.items() if row.source == "policy"}
    assert [stage.label for stage in made.stages] == ["sft", "rft", *variants()]
    assert {stage.start for stage in made.stages[1:]} == {"sft"}
    for stage in made.stages[1:]:
        assert isinstance(stage, PolicySettings | RejectionSettings)
        per_step = stage.prompts_per_step if isinstance(stage, PolicySettings) else stage.num_prompts / STEPS
        assert per_step * STEPS * stage.group_size == STEPS * PROMPTS * GROUP_SIZE
        assert isinstance(stage, RejectionSettings) or (stage.steps, stage.refills) == (STEPS, 0)
