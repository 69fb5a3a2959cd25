"""Runs inside a sandbox: the kernel's own doors, system call by system call, and the ways around a filter on them.

Arguments are such that a call let through would succeed or fail in another way: what is expected is the exact errno.
"""

import ctypes
import errno
import json
import mmap
import os
import pty
import signal
import socket
import struct
from pathlib import Path

from inside import X86, call, trial

NUMBERS = json.loads(Path("numbers.json").read_text())
HIGH = 1 << 32  # an int's caller may leave anything in the upper half of a register (CVE-2019-10063)
NEW = {
    "time": 0x80, "mount": 0x20000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000,
    "pid": 0x20000000, "network": 0x40000000,
}  # fmt: skip
# Refused whatever is asked: the first things that container escapes and kernel exploits try.
DOORS = """
    acct add_key bpf cachestat chroot clock_settime clone3 delete_module fanotify_init finit_module fsconfig fsmount
    fsopen fspick init_module io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit io_uring_enter
    io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl listmount lookup_dcookie
    migrate_pages modify_ldt mount mount_setattr move_mount move_pages open_by_handle_at open_tree open_tree_attr
    openat2 perf_event_open pidfd_getfd pivot_root quotactl quotactl_fd reboot request_key setdomainname sethostname
    setns settimeofday statmount swapoff swapon syslog umount2 uselib userfaultfd vhangup
"""


def by_number(name, *arguments):
    if name not in NUMBERS:
        raise OSError(errno.EPERM, "this machine has no such call")
    return call(NUMBERS[name], *arguments)


for door in NUMBERS.keys() & DOORS.split():
    trial(name=door)(lambda door=door: by_number(door, 0, 0, 0, 0, 0))


def in_a_child(attempt):
    """Do it in a process of its own, which may not come back: raises what it raised, or EPERM where it was killed."""
    pid = os.fork()
    if not pid:
        status = 0
        try:
            attempt()
        except OSError as error:
            status = error.errno
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(abs(status) if status > 0 else errno.EPERM, f"ended with {status}")
    return "done"


def a_clone(flags):
    if not by_number("clone", flags | signal.SIGCHLD, 0, 0, 0, 0):
        os._exit(0)


for kind, flag in NEW.items():
    trial(name=f"unshare_{kind}")(lambda flag=flag: in_a_child(lambda: by_number("unshare", flag)))
    trial(name=f"unshare_{kind}_high_bits")(lambda flag=flag: in_a_child(lambda: by_number("unshare", flag | HIGH)))
    if flag != NEW["time"]:  # an exit signal, there
        trial(name=f"clone_{kind}")(lambda flag=flag: in_a_child(lambda: a_clone(flag)))


@trial
def join_init_by_a_pidfd():
    return by_number("setns", by_number("pidfd_open", 1, 0), NEW["mount"] | NEW["network"])


@trial
def the_host_s_root_by_a_handle():
    """Shocker: inode 2 of whatever file system this is."""
    handle = struct.pack("IiQ", 8, 1, 2)
    return by_number("open_by_handle_at", os.open(".", os.O_RDONLY), handle, os.O_RDONLY)


@trial
def families_of_sockets():
    made = set()
    for family in range(64):
        for kind in (1, 2, 3, 4, 5, 10):
            for upper in (0, HIGH):
                try:
                    os.close(by_number("socket", family | upper, kind | upper, 0))
                    made.add((family, kind))
                except OSError:
                    pass
    inside = {(family, kind) for family in (2, 10) for kind in (1, 2)}
    if more := made - inside - {(1, kind) for kind in (1, 2, 3, 5)} - {(16, 2), (16, 3)}:
        return sorted(more)
    raise OSError(errno.EAFNOSUPPORT, "none but unix, TCP, UDP and routes to read")


@trial
def protocols_of_netlink():
    made = []
    for protocol in range(1, 32):
        try:
            made.append((protocol, by_number("socket", socket.AF_NETLINK, 3, protocol)))
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise
    if made:
        return made
    raise OSError(errno.EAFNOSUPPORT, "none")


OPTIONS = {
    "IP_TRANSPARENT": (socket.SOL_IP, 19), "IPV6_TRANSPARENT": (41, 75), "SO_MARK": (1, 36), "SO_RCVBUFFORCE": (1, 33),
    "SO_DEBUG": (1, 1), "TCP_REPAIR": (6, 19), "IP_IPSEC_POLICY": (0, 16), "IPT_SO_SET_REPLACE": (0, 64),
    "IP6T_SO_SET_REPLACE": (41, 64), "ARPT_SO_SET_REPLACE": (0, 96), "MRT_INIT": (0, 200),
}  # fmt: skip


@trial
def options_of_sockets():
    taken = []
    for name, (level, option) in OPTIONS.items():
        with socket.socket(socket.AF_INET6 if level == 41 else socket.AF_INET) as sock:
            try:
                sock.setsockopt(level, option, struct.pack("i", 1) + bytes(128))
                taken.append(name)
            except OSError:
                pass
    if taken:
        return taken
    raise OSError(errno.EPERM, "none")


