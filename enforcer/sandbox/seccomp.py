"""System call filters: the allow list of a task, the filters of the worker and the certificate signer, and their BPF.

Namespaces and the empty capability set already deny most of what a filter denies. It is the *only* restriction of
interfaces that no namespace covers: AF_VSOCK, io_uring (which opens sockets past a filter on `socket`), `request_key`
(runs a helper in the initial namespaces), the terminal's input queue (TIOCSTI), and setuid bits on files that the host
sees, too. Sources: seccomp(2), linux/bpf_common.h, systemd.exec(5) RestrictSUIDSGID.

A task's filter is an allow list (`ALLOWED`): a call of a newer kernel is refused until it has been reviewed. It has
what shells, compilers, package managers, language runtimes and browsers use (Python, Node.js, Go, the JVM, git, cargo,
Chromium, apt), checked against systemd's @system-service and the lists of container engines. Calls that only an escape
attempt makes are `is_reported`; calls that programs merely probe for are refused silently.

The BPF checks the architecture, then finds the call's number by binary search: about eight comparisons for hundreds of
calls. The kernel caches answers that depend on the number alone (SECCOMP_CACHE, Linux 5.11), so a call that is always
allowed costs nothing here.
"""

import errno
import functools
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple

from enforcer.sandbox.step_lists import AUDIT_ARCH, NUMBERS
from enforcer.system import linux
from enforcer.system.errors import HostError

_LD, _JEQ, _JGE, _JSET, _AND, _RET, _JA = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06, 0x05
_ALLOW, _NOTIFY, _ERRNO, _KILL = 0x7FFF0000, 0x7FC00000, 0x00050000, 0x80000000
_X32 = 0x40000000  # __X32_SYSCALL_BIT: the x32 ABI shares the architecture word of x86-64
_MAX_JUMP = 255  # instructions that a conditional jump can pass over
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16  # struct seccomp_data
_LOW_32_BITS = 0xFFFFFFFF


class ArgumentTest(NamedTuple):
    """A test of the low 32 bits of `argument` under `mask`: equal to `value`, or any bit set."""

    argument: int
    mask: int = _LOW_32_BITS
    value: int | None = None  # None: true when any bit of the mask is set

    def holds(self, arguments: Sequence[int]) -> bool:
        """Whether the test holds for a call's arguments."""
        masked = arguments[self.argument] & self.mask
        return bool(masked) if self.value is None else masked == self.value


class Refuse(NamedTuple):
    """Answer a call with `error` when every test holds (no tests: always); 0 reports success without doing anything."""

    call: str
    error: int = errno.EPERM
    tests: tuple[ArgumentTest, ...] = ()
    is_reported: bool = False  # report it to the supervisor


class Permit(NamedTuple):
    """Allow a call when every test holds; placed before a `Refuse` of the same call."""

    call: str
    tests: tuple[ArgumentTest, ...]


class Hold(NamedTuple):
    """Hold a call until the seccomp supervisor decides."""

    call: str
    tests: tuple[ArgumentTest, ...] = ()


class Metered(NamedTuple):
    """Allow a call without a supervisor; otherwise the supervisor counts it, and may refuse it."""

    call: str
    tests: tuple[ArgumentTest, ...] = ()


type FilterLine = Refuse | Permit | Hold | Metered


class Filter(NamedTuple):
    """Answer to each call: the first matching line decides, then `allowed`.

    `allowed` None: every call is allowed that no line refuses, also unknown ones. Otherwise an unlisted call returns
    ENOSYS, as on a kernel without it, for which programs have a fallback.
    """

    lines: tuple[FilterLine, ...]
    allowed: frozenset[str] | None = None

    def line(self, call: str, arguments: Sequence[int]) -> FilterLine | None:
        """Return the line that decides a call; None if there is none."""
        for line in self.lines:
            if line.call == call and all(test.holds(arguments) for test in line.tests):
                return line
        return None


