"""Step lists: system calls as values, which the runner writes and init processes execute; and call numbers.

Which calls a task may make is in `seccomp.ALLOWED`.

A call list is executed in order. An argument is a number, or bytes of the list itself (what a pointer points to), or a
register: the result of an earlier call. A call that fails ends the list and its process, unless the list names that
error: then execution continues at a later call. There are four pseudo calls:

- `CHECK` compares four bytes that a call has written.
- `STORE` writes a register into the list's bytes.
- `POINT` turns offsets into addresses.
- `FORK` makes another process that executes call lists.

`compiled/exeat_init.c` and `init_interpreter` execute call lists, with the same results. Neither decides anything.

Numbers: Linux 6.18, arch/x86/entry/syscalls/syscall_64.tbl (the abis `common` and `64`) and scripts/syscall.tbl with
the abis of arch/arm64/kernel/Makefile.syscalls. From 424 on, a call has the same number on every machine: syscall(2).
To add a newer kernel's calls, append their names to `_COMMON`, and classify each in `seccomp.ALLOWED`.
"""

import errno
import os
import struct
from typing import Final, NamedTuple

from enforcer.system import linux

AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_X86_64: Final = """
    read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
    ioctl pread64 pwrite64 readv writev access pipe select sched_yield mremap msync mincore madvise shmget shmat shmctl
    dup dup2 pause nanosleep getitimer alarm setitimer getpid sendfile socket connect accept sendto recvfrom sendmsg
    recvmsg shutdown bind listen getsockname getpeername socketpair setsockopt getsockopt clone fork vfork execve exit
    wait4 kill uname semget semop semctl shmdt msgget msgsnd msgrcv msgctl fcntl flock fsync fdatasync truncate
    ftruncate getdents getcwd chdir fchdir rename mkdir rmdir creat link unlink symlink readlink chmod fchmod chown
    fchown lchown umask gettimeofday getrlimit getrusage sysinfo times ptrace getuid syslog getgid setuid setgid
    geteuid getegid setpgid getppid getpgrp setsid setreuid setregid getgroups setgroups setresuid getresuid setresgid
    getresgid getpgid setfsuid setfsgid getsid capget capset rt_sigpending rt_sigtimedwait rt_sigqueueinfo
    rt_sigsuspend sigaltstack utime mknod uselib personality ustat statfs fstatfs sysfs getpriority setpriority
    sched_setparam sched_getparam sched_setscheduler sched_getscheduler sched_get_priority_max sched_get_priority_min
    sched_rr_get_interval mlock munlock mlockall munlockall vhangup modify_ldt pivot_root _sysctl prctl arch_prctl
    adjtimex setrlimit chroot sync acct settimeofday mount umount2 swapon swapoff reboot sethostname setdomainname iopl
    ioperm create_module init_module delete_module get_kernel_syms query_module quotactl nfsservctl getpmsg putpmsg
    afs_syscall tuxcall security gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr
    llistxattr flistxattr removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity sched_getaffinity
    set_thread_area io_setup io_destroy io_getevents io_submit io_cancel get_thread_area lookup_dcookie epoll_create
    epoll_ctl_old epoll_wait_old remap_file_pages getdents64 set_tid_address restart_syscall semtimedop fadvise64
    timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime clock_gettime clock_getres
    clock_nanosleep exit_group epoll_wait epoll_ctl tgkill utimes vserver mbind set_mempolicy get_mempolicy mq_open
    mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr kexec_load waitid add_key request_key keyctl
    ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat mkdirat mknodat fchownat
    futimesat newfstatat unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat pselect6 ppoll unshare
    set_robust_list get_robust_list splice tee sync_file_range vmsplice move_pages utimensat epoll_pwait signalfd
    timerfd_create eventfd fallocate timerfd_settime timerfd_gettime accept4 signalfd4 eventfd2 epoll_create1 dup3
    pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64
    name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg setns getcpu process_vm_readv process_vm_writev
    kcmp finit_module sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create kexec_file_load bpf execveat
    userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx
    io_pgetevents rseq uretprobe uprobe
"""

