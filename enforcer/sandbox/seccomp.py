"""The system call filters, as values: the task's, the gate worker's and the key holder's. `bpf` makes bytes of them.

A filter is the second wall: namespaces and the empty capability set already refuse most of this. It is the *only* wall
for the kernel's doors that no namespace closes: AF_VSOCK, io_uring (which would open sockets past a filter on
`socket`), `request_key` (runs a helper in the initial namespaces), the terminal's input queue (TIOCSTI), and setuid
bits on files that the host also sees. Sources: seccomp(2), KERNEL notes, systemd.exec(5) RestrictSUIDSGID.

The task's is an allow list: a call that a kernel of next year adds is refused until somebody has looked at it. What no
honest program tries and a way out begins with is `told`; what programs only probe for is refused without a word.
"""

import errno
from typing import Final

from enforcer.sandbox.allowed import ALLOWED
from enforcer.sandbox.bpf import Filter, Hold, Line, Metered, Permit, Refuse, Test

# Every CLONE_NEW* flag (clone(2)); CLONE_NEWTIME (0x80) means an exit signal to clone, and a namespace to unshare.
_NAMESPACES = 0x7E020000
_NEWTIME = 0x80
_SETID = 0o6000  # S_ISUID | S_ISGID
_CREATES = 0o100 | 0o20000000  # O_CREAT, and the bit of O_TMPFILE that is not O_DIRECTORY

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
_TYPE = 0xF  # the rest of a socket's type argument are SOCK_CLOEXEC and SOCK_NONBLOCK


def _socket(family: int, kind: int, protocol: int) -> Permit:
    return Permit("socket", (Test(0, value=family), Test(1, _TYPE, kind), Test(2, value=protocol)))


def _told(*lines: Refuse) -> tuple[Refuse, ...]:
    return tuple(line._replace(told=True) for line in lines)


_STREAM, _DGRAM, _TCP, _UDP, _MPTCP = 1, 2, 6, 17, 262

_UNIX = Permit("socket", (Test(0, value=AF_UNIX),))
SOCKETS: Final[tuple[Line, ...]] = (
    _UNIX,
    *(
        _socket(family, kind, protocol)
        for family in (AF_INET, AF_INET6)
        for kind, protocols in ((_STREAM, (0, _TCP, _MPTCP)), (_DGRAM, (0, _UDP)))
        for protocol in protocols
    ),
    Permit("socket", (Test(0, value=AF_NETLINK), Test(2, value=0))),  # NETLINK_ROUTE: getifaddrs(3)
    # Browsers and `ss` ask for other netlink families and do without.
    Refuse("socket", errno.EAFNOSUPPORT, (Test(0, value=AF_NETLINK),)),
    *_told(
        Refuse("socket", errno.EACCES, (Test(0, value=AF_INET),)),
        Refuse("socket", errno.EACCES, (Test(0, value=AF_INET6),)),
        Refuse("socket", errno.EAFNOSUPPORT),
    ),
    Permit("socketpair", (Test(0, value=AF_UNIX),)),
    Refuse("socketpair", errno.EAFNOSUPPORT),
)

_DOORS: Final = """
    add_key request_key keyctl bpf userfaultfd pidfd_getfd mount umount2 pivot_root chroot open_tree open_tree_attr
    move_mount fsopen fsconfig fsmount fspick mount_setattr setns open_by_handle_at acct swapon swapoff reboot
    kexec_load kexec_file_load init_module finit_module delete_module iopl ioperm settimeofday clock_settime
"""
_PROBED: Final = "perf_event_open kcmp quotactl quotactl_fd syslog lookup_dcookie uselib"

KERNEL_DOORS: Final[tuple[Line, ...]] = (
    *_told(*map(Refuse, _DOORS.split())),
    *map(Refuse, _PROBED.split()),
    *(Refuse(call, errno.ENOSYS) for call in ("io_uring_setup", "io_uring_enter", "io_uring_register")),
)

