"""Begins a task again and again, each time with a system call that fails, and says what came of it, as JSON.

Each has an init of its own, made as a sandbox's is but for what it could see, under a filter that answers one call with
an error. The task is in it, so the filter is its own, too.
"""

import contextlib
import errno
import json
import os
import resource
import socket
import struct
import sys
from typing import NamedTuple

from enforcer.sandbox import init, landlock, seccomp, task_start
from enforcer.sandbox.identity import Identity, IdMap, write_map
from enforcer.sandbox.init import RemoteExecutor
from enforcer.sandbox.seccomp import ArgumentTest, Filter, Refuse
from enforcer.sandbox.step_lists import FORKED_PID
from enforcer.system import linux

if made := os.environ.get("EXEAT_SANITIZED"):  # `make sanitize`
    init.COMPILED = made
COMPILED = init.COMPILED
WAYS = ("compiled", "interpreted")
MACHINE = linux.platform_machine()
KILLS = errno.EUCLEAN  # stands for the end of who calls


class Case(NamedTuple):
    """Calls that fail, which one is said to have; None: it begins all the same."""

    refused: tuple[Refuse, ...]
    says: str | None
    watched: bool = True
    granted: bool = True
    terminal: bool = False
    long: bool = False
    comes: tuple[str, str] = ("ended 0", "ran\n")  # of it where it begins


def fails(call, *tests, says="", error=errno.EIO, **more):
    """A case: `tests` are of the call's arguments."""
    return Case((Refuse(call, error, tests),), call if says == "" else says, **more)


def _prctl(option, *tests, name, **more):
    return fails("prctl", ArgumentTest(0, value=option), *tests, says=f"prctl {name}", **more)


CASES = {
    "the process": fails("clone"),
    "it may be dumped": _prctl(4, ArgumentTest(1, value=1), name="PR_SET_DUMPABLE"),
    "killed first": fails("openat", ArgumentTest(2, value=os.O_WRONLY | os.O_CLOEXEC), says="open an id map"),
    "its user namespace": fails("unshare"),
    "setgroups written": fails("write", ArgumentTest(2, value=4), says="write an id map"),
    "uid_map written": fails("write", ArgumentTest(2, value=9), says="write an id map"),
    "not dumped any more": _prctl(4, ArgumentTest(1, value=0), name="PR_SET_DUMPABLE"),
    "groups": fails("setresgid"),
    "users": fails("setresuid"),
    "secure bits": _prctl(28, name="PR_SET_SECUREBITS"),
    "ambient set": _prctl(47, name="PR_CAP_AMBIENT"),
    "bounding set": _prctl(24, ArgumentTest(1, value=0), name="PR_CAPBSET_DROP"),
    "the last of all that any kernel has": _prctl(
        24, ArgumentTest(1, value=linux.CAP_LEAST_LAST), name="PR_CAPBSET_DROP", error=errno.EINVAL
    ),
    "capabilities": fails("capset"),
    "no new privileges": _prctl(38, name="PR_SET_NO_NEW_PRIVS"),
    "session": fails("setsid"),
    "controlling terminal": fails("ioctl", ArgumentTest(1, value=0x540E), says="ioctl TIOCSCTTY", terminal=True),
    "its own /dev/null": fails("openat", ArgumentTest(2, os.O_NOCTTY), says="open /dev/null"),
    "standard streams": fails("dup3", ArgumentTest(2, value=0)),
    "the other descriptors": fails("close_range", ArgumentTest(0, value=4)),
    "what signals do": fails("rt_sigaction", ArgumentTest(0, value=1), ArgumentTest(2, value=0)),
    "signals blocked": fails("rt_sigprocmask", ArgumentTest(0, value=2), ArgumentTest(2, value=0)),
    "directory": fails("chdir"),
    "killed": fails("chdir", says="its process ended", error=KILLS),
    "wall": fails("landlock_create_ruleset"),
    "a place": fails("openat", ArgumentTest(2, 0x200000), says="open a path for Landlock"),  # O_PATH
    "a place looked at": fails("statx", says="open a path for Landlock"),
    "a place granted": fails("landlock_add_rule"),
    "a stream granted": fails("landlock_add_rule", granted=False),
    "walled in": fails("landlock_restrict_self"),
    "words": fails("mmap", ArgumentTest(2, value=3), ArgumentTest(3, value=2), long=True),
    "limits set": fails("prlimit64", says="setrlimit"),
    "a filter that nobody listens to": fails("seccomp", says=None),
    "that one neither": Case(
        (Refuse("seccomp", errno.EIO), Refuse("prctl", errno.EIO, (ArgumentTest(0, value=22),))), "prctl PR_SET_SECCOMP"
    ),
    "a plain filter": _prctl(22, name="PR_SET_SECCOMP", watched=False),
    "the program": fails(
        "execve",
        says=None,
        error=errno.EACCES,
        comes=("ended 126", "exeat: `sh` cannot be executed: Permission denied\n"),
    ),
    "nothing": Case((), None),
}