@trial
def filters_on_sockets():
    """Each would take from the machine's one pool of compiled programs: SO_ATTACH_FILTER and the like, socket(7)."""
    program = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF)  # BPF_RET: all of a packet
    memory = ctypes.create_string_buffer(program)
    taken = []
    for option in (26, 50, 51, 52, 26 | HIGH):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            given = struct.pack("HxxxxxxQ", 1, ctypes.addressof(memory))
            try:
                call(NUMBERS["setsockopt"], sock.fileno(), socket.SOL_SOCKET, option, given, len(given))
                taken.append(option)
            except OSError as error:
                if error.errno != errno.ENOPROTOOPT:
                    raise
    if taken:
        return taken
    raise OSError(errno.ENOPROTOOPT, "none")


def refused(error, attempts):
    """Return which of some attempts succeed; raises OSError where the kernel refuses all with the same error."""
    taken = []
    for name, attempt in attempts.items():
        try:
            attempt()
            taken.append(name)
        except OSError as found:
            if found.errno != error:
                raise
    if taken:
        return taken
    raise OSError(error, "none")


@trial
def flow_labels():
    """The machine has 4,096 for all: IPV6_FLOWLABEL_MGR, ipv6(7)."""
    asked = socket.inet_pton(socket.AF_INET6, "::1") + bytes(4) + struct.pack("BBHHHI", 0, 1, 1, 6, 6, 0)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        attempts = {level: (lambda level=level: call(NUMBERS["setsockopt"], sock.fileno(), level, 32, asked, len(asked)))
                    for level in (41, 41 | HIGH)}  # fmt: skip
        return refused(errno.ENOPROTOOPT, attempts)


@trial
def keys_for_segments():
    """A socket may have 128 KB of them that are nobody's memory: TCP_MD5SIG, TCP_MD5SIG_EXT, TCP_AO_ADD_KEY."""
    address = struct.pack("=HH4s", socket.AF_INET, 0, bytes([10, 0, 0, 1])).ljust(128, b"\0")
    key = address + struct.pack("=BBHi", 0, 32, 8, 0) + b"k" * 80

    def add(option):
        with socket.socket() as sock:
            call(NUMBERS["setsockopt"], sock.fileno(), socket.IPPROTO_TCP, option, key, len(key))

    return refused(errno.ENOPROTOOPT, {option: lambda option=option: add(option) for option in (14, 32, 38, 14 | HIGH)})


@trial
def groups_without_end():
    """Of each that a socket is in the kernel keeps something that is nobody's memory: ip(7), IP_ADD_MEMBERSHIP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(1, 6):
            group = bytes([239, 0, 0, number]) + bytes([127, 0, 0, 1])
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    return "five"


@trial
def huge_pages():
    """The machine has one pool. A file for some can be made where that is empty."""
    words = {"memfd_create": (b"x", 4), "memfd_create_of_a_size": (b"x", 4 | 21 << 26)}
    return refused(
        errno.EINVAL, {name: lambda words=words: by_number("memfd_create", *words) for name, words in words.items()}
    )


def at_a_terminal(request):
    first, second = pty.openpty()
    try:
        return call(NUMBERS["ioctl"], second, request, b"x")
    finally:
        os.close(first)
        os.close(second)


for name, request in (("TIOCSTI", 0x5412), ("TIOCLINUX", 0x541C), ("TIOCCONS", 0x541D), ("TIOCSETD", 0x5423)):
    trial(name=name)(lambda request=request: at_a_terminal(request))
    trial(name=f"{name}_high_bits")(lambda request=request: at_a_terminal(request | HIGH))


@trial
def a_call_of_another_abi():
    """x32: the same numbers with one bit more."""
    if not X86:
        raise OSError(errno.ENOSYS, "there is none on this machine")
    return call(0x40000000 | 39)


@trial
def a_call_of_another_architecture():
    """IA-32's getpid by `int 0x80`, whose numbers mean other calls."""
    if not X86:
        raise OSError(errno.EPERM, "there is none on this machine")
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    return in_a_child(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code))))


@trial
def data_that_is_code():
    return by_number("personality", 0x400000)


@trial
def the_lowest_page():
    return by_number("mmap", 0, 4096, 7, 0x32, -1, 0)


@trial
def the_clock():
    return by_number("adjtimex", struct.pack("I", 1) + bytes(512))


@trial
def capabilities_again():
    header, every = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0xFFFFFFFF] * 6)
    return by_number("capset", header, every)


@trial
def ambient_capabilities():
    return by_number("prctl", 47, 2, 21, 0, 0)


@trial
def new_privileges():
    return by_number("prctl", 38, 0, 0, 0, 0)


@trial
def real_time():
    return os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
