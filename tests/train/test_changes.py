"""A run's config.yaml is where its stages and their steps stand: what a resume makes of it when somebody has changed
it."""

import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import rich.console
import yaml
from report.building import evaluation, report
from train.stopping import BOUNDARY, Stops, contents, digits

import outscore.train.run
from outscore.config import dump_recipe, parse_recipe
from outscore.report import Console, RunDirectory
from outscore.report.show import summarize
from outscore.train.changes import going_on, nothing_left
from outscore.train.checkpoint import Progress
from outscore.train.run import resume, run_recipe


def edited(run: Path, **changes: dict[str, Any]) -> Path:
    """The run with settings of its stages changed in config.yaml, by stage."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for stage in config["stages"]:
        stage.update(changes.get(stage["name"] or stage["algorithm"], {}))
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert run_recipe(BOUNDARY, path, rewards=[digits]).finished
    return path


def test_a_run_that_is_finished_says_so_and_loads_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(outscore.train.run, "prepare", None)
    out = rich.console.Console(file=io.StringIO(), width=200)
    result = resume(run, rewards=[digits], console=Console(rich_console=out))
    assert result.finished and result.checkpoint == run / "checkpoints" / "grpo" / "step-000003"
    assert f"{run} is finished: nothing to do" in out.file.getvalue()  # type: ignore[attr-defined]
    assert contents(run) == contents(finished)


def test_more_steps_go_on_as_if_the_stage_had_had_them_from_the_start(finished: Path, tmp_path: Path) -> None:
    longer = {**BOUNDARY, "stages": [BOUNDARY["stages"][0], {**BOUNDARY["stages"][1], "steps": 5}]}
    run_recipe(longer, tmp_path / "whole", rewards=[digits])
    run = edited(shutil.copytree(finished, tmp_path / "run"), grpo={"steps": 5})
    with pytest.raises(KeyboardInterrupt):
        resume(run, rewards=[digits], console=Stops("grpo", 4))  # back to the step where the stage had ended
    assert resume(run, rewards=[digits]).finished
    found, expected = contents(run), contents(tmp_path / "whole")
    differ = {name for name in found | expected if found.get(name) != expected.get(name)}
    # It was evaluated and saved at step 3, too, which evaluations and counters say; weights and moments are the same.
    earlier = "checkpoints/grpo/step-000003/"
    assert {name for name in differ if not name.startswith(earlier)} <= {
        "evals.jsonl",
        *(name for name in expected if name.startswith("checkpoints/grpo/") and name.endswith("trainer.json")),
    }
    assert "metrics.jsonl" in found and "checkpoints/grpo/step-000005/trainer.safetensors" in found
    labels = [each.label for each in RunDirectory.open(run).evaluations()]
    assert labels == ["before sft", "after sft", "grpo step 3", "after grpo"]
    [_, stage] = summarize(RunDirectory.open(run))["stages"]
    assert (stage["num_steps"], stage["steps_done"]) == (5, 5)
    assert resume(run, rewards=[digits]).finished  # with nothing left to do


STAGES: list[dict[str, Any]] = [
    {"algorithm": "sft", "steps": 2},
    {"algorithm": "grpo", "steps": 4, "optimizer": {"schedule": "cosine", "warmup_steps": 0}},
]


def stands(path: Path, stage: str, step: int, stages: list[dict[str, Any]] | None = None, **progress: Any) -> Any:
    """A run of these stages as far as this step, and its progress there: each stage before it is finished."""
    recipe = parse_recipe({**BOUNDARY, "stages": stages or STAGES})
    run = RunDirectory.create(path, config=dump_recipe(recipe))
    for each in recipe.stages:
        last = step if each.label == stage else each.steps
        for number in range(1, last + 1):
            run.append_step(each.label, report(number))
        at = Progress(
            **{
                **{"stage": each.label, "step": last, "finished": last == each.steps, "policy_version": 1},
                **{"num_updates": last, "num_steps": each.steps, **(progress if each.label == stage else {})},
            }
        )
        saved = run.checkpoint_path(each.label, last)
        saved.mkdir(parents=True)
        (saved / "trainer.json").write_text(json.dumps({"progress": asdict(at), "digests": {}, "environment": {}}))
        if each.label == stage:
            return run, at
    raise AssertionError(stage)


def asked(**changes: dict[str, Any]) -> Any:
    """The recipe with these changes, by stage."""
    stages = [{**stage, **changes.get(stage["algorithm"], {})} for stage in STAGES]
    return parse_recipe({**BOUNDARY, "stages": stages})


@pytest.mark.parametrize(
    ("step", "changes", "message"),
    [
        (
            4,
            {"sft": {"steps": 3}},
            r"stage `sft` has steps = 3, and it was finished with 2, .* put 2 back.*sft/step-000002",
        ),
        (1, {"sft": {"steps": 1}}, "stage `sft` has steps = 1, and it was finished with 2"),
        (4, {"grpo": {"steps": 3}}, "`grpo` has steps = 3, and it has taken 4: put 4 back, or begin a new run"),
        (2, {"grpo": {"steps": 2}}, "`grpo` has steps = 2, and it has taken 2: give more, as 3, or put 4 back"),
        (4, {"sft": {"name": "cold"}}, "has begun the stages sft, grpo, and its config.yaml has cold, grpo"),
        (
            2,
            {"grpo": {"name": "rl"}},
            "has begun the stages sft, grpo, and its config.yaml has sft, rl.*grpo/step-000002",
        ),
    ],
)
def test_what_has_been_done_is_not_changed(tmp_path: Path, step: int, changes: Any, message: str) -> None:
    run, progress = stands(tmp_path / "run", "grpo", step)
    with pytest.raises(ValueError, match=message):
        going_on(run, asked(**changes), progress)


@pytest.mark.parametrize("stages", [STAGES[:1], STAGES[::-1], [{"algorithm": "pretrain", "steps": 1}, *STAGES]])
def test_stages_that_have_begun_stay_where_they_are(tmp_path: Path, stages: list[dict[str, Any]]) -> None:
    run, progress = stands(tmp_path / "run", "grpo", 2)
    with pytest.raises(ValueError, match="keeps its name and its place"):
        going_on(run, parse_recipe({**BOUNDARY, "stages": stages}), progress)


def test_stages_that_have_not_begun_may_be_changed(tmp_path: Path) -> None:
    run, progress = stands(tmp_path / "run", "sft", 2)
    for stages in (
        STAGES[:1],
        [STAGES[0], {**STAGES[1], "name": "rl", "steps": 9}],
        [*STAGES, {**STAGES[1], "name": "x"}],
    ):
        recipe = parse_recipe({**BOUNDARY, "stages": stages})
        assert going_on(run, recipe, progress) == (progress, [])
        assert nothing_left(recipe, progress) == (len(stages) == 1)


@pytest.mark.parametrize("step", [2, 4])
def test_a_rate_that_follows_the_number_of_steps_is_said_to_be_another(tmp_path: Path, step: int) -> None:
    run, progress = stands(tmp_path / "run", "grpo", step)
    found, [note] = going_on(run, asked(grpo={"steps": 7}), progress)
    assert (found.finished, found.step, found.num_steps) == (False, step, 7)
    assert f"has 7 steps now, where it had 4: from step {step + 1} on its rate is what schedule: cosine has" in note
    constant = {"steps": 7, "optimizer": {"schedule": "constant"}}
    assert going_on(run, asked(grpo=constant), progress) == (found, [])
    assert going_on(run, asked(), progress) == (progress, [])


def test_a_stage_that_ended_early_does_not_go_on(tmp_path: Path) -> None:
    run, progress = stands(tmp_path / "run", "grpo", 3, finished=True, best_step=1)
    assert going_on(run, asked(), progress) == (progress, [])
    with pytest.raises(ValueError, match=r"ended early, after step 3 of 4, with the weights of step 1 \(evaluation"):
        going_on(run, asked(grpo={"steps": 9}), progress)


def test_a_reward_model_that_was_normalised_does_not_go_on(tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = [{"algorithm": "reward-model", "steps": 2}]
    run, progress = stands(tmp_path / "run", "reward-model", 2, stages)
    longer = [{**stages[0], "steps": 3}]
    with pytest.raises(ValueError, match="its reward model was normalised after step 2, which was its last"):
        going_on(run, parse_recipe({**BOUNDARY, "stages": longer}), progress)
    as_it_is = parse_recipe({**BOUNDARY, "stages": [{**longer[0], "normalise": False}]})
    assert going_on(run, as_it_is, progress)[0].num_steps == 3


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(finished: Path, tmp_path: Path) -> None:
    run = edited(shutil.copytree(finished, tmp_path / "run"), sft={"steps": 9})
    before = contents(run)
    with pytest.raises(ValueError, match="put 3 back"):
        resume(run, rewards=[digits])
    assert contents(run) == before


def test_the_evaluation_that_closed_a_stage_is_one_within_it_when_it_goes_on(tmp_path: Path) -> None:
    run, _ = stands(tmp_path / "run", "grpo", 4)
    for found in (evaluation("after sft", "sft", 2, 0.5), evaluation("after grpo", "grpo", 4, 0.75)):
        run.append_evaluation(found)
    first = (run.path / "evals.jsonl").read_bytes().splitlines()[0]
    run.reopen("grpo")
    assert [each.label for each in run.evaluations()] == ["after sft", "grpo step 4"]
    assert (run.path / "evals.jsonl").read_bytes().splitlines()[0] == first
