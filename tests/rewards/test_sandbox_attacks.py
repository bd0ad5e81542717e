"""Attacks on the sandbox, each by name. A program may do what it likes to itself; nothing else may be touched."""

import os
import threading
import time

import pytest
from rewards.sandboxes import SECRET, children, made, run

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="isolation is built for Linux")


@pytest.fixture(scope="module", params=["root", "user"])
def box(request):
    """One sandbox for all attacks, so that each also meets what the one before has left."""
    with made(request.param) as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def is_sound_afterwards(box):
    """After every attack the next program finds a clean, working place."""
    yield
    ran = run(box, "import os; print(os.listdir('/tmp'), open('/tmp/x', 'w').write('abc'), sorted([3, 1]) == [1, 3])")
    assert (ran.ended, ran.code, ran.stdout) == ("exit", 0, "[] 3 True\n")


def processes_in(box):
    """Processes in the user namespace of the box's warden, the warden left out."""
    warden = box._all[0]._process.pid
    theirs = os.readlink(f"/proc/{warden}/ns/user")
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/user") == theirs:
                found.append(int(pid))
        except OSError:
            continue  # it has ended, or is somebody else's
    return [pid for pid in found if pid != warden]


def fails_with(ran, *words):
    """Whether the program itself was stopped by an error that holds one of the words."""
    return ran.code != 0 and any(word in ran.errors.get(-1, "") for word in words)


def test_a_fork_bomb_reaches_its_limit_and_is_gone(box):
    ran = run(box, "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass")
    assert ran.code < 0
    assert processes_in(box) == []


def test_a_thread_bomb_reaches_the_same_limit(box):
    source = "import threading, time\nfor n in range(100):\n    threading.Thread(target=time.sleep, args=(9,)).start()"
    assert fails_with(run(box, source), "can't start new thread")


def test_endless_output_is_cut_off(box):
    ran = run(box, "while True:\n    print('x' * 1000)")
    assert ran.ended == "output" and len(ran.stdout) == 64 * 1024


def test_endless_results_are_cut_off(box):
    assert run(box, "import os\nwhile True:\n    os.write(3, b'x' * 1000)").ended == "output"


def test_an_endless_loop_ends_at_its_cpu_time_or_the_clock(box):
    ran = run(box, "while True:\n    pass")
    assert (ran.ended, ran.code) == ("timeout", -9)


def test_sleeping_ends_at_the_clock(box):
    assert run(box, "import time\ntime.sleep(1000)").ended == "timeout"


def test_ignoring_signals_does_not_help(box):
    source = "import signal\nfor n in range(1, 32):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n"
    source += "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass"
    assert run(box, source).ended == "timeout"


def test_one_file_fills_no_disk(box):
    assert fails_with(
        run(box, "with open('/tmp/a', 'w') as f:\n    while True:\n        f.write('x' * 65536)"), "Errno 27"
    )


def test_many_files_fill_no_disk(box):
    source = "n = 0\nwhile True:\n    n += 1\n    with open(f'/tmp/{n}', 'w') as f:\n        f.write('x' * 1000000)"
    assert fails_with(run(box, source), "Errno 28")


def test_many_empty_files_fill_no_table(box):
    assert fails_with(run(box, "n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{n}', 'w').close()"), "Errno 28")


def test_memory_beyond_the_limit_is_refused(box):
    assert fails_with(run(box, "x = bytearray(8 << 30)"), "MemoryError")


@pytest.mark.parametrize("call", ["memfd_create(b'x', 0)", "shmget(0, 1 << 30, 0o1600)"])
def test_memory_that_no_limit_counts_is_refused(box, call):
    source = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.{call}, ctypes.get_errno())"
    assert run(box, source).stdout == "-1 1\n"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/etc/shadow",
        "/proc/self/environ",
        "/proc/1/environ",
        "/sys/kernel",
        "/home",
        "/var/log",
        "/usr/bin/env",
        "/dev/mem",
        __file__,
        os.path.expanduser("~/.bashrc"),
        "/old/etc/passwd",
        "../../../../etc/passwd",
    ],
)
def test_the_user_s_files_cannot_be_read(box, path):
    assert fails_with(run(box, f"import os\nprint(os.stat({path!r}))\nprint(open({path!r}).read())"), "Errno 2")


