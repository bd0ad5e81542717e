"""What a resume finds where a run stopped between stages or could not go on: masters, damaged files, a full disk."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from train.stopping import BOUNDARY, Stops, contents, digits, start

import outscore.train.run
import outscore.train.setup
from outscore.config import ModelSettings
from outscore.report import RunDirectory
from outscore.tasks import make_task
from outscore.train.run import resume, run_recipe
from outscore.train.setup import load_policy


@pytest.mark.parametrize("kept", [{"lora": {"rank": 2}}, {"precision": "bf16"}], ids=["lora", "bf16"])
def test_a_stage_begun_again_builds_on_what_the_stage_before_learnt(tmp_path: Path, kept: dict[str, Any]) -> None:
    """What the checkpoint's model file does not hold: adapters' masters, and the fp32 masters of a bf16 model."""
    base, _ = load_policy(ModelSettings(**BOUNDARY["model"]), make_task(**BOUNDARY["task"]), seed=3)
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    recipe = {**BOUNDARY, "model": {"source": str(tmp_path / "base"), "precision": "fp32", **kept}}
    run_recipe(recipe, tmp_path / "whole", rewards=[digits])
    assert any(line["grad_norm"] > 0 for line in RunDirectory.open(tmp_path / "whole").metrics("grpo"))
    for stopped_at, resumed_from in ((0, ("sft", 3)), (3, ("grpo", 2))):
        run = tmp_path / f"stopped-{stopped_at}"
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, run, rewards=[digits], console=Stops("grpo", stopped_at))
        newest = RunDirectory.open(run).checkpoints()[-1]
        assert (newest.stage, newest.step) == resumed_from
        assert resume(run, rewards=[digits]).finished
        assert contents(run) == contents(tmp_path / "whole")


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run_recipe(BOUNDARY, tmp_path / "run")
    saved = RunDirectory.open(tmp_path / "run").checkpoints()
    for item in saved:
        (item.path / "model.safetensors").write_bytes(b"")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=r"no sound checkpoint left.*step-000003/model\.safetensors is damaged"):
        resume(tmp_path / "run")
    assert contents(tmp_path / "run") == before
    for item in saved:
        shutil.rmtree(item.path)
    assert resume(tmp_path / "run").finished  # begun anew, as the message says


def test_a_signal_after_the_last_question_of_a_step_still_saves_it(tmp_path: Path) -> None:
    """The interrupt comes with the answer to the question that ends the loop, whichever question that is."""
    for answers in range(1, 4):
        run = tmp_path / f"run-{answers}"
        asked = itertools.count()

        def late(interrupt: object, answers: int = answers, asked: Iterator[int] = asked) -> bool:
            return next(asked) >= answers

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outscore.train.run._Interrupt, "__call__", late)
            assert not run_recipe(BOUNDARY, run).finished
        last = RunDirectory.open(run).metrics()[-1]
        newest = RunDirectory.open(run).checkpoints()[-1]
        assert (newest.stage, newest.step) == (last["stage"], last["step"])


LIMITED = """\
import resource, sys

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from outscore.cli import main

main()
"""
"""The command on a disk that takes files up to a size."""


def test_no_space_while_saving_is_named_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the command works, too
    run_recipe(BOUNDARY, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(BOUNDARY, tmp_path / "run", console=Stops("grpo", 3))
    saved = contents(tmp_path / "run" / "checkpoints")
    size = len(saved["grpo/step-000002/trainer.safetensors"])
    process = start(tmp_path, "-c", LIMITED, str(size - 1), "resume", "run")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors.decode()
    refusal = "could not write run/checkpoints/grpo/step-000003: File too large; what was there before is unchanged"
    assert refusal in errors.decode() and b"Traceback" not in errors
    assert contents(tmp_path / "run" / "checkpoints") == saved
    assert not list(tmp_path.rglob(".tmp-*"))
    assert resume(tmp_path / "run").finished
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_gradient_that_is_not_finite_stops_with_its_alarm_and_the_run_goes_on_when_corrected(tmp_path: Path) -> None:
    stages = [{**BOUNDARY["stages"][0], "optimizer": {"lr": 1e10}}]
    with pytest.raises(ValueError, match=r"stage sft, step 2: grad_norm is \w+\. Lower the learning rate") as caught:
        run_recipe({**BOUNDARY, "stages": stages}, tmp_path / "run")
    assert f"`outscore resume {tmp_path / 'run'}`" in str(caught.value)
    assert "alarm: grad_norm is " in (tmp_path / "run" / "events.log").read_text()
    assert [line["step"] for line in RunDirectory.open(tmp_path / "run").metrics()] == [1]
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "lr: 10000000000.0" in config
    (tmp_path / "run" / "config.yaml").write_text(config.replace("lr: 10000000000.0", "lr: 0.001"))
    assert resume(tmp_path / "run").finished


def test_a_resume_keeps_the_layout_the_run_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_recipe(BOUNDARY, tmp_path / "run", console=Stops("grpo", 0))
    kept = RunDirectory.open(tmp_path / "run").config()["found"]
    assert kept["layout"] == "group_rows" and kept["environment"]["outscore"] == outscore.__version__
    monkeypatch.setattr(outscore.train.setup, "probe_layout", None)  # not to be asked again
    assert resume(tmp_path / "run").finished