def _filter(refused):
    program = seccomp.assemble(Filter(refused), MACHINE)
    return program.replace(_return(0x00050000 | KILLS), _return(0x80000000))


def _return(what):
    return struct.pack("=HBBI", 0x06, 0, 0, what)


def _identity():
    outer, inner = IdMap(((0, os.getuid(), 1),)), IdMap(((1000, 0, 1),))
    groups = IdMap(((0, os.getgid(), 1),))
    return Identity(
        privileged=False, outer_uids=outer, outer_gids=groups, inner_uids=inner, inner_gids=inner, user="task", uid=1000,
        gid=1000, home="/", kernel_uid=0, kernel_gid=0, worker_uid=0, signer_uid=0,
    )  # fmt: skip


def program_of(case):
    """What is to run."""
    return task_start.Program(
        argv=("sh", "-c", "echo ran"),
        environment={"PATH": "/usr/bin:/bin", **({"LONG": "x" * task_start._INLINE_BYTES} if case.long else {})},
        directory="/",
        ignored=frozenset(),
        seccomp=seccomp.assemble(seccomp.TASK, MACHINE),
        supervised=seccomp.watched_filter(commands=False) if case.watched else None,
        terminal=os.openpty()[1] if case.terminal else -1,
        rlimits=((resource.RLIMIT_NOFILE, 64),),
        grants=(landlock.Grant("/", landlock.ALL_RIGHTS),) if case.granted else (),
    )


def _init_under(refused):
    """A first process with its own ids, whose calls and whose task's go through a filter; and that one's parent."""
    pid, outer = init.start()
    outer.calls.call("unshare", os.CLONE_NEWUSER | os.CLONE_NEWPID | os.CLONE_NEWNS)
    outer.run()
    write_map(pid, IdMap(((0, os.getuid(), 1),)), IdMap(((0, os.getgid(), 1),)), deny_setgroups=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        outer.calls.fork(outer.calls.take(theirs.fileno()), FORKED_PID, leaf=False)
        outer.run()
    first = RemoteExecutor(ours)
    calls = first.calls
    calls.call("setresgid", 0, 0, 0)
    calls.call("setresuid", 0, 0, 0)
    calls.call("mount", "none", "/", 0, linux.MS_REC | linux.MS_PRIVATE)
    calls.call("mount", "proc", "/proc", "proc", 0, 0)
    calls.call("prctl", linux.PR_SET_DUMPABLE, 0)
    task_start._prctl(
        calls, linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, task_start._filter_program(calls, _filter(refused))
    )
    first.run()
    return pid, outer, first


def begun(case, way):
    """What is said of one beginning, and what its task has printed."""
    init.COMPILED = COMPILED if way == "compiled" else ""
    out, printing = os.pipe()
    pid, outer, first = _init_under(case.refused)
    stdio = (os.open("/dev/null", os.O_RDWR), printing, os.dup(printing))
    try:
        task_start.start_task(first, _identity(), program_of(case), stdio, os.close)
        while (ended := first.turn()) is None:
            pass
        said = f"ended {os.waitstatus_to_exitcode(ended.status)}"
    except OSError as error:
        said = error.strerror
    for descriptor in stdio:
        os.close(descriptor)
    with contextlib.closing(outer), contextlib.closing(first):
        pass
    with os.fdopen(out) as file:
        printed = file.read()
    os.waitpid(pid, 0)
    return said, printed


if __name__ == "__main__":
    json.dump({name: {way: begun(case, way) for way in WAYS} for name, case in CASES.items()}, sys.stdout)
