"""The system call filters: one for the task, one for the gate's worker. Values in, BPF bytes out.

A filter is the second wall: namespaces and the empty capability set already refuse most of this. It is the *only* wall
for the kernel's doors that no namespace closes: AF_VSOCK, io_uring (which would open sockets past a filter on
`socket`), `request_key` (runs a helper in the initial namespaces), the terminal's input queue (TIOCSTI), and setuid
bits on files that the host also sees. Sources: seccomp(2), KERNEL notes, systemd.exec(5) RestrictSUIDSGID.
"""

import errno
import struct
from dataclasses import dataclass

from enforcer.errors import HostError
from enforcer.sandbox.syscalls import AUDIT_ARCH, NUMBERS

_LD, _JEQ, _JGE, _JSET, _AND, _RET, _JA = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06, 0x05
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_X32 = 0x40000000  # __X32_SYSCALL_BIT: the x32 ABI shares the architecture word of x86-64

# Every CLONE_NEW* flag (clone(2)); CLONE_NEWTIME (0x80) means an exit signal to clone, and a namespace to unshare.
_NAMESPACES = 0x7E020000
_NEWTIME = 0x80
_SETID = 0o6000  # S_ISUID | S_ISGID
_CREATES = 0o100 | 0o20000000  # O_CREAT, and the bit of O_TMPFILE that is not O_DIRECTORY

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
_TYPE = 0xF  # the rest of a socket's type argument are SOCK_CLOEXEC and SOCK_NONBLOCK


@dataclass(frozen=True, slots=True)
class Test:
    """One look at an argument: the low 32 bits of `argument` under `mask`, either equal to `value` or any bit set."""

    argument: int
    mask: int = 0xFFFFFFFF
    value: int | None = None  # None: true when any bit of the mask is set


@dataclass(frozen=True, slots=True)
class Refuse:
    """A system call answered with `error` when every test holds (no tests: always)."""

    call: str
    error: int = errno.EPERM
    tests: tuple[Test, ...] = ()


@dataclass(frozen=True, slots=True)
class Permit:
    """A system call let through when every test holds; placed before a `Refuse` of the same call."""

    call: str
    tests: tuple[Test, ...]


type Line = Refuse | Permit


def _socket(family: int, kind: int, protocol: int) -> Permit:
    return Permit("socket", (Test(0, value=family), Test(1, _TYPE, kind), Test(2, value=protocol)))


_STREAM, _DGRAM, _TCP, _UDP, _MPTCP = 1, 2, 6, 17, 262

_UNIX = Permit("socket", (Test(0, value=AF_UNIX),))
SOCKETS: tuple[Line, ...] = (
    _UNIX,
    *(
        _socket(family, kind, protocol)
        for family in (AF_INET, AF_INET6)
        for kind, protocols in ((_STREAM, (0, _TCP, _MPTCP)), (_DGRAM, (0, _UDP)))
        for protocol in protocols
    ),
    Permit("socket", (Test(0, value=AF_NETLINK), Test(2, value=0))),  # NETLINK_ROUTE: getifaddrs(3)
    Refuse("socket", errno.EACCES, (Test(0, value=AF_INET),)),
    Refuse("socket", errno.EACCES, (Test(0, value=AF_INET6),)),
    Refuse("socket", errno.EAFNOSUPPORT),
    Permit("socketpair", (Test(0, value=AF_UNIX),)),
    Refuse("socketpair", errno.EAFNOSUPPORT),
)

KERNEL_DOORS: tuple[Line, ...] = tuple(
    Refuse(call)
    for call in (
        "add_key", "request_key", "keyctl", "bpf", "perf_event_open", "userfaultfd", "pidfd_getfd", "kcmp",
        "mount", "umount2", "pivot_root", "chroot", "open_tree", "open_tree_attr", "move_mount", "fsopen", "fsconfig",
        "fsmount", "fspick", "mount_setattr", "setns", "open_by_handle_at", "lookup_dcookie", "quotactl", "quotactl_fd",
        "acct", "swapon", "swapoff", "reboot", "kexec_load", "kexec_file_load", "init_module", "finit_module",
        "delete_module", "iopl", "ioperm", "syslog", "uselib", "settimeofday", "clock_settime",
    )
) + tuple(Refuse(call, errno.ENOSYS) for call in ("io_uring_setup", "io_uring_enter", "io_uring_register"))  # fmt: skip

NAMESPACES: tuple[Line, ...] = (
    Refuse("clone", tests=(Test(0, _NAMESPACES),)),
    Refuse("unshare", tests=(Test(0, _NAMESPACES | _NEWTIME),)),
    Refuse("clone3", errno.ENOSYS),  # its flags lie in memory, out of a filter's sight; callers fall back to clone
)

