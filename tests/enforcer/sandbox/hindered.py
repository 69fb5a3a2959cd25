"""Begins a task again and again, each time with a system call that fails, and says what came of it, as JSON.

Each has an init of its own, made as a sandbox's is but for what it could see, under a filter that answers one call with
an error. The task is in it, so the filter is its own, too.
"""

import errno
import json
import os
import resource
import socket
import struct
import sys
from typing import NamedTuple

from enforcer import linux
from enforcer.notify import seat
from enforcer.sandbox import begin, bpf, landlock, seccomp
from enforcer.sandbox.bpf import Filter, Refuse, Test
from enforcer.sandbox.compiled import library
from enforcer.sandbox.identity import Identity, IdMap

if made := os.environ.get("EXEAT_SANITIZED"):  # `make sanitize`
    library.LIBRARY = made
    begin.COMPILED = library.load()
WAYS = ("compiled", "interpreted")
MACHINE = linux.platform_machine()
KILLS = errno.EUCLEAN  # stands for the end of who calls


class Case(NamedTuple):
    """Calls that fail, which one is said to have; None: it begins all the same."""

    refused: tuple[Refuse, ...]
    compiled: str | None
    interpreted: str | None
    watched: bool = True
    granted: bool = True
    terminal: bool = False
    comes: tuple[str, str] = ("ended 0", "ran\n")  # of it where it begins

    def says(self, way):
        return self.compiled if way == "compiled" else self.interpreted


def fails(call, *tests, says, error=errno.EIO, interpreted="same", **more):
    """A case: `tests` are of the call's arguments."""
    return Case((Refuse(call, error, tests),), says, says if interpreted == "same" else interpreted, **more)


def _prctl(option, *tests, name, **more):
    return fails("prctl", Test(0, value=option), *tests, says=f"prctl {name}", **more)


_SET, _GET = Test(2), Test(3)  # prlimit(2): which of the two pointers is given
CASES = {
    "the stack": fails("mmap", Test(3, 0x20000), says="mmap", interpreted=None),  # MAP_STACK
    "all of it but its guard": fails("mprotect", Test(1, value=256 << 10), says="mprotect", interpreted=None),
    "init may be dumped": _prctl(4, Test(1, value=1), name="PR_SET_DUMPABLE"),
    "the process": fails("clone", says="clone"),
    "its user namespace": fails("unshare", says=None, interpreted="unshare"),
    "an id map opened": fails("openat", Test(2, value=os.O_WRONLY | os.O_CLOEXEC), says="open an id map"),
    "setgroups written": fails("write", Test(2, value=4), says="write an id map"),
    "uid_map written": fails("write", Test(2, value=9), says="write an id map"),
    "not dumped any more": _prctl(4, Test(1, value=0), name="PR_SET_DUMPABLE"),
    "init's word": fails("sendto", Test(2, value=1), says="send"),
    "groups": fails("setresgid", says="setresuid"),
    "users": fails("setresuid", says="setresuid"),
    "secure bits": _prctl(28, name="PR_SET_SECUREBITS"),
    "ambient set": _prctl(47, name="PR_CAP_AMBIENT"),
    "bounding set": _prctl(24, Test(1, value=0), name="PR_CAPBSET_DROP"),
    "the last of all that any kernel has": _prctl(
        24, Test(1, value=linux.CAP_LEAST_LAST), name="PR_CAPBSET_DROP", error=errno.EINVAL
    ),
    "capabilities": fails("capset", says="capset"),
    "no new privileges": _prctl(38, name="PR_SET_NO_NEW_PRIVS"),
    "session": fails("setsid", says="setsid"),
    "controlling terminal": fails("ioctl", Test(1, value=0x540E), says="ioctl TIOCSCTTY", terminal=True),
    "copies of descriptors": fails("fcntl", Test(1, value=1030), says="fcntl F_DUPFD_CLOEXEC"),
    "standard streams": fails("dup2", says="dup2"),
    "its channels": fails("dup3", says="dup2", interpreted=None),
    "the other descriptors": fails("close_range", says="close_range", interpreted=None),  # one by one, then
    "what signals do": fails("rt_sigaction", Test(1), says="sigaction"),
    "signals blocked": fails("rt_sigprocmask", Test(0, value=2), says="sigprocmask"),
    "directory": fails("chdir", says="chdir"),
    "killed": fails("chdir", says="its process ended", error=KILLS),
    "wall": fails("landlock_create_ruleset", Test(1), says="landlock_create_ruleset"),
    "a place": fails("openat", Test(2, 0x200000), says="look at what is granted"),  # O_PATH
    "a place looked at": fails("newfstatat", says="look at what is granted"),
    "a stream looked at": fails("newfstatat", says="look at what is granted", granted=False),
    "a place granted": fails("landlock_add_rule", says="landlock_add_rule"),
    "a stream granted": fails("landlock_add_rule", says="landlock_add_rule", granted=False),
    "walled in": fails("landlock_restrict_self", says="landlock_restrict_self"),
    "limits read": fails("prlimit64", _GET, says="setrlimit"),
    "limits set": fails("prlimit64", _SET, says="setrlimit"),
    "a filter that nobody listens to": fails("seccomp", says=None),
    "that one neither": Case(
        (Refuse("seccomp", errno.EIO), Refuse("prctl", errno.EIO, (Test(0, value=22),))),
        *["prctl PR_SET_SECCOMP"] * 2,
    ),
    "a plain filter": _prctl(22, name="PR_SET_SECCOMP", watched=False),
    "the listener given away": fails("sendmsg", says="sendmsg"),
    "the program": fails(
        "execve",
        says=None,
        error=errno.EACCES,
        comes=("ended 126", "exeat: `sh` cannot be executed: Permission denied\n"),
    ),
    "nothing": Case((), None, None),
}


