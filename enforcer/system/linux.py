"""Linux system calls that Python doesn't wrap, under the kernel's own names.

A failed call raises an OSError that says what was attempted.
"""

import ctypes
import errno
import functools
import os
import resource
from collections.abc import Mapping

# mount(2)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
# mount_setattr(2), open_tree(2), move_mount(2)
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_IDMAP = 1, 2, 4, 0x00100000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
AT_EMPTY_PATH, AT_RECURSIVE, AT_FDCWD = 0x1000, 0x8000, -100
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
# fsopen(2), fsconfig(2), fsmount(2)
_CLOEXEC, _SET_STRING, _CREATE = 1, 1, 6
# openat2(2), renameat2(2)
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x01, 0x02, 0x04, 0x08
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
# prctl(2)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
SECCOMP_SET_MODE_FILTER, FILTER_NEW_LISTENER = 1, 1 << 3  # seccomp(2)
# Linux 5.19: once the supervisor has received a call, only SIGKILL interrupts it. Otherwise a signal handler would have
# the call made, and reported, again.
FILTER_WAIT_KILLABLE = 1 << 5
PR_SET_NAME, PR_SET_SECUREBITS = 15, 28
OPTIONS = {
    number: name for name, number in tuple(globals().items()) if name.startswith("PR_") and "AMBIENT_" not in name
}
# NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, and the lock bits of all securebits (capabilities(7))
SECURE = 0b11101111
CAP_SYS_ADMIN = 21
CAP_LEAST_LAST = 37  # CAP_AUDIT_READ: every supported kernel has at least the capabilities up to this one

_NO_DESCRIPTOR = (1 << 31) - 1
_CLONE_PARENT, _CLONE_PARENT_SETTID = 0x8000, 0x100000  # linux/sched.h

# From Linux 5.1 on every architecture gives a new system call the same number (syscall(2)).
_OPEN_TREE, _OPENAT2, _MOUNT_SETATTR = 428, 437, 442
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_CLONE = {"x86_64": 56, "aarch64": 220}
_CAPGET, _CAPSET = {"x86_64": 125, "aarch64": 90}, {"x86_64": 126, "aarch64": 91}
_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_KCMP, _KCMP_FILES = {"x86_64": 312, "aarch64": 272}, 2  # kcmp(2)
_PIDFD_GETFD = 438

_libc = ctypes.CDLL(None, use_errno=True)
# Resolved once: a process that is forked later would resolve them itself, and copy shared memory for it.
_syscall, _mount, _prctl = (getattr(_libc, name) for name in ("syscall", "mount", "prctl"))
_syscall.restype = ctypes.c_long
# PyDLL keeps the GIL: a forked process continues as the thread that holds it.
_syscall_locked = ctypes.PyDLL(None, use_errno=True).syscall
_syscall_locked.restype = ctypes.c_long
_before_fork, _after_fork_here, _after_fork_there = (
    getattr(ctypes.pythonapi, f"PyOS_{name}") for name in ("BeforeFork", "AfterFork_Parent", "AfterFork_Child")
)


def check(result: int, attempted: str) -> int:
    """Return the result of a C library call. Raises OSError from errno if it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{attempted}: {os.strerror(number)}")
    return result


def _number(table: dict[str, int], name: str) -> int:
    machine = platform_machine()
    if machine not in table:
        raise OSError(f"{name}: no system call number is known for the machine `{machine}`")
    return table[machine]


def platform_machine() -> str:
    """Return the kernel's name of the instruction set, as `uname -m` prints it."""
    return os.uname().machine


def disable_core_dumps() -> None:
    """Disable core dumps of this process and its children, by RLIMIT_CORE.

    The limit is 1 byte, smaller than any core: with 0 the kernel still pipes one to core_pattern's program (core(5)).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (1 if hard == resource.RLIM_INFINITY else min(1, hard), hard))


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount a file system or change a mount, as mount(2) does."""
    check(
        _mount(
            source.encode(), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
        ),
        f"mount {kind or source} on {target}",
    )