_AARCH64: Final = """
    io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr
    listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr getcwd lookup_dcookie eventfd2 epoll_create1
    epoll_ctl epoll_pwait dup dup3 fcntl inotify_init1 inotify_add_watch inotify_rm_watch ioctl ioprio_set ioprio_get
    flock mknodat mkdirat unlinkat symlinkat linkat renameat umount2 mount pivot_root nfsservctl statfs fstatfs
    truncate ftruncate fallocate faccessat chdir fchdir chroot fchmod fchmodat fchownat fchown openat close vhangup
    pipe2 quotactl getdents64 lseek read write readv writev pread64 pwrite64 preadv pwritev sendfile pselect6 ppoll
    signalfd4 vmsplice splice tee readlinkat newfstatat fstat sync fsync fdatasync sync_file_range timerfd_create
    timerfd_settime timerfd_gettime utimensat acct capget capset personality exit exit_group waitid set_tid_address
    unshare futex set_robust_list get_robust_list nanosleep getitimer setitimer kexec_load init_module delete_module
    timer_create timer_gettime timer_getoverrun timer_settime timer_delete clock_settime clock_gettime clock_getres
    clock_nanosleep syslog ptrace sched_setparam sched_setscheduler sched_getscheduler sched_getparam sched_setaffinity
    sched_getaffinity sched_yield sched_get_priority_max sched_get_priority_min sched_rr_get_interval restart_syscall
    kill tkill tgkill sigaltstack rt_sigsuspend rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait
    rt_sigqueueinfo rt_sigreturn setpriority getpriority reboot setregid setgid setreuid setuid setresuid getresuid
    setresgid getresgid setfsuid setfsgid times setpgid getpgid getsid setsid getgroups setgroups uname sethostname
    setdomainname getrlimit setrlimit getrusage umask prctl getcpu gettimeofday settimeofday adjtimex getpid getppid
    getuid geteuid getgid getegid gettid sysinfo mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
    msgget msgctl msgrcv msgsnd semget semctl semtimedop semop shmget shmctl shmat shmdt socket socketpair bind listen
    accept connect getsockname getpeername sendto recvfrom setsockopt getsockopt shutdown sendmsg recvmsg readahead brk
    munmap mremap add_key request_key keyctl clone execve mmap fadvise64 swapon swapoff mprotect msync mlock munlock
    mlockall munlockall mincore madvise remap_file_pages mbind get_mempolicy set_mempolicy migrate_pages move_pages
    rt_tgsigqueueinfo perf_event_open accept4 recvmmsg
"""

_AARCH64_FROM_260: Final = """
    wait4 prlimit64 fanotify_init fanotify_mark name_to_handle_at open_by_handle_at clock_adjtime syncfs setns sendmmsg
    process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp getrandom
    memfd_create bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc
    pkey_free statx io_pgetevents rseq kexec_file_load
"""

_COMMON: Final = """
    pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount
    fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr
    quotactl_fd landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret process_mrelease
    futex_waitv set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue
    statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat
    removexattrat open_tree_attr file_getattr file_setattr listns
"""


def _numbered(names: str, first: int) -> dict[str, int]:
    return {name: number for number, name in enumerate(names.split(), first)}


_FROM_424: Final = _numbered(_COMMON, 424)

NUMBERS: Final[dict[str, dict[str, int]]] = {
    "x86_64": _numbered(_X86_64, 0) | _FROM_424,
    "aarch64": _numbered(_AARCH64, 0) | _numbered(_AARCH64_FROM_260, 260) | _FROM_424,
}


# The wire format, which `compiled/exeat_init.c` defines as well.
HEAD: Final = struct.Struct("=HBBBxxx64s")  # number of calls, descriptors sent and returned, silent; registers
CALL: Final = struct.Struct("=IHBxHHHxx6Q")  # number, kinds, result, ignored errors, where to continue
REPLY: Final = struct.Struct("=4i64q")  # EXECUTED or ENDED, two numbers, unused; registers
CHECK, STORE, POINT, FORK = 0x10000, 0x10001, 0x10002, 0x10003
EXECUTED, ENDED = 0, 1
CHANNEL: Final = 3  # the descriptor of the channel
PACKET: Final = 1 << 17  # most bytes of a list
REGISTERS: Final = 64
ANY: Final = 0xFFFF  # stands for every error
NUMBER, DATA, REGISTER = 0, 1, 2  # kinds of arguments, two bits each

_FIRST_FREE: Final = 8  # the first register that isn't kept between lists
_FIRST_DESCRIPTOR: Final = 32  # the first register for descriptors sent along
_UNUSED_RESULT: Final = REGISTERS - 1  # for results that aren't used
_SCRATCH: Final = 256  # bytes at the start of each list's data, for `struct statx`
_PADDING: Final = 48  # zero bytes at the end of the data
_STX_MODE: Final = 28  # stx_mode in it, statx(2)
_CONTINUE: Final = struct.Struct("=H")  # the call to continue at after an error
_CONTINUE_OFFSET: Final = 12  # its offset in CALL
_SPLIT_BYTES: Final = 48 << 10  # bytes after which a list is split
_SPLIT_DESCRIPTORS: Final = 16  # descriptors after which a list is split
_STATX_TYPE_MODE: Final = 0x3
_numbers: Final = NUMBERS.get(os.uname().machine, {})