SETID_BITS: tuple[Line, ...] = (
    Refuse("chmod", tests=(Test(1, _SETID),)),
    Refuse("fchmod", tests=(Test(1, _SETID),)),
    Refuse("fchmodat", tests=(Test(2, _SETID),)),
    Refuse("fchmodat2", tests=(Test(2, _SETID),)),
    Refuse("creat", tests=(Test(1, _SETID),)),
    Refuse("open", tests=(Test(1, _CREATES), Test(2, _SETID))),
    Refuse("openat", tests=(Test(2, _CREATES), Test(3, _SETID))),
    Refuse("openat2", errno.ENOSYS),  # its mode lies in memory; callers fall back to openat
    Refuse("mknod", tests=(Test(1, _SETID),)),
    Refuse("mknodat", tests=(Test(2, _SETID),)),
)

TERMINAL: tuple[Line, ...] = tuple(
    # ioctl_tty(2): push input, the console's selection, redirect the console, load a line discipline.
    Refuse("ioctl", tests=(Test(1, value=request),))
    for request in (0x5412, 0x541C, 0x541D, 0x5423)
)

TASK: tuple[Line, ...] = (*KERNEL_DOORS, *NAMESPACES, *SOCKETS, *SETID_BITS, *TERMINAL)

_NOT_ITSELF = (Test(0, 0xFFFFFFFF),)  # a process id other than 0, which is the caller's own
_INTERNET = tuple(line for line in SOCKETS if line != _UNIX)

# The worker dials, so it needs sockets; it never runs a program, signals or inspects another process. It lives in the
# host's network and process namespaces, so everything that would name a process or a unix socket there is refused.
WORKER: tuple[Line, ...] = (
    *KERNEL_DOORS,
    *NAMESPACES,
    *_INTERNET,
    *SETID_BITS,
    *TERMINAL,
    *(
        Refuse(call)
        for call in (
            "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "kill", "tkill", "tgkill",
            "pidfd_open", "pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "process_madvise",
            "process_mrelease", "setpriority", "ioprio_set", "migrate_pages", "move_pages", "sched_setparam",
            "sched_setscheduler", "sched_setaffinity", "sched_setattr",
        )
    ),
    Refuse("prlimit64", tests=_NOT_ITSELF),
    # The owner of a descriptor is sent signals: F_SETOWN, F_SETSIG, F_SETOWN_EX (fcntl(2)), FIOSETOWN, SIOCSPGRP.
    *(Refuse("fcntl", tests=(Test(1, value=command),)) for command in (8, 10, 15)),
    *(Refuse("ioctl", tests=(Test(1, value=request),)) for request in (0x8901, 0x8902)),
)  # fmt: skip


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)


def _block(tests: tuple[Test, ...], verdict: int) -> bytes:
    """Return `verdict` if every test holds, else fall through to what comes after with the call's number reloaded."""
    if not tests:
        return _op(_RET, verdict)
    pieces: list[list[bytes]] = []
    for test in tests:
        load = _op(_LD, 16 + 8 * test.argument)
        if test.value is None:
            pieces.append([load, _op(_JSET, test.mask)])
        else:
            masked = [_op(_AND, test.mask)] if test.mask != 0xFFFFFFFF else []
            pieces.append([load, *masked, _op(_JEQ, test.value)])
    size = sum(map(len, pieces))
    out, at = b"", 0
    for piece in pieces:
        at += len(piece)
        *before, jump = piece
        code, _, _, k = struct.unpack("=HBBI", jump)
        out += b"".join(before) + _op(code, k, 0, size - at + 1)  # false: past the return
    return out + _op(_RET, verdict) + _op(_LD, 0)


def assemble(lines: tuple[Line, ...], machine: str) -> bytes:
    """Encode a filter for one machine. Calls that the machine doesn't have are left out.

    Another architecture's call (IA-32 by `int 0x80`) ends the process; x32 calls answer ENOSYS.
    Raises HostError for a machine whose numbers are not known: no filter, no start.
    """
    if machine not in NUMBERS:
        known = ", ".join(sorted(NUMBERS))
        raise HostError(f"no system call filter for the machine `{machine}`; exeat runs on {known}")
    numbers = NUMBERS[machine]
    program = _op(_LD, 4) + _op(_JEQ, AUDIT_ARCH[machine], 1, 0) + _op(_RET, _KILL) + _op(_LD, 0)
    if machine == "x86_64":
        program += _op(_JGE, _X32, 0, 1) + _op(_RET, _ERRNO | errno.ENOSYS)
    for line in lines:
        if line.call not in numbers:
            continue
        verdict = _ALLOW if isinstance(line, Permit) else _ERRNO | line.error
        block = _block(line.tests, verdict)
        program += _op(_JEQ, numbers[line.call], 0, len(block) // 8) + block
    return program + _op(_RET, _ALLOW)
