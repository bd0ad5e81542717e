"""Sandboxes to attack, as the user the tests run as and, where that is root, as one who may do nothing."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from outscore.rewards import sandbox
from outscore.rewards.sandbox import IsolationError, Limits, Program, Ran, Sandbox

NOBODY = 65534
SECRET = "the-secret-of-the-user"


@contextmanager
def made(identity: str) -> Iterator[Sandbox]:
    """A sandbox of one warden, started by `root` or by a `user`, with a secret in the environment. Skips where that
    cannot be."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="outscore-sandbox-") as folder:
        patch.setenv("OUTSCORE_SECRET", SECRET)
        if identity == "user" and os.geteuid() == 0:
            _as_nobody(patch, Path(folder))
        elif identity == "root" and os.geteuid() != 0:
            pytest.skip("the tests do not run as root")
        box = Sandbox(Limits(seconds=1, memory_mb=256, processes=4, scratch_mb=4, output_kb=64), workers=1)
        try:
            box.check()
        except IsolationError as error:
            pytest.skip(str(error))
        yield box
        box.close()


def _as_nobody(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Wardens are started as a user without rights, by an interpreter and from files that this user may read."""
    python = next((each for each in (sys.executable, "/usr/bin/python3") if _runs(each)), None)
    if python is None:
        pytest.skip("an unprivileged user can run no Python 3.11 here")
    for name in ("sandbox_warden.py", "sandbox_walls.py"):
        shutil.copy(Path(sandbox.__file__).with_name(name), folder / name)
    folder.chmod(0o755)
    patch.setattr(sandbox, "_WARDEN", folder / "sandbox_warden.py")
    patch.setattr(sandbox.sys, "executable", python)
    patch.setattr(
        sandbox.subprocess, "Popen", partial(subprocess.Popen, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/")
    )


def _runs(python: str) -> bool:
    code = "import sys, ctypes; sys.exit(sys.version_info < (3, 11))"
    try:
        done = subprocess.run([python, "-c", code], user=NOBODY, group=NOBODY, extra_groups=[], check=False, cwd="/")
    except OSError:
        return False
    return done.returncode == 0


def run(box: Sandbox, source: str, stdin: str = "", calls: tuple[str, ...] = ()) -> Ran:
    """What comes of one program."""
    [ran] = box.run([Program(source=source, stdin=stdin, calls=calls)])
    return ran


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
