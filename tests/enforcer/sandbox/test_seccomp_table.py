"""The filters over every number that there is, and beyond: by reading the BPF, and by making the calls that it refuses."""

import ctypes
import errno
import json
import os
import struct

import pytest

from enforcer.sandbox import seccomp
from enforcer.sandbox.seccomp import ABSENT, ALLOWED
from enforcer.sandbox.step_lists import AUDIT_ARCH, NUMBERS
from enforcer.system import linux

ALLOW, NOTIFY, KILL, REFUSED = 0x7FFF0000, 0x7FC00000, 0x80000000, 0x00050000
NOSYS = REFUSED | errno.ENOSYS
BEYOND = [*range(471, 600), 1023, 4096, 0x3FFFFFFF, 0x40000000, 0x40000001, 0x7FFFFFFF, 0xFFFFFFFF]
MACHINES = sorted(NUMBERS)

# Arguments with which a call that depends on them is let through; what isn't here is allowed whatever it is given.
HARMLESS = {
    "socket": (2, 1, 6),
    "socketpair": (1, 1, 0),
    "clone": (0x11,),
    "unshare": (0x200,),
    "ioctl": (0, 0x5401),
    "fcntl": (0, 1),
}
HARMFUL = {
    "socket": [(40, 1, 0), (17, 3, 0), (16, 3, 4), (2, 3, 1), (10, 2, 58), (2, 1, 132)],
    "socketpair": [(2, 1, 0)],
    "clone": [(1 << bit,) for bit in (17, 25, 26, 27, 28, 29, 30)],
    "unshare": [(1 << bit,) for bit in (7, 17, 25, 26, 27, 28, 29, 30)],
    "ioctl": [(0, request) for request in (0x5412, 0x541C, 0x541D, 0x5423)],
    "fcntl": [(0, 1024), (0, 1040)],
    "chmod": [(0, 0o4755), (0, 0o2755)],
    "fchmod": [(0, 0o4755), (0, 0o2755)],
    "fchmodat": [(0, 0, 0o4755), (0, 0, 0o2755)],
    "fchmodat2": [(0, 0, 0o4755), (0, 0, 0o2755)],
    "creat": [(0, 0o4755), (0, 0o2755)],
    "mknod": [(0, 0o4755)],
    "mknodat": [(0, 0, 0o4755)],
    "open": [(0, 0o102, 0o4755), (0, 0o20200002, 0o2755)],
    "openat": [(0, 0, 0o102, 0o4755), (0, 0, 0o20200002, 0o2755)],
    "setsockopt": [(0, 1, 26), (0, 1, 50), (0, 1, 51), (0, 1, 52), (0, 41, 32), (0, 6, 14), (0, 6, 32), (0, 6, 38)],
    "mmap": [(0, 4096, 3, 0x40022), (0, 4096, 3, 21 << 26 | 0x40022)],
    "memfd_create": [(0, 4), (0, 21 << 26 | 5)],
    "shmget": [(0, 4096, 0o5600)],
    "personality": [(0x0400000,), (0x0100000,), (1,)],
}
_NEVER = """
    add_key request_key keyctl bpf userfaultfd pidfd_getfd mount umount2 pivot_root chroot open_tree move_mount fsopen
    fsconfig fsmount fspick mount_setattr setns open_by_handle_at acct swapon swapoff reboot kexec_load init_module
    kexec_file_load finit_module delete_module settimeofday clock_settime perf_event_open kcmp quotactl quotactl_fd
    syslog sethostname setdomainname fanotify_init migrate_pages move_pages vhangup open_tree_attr
"""
NEVER = frozenset(_NEVER.split())