@cache
def assemble(filters: Filter, machine: str, *, is_supervised: bool = False) -> bytes:
    """Encode a filter as BPF for one machine. Lines about calls that the machine doesn't have are left out.

    `is_supervised`: a supervisor listens, so `Hold` and `is_reported` lines notify it. Without one, both are refused. A
    call of another architecture (IA-32 by `int 0x80`) ends the process; x32 calls return ENOSYS. Raises HostError for a
    machine whose call numbers are unknown.
    """
    if machine not in NUMBERS:
        supported = ", ".join(sorted(NUMBERS))
        raise HostError(f"no system call filter for the machine `{machine}`; exeat runs on {supported}")
    unknown = _ALLOW if filters.allowed is None else _ERRNO | errno.ENOSYS
    leaves: dict[int, bytes] = {}
    by_call: dict[str, list[bytes]] = {}
    for line in filters.lines:
        by_call.setdefault(line.call, []).append(_encode_line(line.tests, _verdict(line, is_supervised=is_supervised)))
    for call, number in NUMBERS[machine].items():
        default = _ALLOW if filters.allowed is None or call in filters.allowed else unknown
        leaves[number] = b"".join((*by_call.get(call, ()), _instruction(_RET, default)))
    program = (
        _instruction(_LD, _AT_ARCHITECTURE) + _instruction(_JEQ, AUDIT_ARCH[machine], 1, 0) + _instruction(_RET, _KILL)
    )
    program += _instruction(_LD, _AT_NUMBER)
    if machine == "x86_64":
        program += _instruction(_JGE, _X32, 0, 1) + _instruction(_RET, _ERRNO | errno.ENOSYS)
    return program + _binary_search(_ranges(leaves, _instruction(_RET, unknown)))


def _verdict(line: FilterLine, *, is_supervised: bool) -> int:
    match line:
        case Permit():
            return _ALLOW
        case Hold():
            return _NOTIFY if is_supervised else _ERRNO | errno.EPERM
        case Metered():
            return _NOTIFY if is_supervised else _ALLOW
        case Refuse():
            return _NOTIFY if is_supervised and line.is_reported else _ERRNO | line.error


def _ranges(leaves: Mapping[int, bytes], unknown: bytes) -> list[tuple[int, bytes]]:
    """Return each range of call numbers with the same answer: first number, and answer; the last range has no end."""
    ranges = [(0, leaves.get(0, unknown))]
    for number in range(1, max(leaves) + 2):
        leaf = leaves.get(number, unknown)
        if leaf != ranges[-1][1]:
            ranges.append((number, leaf))
    return ranges


def _binary_search(ranges: Sequence[tuple[int, bytes]]) -> bytes:
    """Encode a binary search for the range of the number in the accumulator."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    lower, upper = _binary_search(ranges[:middle]), _binary_search(ranges[middle:])
    size, boundary = len(lower) // 8, ranges[middle][0]
    if size <= _MAX_JUMP:
        return _instruction(_JGE, boundary, size, 0) + lower + upper
    return _instruction(_JGE, boundary, 0, 1) + _instruction(_JA, size) + lower + upper


def _encode_line(tests: Iterable[ArgumentTest], verdict: int) -> bytes:
    """Encode: return `verdict` if every test holds, else fall through."""
    encoded_tests: list[list[bytes]] = []
    for test in tests:
        load = _instruction(_LD, _AT_ARGUMENTS + 8 * test.argument)
        if test.value is None:
            encoded_tests.append([load, _instruction(_JSET, test.mask)])
        else:
            masked = [_instruction(_AND, test.mask)] if test.mask != _LOW_32_BITS else []
            encoded_tests.append([load, *masked, _instruction(_JEQ, test.value)])
    size = sum(map(len, encoded_tests))
    program, position = b"", 0
    for instructions in encoded_tests:
        position += len(instructions)
        *loads, jump = instructions
        code, _, _, k = struct.unpack("=HBBI", jump)
        program += b"".join(loads) + _instruction(code, k, 0, size - position + 1)  # false: past the return
    return program + _instruction(_RET, verdict)


def _instruction(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)


_FILES: Final = """
    access chdir chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
    fallocate fchdir fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fstat fstatfs fsync ftruncate
    futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown lgetxattr link linkat listxattr
    listxattrat llistxattr lseek lstat mkdir mkdirat name_to_handle_at newfstatat open openat pipe pipe2 pread64
    preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat renameat2
    rmdir sendfile splice stat statfs statx symlink symlinkat sync_file_range syncfs tee truncate umask unlink
    unlinkat utime utimensat utimes vmsplice write writev chmod fchmod fchmodat fchmodat2 mknod mknodat
