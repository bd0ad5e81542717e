"""Trackers: imported when named, and told the finite metrics."""

import sys
import types

import pytest

from outscore.report import open_trackers, require_trackers


class Recorder(types.ModuleType):
    """Stands in for a tracker's package and keeps every call."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call


def test_no_tracker_named_none_imported(tmp_path):
    assert open_trackers([], run=tmp_path, config={}, project="p") == []


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(ValueError, match="'mlflow' is none of tensorboard, wandb, trackio"):
        open_trackers(["mlflow"], run=tmp_path, config={}, project="p")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, name):
    # None in sys.modules makes an import fail as if nothing were installed.
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "tensorboard.compat.proto.event_pb2", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'outscore\[{name}\]'"):
        open_trackers([name], run=tmp_path, config={}, project="p")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_found_without_a_run(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "tensorboard.compat.proto.event_pb2", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'outscore\[{name}\]'"):
        require_trackers([name])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_get_each_stage_with_its_own_steps(tmp_path, monkeypatch, name):
    package = Recorder(name)
    monkeypatch.setitem(sys.modules, name, package)
    (tracker,) = open_trackers([name], run=tmp_path / "demo", config={"seed": 0}, project="p")
    tracker.log("sft", 2, {"loss": 0.5})
    tracker.log("grpo", 1, {"reward": 1.0})
    tracker.close()
    (started,) = [kwargs for call, _, kwargs in package.calls if call == "init"]
    assert started["project"] == "p"
    assert started["name"].startswith("demo")
    assert started["resume"] == "allow"
    assert [args for call, args, _ in package.calls if call == "log"] == [
        ({"sft/step": 2, "sft/loss": 0.5},),
        ({"grpo/step": 1, "grpo/reward": 1.0},),
    ]
    assert package.calls[-1][0] == "finish"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    (tracker,) = open_trackers(["tensorboard"], run=tmp_path, config={}, project="p")
    for step in (1, 2):
        tracker.log("grpo", step, {"reward": step / 2})
    tracker.close()
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    (path,) = (tmp_path / "tensorboard").iterdir()
    found = [(e.step, v.tag, v.simple_value) for e in LegacyEventFileLoader(str(path)).Load() for v in e.summary.value]
    assert found == [(1, "grpo/reward", 0.5), (2, "grpo/reward", 1.0)]
