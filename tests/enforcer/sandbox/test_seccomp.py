"""The task's filter, tried on the running kernel: a child loads it and makes the calls."""

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct

import pytest

from enforcer.sandbox import seccomp
from enforcer.sandbox.step_lists import NUMBERS
from enforcer.system import linux
from enforcer.system.errors import HostError

MACHINE = linux.platform_machine()


def _under(program, attempt):
    """What `attempt` returns, or the errno it raised, in a child under the filter."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            linux.load_seccomp(program)
            said = {"value": attempt()}
        except OSError as error:
            said = {"errno": error.errno}
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(text) if text else {"killed": os.waitstatus_to_exitcode(status)}


def _call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    number = NUMBERS[MACHINE][name]
    result = libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def _socket(*arguments):
    return lambda: socket.socket(*arguments).close()


TASK = seccomp.assemble(seccomp.TASK, MACHINE)
WORKER = seccomp.assemble(seccomp.WORKER, MACHINE)


@pytest.mark.parametrize(
    "attempt",
    [
        _socket(socket.AF_UNIX, socket.SOCK_STREAM),
        _socket(socket.AF_INET, socket.SOCK_STREAM),
        _socket(socket.AF_INET6, socket.SOCK_DGRAM),
        _socket(socket.AF_INET, socket.SOCK_STREAM, 262),  # MPTCP: what Go's listeners ask for
        _socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),  # getifaddrs
        lambda: [s.close() for s in socket.socketpair()] and None,
        lambda: os.waitpid(os.fork() or os._exit(0), 0) and None,
        lambda: _call("openat", -100, b"/etc/passwd\0", os.O_RDONLY, 0) and None,
        lambda: os.chmod("/dev/null", 0o666),
    ],
)
def test_common_calls_work_under_the_filter(attempt):
    assert _under(TASK, attempt) == {"value": None}


REFUSED = [
    (_socket(40, socket.SOCK_STREAM), errno.EAFNOSUPPORT),  # AF_VSOCK: no namespace confines it
    (_socket(17, socket.SOCK_RAW), errno.EAFNOSUPPORT),  # AF_PACKET
    (_socket(38, socket.SOCK_SEQPACKET), errno.EAFNOSUPPORT),  # AF_ALG
    (_socket(31, socket.SOCK_SEQPACKET), errno.EAFNOSUPPORT),  # AF_BLUETOOTH
    (_socket(44, socket.SOCK_RAW), errno.EAFNOSUPPORT),  # AF_XDP
    (_socket(16, socket.SOCK_RAW, 4), errno.EAFNOSUPPORT),  # NETLINK_SOCK_DIAG
    (_socket(16, socket.SOCK_RAW, 12), errno.EAFNOSUPPORT),  # NETLINK_NETFILTER
    (_socket(socket.AF_INET, socket.SOCK_RAW, 1), errno.EACCES),
    (_socket(socket.AF_INET6, socket.SOCK_RAW, 58), errno.EACCES),
    (_socket(socket.AF_INET, socket.SOCK_DGRAM, 1), errno.EACCES),  # a ping socket
    (_socket(socket.AF_INET, socket.SOCK_STREAM, 132), errno.EACCES),  # SCTP
    (_socket(socket.AF_INET, socket.SOCK_DGRAM, 136), errno.EACCES),  # UDP-Lite
    (_socket(socket.AF_INET, 6, 33), errno.EACCES),  # DCCP
    (lambda: os.unshare(os.CLONE_NEWUSER), errno.EPERM),
    (lambda: os.unshare(os.CLONE_NEWNET), errno.EPERM),
    (lambda: os.unshare(0x80), errno.EPERM),  # CLONE_NEWTIME
    (lambda: _call("clone", 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0), errno.EPERM),
    (lambda: _call("clone3", 0, 0), errno.ENOSYS),
    (lambda: _call("setns", 0, 0), errno.EPERM),
    (lambda: _call("mount", 0, 0, 0, 0, 0), errno.EPERM),
    (lambda: _call("fsopen", b"proc\0", 0), errno.EPERM),
    (lambda: _call("open_tree", -100, b"/\0", 1), errno.EPERM),
    (lambda: _call("io_uring_setup", 1, 0), errno.ENOSYS),
    (lambda: _call("request_key", b"dns_resolver\0", b"x\0", 0, 0), errno.EPERM),
    (lambda: _call("add_key", b"user\0", b"x\0", b"y\0", 1, -2), errno.EPERM),
    (lambda: _call("keyctl", 0, -3, 0), errno.EPERM),
    (lambda: _call("bpf", 0, 0, 0), errno.EPERM),
    (lambda: _call("userfaultfd", 0), errno.EPERM),
    (lambda: _call("perf_event_open", 0, 0, 0, 0, 0), errno.EPERM),
    (lambda: _call("pidfd_getfd", 0, 0, 0), errno.EPERM),
    (lambda: os.chmod("/tmp", 0o4755), errno.EPERM),
    (lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o4755), errno.EPERM),
    (lambda: os.open("/tmp/exeat-never-made", os.O_CREAT | os.O_RDWR, 0o2755), errno.EPERM),
    (lambda: os.mknod("/tmp/exeat-never-made", 0o4755), errno.EPERM),
    (lambda: _call("openat2", -100, b"/tmp\0", 0, 0), errno.ENOSYS),
]


@pytest.mark.parametrize(("attempt", "number"), REFUSED)
def test_dangerous_calls_are_denied(attempt, number):
    assert _under(TASK, attempt) == {"errno": number}


@pytest.mark.parametrize("request_code", [0x5412, 0x541C, 0x541D, 0x5423, 0x5412 | 1 << 40])
def test_tiocsti_is_denied(request_code):
    primary, secondary = os.openpty()
    argument = ctypes.create_string_buffer(b"x")
    assert _under(TASK, lambda: _call("ioctl", secondary, request_code, argument)) == {"errno": errno.EPERM}
    os.close(primary)
    os.close(secondary)


@pytest.mark.skipif(MACHINE != "x86_64", reason="the x32 and IA-32 entries are x86's")
@pytest.mark.parametrize("command", [1024, 1024 | 1 << 40, 1040])  # F_SETLEASE, F_SETDELEG
def test_leases_on_files_are_denied(tmp_path, command):
    path = tmp_path / "rules.yaml"
    path.touch()
    with path.open("rb") as file:

        def attempt():
            return _call("fcntl", file.fileno(), command, fcntl.F_WRLCK)

        if command != 1040:
            assert attempt() == 0, "anybody else has it"
            assert _call("fcntl", file.fileno(), fcntl.F_SETLEASE, fcntl.F_UNLCK) == 0
        assert _under(TASK, attempt) == {"errno": errno.EINVAL}
        assert _under(TASK, lambda: fcntl.fcntl(file, fcntl.F_GETLEASE)) == {"value": fcntl.F_UNLCK}
        assert _under(TASK, lambda: fcntl.flock(file, fcntl.LOCK_EX)) == {"value": None}


def test_other_abi_is_denied():
    libc = ctypes.CDLL(None, use_errno=True)

    def x32():
        if libc.syscall(0x40000000 | 41, 2, 1, 0) < 0:
            raise OSError(ctypes.get_errno(), "x32")

    assert _under(TASK, x32) == {"errno": errno.ENOSYS}
    # mov eax, 20 (getpid); int 0x80; ret
    import mmap

    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    assert _under(TASK, ctypes.CFUNCTYPE(ctypes.c_int)(address)) == {"killed": -signal.SIGSYS}


def test_worker_can_connect_but_not_execute_or_signal():
    assert _under(WORKER, _socket(socket.AF_INET, socket.SOCK_STREAM)) == {"value": None}
    assert _under(WORKER, lambda: os.execv("/bin/true", ["true"])) == {"errno": errno.EPERM}
    assert _under(WORKER, lambda: os.kill(os.getppid(), 0)) == {"errno": errno.EPERM}
    assert _under(WORKER, lambda: _call("ptrace", 16, os.getppid(), 0, 0)) == {"errno": errno.EPERM}


def test_unknown_machine_refuses_the_start():
    with pytest.raises(HostError, match="`riscv64`"):
        seccomp.assemble(seccomp.TASK, "riscv64")


@pytest.mark.parametrize("machine", sorted(NUMBERS))
def test_every_jump_lands_inside_the_filter(machine):
    program = seccomp.assemble(seccomp.TASK, machine)
    operations = list(struct.iter_unpack("=HBBI", program))
    assert len(operations) <= 4096  # BPF_MAXINSNS
    for at, (code, true, false, _) in enumerate(operations):
        if code & 7 == 5:
            assert at + 1 + max(true, false) < len(operations)