"""
_WAITING: Final = """
    epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 inotify_add_watch
    inotify_init inotify_init1 inotify_rm_watch fanotify_mark pause poll ppoll pselect6 select signalfd signalfd4
    timerfd_create timerfd_gettime timerfd_settime
"""
_MEMORY: Final = """
    brk get_mempolicy madvise map_shadow_stack mbind membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall
    mmap mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise
    process_mrelease process_vm_readv process_vm_writev remap_file_pages set_mempolicy
"""
_PROCESSES: Final = """
    arch_prctl capget capset clone execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getegid
    geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid
    gettid getuid ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self pidfd_open
    pidfd_send_signal prctl prlimit64 ptrace restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp set_robust_list
    set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid setresuid
    setreuid setrlimit setsid setuid sigaltstack sysinfo tgkill times tkill uname unshare uprobe uretprobe vfork wait4
    waitid personality
"""  # the kernel itself has a probed program call uprobe and uretprobe
_COMMUNICATION: Final = """
    accept accept4 bind connect futex futex_requeue futex_wait futex_waitv futex_wake getpeername getsockname getsockopt
    listen mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd recvfrom
    recvmmsg recvmsg semctl semget semop semtimedop sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget
    shutdown socket socketpair
"""
_TIME: Final = """
    adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer getrandom gettimeofday nanosleep
    setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_settime
"""

ALLOWED: Final = frozenset(f"{_FILES}{_WAITING}{_MEMORY}{_PROCESSES}{_COMMUNICATION}{_TIME}".split())

# Answered with ENOSYS: removed long ago, or so new and special that programs have a fallback. Linux AIO is here: its
# requests are counted for the whole machine (fs.aio-max-nr): one task could take all. Databases fall back to threads.
# `cachestat` shows which pages of a file others have read. Calls that name an attribute in a structure (`setxattrat`)
# have an older form.
_ABSENT: Final = """
    _sysctl afs_syscall cachestat create_module epoll_ctl_old epoll_wait_old file_getattr file_setattr
    get_kernel_syms getpmsg io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit listmount listns
    lsm_get_self_attr lsm_list_modules lsm_set_self_attr modify_ldt nfsservctl putpmsg query_module removexattrat
    security set_mempolicy_home_node setxattrat statmount sysfs tuxcall ustat vserver