def open_tree(path: str, *, directory: int = AT_FDCWD) -> int:
    """Clone the mount at `path` (or at `directory` itself, for an empty path), detached, for move_mount(2)."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (0 if path else AT_EMPTY_PATH)
    return check(_syscall(_OPEN_TREE, directory, os.fsencode(path), flags), f"open_tree {path}".rstrip())


def make_detached_mount(kind: str, options: Mapping[str, str], attributes: int) -> int:
    """Make a detached file system; returns a descriptor of its root, for move_mount(2). Raises OSError."""
    said = f"mount {kind}"
    context = check(_syscall(_FSOPEN, os.fsencode(kind), _CLOEXEC), said)
    try:
        for name, value in options.items():
            check(_syscall(_FSCONFIG, context, _SET_STRING, os.fsencode(name), os.fsencode(value), 0), said)
        check(_syscall(_FSCONFIG, context, _CREATE, None, None, 0), said)
        return check(_syscall(_FSMOUNT, context, _CLOEXEC, attributes), said)
    finally:
        os.close(context)


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def mount_setattr(mount_fd: int, attributes: int, *, userns: int = 0) -> None:
    """Change a mount's attributes, by a descriptor of it (mount_setattr(2))."""
    attr = ctypes.byref(_MountAttr(attributes, 0, 0, userns))
    size = ctypes.sizeof(_MountAttr)
    check(_syscall(_MOUNT_SETATTR, mount_fd, b"", AT_EMPTY_PATH, attr, size), "mount_setattr")


class _OpenHow(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Open a path below a directory with RESOLVE_ flags, as openat2(2) does; adds O_CLOEXEC."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    return check(
        _syscall(_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)), f"openat2 {path}"
    )


def renameat2(directory: int, old: str, new: str, flags: int) -> None:
    """Rename within one open directory, exchanging or not replacing (renameat2(2))."""
    check(
        _syscall(_number(_RENAMEAT2, "renameat2"), directory, os.fsencode(old), directory, os.fsencode(new), flags),
        f"rename {old} to {new}",
    )


def prctl(option: int, argument: int = 0, third: int = 0) -> None:
    """Call prctl(2) with up to two arguments."""
    check(
        _prctl(option, ctypes.c_ulong(argument), ctypes.c_ulong(third), ctypes.c_ulong(0), ctypes.c_ulong(0)),
        f"prctl {OPTIONS.get(option, option)}",
    )


@functools.cache
def argument_area() -> tuple[int, int]:
    """Return the start and end address of the command line: arg_start and arg_end of proc_pid_stat(5)."""
    with open("/proc/self/stat", "rb", buffering=0) as file:
        fields = file.readall().rpartition(b")")[2].split()
    return int(fields[48 - 3]), int(fields[49 - 3])


def set_process_name(name: str) -> None:
    """Replace the command line and the name of this process, as ps(1) shows them, with `name`."""
    start, end = argument_area()
    shown = os.fsencode(name)[: max(end - start - 1, 0)]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, shown, len(shown))
    check(_prctl(PR_SET_NAME, shown[:15], 0, 0, 0), "prctl PR_SET_NAME")  # TASK_COMM_LEN


