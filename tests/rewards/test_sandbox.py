"""What the sandbox gives back of programs that mean no harm, and what happens where it cannot be built."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rewards.sandboxes import children, made, run

from outscore.rewards import sandbox
from outscore.rewards.sandbox import IsolationError, Limits, Program, Sandbox


@pytest.fixture(scope="module", params=["isolated", "unsafe"])
def box(request):
    if request.param == "isolated":
        with made("root" if os.geteuid() == 0 else "user") as isolated:
            yield isolated
    else:
        open_box = Sandbox(Limits(seconds=1), unsafe=True, workers=1)
        yield open_box
        open_box.close()


def test_a_program_reads_writes_and_ends(box):
    ran = run(box, "print(int(input()) * 2)\nprint(input())", "21\nä\n")
    assert (ran.ended, ran.code, ran.stdout, ran.values, ran.errors) == ("exit", 0, "42\nä\n", {}, {})


@pytest.mark.parametrize(
    ("source", "code", "error"),
    [
        ("import sys\nsys.exit(3)", 3, {}),
        ("import sys\nsys.exit('no')", 1, {}),
        ("raise SystemExit", 0, {}),
        ("1 / 0", 1, {-1: "ZeroDivisionError: division by zero"}),
        ("raise KeyboardInterrupt", 1, {-1: "KeyboardInterrupt: "}),
        ("def", 1, {-1: "SyntaxError: invalid syntax (<program>, line 1)"}),
    ],
)
def test_exit_status_and_errors_are_those_of_python(box, source, code, error):
    ran = run(box, source)
    assert (ran.code, ran.errors) == (code, error)


VALUES = [None, True, 3, -(10**30), 2.5, "ä", [1, [2]], (1, "a"), {1, 2}, frozenset({3}), {1: (2,), "a": None}, []]


def test_values_of_plain_types_come_back_as_they_are(box):
    ran = run(box, "", calls=tuple(map(repr, VALUES)))
    found = [ran.values[index] for index in range(len(VALUES))]
    assert found == VALUES and list(map(type, found)) == list(map(type, VALUES))


def test_calls_see_what_the_program_defined_and_fail_one_by_one(box):
    ran = run(box, "def f(x):\n    return 10 // x", calls=("f(2)", "f(0)", "g(1)", "f", "f(5)"))
    assert ran.values == {0: 5, 4: 2}
    assert ran.errors == {
        1: "ZeroDivisionError: integer division or modulo by zero",
        2: "NameError: name 'g' is not defined",
        3: "TypeError: a function is no plain value",
    }


def test_what_was_answered_before_an_endless_loop_counts(box):
    ran = run(box, "def f(x):\n    while x:\n        pass\n    return 7", calls=("f(0)", "f(1)", "f(0)"))
    assert ran.values == {0: 7} and ran.ended == "timeout"


def test_the_library_can_be_imported(box):
    ran = run(box, "import collections, json, decimal, re, typing, dataclasses\nprint(json.dumps([1]))")
    assert ran.stdout == "[1]\n"


def test_results_come_in_the_order_of_the_programs():
    try:
        box = Sandbox(Limits(seconds=1), workers=2)
        programs = [Program(source=f"print({n})") for n in range(12)]
        assert [ran.stdout for ran in box.run(programs)] == [f"{n}\n" for n in range(12)]
        box.close()
    except IsolationError as error:
        pytest.skip(str(error))


def test_without_isolation_what_a_program_started_is_ended_with_it():
    box = Sandbox(Limits(seconds=1), unsafe=True, workers=1)
    ran = run(box, "import os, time\nchild = os.fork()\nif child == 0:\n    time.sleep(1000)\nprint(child)")
    box.close()
    deadline = time.monotonic() + 60  # it was sent the signal, and is gone when the kernel gets round to it
    while os.path.exists(f"/proc/{int(ran.stdout)}/exe") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{int(ran.stdout)}/exe")


def test_a_system_that_cannot_isolate_is_refused_and_says_how_to_go_on(tmp_path, monkeypatch):
    shutil.copy(Path(sandbox.__file__).with_name("sandbox_warden.py"), tmp_path)
    walls = "def build():\n    raise PermissionError(1, 'unshare: Operation not permitted')\n"
    (tmp_path / "sandbox_walls.py").write_text(walls)
    monkeypatch.setattr(sandbox, "_WARDEN", tmp_path / "sandbox_warden.py")
    box = Sandbox(workers=1)
    for attempt in (box.check, lambda: box.run([Program(source="")])):
        with pytest.raises(IsolationError, match=r"unshare: Operation not permitted.*say `unsafe: true`"):
            attempt()


def test_a_warden_that_was_lost_is_replaced(box):
    warden = box._all[0]
    warden.start()
    warden._process.kill()
    warden._process.wait()
    assert run(box, "print(1)").stdout == "1\n"


def test_a_sandbox_that_is_lost_twice_says_so_of_its_program(monkeypatch):
    box, asked = Sandbox(workers=1), []
    monkeypatch.setattr(box._all[0], "ask", asked.append)
    assert [ran.ended for ran in box.run([Program(source="1"), Program(source="2")])] == ["lost", "lost"]
    assert [program.source for program in asked] == ["1", "1", "2", "2"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_program_that_the_system_kills_is_run_again_and_then_lost(times):
    """What the kernel does when memory runs out: SIGKILL from outside, before the program's own limits."""
    with made("root" if os.geteuid() == 0 else "user") as box:
        ran = killed_from_outside(box, times)
    assert (ran.ended, ran.stdout) == (("exit", "done\n") if times == 1 else ("lost", ""))


def test_without_isolation_a_program_may_have_killed_itself_and_is_not_run_again():
    box = Sandbox(Limits(seconds=1), unsafe=True, workers=1)
    ran = run(box, "import os\nos.kill(os.getpid(), 9)")
    box.close()
    assert (ran.ended, ran.code) == ("exit", -9)


def killed_from_outside(box, times):
    warden = box._all[0]
    warden.start()

    def kill():
        for _ in range(times):
            while not (found := children(warden._process.pid)):
                time.sleep(0.001)
            os.kill(found[0], signal.SIGKILL)
            while found == children(warden._process.pid):
                time.sleep(0.001)

    killer = threading.Thread(target=kill)
    killer.start()
    ran = run(box, "import time\ntime.sleep(0.5)\nprint('done')")
    killer.join()
    return ran


def test_a_limit_that_was_inherited_is_refused_and_no_program_is_blamed_for_it():
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from outscore.rewards.sandbox import Limits, Sandbox\n"
        "Sandbox(Limits(seconds=1), unsafe=True, workers=1).check()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "limits or its filter of system calls cannot be set" in done.stderr