class Register(NamedTuple):
    """The result of a call, by its register."""

    number: int


# Kept between lists: the quota tmpfs, the host's /proc, the forked child's pid, the task's Landlock ruleset and seccomp
# listener, and its arguments and environment.
QUOTA, HOST_PROC, FORKED_PID, LANDLOCK_RULESET, LISTENER, ARGV, ENVIRONMENT = (
    Register(number) for number in range(1, 8)
)


class Data(NamedTuple):
    """Bytes of a call list, by their offset."""

    at: int


class Label(list[int]):
    """A position further down in the list: the indexes of the calls that continue there."""


type Argument = int | str | bytes | Data | Register


class Packet(NamedTuple):
    """A call list as it is sent. `purposes`: the purpose of each call; `steps`: from which call on each step begins."""

    data: bytes
    descriptors: tuple[int, ...]  # sent along
    returned_registers: tuple[int, ...]  # registers of descriptors to send back
    purposes: tuple[str, ...]
    steps: tuple[tuple[int, object], ...]


class CallFailedError(OSError):
    """A call failed, with an error that the list doesn't ignore. `step`: what it belongs to, if known."""

    def __init__(self, error: int, text: str, step: object = None) -> None:
        """Take the errno, the message, and the step."""
        super().__init__(error, text)
        self.step = step


