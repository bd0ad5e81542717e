"""`make` leaves no half-made environment behind, whatever Python it was given."""

import shutil
import subprocess
from pathlib import Path

import pytest
from repo.tree import ROOT

TOO_OLD = 'case "$1" in -c) exit 1;; esac; mkdir -p .venv/bin; touch .venv/bin/python'
WITHOUT_ENSUREPIP = 'case "$1" in -c) exit 0;; esac; mkdir -p .venv/bin; touch .venv/bin/python; exit 1'
SOUND = 'case "$1" in -c) exit 0;; esac; mkdir -p .venv/bin; touch .venv/bin/python'


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_an_environment_that_could_not_be_made_is_begun_anew(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)

    def make(script: str) -> subprocess.CompletedProcess[str]:
        python = tmp_path / "fake-python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        command = ["make", ".venv/bin/python", f"PYTHON={python}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    for script, told in ((TOO_OLD, "needs Python 3.11 or newer"), (WITHOUT_ENSUREPIP, "python3-venv")):
        failed = make(script)
        assert failed.returncode != 0 and told in failed.stdout
        assert not (tmp_path / ".venv").exists()
    assert make(SOUND).returncode == 0
    assert (tmp_path / ".venv" / "bin" / "python").exists()
