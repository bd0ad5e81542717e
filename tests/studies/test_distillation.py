"""The study of distillation: a student learns from a larger model's checkpoint, and claims are of differences."""

from pathlib import Path

import pytest

from outscore.config import dump_recipe, parse_recipe
from outscore.report import Evaluation, RunDirectory
from outscore.report.rows import read_parquet
from outscore.stages import PolicySettings, RejectionSettings
from outscore.studies.distillation import (
    MEASURES,
    START,
    STUDENT_SAMPLES,
    TEACHER,
    TEACHER_SFT,
    WAYS,
    claims,
    collected,
    student,
    teacher,
)
from outscore.train.run import run_recipe


def evaluation(stage: str, value: float) -> Evaluation:
    metrics = dict.fromkeys(MEASURES, value)
    return Evaluation(
        label=f"after {stage}", stage=stage, step=1, policy_version=1, num_problems=4, samples=4, metrics=metrics
    )


def test_each_way_draws_equally_many_samples_from_the_same_beginning() -> None:
    recipe = student(1, Path("runs/x/checkpoints/grpo"))
    _, imitate, advised, reinforced = recipe.stages
    assert isinstance(imitate, RejectionSettings)
    drawn = [imitate.num_prompts * imitate.group_size]
    for stage in (advised, reinforced):
        assert isinstance(stage, PolicySettings) and not stage.refills
        drawn.append(stage.steps * stage.prompts_per_step * stage.group_size)
    assert drawn == [STUDENT_SAMPLES] * 3 == [6400] * 3
    assert [stage.start for stage in recipe.stages[1:]] == [START] * 3
    assert [stage.label for stage in recipe.stages[1:]] == list(WAYS)
    assert recipe.task["seed"] == recipe.seed == teacher(1).seed == teacher(1).task["seed"] == 1
    assert recipe.model.tiny.hidden_size == teacher(1).model.tiny.hidden_size // 2


def test_a_row_has_every_seed_and_a_claim_is_about_differences_of_the_same_seed() -> None:
    runs = [
        (
            [evaluation("sft", seed + 0.1), evaluation("grpo", seed + 0.2)],
            [evaluation(name, seed + 0.3 + n / 10) for n, name in enumerate((START, *WAYS))],
        )
        for seed in range(2)
    ]
    table = collected(runs)
    assert list(table) == [TEACHER_SFT, TEACHER, START, *WAYS]
    assert table[TEACHER]["pass@1"] == pytest.approx([0.2, 1.2]) and table["imitate"]["greedy"] == pytest.approx(
        [0.4, 1.4]
    )
    # reinforced > advised > imitate in every seed, by exactly 0.1 each
    found = claims(table)
    assert [claim.holds for claim in found] == [False, False, True]
    assert found[2].measured == "advised - imitate: +10.0 ± 0.0"


def test_a_student_is_taught_by_a_larger_model_of_another_run(tmp_path: Path) -> None:
    def small(data: dict, width: int) -> dict:
        data["model"]["tiny"] = {"hidden_size": width, "num_layers": 1, "num_heads": 2}
        data["model"]["precision"] = "fp32"
        data["task"] = {"kind": "arithmetic", "num_train": 8, "num_eval": 2, "num_demonstrations": 4}
        data["evaluation"] = {"problems": 0}
        sizes = {"steps": 1, "batch_size": 2, "prompts_per_step": 2, "group_size": 2, "num_prompts": 3, "min_kept": 1}
        for stage in data["stages"]:
            stage.update({key: value for key, value in sizes.items() if key in stage})
        return data

    run_recipe(parse_recipe(small(dump_recipe(teacher(0)), 32)), tmp_path / "teacher")
    data = small(dump_recipe(student(0, tmp_path / "teacher" / "checkpoints" / "grpo")), 16)
    data["stages"][1]["min_reward"] = -1.0  # nobody is right yet
    data["stages"][1]["sampling"]["max_new_tokens"] = 400
    path = run_recipe(parse_recipe(data), tmp_path / "student").path
    run = RunDirectory.open(path)
    assert [item.stage for item in run.checkpoints()] == [START, *WAYS]
    assert len(read_parquet(run.groups_path("imitate", 0))) == 6


def test_a_teacher_that_is_nowhere_is_refused_before_any_work(tmp_path: Path) -> None:
    recipe = student(0, tmp_path / "nowhere" / "grpo")
    with pytest.raises(ValueError, match=r"stage `imitate`: samples_from = '.*grpo' is neither an earlier stage nor"):
        run_recipe(recipe, tmp_path / "student")
    assert not (tmp_path / "student").exists()