def test_the_home_directory_holds_nothing(box):
    source = "import os\nwalked = [p + '/' for d in ('/root', '/home') for p, _, files in os.walk(d) if files]\n"
    assert run(box, source + "print([p for p in walked if '/lib/' not in p])").stdout == "[]\n"


def test_the_environment_is_not_the_user_s(box):
    ran = run(box, "import os\nprint(dict(os.environ))")
    assert ran.code == 0 and SECRET not in ran.stdout and "PATH" not in ran.stdout and "HOME" not in ran.stdout


@pytest.mark.parametrize("place", ["/", "/dev", "/usr", "/lib", "/usr/lib", "/x"])
def test_nothing_outside_the_scratch_space_can_be_written(box, place):
    ran = run(box, f"import os\nopen(os.path.join({place!r}, 'written'), 'w')")
    assert fails_with(ran, "Errno 30", "Errno 2]", "Errno 13")


def test_a_symbolic_link_leads_nowhere(box):
    source = "import os\nos.symlink('/etc/passwd', '/tmp/a')\nos.symlink('/', '/tmp/b')\n"
    assert fails_with(run(box, source + "print(open('/tmp/a').read())"), "Errno 2")
    assert fails_with(run(box, source + "open('/tmp/b/written', 'w')"), "Errno 30")


@pytest.mark.parametrize(
    "arguments",
    [
        "socket.AF_INET, socket.SOCK_STREAM",
        "socket.AF_INET, socket.SOCK_DGRAM",
        "socket.AF_UNIX",
        "socket.AF_NETLINK, 3",
    ],
)
def test_no_socket_can_be_opened(box, arguments):
    assert fails_with(run(box, f"import socket\nsocket.socket({arguments})"), "Errno 1]")


def test_the_parent_cannot_be_seen_or_signalled(box):
    warden = box._all[0]._process.pid
    source = f"import os, signal\nprint(os.getppid(), os.getpid())\nos.kill({warden}, signal.SIGKILL)"
    ran = run(box, source)
    assert ran.stdout == "0 1\n" and fails_with(ran, "ProcessLookupError")
    assert box._all[0]._process.pid == warden and box._all[0]._process.poll() is None


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP", "SIGTERM"])
@pytest.mark.parametrize("target", ["-1", "0"])
def test_signals_to_everybody_and_to_its_own_group_reach_nobody_else(box, target, signal):
    run(box, "1")
    warden = box._all[0]._process.pid
    ran = run(box, f"import os, signal\nos.kill({target}, signal.{signal})\nprint('still here')")
    assert ran.ended == "exit"
    assert ran.stdout == "still here\n" or ran.errors[-1].startswith("ProcessLookupError")  # nobody but itself
    assert run(box, "print(1)").stdout == "1\n"
    assert box._all[0]._process.pid == warden


def test_a_program_cannot_outlive_its_warden(box):
    source = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    ran = run(box, source + "print(libc.prctl(1, 0, 0, 0, 0), ctypes.get_errno(), libc.prctl(38, 1, 0, 0, 0))")
    assert ran.stdout == "-1 1 0\n"  # EPERM for the signal at its parent's end; other calls are as they were
    warden = box._all[0]
    waiting = threading.Thread(target=run, args=(box, source + "libc.prctl(1, 0, 0, 0, 0)\nwhile True:\n    pass"))
    waiting.start()
    while not (found := children(warden._process.pid)):
        time.sleep(0.001)
    os.kill(warden._process.pid, 9)
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{found[0]}/exe") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{found[0]}/exe")
    waiting.join()


def test_a_program_that_lowers_its_own_limit_is_out_of_time_and_not_lost(box):
    source = "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True:\n    pass"
    assert run(box, source).ended == "timeout"


def test_nothing_is_left_on_the_scratch_space_for_the_next_program(box):
    run(box, "import os\nos.setxattr('/tmp', 'user.s', b'277')\nos.utime('/tmp', (277, 277))")
    ran = run(
        box, "import os\nprint(os.listxattr('/tmp'), int(os.stat('/tmp').st_mtime), int(os.stat('/tmp').st_atime))"
    )
    assert ran.stdout == "[] 0 0\n"