"""
ABSENT: Final = frozenset(_ABSENT.split())


# Every CLONE_NEW* flag (clone(2)); CLONE_NEWTIME (0x80) means an exit signal to clone, and a namespace to unshare.
_NAMESPACES = 0x7E020000
_NEWTIME = 0x80
_SETID = 0o6000  # S_ISUID | S_ISGID
_CREATES = 0o100 | 0o20000000  # O_CREAT, and the bit of O_TMPFILE that is not O_DIRECTORY

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
_TYPE = 0xF  # the rest of a socket's type argument are SOCK_CLOEXEC and SOCK_NONBLOCK


def _socket(family: int, kind: int, protocol: int) -> Permit:
    return Permit(
        "socket", (ArgumentTest(0, value=family), ArgumentTest(1, _TYPE, kind), ArgumentTest(2, value=protocol))
    )


def _reported(*lines: Refuse) -> tuple[Refuse, ...]:
    return tuple(line._replace(is_reported=True) for line in lines)


_STREAM, _DGRAM, _TCP, _UDP, _MPTCP = 1, 2, 6, 17, 262

_UNIX = Permit("socket", (ArgumentTest(0, value=AF_UNIX),))
SOCKETS: Final[tuple[FilterLine, ...]] = (
    _UNIX,
    *(
        _socket(family, kind, protocol)
        for family in (AF_INET, AF_INET6)
        for kind, protocols in ((_STREAM, (0, _TCP, _MPTCP)), (_DGRAM, (0, _UDP)))
        for protocol in protocols
    ),
    Permit("socket", (ArgumentTest(0, value=AF_NETLINK), ArgumentTest(2, value=0))),  # NETLINK_ROUTE: getifaddrs(3)
    # Browsers and `ss` try other netlink families, and work without.
    Refuse("socket", errno.EAFNOSUPPORT, (ArgumentTest(0, value=AF_NETLINK),)),
    *_reported(
        Refuse("socket", errno.EACCES, (ArgumentTest(0, value=AF_INET),)),
        Refuse("socket", errno.EACCES, (ArgumentTest(0, value=AF_INET6),)),
        Refuse("socket", errno.EAFNOSUPPORT),
    ),
    Permit("socketpair", (ArgumentTest(0, value=AF_UNIX),)),
    Refuse("socketpair", errno.EAFNOSUPPORT),
)

_DOORS: Final = """
    add_key request_key keyctl bpf userfaultfd pidfd_getfd mount umount2 pivot_root chroot open_tree open_tree_attr
    move_mount fsopen fsconfig fsmount fspick mount_setattr setns open_by_handle_at acct swapon swapoff reboot
    kexec_load kexec_file_load init_module finit_module delete_module iopl ioperm settimeofday clock_settime
