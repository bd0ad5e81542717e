"""Sides in turn, with sides that are told what to find."""

import subprocess
from typing import Any

import pytest


class Side:
    """Takes a step of its next length each time; None fails."""

    def __init__(self, name: str, order: list[str], *lengths: float | None) -> None:
        self.name, self.order, self.lengths = name, order, iter(lengths)

    def __call__(self) -> dict[str, Any]:
        self.order.append(self.name)
        length = next(self.lengths)
        if length is None:
            raise subprocess.CalledProcessError(3, "side")
        return {"steps": [{"seconds": length}], "limits": [{"sample": length / 2}] if self.name == "outscore" else []}


@pytest.fixture
def kept(tmp_path) -> Any:
    from kept import Kept

    return Kept(tmp_path / "results-short.json", "short", {"steps": 2})


def seconds(kept: Any, side: str) -> list[list[float]]:
    return [[step["seconds"] for step in steps] for steps in kept.record["rounds"][side]]


def test_which_side_is_first_changes_and_each_run_is_written_at_once(kept):
    from kept import read
    from rounds import take_rounds

    order: list[str] = []
    sides = {"trl": Side("trl", order, 5.0, 6.0, 7.0), "outscore": Side("outscore", order, 1.0, 2.0, 3.0)}
    assert take_rounds(kept, sides, 3) == {}
    assert order == ["trl", "outscore", "outscore", "trl", "trl", "outscore"]
    assert seconds(kept, "trl") == [[5.0], [6.0], [7.0]] and seconds(kept, "outscore") == [[1.0], [2.0], [3.0]]
    assert kept.record["limits"] == [{"sample": 0.5}, {"sample": 1.0}, {"sample": 1.5}]
    assert read(kept.file) == [kept.record]


def test_rounds_are_counted_for_each_side(kept):
    from rounds import take_rounds

    order: list[str] = []
    take_rounds(kept, {"outscore": Side("outscore", order, 1.0)}, 1)
    take_rounds(kept, {"trl": Side("trl", order, 5.0, 6.0), "outscore": Side("outscore", order, 2.0)}, 2)
    assert order == ["outscore", "trl", "outscore", "trl"]
    assert seconds(kept, "trl") == [[5.0], [6.0]] and seconds(kept, "outscore") == [[1.0], [2.0]]


def test_a_failure_belongs_to_one_call_and_leaves_the_other_side_alone(kept):
    from rounds import take_rounds

    order: list[str] = []
    failed = take_rounds(kept, {"trl": Side("trl", order, None), "outscore": Side("outscore", order, 1.0, 2.0)}, 2)
    assert failed == {"trl": "round 1: exit status 3"} and order == ["trl", "outscore", "outscore"]
    assert "exit status" not in kept.file.read_text()
    assert take_rounds(kept, {"trl": Side("trl", order, 5.0, 6.0)}, 2) == {}
    assert seconds(kept, "trl") == [[5.0], [6.0]]


def trial(found: dict[str, float | None], asked: list[str]) -> Any:
    def run(precision: str) -> dict[str, Any]:
        asked.append(precision)
        return Side("trl", [], found[precision])()

    return run


def test_trl_computes_in_its_fastest_precision_and_all_three_are_kept(kept):
    from kept import read
    from rounds import better_precision

    asked: list[str] = []
    found = {"fp32": 3.0, "bf16": 9.0, "bf16-autocast": 2.0}
    assert better_precision(kept, trial(found, asked)) == "bf16-autocast"
    assert better_precision(kept, trial(found, asked)) == "bf16-autocast"  # not tried again
    assert asked == ["fp32", "bf16", "bf16-autocast"]
    [written] = read(kept.file) or []
    assert written["trial"] == found


def test_a_precision_that_fails_is_not_taken_and_without_any_trl_fails(kept):
    from rounds import better_precision

    with pytest.raises(subprocess.CalledProcessError):
        better_precision(kept, trial({"fp32": None, "bf16": None, "bf16-autocast": None}, []))
    assert "trial" not in kept.record  # the next call tries again
    assert better_precision(kept, trial({"fp32": 3.0, "bf16": None, "bf16-autocast": None}, [])) == "fp32"
    assert kept.record["trial"] == {"fp32": 3.0, "bf16": None, "bf16-autocast": None}


def test_a_trial_is_a_smaller_form_of_the_work():
    from gpu_workloads import GPU_WORKLOADS, workload_of
    from workloads import WORKLOADS

    for name, whole in (WORKLOADS | GPU_WORKLOADS).items():
        small = workload_of(f"trial:{name}")
        assert small.kind == whole.kind and small.prompt_tokens == whole.prompt_tokens and small.flat_groups == 0
        assert len(small.lengths()) * small.longest <= len(whole.lengths()) * whole.longest
        assert small.num_completions % (small.trl_batch or small.num_completions) == 0
    short = workload_of("trial:short")
    assert (short.num_prompts, short.group_size, short.shortest, short.longest) == (1, 8, 2, 16)
