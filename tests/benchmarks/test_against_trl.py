"""The benchmark beside the peer, at tiny sizes and with a model that it makes itself."""

import json
import subprocess
import sys

import pytest
from repo.tree import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/against_trl.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.peer
def test_both_sides_run_and_a_second_call_goes_on(tmp_path):
    given = ["no-model", "--workloads", "smoke", "--steps", "2", "--trl-dtype", "fp32", "--out", str(tmp_path)]
    first = run(*given, "--precision", "fp32", "--rounds", "1")
    assert first.returncode == 0 and "| whole step, s | " in first.stdout and "failed" not in first.stdout
    [record] = json.loads((tmp_path / "results-smoke.json").read_text())["measured"]
    assert record["rounds"].keys() == {"trl", "outscore"} and "trial" not in record
    assert all(len(steps) == 1 for rounds in record["rounds"].values() for steps in rounds)
    [limit] = record["limits"]
    assert limit.keys() == {"sample", "backward"} and min(limit.values()) > 0
    again = run(*given, "--precision", "fp32", "--rounds", "1")
    assert "round 1" not in again.stdout and again.stdout.strip() in first.stdout


def test_one_step_is_too_few():
    from against_trl import at_least_two

    assert at_least_two("2") == 2
    with pytest.raises(Exception, match="the first does not count"):
        at_least_two("1")