def _filter(refused):
    program = bpf.assemble(Filter(refused), MACHINE)
    return program.replace(_return(0x00050000 | KILLS), _return(0x80000000))


def _return(what):
    return struct.pack("=HBBI", 0x06, 0, 0, what)


def _identity():
    outer, inner = IdMap(((0, os.getuid(), 1),)), IdMap(((1000, 0, 1),))
    groups = IdMap(((0, os.getgid(), 1),))
    return Identity(
        privileged=False, outer_uids=outer, outer_gids=groups, inner_uids=inner, inner_gids=inner, user="task", uid=1000,
        gid=1000, home="/", kernel_uid=0, kernel_gid=0, worker_uid=0, keyholder_uid=0,
    )  # fmt: skip


def _be_init(case, way, out):
    """Begin a task that says so; returns what init would tell of it."""
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("proc", "/proc", "proc")
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    if way == "interpreted":
        begin.COMPILED = None
    terminal = os.openpty()[1] if case.terminal else -1
    stdio = (os.open("/dev/null", os.O_RDWR), out, os.dup(out))
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = begin.Program(
        argv=("sh", "-c", "echo ran"),
        environment={"PATH": "/usr/bin:/bin"},
        directory="/",
        ignored=frozenset(),
        seccomp=bpf.assemble(seccomp.TASK, MACHINE),
        watching=seat.watching(commands=False) if case.watched else None,
        terminal=terminal,
        rlimits=((resource.RLIMIT_NOFILE, 64),),
        wall=(landlock.Grant("/", landlock.EVERYTHING),) if case.granted else (),
    )
    linux.load_seccomp(_filter(case.refused))
    try:
        task = begin.begin(_identity(), program, stdio, its)
    except OSError as error:
        return error.strerror
    with mine:
        return f"ended {os.waitstatus_to_exitcode(os.waitpid(task, 0)[1])}"


def _be_outside(case, way, said, out):
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWPID | os.CLONE_NEWNS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {UIDS[0]} 1"), ("gid_map", f"0 {UIDS[1]} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    init = os.fork()
    if init == 0:
        os.write(said, f"{_be_init(case, way, out)}".encode())
        os._exit(0)
    os.waitpid(init, 0)


UIDS = os.getuid(), os.getgid()


def begun(case, way):
    """What is said of one beginning, and what its task has printed."""
    said, saying = os.pipe()
    out, printing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _be_outside(case, way, saying, printing)
        finally:
            os._exit(0)
    heard = []
    for reader, writer in ((said, saying), (out, printing)):
        os.close(writer)
        with os.fdopen(reader) as file:
            heard.append(file.read())
    os.waitpid(pid, 0)
    return heard


if __name__ == "__main__":
    json.dump({name: {way: begun(case, way) for way in WAYS} for name, case in CASES.items()}, sys.stdout)
