"""What keeps a program in: Linux namespaces, an empty file system, no capabilities, a system call filter, limits.

Runs in the warden's process only (`sandbox_warden.py`), which is started without this package; so it imports none of
it. Every function raises OSError where the kernel refuses. Sources: namespaces(7), user_namespaces(7), seccomp(2).
"""

import ctypes
import errno
import os
import platform
import resource
import sys
from functools import lru_cache

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_NEW_CGROUP_AND_TIME = 0x02000000 | 0x00000080
_PRIVATE = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = -100, 0x8000, 1, 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_LAST_CAPABILITY = 63
_SIGKILL, _SIGCHLD = 9, 17

NOBODY = 65534
"""The user that a warden started by root becomes: RLIMIT_NPROC does not bind root, nor whom root's name maps to."""

_SYSCALLS = {
    "x86_64": {"audit": 0xC000003E, "clone": 56, "pivot_root": 155, "prctl": 157},
    "aarch64": {"audit": 0xC00000B7, "clone": 220, "pivot_root": 41, "prctl": 167},
}
_MOUNT_SETATTR = 442
_CLONE3 = 435
# In the same order for both: socket, shmget, semget, msgget, mq_open, memfd_create (memory that no limit counts, and
# ways out), ptrace, process_vm_readv, process_vm_writev, personality, pivot_root, chroot, mount, umount2, unshare,
# setns, name_to_handle_at, open_by_handle_at, init_module, finit_module, kexec_load, kexec_file_load, add_key,
# request_key, keyctl, perf_event_open, bpf, userfaultfd.
_DENIED = {
    "x86_64": (
        *(41, 29, 64, 68, 240, 319, 101, 310, 311, 135, 155, 161, 165, 166, 272, 308, 303, 304, 175, 313, 246, 320),
        *(248, 249, 250, 298, 321, 323),
    ),
    "aarch64": (
        *(198, 194, 190, 186, 180, 279, 117, 270, 271, 92, 41, 51, 40, 39, 97, 268, 264, 265, 105, 273, 104, 294),
        *(217, 218, 219, 241, 280, 282),
    ),
}
# The same on every architecture: io_uring_*, open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, pidfd_getfd,
# mount_setattr, memfd_secret.
_DENIED_EVERYWHERE = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442, 447)

_libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL keeps the interpreter lock: a clone must not happen without it


def build() -> None:
    """Put this process into namespaces of its own, with no network and a read-only root that holds nothing but the
    Python library, system libraries and an empty /tmp. As root it also becomes NOBODY."""
    if sys.platform != "linux" or platform.machine() not in _SYSCALLS:
        raise OSError(errno.ENOSYS, f"no isolation is built for {sys.platform} on {platform.machine()}")
    process = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        # As root first the file system, since the library may lie where only root may look; then an unprivileged user.
        _unshare(CLONE_NEWNS)
        _empty_root()
        user = group = NOBODY
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        _prctl(_PR_SET_DUMPABLE, 1)
        _unshare(_PRIVATE)
        _map_user(process, user, group)
    else:
        _unshare(_PRIVATE)
        _map_user(process, user, group)
        _empty_root()
    os.close(process)
    _filter(platform.machine())  # made once, for every fork


def fresh_scratch(num_bytes: int, *, again: bool) -> None:
    """An empty /tmp of bounded size; `again` replaces the one there is."""
    if again:
        os.chdir("/")
        _check(_libc.umount2(b"/tmp", _MNT_DETACH), "umount /tmp")
    options = f"size={num_bytes},nr_inodes=1024,mode=0700"
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)


def fork_first() -> int:
    """fork(), the child being process 1 of a new process namespace: all others in it end when it does."""
    number = _SYSCALLS[platform.machine()]["clone"]
    pid = int(_libc.syscall(number, CLONE_NEWPID | _SIGCHLD, 0, 0, 0, 0))
    _check(pid, "clone")
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    return pid


def drop_everything() -> None:
    """No capabilities, none to be had again, and no system calls that could lead out."""
    for capability in range(_LAST_CAPABILITY + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the kernel knows no more
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _check(_libc.capset(header, data), "capset")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(_filter(platform.machine())[0]))