NAMESPACES: Final[tuple[Line, ...]] = (
    *_told(
        Refuse("clone", tests=(Test(0, _NAMESPACES),)),
        Refuse("unshare", tests=(Test(0, _NAMESPACES | _NEWTIME),)),
    ),
    Refuse("clone3", errno.ENOSYS),  # its flags lie in memory, out of a filter's sight; callers fall back to clone
)

SETID_BITS: Final[tuple[Line, ...]] = (
    *_told(
        Refuse("chmod", tests=(Test(1, _SETID),)),
        Refuse("fchmod", tests=(Test(1, _SETID),)),
        Refuse("fchmodat", tests=(Test(2, _SETID),)),
        Refuse("fchmodat2", tests=(Test(2, _SETID),)),
        Refuse("creat", tests=(Test(1, _SETID),)),
        Refuse("open", tests=(Test(1, _CREATES), Test(2, _SETID))),
        Refuse("openat", tests=(Test(2, _CREATES), Test(3, _SETID))),
        Refuse("mknod", tests=(Test(1, _SETID),)),
        Refuse("mknodat", tests=(Test(2, _SETID),)),
    ),
    Refuse("openat2", errno.ENOSYS),  # its mode lies in memory; callers fall back to openat
)

TERMINAL: Final = _told(
    # ioctl_tty(2): push input, the console's selection, redirect the console, load a line discipline.
    *(Refuse("ioctl", tests=(Test(1, value=request),)) for request in (0x5412, 0x541C, 0x541D, 0x5423))
)

# fcntl(2), F_SETLEASE and F_SETDELEG: whoever has a lease on a file keeps others from opening it, 45 seconds each time.
# A task may have one on what it can't write, if that is its user's: its own rules, which nobody could read then.
LEASES: Final = tuple(Refuse("fcntl", errno.EINVAL, (Test(1, value=command),)) for command in (1024, 1040))

# fcntl(2), F_SETLK and F_SETLKW, and F_OFD_SETLK and F_OFD_SETLKW: a lock on some bytes of a file takes kernel memory
# that no cgroup counts, and a process may have any number (`seccomp_supervisor.performed_calls`).
LOCKS: Final = tuple(Metered("fcntl", (Test(1, value=command),)) for command in (6, 7, 37, 38))

# socket(7): SO_ATTACH_FILTER, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF and _EBPF. Each filter takes from the machine's
# one pool of compiled programs (net.core.bpf_jit_limit), and a task can have one for each of its sockets.
_SOL_SOCKET = 1
SOCKET_FILTERS: Final = tuple(
    Refuse("setsockopt", errno.ENOPROTOOPT, (Test(1, value=_SOL_SOCKET), Test(2, value=option)))
    for option in (26, 50, 51, 52)
)

# tcp(7) and linux/tcp.h: TCP_MD5SIG, TCP_MD5SIG_EXT, TCP_AO_ADD_KEY. A socket may have 128 KB of keys for signing
# segments, as routers do (RFC 2385, RFC 5925), which no cgroup counts.
_SOL_TCP = 6
SEGMENT_KEYS: Final = tuple(
    Refuse("setsockopt", errno.ENOPROTOOPT, (Test(1, value=_SOL_TCP), Test(2, value=option))) for option in (14, 32, 38)
)

# The machine has one table of 4,096 flow labels of IPv6 (ipv6(7), IPV6_FLOWLABEL_MGR), and one pool of
# huge pages (mmap(2), memfd_create(2), shmget(2)): a task could hold them, and others see that they are gone.
_SOL_IPV6, _FLOW_LABELS = 41, 32
_MAP_HUGE, _MEMFD_HUGE, _SHM_HUGE = 0x40000, 0x4, 0o4000
POOLS: Final = (
    Refuse("setsockopt", errno.ENOPROTOOPT, (Test(1, value=_SOL_IPV6), Test(2, value=_FLOW_LABELS))),
    Refuse("mmap", errno.ENOMEM, (Test(3, _MAP_HUGE),)),
    Refuse("memfd_create", errno.EINVAL, (Test(1, _MEMFD_HUGE),)),  # Chromium asks with every flag, and expects that
    Refuse("shmget", errno.ENOMEM, (Test(2, _SHM_HUGE),)),
)