SYSTEM_CALLS = {
    "ptrace": ("ptrace", "16, {warden}, 0, 0"),
    "a new user namespace": ("unshare", "0x10000000"),
    "a new mount namespace": ("unshare", "0x00020000"),
    "mount": ("mount", "b'none', b'/tmp', b'tmpfs', 0, None"),
    "umount": ("umount2", "b'/tmp', 2"),
    "chroot": ("chroot", "b'/tmp'"),
    "joining a namespace": ("setns", "0, 0"),
    "a process in new namespaces": ("syscall", "{clone}, 0x10000011, 0, 0, 0, 0"),
    "another user": ("setuid", "0"),
    "another user for files": ("setreuid", "0, 0"),
    "a higher limit": ("prlimit", "0, 7, (ctypes.c_uint64 * 2)(9999, 9999), None"),
}


@pytest.mark.parametrize("name", SYSTEM_CALLS)
def test_system_calls_that_lead_out_are_refused(box, name):
    function, arguments = SYSTEM_CALLS[name]
    clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    arguments = arguments.format(warden=box._all[0]._process.pid, clone=clone)
    source = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    ran = run(box, f"{source}print(libc.{function}({arguments}), ctypes.get_errno())")
    assert ran.stdout.strip() in ("-1 1", "-1 22")  # EPERM, or EINVAL where the kernel looks at the user id first


def test_background_processes_do_not_outlive_the_program(box):
    source = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n"
    ran = run(box, source + "    time.sleep(1000)\nprint('done')")
    assert (ran.ended, ran.code, ran.stdout) == ("exit", 0, "done\n")
    assert processes_in(box) == []


def test_a_program_that_closes_everything_still_ends(box):
    assert run(box, "import os, time\nos.closerange(0, 64)\ntime.sleep(1000)").ended == "timeout"


def test_descriptors_of_the_warden_are_not_inherited(box):
    source = "import os\nfound = []\nfor n in range(256):\n    try:\n        os.fstat(n)\n        found.append(n)\n"
    assert run(box, source + "    except OSError:\n        pass\nprint(found)").stdout == "[0, 1, 2, 3]\n"


def test_a_scratch_space_without_permissions_is_made_anew(box):
    assert run(box, "import os\nos.makedirs('/tmp/a/b')\nos.chmod('/tmp/a', 0)\nos.chmod('/tmp', 0)").code == 0


def test_patched_builtins_are_patched_for_the_program_alone(box):
    source = "import builtins\nbuiltins.sorted = lambda x: 0\nbuiltins.open = None\nbuiltins.print('patched')"
    assert run(box, source).stdout == "patched\n"


def test_a_crash_of_the_interpreter_is_the_program_s_own(box):
    assert run(box, "import ctypes\nctypes.string_at(0)").code == -11


@pytest.mark.parametrize(
    "line", ["[" * 60000, '{"index": 0, "value": {"a": 1}}', '{"index": true}', "null", "x", '{"index": 0}']
)
def test_forged_results_are_data_or_nothing(box, line):
    ran = run(box, f"import os\nos.write(3, {line.encode()!r} + b'\\n')\nos._exit(0)", calls=("1",))
    assert ran.values == {} and ran.code == 0


def test_source_that_is_no_text_for_a_compiler_is_an_error(box):
    for source in ("\0", "\ud800", "(" * 10000, "def"):
        assert run(box, source).code == 1


def test_the_caller_s_end_is_the_program_s_end(box):
    """A warden whose caller is gone in mid-program leaves nothing behind."""
    warden = box._all[0]
    warden.start()
    process = warden._process
    order = b'{"source": "import time\\ntime.sleep(1000)", "stdin": "", "calls": []}\n'
    process.stdin.write(order)
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not processes_in(box) and time.monotonic() < deadline:
        time.sleep(0.01)
    [program] = processes_in(box)
    process.stdin.close()
    process.wait(timeout=60)
    assert not os.path.exists(f"/proc/{program}")
    process.stdout.close()
    warden._process = None