def verdict(program, machine, number, arguments=()):
    """Run a filter as the kernel does: BPF(4) with only the instructions that `bpf` emits."""
    words = [number, AUDIT_ARCH[machine], 0, 0]
    for value in (*arguments, *[0] * 6)[:6]:
        words += [value & 0xFFFFFFFF, value >> 32]
    operations = list(struct.iter_unpack("=HBBI", program))
    at, value = 0, 0
    while True:
        code, true, false, k = operations[at]
        at += 1
        match code:
            case 0x20:
                value = words[k // 4]
            case 0x54:
                value &= k
            case 0x06:
                return k
            case 0x05:
                at += k
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[code]
                at += true if holds else false
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


@pytest.mark.parametrize("machine", MACHINES)
def test_every_system_call_has_one_verdict(machine):
    unconditional = {line.call for line in seccomp.TASK.lines if isinstance(line, seccomp.Refuse) and not line.tests}
    refused = unconditional - ALLOWED
    known = set(NUMBERS[machine])
    assert known <= ALLOWED | ABSENT | refused
    assert not ALLOWED & ABSENT
    assert not ALLOWED & NEVER
    assert refused >= NEVER
    assert ALLOWED | ABSENT | refused == set().union(*NUMBERS.values())
    assert len(set(NUMBERS[machine].values())) == len(known)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("watched", [False, True])
def test_every_number_gets_its_verdict(machine, watched):
    program = seccomp.assemble(seccomp.TASK, machine, is_supervised=watched)
    names = {number: name for name, number in NUMBERS[machine].items()}
    for number in [*range(471), *BEYOND]:
        name = names.get(number)
        found = verdict(program, machine, number, HARMLESS.get(name, ()))
        if name in ALLOWED:
            assert found == ALLOW, name
        elif name is None or name in ABSENT:
            assert found == NOSYS, number
        else:
            line = seccomp.TASK.line(name, [0] * 6)
            assert found == (NOTIFY if watched and line.is_reported else REFUSED | line.error), name
        for arguments in HARMFUL.get(name, ()):
            line = seccomp.TASK.line(name, [*arguments, 0, 0, 0, 0, 0])
            assert isinstance(line, seccomp.Refuse), (name, arguments)
            expected = NOTIFY if watched and line.is_reported else REFUSED | line.error
            assert verdict(program, machine, number, arguments) == expected, (name, arguments)
            # What lies above an argument's 32 bits changes nothing: the kernel doesn't look there either.
            assert verdict(program, machine, number, [value | 1 << 40 for value in arguments]) == expected


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("watched", [False, True])
def test_sync_succeeds_without_effect_on_the_host(machine, watched):
    program = seccomp.assemble(seccomp.TASK, machine, is_supervised=watched)
    assert verdict(program, machine, NUMBERS[machine]["sync"]) == REFUSED | 0
    for promises_more in ("fsync", "fdatasync", "syncfs", "sync_file_range", "msync"):
        assert verdict(program, machine, NUMBERS[machine][promises_more]) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_execve_needs_a_listener_under_command_rules(machine):
    watched = seccomp.assemble(seccomp.TASK_WITH_COMMANDS, machine, is_supervised=True)
    alone = seccomp.assemble(seccomp.TASK_WITH_COMMANDS, machine)
    for call in ("execve", "execveat"):
        assert verdict(watched, machine, NUMBERS[machine][call]) == NOTIFY
        assert verdict(alone, machine, NUMBERS[machine][call]) == REFUSED | errno.EPERM
        assert (
            verdict(seccomp.assemble(seccomp.TASK, machine, is_supervised=True), machine, NUMBERS[machine][call])
            == ALLOW
        )


# What takes room at once, and what gives it back: fallocate(2) by its modes, and ioctls.
TAKES = [("fallocate", (3, mode)) for mode in (0, 0x1, 0x8, 0x10, 0x11, 0x20, 0x40)]
TAKES += [("ioctl", (3, request)) for request in (0x40305828, 0x4030582A, 0x40305839)]
GIVES = [("fallocate", (3, 0x3)), ("ioctl", (3, 0x4030582B)), ("ioctl", (3, 0x5401)), ("ftruncate", (3, 1 << 31))]


@pytest.mark.parametrize("commands", [False, True])
@pytest.mark.parametrize("machine", MACHINES)
def test_fallocate_is_denied_in_review(machine, commands):
    for watched in (False, True):
        usual = seccomp.assemble(seccomp.task_filter(commands=commands), machine, is_supervised=watched)
        reviewed = seccomp.assemble(
            seccomp.task_filter(commands=commands, reviewed=True), machine, is_supervised=watched
        )
        for call, arguments in TAKES:
            assert verdict(reviewed, machine, NUMBERS[machine][call], arguments) == REFUSED | errno.EOPNOTSUPP
            assert verdict(usual, machine, NUMBERS[machine][call], arguments) == ALLOW
        for call, arguments in GIVES:
            assert verdict(reviewed, machine, NUMBERS[machine][call], arguments) == ALLOW
        for number in range(471):
            harmful = HARMFUL.get(next((name for name, each in NUMBERS[machine].items() if each == number), ""), [()])
            for arguments in harmful if number != NUMBERS[machine]["fallocate"] else []:
                assert verdict(reviewed, machine, number, arguments) == verdict(usual, machine, number, arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_other_architecture_kills_the_process(machine):
    program = seccomp.assemble(seccomp.TASK, machine)
    for other in {*MACHINES} - {machine}:
        assert verdict(program, other, NUMBERS[other]["getpid"]) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_worker_filter_allows_the_rest(machine):
    program = seccomp.assemble(seccomp.WORKER, machine)
    names = {number: name for name, number in NUMBERS[machine].items()}
    for number in range(600):
        line = seccomp.WORKER.line(names.get(number, ""), [1] * 6)
        refused = isinstance(line, seccomp.Refuse)
        assert verdict(program, machine, number, [1] * 6) == (REFUSED | line.error if refused else ALLOW)


def test_filter_agrees_with_the_kernel():
    """Every call that is refused whatever its arguments, and every number that nobody knows, made for real."""
    machine = linux.platform_machine()
    filters = seccomp.assemble(seccomp.TASK, machine)
    numbers = [*range(471), *(number for number in BEYOND if number < 0x40000000)]
    expected = {number: verdict(filters, machine, number) & 0xFFFF for number in numbers}
    # Only what the filter answers itself: nothing here may take effect if it doesn't.
    refused = {number: error for number, error in expected.items() if verdict(filters, machine, number) != ALLOW}
    names = {number: name for name, number in NUMBERS[machine].items()}
    refused = {number: error for number, error in refused.items() if names.get(number) not in ALLOWED}
    assert len(refused) > 150
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if os.geteuid() == 0:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        libc = ctypes.CDLL(None, use_errno=True)
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.load_seccomp(filters)
        said = {number: ctypes.get_errno() if libc.syscall(number, 0, 0, 0, 0, 0, 0) < 0 else 0 for number in refused}
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = {int(number): error for number, error in json.loads(answer.read()).items()}
    os.waitpid(pid, 0)
    assert said == refused