# sync(2) writes out every disk of the host, and waits for those that hang. By POSIX it only has writing scheduled,
# which the kernel does by itself; fsync(2) and syncfs(2) promise more, and do what they say.
SYNC: Final = (Refuse("sync", 0),)  # answered as if it had been done

# Attributes of files: whoever watches sets those that mean nothing to the host (`seccomp_supervisor.performed_calls`).
_ATTRIBUTES: Final = "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr"
ATTRIBUTES: Final = _told(*map(Refuse, _ATTRIBUTES.split()))

# personality(2): what uname says, where memory lies (debuggers), and asking (0xFFFFFFFF); none makes data executable.
_PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)
_NEEDS_RIGHTS: Final = "personality vhangup sethostname setdomainname fanotify_init migrate_pages move_pages"
NEEDS_RIGHTS: Final[tuple[Line, ...]] = (
    *(Permit("personality", (Test(0, value=value),)) for value in _PERSONALITIES),
    *map(Refuse, _NEEDS_RIGHTS.split()),
)

# fallocate(2), and what it was before (linux/falloc.h: FS_IOC_RESVSP, RESVSP64, ZERO_RANGE), take any room of a disk in
# one call. A disk whose room is looked at is written instead: programs do so wherever a file system can't do this.
_PUNCHES = 0x2  # FALLOC_FL_PUNCH_HOLE, which gives back
NOT_AT_ONCE: Final[tuple[Line, ...]] = (
    Permit("fallocate", (Test(1, _PUNCHES),)),
    Refuse("fallocate", errno.EOPNOTSUPP),
    *(Refuse("ioctl", errno.EOPNOTSUPP, (Test(1, value=each),)) for each in (0x40305828, 0x4030582A, 0x40305839)),
)

TASK: Final = Filter(
    (
        *KERNEL_DOORS,
        *NAMESPACES,
        *SOCKETS,
        *SETID_BITS,
        *TERMINAL,
        *LEASES,
        *LOCKS,
        *SOCKET_FILTERS,
        *SEGMENT_KEYS,
        *POOLS,
        *SYNC,
        *ATTRIBUTES,
        *NEEDS_RIGHTS,
    ),
    ALLOWED,
)
TASK_WITH_COMMANDS: Final = TASK._replace(lines=(Hold("execve"), Hold("execveat"), *TASK.lines))


def task(*, commands: bool = False, reviewed: bool = False) -> Filter:
    """Return a task's. `commands`: each program that it starts is held; `reviewed`: so is its workspace."""
    usual = TASK_WITH_COMMANDS if commands else TASK
    return usual._replace(lines=(*NOT_AT_ONCE, *usual.lines)) if reviewed else usual


_NOT_ITSELF = (Test(0, 0xFFFFFFFF),)  # a process id other than 0, which is the caller's own
_INTERNET = tuple(line for line in SOCKETS if line != _UNIX)

# The worker dials, so it needs sockets; it never runs a program, signals or inspects another process. It lives in the
# host's network and process namespaces, so everything that would name a process or a unix socket there is refused.
WORKER: Final = Filter(
    (
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
    )
)  # fmt: skip

# The key holder has its sockets, and makes signatures in memory: nothing is opened, connected, started or looked at.
_SIGNS: Final = """
    recvfrom recvmsg sendto sendmsg getsockname close epoll_wait epoll_pwait epoll_ctl brk munmap mremap madvise futex
    getrandom clock_gettime gettimeofday getpid gettid sched_yield rt_sigreturn rt_sigprocmask restart_syscall exit
    exit_group
"""
_EXECUTABLE: Final = (Test(2, 0x4),)  # PROT_EXEC, mmap(2) and mprotect(2)
KEYHOLDER: Final = Filter(
    (
        Refuse("mmap", tests=_EXECUTABLE),
        Refuse("mprotect", tests=_EXECUTABLE),
        Permit("ioctl", (Test(1, value=0x5421),)),  # FIONBIO: whether a socket waits
    ),
    frozenset({*_SIGNS.split(), "mmap", "mprotect"}),
)