"""
_PROBED: Final = "perf_event_open kcmp quotactl quotactl_fd syslog lookup_dcookie uselib"

KERNEL_INTERFACES: Final[tuple[FilterLine, ...]] = (
    *_reported(*map(Refuse, _DOORS.split())),
    *map(Refuse, _PROBED.split()),
    *(Refuse(call, errno.ENOSYS) for call in ("io_uring_setup", "io_uring_enter", "io_uring_register")),
)

NAMESPACES: Final[tuple[FilterLine, ...]] = (
    *_reported(
        Refuse("clone", tests=(ArgumentTest(0, _NAMESPACES),)),
        Refuse("unshare", tests=(ArgumentTest(0, _NAMESPACES | _NEWTIME),)),
    ),
    Refuse("clone3", errno.ENOSYS),  # its flags are in memory, which no filter reads; callers fall back to clone
)

SETID_BITS: Final[tuple[FilterLine, ...]] = (
    *_reported(
        Refuse("chmod", tests=(ArgumentTest(1, _SETID),)),
        Refuse("fchmod", tests=(ArgumentTest(1, _SETID),)),
        Refuse("fchmodat", tests=(ArgumentTest(2, _SETID),)),
        Refuse("fchmodat2", tests=(ArgumentTest(2, _SETID),)),
        Refuse("creat", tests=(ArgumentTest(1, _SETID),)),
        Refuse("open", tests=(ArgumentTest(1, _CREATES), ArgumentTest(2, _SETID))),
        Refuse("openat", tests=(ArgumentTest(2, _CREATES), ArgumentTest(3, _SETID))),
        Refuse("mknod", tests=(ArgumentTest(1, _SETID),)),
        Refuse("mknodat", tests=(ArgumentTest(2, _SETID),)),
    ),
    Refuse("openat2", errno.ENOSYS),  # its mode is in memory; callers fall back to openat
)

TERMINAL: Final = _reported(
    # ioctl_tty(2): push input, the console's selection, redirect the console, load a line discipline.
    *(Refuse("ioctl", tests=(ArgumentTest(1, value=request),)) for request in (0x5412, 0x541C, 0x541D, 0x5423))
)

# fcntl(2), F_SETLEASE and F_SETDELEG: a lease delays every open of the file by another process, 45 seconds each time. A
# task could take one on any file of its user, such as its rule files, and block reading them.
LEASES: Final = tuple(Refuse("fcntl", errno.EINVAL, (ArgumentTest(1, value=command),)) for command in (1024, 1040))

# fcntl(2), F_SETLK and F_SETLKW, and F_OFD_SETLK and F_OFD_SETLKW: a lock on some bytes of a file takes kernel memory
# that no cgroup counts, and a process may have any number (`seccomp_supervisor.performed_calls`).
LOCKS: Final = tuple(Metered("fcntl", (ArgumentTest(1, value=command),)) for command in (6, 7, 37, 38))

# socket(7): SO_ATTACH_FILTER, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF and _EBPF. Each filter takes from the machine's
# one pool of compiled programs (net.core.bpf_jit_limit), and a task can have one for each of its sockets.
_SOL_SOCKET = 1
SOCKET_FILTERS: Final = tuple(
    Refuse("setsockopt", errno.ENOPROTOOPT, (ArgumentTest(1, value=_SOL_SOCKET), ArgumentTest(2, value=option)))
    for option in (26, 50, 51, 52)
)

# tcp(7) and linux/tcp.h: TCP_MD5SIG, TCP_MD5SIG_EXT, TCP_AO_ADD_KEY. A socket may have 128 KB of keys for signing
# segments, as routers do (RFC 2385, RFC 5925), which no cgroup counts.
_SOL_TCP = 6
SEGMENT_KEYS: Final = tuple(
    Refuse("setsockopt", errno.ENOPROTOOPT, (ArgumentTest(1, value=_SOL_TCP), ArgumentTest(2, value=option)))
    for option in (14, 32, 38)
)

# The machine has one table of 4,096 IPv6 flow labels (ipv6(7), IPV6_FLOWLABEL_MGR) and one pool of huge pages (mmap(2),
# memfd_create(2), shmget(2)): a task could take them all, and other tasks could notice.
_SOL_IPV6, _FLOW_LABELS = 41, 32
_MAP_HUGE, _MEMFD_HUGE, _SHM_HUGE = 0x40000, 0x4, 0o4000
POOLS: Final = (
    Refuse("setsockopt", errno.ENOPROTOOPT, (ArgumentTest(1, value=_SOL_IPV6), ArgumentTest(2, value=_FLOW_LABELS))),
    Refuse("mmap", errno.ENOMEM, (ArgumentTest(3, _MAP_HUGE),)),
    Refuse(
        "memfd_create", errno.EINVAL, (ArgumentTest(1, _MEMFD_HUGE),)
    ),  # Chromium tries every flag, and expects EINVAL
    Refuse("shmget", errno.ENOMEM, (ArgumentTest(2, _SHM_HUGE),)),
)

# sync(2) writes out every disk of the host, and waits for those that hang. POSIX only requires it to schedule writing,
# which the kernel does anyway. fsync(2) and syncfs(2) work as documented.
SYNC: Final = (Refuse("sync", 0),)  # reports success

# Extended attributes: the supervisor sets those without a meaning for the host (`seccomp_supervisor.performed_calls`).
_ATTRIBUTES: Final = "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr"
ATTRIBUTES: Final = _reported(*map(Refuse, _ATTRIBUTES.split()))

# personality(2): uname, address layout (debuggers), and the query (0xFFFFFFFF); none makes data executable.
_PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)
_PRIVILEGED_CALLS: Final = "personality vhangup sethostname setdomainname fanotify_init migrate_pages move_pages"
PRIVILEGED_CALLS: Final[tuple[FilterLine, ...]] = (
    *(Permit("personality", (ArgumentTest(0, value=value),)) for value in _PERSONALITIES),
    *map(Refuse, _PRIVILEGED_CALLS.split()),
)

# fallocate(2) and its predecessors (linux/falloc.h: FS_IOC_RESVSP, RESVSP64, ZERO_RANGE) allocate any disk space in one
# call, faster than the disk quota can measure. Programs write instead, as on file systems without fallocate.
_PUNCH_HOLE = 0x2  # FALLOC_FL_PUNCH_HOLE, which frees space
NO_PREALLOCATION: Final[tuple[FilterLine, ...]] = (
    Permit("fallocate", (ArgumentTest(1, _PUNCH_HOLE),)),
    Refuse("fallocate", errno.EOPNOTSUPP),
    *(
        Refuse("ioctl", errno.EOPNOTSUPP, (ArgumentTest(1, value=each),))
        for each in (0x40305828, 0x4030582A, 0x40305839)
    ),
)

TASK: Final = Filter(
    (
        *KERNEL_INTERFACES,
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
        *PRIVILEGED_CALLS,
    ),
    ALLOWED,
)
TASK_WITH_COMMANDS: Final = TASK._replace(lines=(Hold("execve"), Hold("execveat"), *TASK.lines))


def task_filter(*, commands: bool = False, reviewed: bool = False) -> Filter:
    """Return a task's filter. `commands`: program starts are held; `reviewed`: its workspace is an overlay."""
    base = TASK_WITH_COMMANDS if commands else TASK
    return base._replace(lines=(*NO_PREALLOCATION, *base.lines)) if reviewed else base