def limit(*, cpu_seconds: int, memory_bytes: int, file_bytes: int, num_processes: int | None) -> None:
    """Resource limits of this process and its children; None for `num_processes` leaves their number alone."""
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    if num_processes is not None:
        limits[resource.RLIMIT_NPROC] = num_processes
    for which, most in limits.items():
        try:
            resource.setrlimit(which, (most, most))
        except (OSError, ValueError):
            if sys.platform == "linux":  # macOS does not have them all
                raise


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.c_uint64))


@lru_cache
def _filter(machine: str) -> tuple[_Program, object]:
    """The seccomp program, and the memory it points to: each instruction is code, jump if true, jump if false and
    operand, in 8 bytes."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000

    def op(code: int, k: int, yes: int = 0, no: int = 0) -> int:
        return code | yes << 16 | no << 24 | k << 32

    numbers = _SYSCALLS[machine]
    namespaces = _PRIVATE | CLONE_NEWPID | _NEW_CGROUP_AND_TIME
    program = [op(load, 4), op(equal, numbers["audit"], yes=1), op(give, kill), op(load, 0)]
    program += [op(at_least, 0x40000000, no=1), op(give, refuse | errno.EPERM)]  # the x32 table of x86_64
    for number in _DENIED[machine] + _DENIED_EVERYWHERE:
        program += [op(equal, number, no=1), op(give, refuse | errno.EPERM)]
    program += [op(equal, _CLONE3, no=1), op(give, refuse | errno.ENOSYS)]  # its flags lie in memory; libc uses clone
    # Who cleared it would live on if its warden was killed.
    program += [op(equal, numbers["prctl"], no=3), op(load, 16), op(equal, _PR_SET_PDEATHSIG, no=1)]
    program += [op(give, refuse | errno.EPERM), op(load, 0)]
    program += [op(equal, numbers["clone"], no=3), op(load, 16), op(any_bit, namespaces, no=1)]
    program += [op(give, refuse | errno.EPERM), op(give, allow)]
    instructions = (ctypes.c_uint64 * len(program))(*program)
    return _Program(len(program), ctypes.addressof(instructions)), instructions


def _empty_root() -> None:
    """Make the root a read-only tmpfs with the libraries; the old one is gone afterwards."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=0755")
    os.mkdir("/tmp/old")
    number = _SYSCALLS[platform.machine()]["pivot_root"]
    _check(_libc.syscall(number, b"/tmp", b"/tmp/old"), "pivot_root")
    os.chdir("/")
    for path in _libraries():
        _bring(path)
    os.mkdir("/dev")
    for device in ("null", "zero", "urandom"):
        os.close(os.open(f"/dev/{device}", os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(f"/old/dev/{device}", f"/dev/{device}", None, _MS_BIND)
    os.mkdir("/tmp")
    _check(_libc.umount2(b"/old", _MNT_DETACH), "umount the old root")
    os.rmdir("/old")
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    done = _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    _check(done, "make the root read-only")


def _libraries() -> list[str]:
    """The Python library and the system's: no program, and nothing that is a user's."""
    python = {os.path.join(prefix, "lib") for prefix in (sys.base_prefix, sys.base_exec_prefix)}
    wanted = sorted(python | {"/lib", "/lib64", "/usr/lib", "/usr/lib64"})
    return [path for path in wanted if os.path.lexists(f"/old{path}")]


def _bring(path: str) -> None:
    """Show a directory of the old root at the same place in the new one; a link stays a link."""
    if os.path.lexists(path):
        return  # it lies inside of one that is there
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(f"/old{path}"):
        os.symlink(os.readlink(f"/old{path}"), path)
        return
    os.mkdir(path)
    _mount(f"/old{path}", path, None, _MS_BIND | _MS_REC)


def _map_user(process: int, user: int, group: int) -> None:
    """In the new user namespace this user is 1000, and nobody else exists."""
    for name, line in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
        place = os.open(name, os.O_WRONLY, dir_fd=process)
        try:
            os.write(place, line.encode())
        finally:
            os.close(place)


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    done = _libc.mount(
        source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags), options.encode()
    )
    _check(done, f"mount {target}")


def _prctl(what: int, value: int, more: int = 0) -> None:
    _check(_libc.prctl(what, ctypes.c_ulong(value), ctypes.c_ulong(more), 0, 0), f"prctl {what}")


def _check(returned: int, what: str) -> None:
    if returned < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