def drop_bounding_set() -> None:
    """Empty the capability bounding and ambient sets, so that no executed program gains any (capabilities(7))."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL or capability <= CAP_LEAST_LAST:
                raise
            return  # past the last capability of this kernel


def drop_capabilities(keep: int = 0) -> None:
    """Drop every capability of the calling thread except the mask `keep` (capset(2), version 3)."""
    data = (ctypes.c_uint32 * 6)(keep, keep)  # effective and permitted, those up to 31
    check(_syscall(_number(_CAPSET, "capset"), _capability_header(), ctypes.byref(data)), "capset")


def raise_ambient_capability(capability: int) -> None:
    """Put a capability, one of the first 32, into the ambient set: executed programs keep it (capabilities(7))."""
    data = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice
    check(_syscall(_number(_CAPGET, "capget"), _capability_header(), ctypes.byref(data)), "capget")
    data[2] |= 1 << capability
    check(_syscall(_number(_CAPSET, "capset"), _capability_header(), ctypes.byref(data)), "capset")
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def _capability_header() -> "ctypes.Array[ctypes.c_uint32]":
    return (ctypes.c_uint32 * 2)(0x20080522, 0)


def fork_sibling(pid_address: int) -> int:
    """Fork a sibling: like `os.fork`, but a child of our parent (clone(2), CLONE_PARENT). Raises OSError.

    The kernel writes the pid to the int at `pid_address` before the new process runs. Only for a process with one
    thread: the interpreter's fork hooks run, those of the C library (pthread_atfork(3)) don't.
    """
    flags = _CLONE_PARENT | _CLONE_PARENT_SETTID
    arguments = [ctypes.c_ulong(value) for value in (_number(_CLONE, "clone"), flags, 0, pid_address, 0, 0)]
    _before_fork()
    pid = _syscall_locked(*arguments)
    if pid == 0:
        _after_fork_there()
        return 0
    number = ctypes.get_errno()
    _after_fork_here()
    if pid < 0:
        raise OSError(number, f"clone: {os.strerror(number)}")
    return int(pid)


def keep_only(descriptors: set[int]) -> None:
    """Close every descriptor except these."""
    at = 0
    for descriptor in sorted(d for d in descriptors if d >= 0):
        if at < descriptor:  # os.closerange(0, 0) closes everything: its end is exclusive, the kernel's is not
            os.closerange(at, descriptor)
        at = descriptor + 1
    os.closerange(at, _NO_DESCRIPTOR)  # not RLIMIT_NOFILE: it can be lowered below descriptors that are open


def die_with_parent(signal: int, parent: int) -> None:
    """Receive `signal` when the parent ends; exit now if it has ended. A change of uid clears this (prctl(2))."""
    prctl(PR_SET_PDEATHSIG, signal)
    if os.getppid() != parent:
        os._exit(125)


class _SockFprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def load_seccomp(program: bytes) -> None:
    """Install a seccomp filter given as encoded BPF instructions of 8 bytes (seccomp(2)). Needs no_new_privs."""
    buffer = ctypes.create_string_buffer(program, len(program))
    prog = _SockFprog(len(program) // 8, ctypes.addressof(buffer))
    check(
        _prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(prog), 0, 0),
        "prctl PR_SET_SECCOMP",
    )


def load_seccomp_with_listener(program: bytes) -> int:
    """Install a seccomp filter with a listener; returns the listener, close-on-exec (seccomp_unotify(2)).

    Raises OSError: EBUSY if the thread has a filter with a listener already, EINVAL on a kernel before 5.0.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    prog = ctypes.byref(_SockFprog(len(program) // 8, ctypes.addressof(buffer)))
    number, flags = _number(_SECCOMP, "seccomp"), FILTER_NEW_LISTENER
    result = _syscall(number, SECCOMP_SET_MODE_FILTER, flags | FILTER_WAIT_KILLABLE, prog)
    if result < 0 and ctypes.get_errno() == errno.EINVAL:  # before Linux 5.19
        result = _syscall(number, SECCOMP_SET_MODE_FILTER, flags, prog)
    return check(result, "seccomp with a listener")


def pidfd_getfd(process: int, descriptor: int) -> int:
    """Return a copy of another process's descriptor; `process` is a pidfd (pidfd_getfd(2))."""
    return check(_syscall(_PIDFD_GETFD, process, descriptor, 0), "pidfd_getfd")


def shares_descriptor_table(one: int, other: int) -> bool:
    """Whether two threads share one descriptor table (kcmp(2), KCMP_FILES); False if the call fails."""
    return int(_syscall(_number(_KCMP, "kcmp"), one, other, _KCMP_FILES, 0, 0)) == 0


def landlock_create_ruleset(attributes: bytes, flags: int = 0) -> int:
    """Create a ruleset, or with flags and no attributes query the ABI version (landlock_create_ruleset(2))."""
    return check(
        _syscall(_LANDLOCK_CREATE_RULESET, attributes or None, ctypes.c_size_t(len(attributes)), flags),
        "landlock_create_ruleset",
    )


def landlock_add_rule(ruleset: int, kind: int, attributes: bytes) -> None:
    """Add a rule to a ruleset, as landlock_add_rule(2) does."""
    check(_syscall(_LANDLOCK_ADD_RULE, ruleset, kind, attributes, 0), "landlock_add_rule")


def landlock_restrict_self(ruleset: int) -> None:
    """Restrict the calling thread by a ruleset, irrevocably, as landlock_restrict_self(2) does."""
    check(_syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