class WatchedFilter(NamedTuple):
    """A filter with a listener, and its BPF. `is_required`: the start fails where no listener can be had."""

    filters: Filter
    program: bytes
    is_required: bool


@functools.cache
def watched_filter(*, commands: bool, reviewed: bool = False) -> WatchedFilter:
    """Return the filter that notifies the supervisor; with `commands`, it holds program starts."""
    filters = task_filter(commands=commands, reviewed=reviewed)
    program = assemble(filters, linux.platform_machine(), is_supervised=True)
    return WatchedFilter(filters, program, is_required=commands)


_OTHER_PROCESS = (ArgumentTest(0, 0xFFFFFFFF),)  # a process id other than 0, which is the caller's own
_INTERNET = tuple(line for line in SOCKETS if line != _UNIX)

# The worker connects, so it needs sockets; it never executes, signals or inspects. It is in the host's network and pid
# namespaces, so every call that could name a process or a unix socket there is refused.
WORKER: Final = Filter(
    (
        *KERNEL_INTERFACES,
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
        Refuse("prlimit64", tests=_OTHER_PROCESS),
        # The owner of a descriptor is sent signals: F_SETOWN, F_SETSIG, F_SETOWN_EX (fcntl(2)), FIOSETOWN, SIOCSPGRP.
        *(Refuse("fcntl", tests=(ArgumentTest(1, value=command),)) for command in (8, 10, 15)),
        *(Refuse("ioctl", tests=(ArgumentTest(1, value=request),)) for request in (0x8901, 0x8902)),
    )
)  # fmt: skip

# The certificate signer has open sockets, and signs in memory: it opens, connects and executes nothing.
_SIGNER_CALLS: Final = """
    recvfrom recvmsg sendto sendmsg getsockname close epoll_wait epoll_pwait epoll_ctl brk munmap mremap madvise futex
    getrandom clock_gettime gettimeofday getpid gettid sched_yield rt_sigreturn rt_sigprocmask restart_syscall exit
    exit_group
"""
_EXECUTABLE: Final = (ArgumentTest(2, 0x4),)  # PROT_EXEC, mmap(2) and mprotect(2)
SIGNER: Final = Filter(
    (
        Refuse("mmap", tests=_EXECUTABLE),
        Refuse("mprotect", tests=_EXECUTABLE),
        Permit("ioctl", (ArgumentTest(1, value=0x5421),)),  # FIONBIO: sets non-blocking mode
    ),
    frozenset({*_SIGNER_CALLS.split(), "mmap", "mprotect"}),
)