class CallList:
    """A call list that is being written. It is split where nothing depends on it: between steps."""

    def __init__(self) -> None:
        self._packets: list[Packet] = []
        self._step: object = None
        self._start_list()

    def _start_list(self) -> None:
        self._calls = bytearray()  # the calls, as they are sent
        self._labels: list[Label] = []  # to which a call continues
        self._purposes: list[str] = []
        self._data = bytearray(_SCRATCH)
        self._descriptors: list[tuple[int, int]] = []
        self._free = list(range(_FIRST_DESCRIPTOR - 1, _FIRST_FREE - 1, -1))
        self._steps: list[tuple[int, object]] = [(0, self._step)]

    # --- calls ---

    def call(
        self,
        name: str,
        *arguments: Argument,
        ignored: tuple[int, ...] = (),
        to: Label | None = None,
        purpose: str = "",
        into: Register | None = None,
    ) -> None:
        """Write a system call.

        After an error in `ignored`, execution continues at `to`, or at the next call. `purpose`: for error messages.
        """
        self._add(
            _numbers[name], arguments, ignored, to, purpose or name, _UNUSED_RESULT if into is None else into.number
        )

    def get(
        self, name: str, *arguments: Argument, ignored: tuple[int, ...] = (), to: Label | None = None, purpose: str = ""
    ) -> Register:
        """Write a call and keep its result in a register."""
        into = self.register()
        self.call(name, *arguments, ignored=ignored, to=to, purpose=purpose, into=into)
        return into

    def check(self, data: Data, mask: int, value: int, error: int = errno.EPERM, *, to: Label | None = None,
              purpose: str = "") -> None:  # fmt: skip
        """Fail with `error` unless four bytes under `mask` equal `value`; or continue at `to`."""
        ignored = () if to is None else (error,)
        self._add(CHECK, (data, mask, value, error), ignored, to, purpose, _UNUSED_RESULT)

    def store(self, data: Data, register: Register) -> None:
        """Write a register to four bytes of data."""
        self._add(STORE, (data, register), (), None, "", _UNUSED_RESULT)

    def point(self, base: Data | Register, count: int, at: int = 0) -> None:
        """Turn `count` offsets from `base` (8 bytes each, 0: none), `at` bytes after it, into addresses."""
        self._add(POINT, (base, at, count), (), None, "", _UNUSED_RESULT)

    def fork(self, channel: Register, into: Register, *, leaf: bool) -> None:
        """Fork a process that executes call lists from its own channel; a `leaf` doesn't reap children."""
        self._add(FORK, (channel, int(leaf)), (), None, "clone", into.number)

    def jump(self, to: Label) -> None:
        """Continue at the label."""
        self._add(CHECK, (Data(0), 0, 1, errno.EPERM), (ANY,), to, "", _UNUSED_RESULT)

    def place_label(self, label: Label) -> None:
        """Place the label here."""
        for at in label:
            _CONTINUE.pack_into(self._calls, at * CALL.size + _CONTINUE_OFFSET, len(self._purposes))
        label.clear()

    def data(self, content: bytes) -> Data:
        """Add bytes to the list."""
        self._data += bytes(-len(self._data) % 8)
        at = len(self._data)
        self._data += content
        return Data(at)

    def offset_by(self, data: Data, distance: int) -> Data:
        """Return the position `distance` bytes later."""
        return Data(data.at + distance)

    def register(self) -> Register:
        """Allocate a register."""
        return Register(self._free.pop())

    def take(self, descriptor: int, into: Register | None = None) -> Register:
        """Pass a copy of a descriptor of ours in a register."""
        into = into or Register(_FIRST_DESCRIPTOR + len(self._descriptors))
        self._descriptors.append((into.number, descriptor))
        return into

    def close(self, *registers: Register) -> None:
        """Close descriptors, and free their registers."""
        for register in registers:
            self.call("close", register)
            self.free(register)

    def free(self, register: Register) -> None:
        """Free a register; its content stays."""
        if register.number < _FIRST_DESCRIPTOR:  # those of descriptors sent along aren't reused
            self._free.append(register.number)

    def is_kind(self, descriptor: Register, kind: int, error: int = errno.EPERM, *, to: Label | None = None,
                if_unknown: Label | None = None, purpose: str = "") -> None:  # fmt: skip
        """Fail unless the file type is `kind` (S_IFDIR, ...), or continue at `to`; `if_unknown`: where statx fails."""
        ignored = () if if_unknown is None else (ANY,)
        self.call(
            "statx",
            descriptor,
            "",
            linux.AT_EMPTY_PATH,
            _STATX_TYPE_MODE,
            Data(0),
            ignored=ignored,
            to=if_unknown,
            purpose=purpose,
        )
        self.check(Data(_STX_MODE), 0o170000, kind, error, to=to, purpose=purpose)

    # --- the written list ---

    def step(self, step: object) -> None:
        """Name the step that the next calls belong to."""
        self._step = step
        self.allow_split()

    def allow_split(self) -> None:
        """Allow a split here: later calls need nothing earlier except the registers that are kept."""
        if len(self._data) + len(self._calls) > _SPLIT_BYTES or len(self._descriptors) >= _SPLIT_DESCRIPTORS:
            self._finish(())
        self._steps.append((len(self._purposes), self._step))

    def packets(self, *returned: Register, silent: bool = False) -> list[Packet]:
        """Return the whole list, and begin a new one. Its last packet sends back the descriptors in `returned`.

        `silent`: no reply is sent unless a call fails.
        """
        if self._purposes or self._descriptors or returned:
            self._finish(returned, silent=silent)
        packets, self._packets = self._packets, []
        return packets

    def _finish(self, returned: tuple[Register, ...], *, silent: bool = False) -> None:
        returned_registers = tuple(register.number for register in returned)
        registers = bytes((*(into for into, _ in self._descriptors), *returned_registers))
        head = HEAD.pack(len(self._purposes), len(self._descriptors), len(returned), silent, registers)
        descriptors = tuple(descriptor for _, descriptor in self._descriptors)
        data = b"".join((head, self._calls, self._data, bytes(_PADDING)))
        if any(self._labels):
            raise ValueError("a call continues at a label that was never placed")
        if len(data) > PACKET or len(self._descriptors) > _UNUSED_RESULT - _FIRST_DESCRIPTOR:
            raise ValueError("a step doesn't fit into one call list")
        self._packets.append(Packet(data, descriptors, returned_registers, tuple(self._purposes), tuple(self._steps)))
        self._start_list()

    def _add(  # noqa: PLR0917
        self,
        number: int,
        arguments: tuple[Argument, ...],
        ignored: tuple[int, ...],
        to: Label | None,
        purpose: str,
        into: int,
    ) -> None:
        kinds, values, at = 0, [0] * 6, len(self._purposes)
        for index, argument in enumerate(arguments):
            if isinstance(argument, int):
                values[index] = argument & 0xFFFFFFFFFFFFFFFF
            elif isinstance(argument, Register):
                kinds |= REGISTER << 2 * index
                values[index] = argument.number
            else:
                kinds |= DATA << 2 * index
                values[index] = self._offset(argument)
        first_ignored, second_ignored = (*ignored, 0, 0)[:2] if ignored else (0, 0)
        if to is not None:
            to.append(at)
            self._labels.append(to)
        self._calls += CALL.pack(number, kinds, into, first_ignored, second_ignored, at + 1, *values)
        self._purposes.append(purpose)

    def _offset(self, argument: str | bytes | Data) -> int:
        if isinstance(argument, Data):
            return argument.at
        content = os.fsencode(argument) + b"\0" if isinstance(argument, str) else argument
        return self.data(content).at
