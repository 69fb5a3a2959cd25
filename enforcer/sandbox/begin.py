"""How a task begins: its process gives everything up, in an order that leaves no way back, and becomes the program.

It is begun by the sandbox's init, and plays what it is given over a channel of its own (`player`) until it is executed:
then that is closed, which is how it is known. Where nothing can be executed it still listens, and says why.
"""

import errno
import fcntl
import os
import resource
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from enforcer import linux, userns
from enforcer.limits import resource_limits
from enforcer.limits.resource_limits import Bound, Rlimit
from enforcer.sandbox import ahead, devices, landlock
from enforcer.sandbox.calls import (
    ANY,
    FIRST,
    LISTENER,
    RULES,
    Argument,
    CallFailed,
    Calls,
    Data,
    Label,
    Register,
)
from enforcer.sandbox.executing import execute
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.places import SYSTEM
from enforcer.sandbox.player import Player, Remote, pair
from enforcer.seccomp_supervisor.process import Watching

# Before init, which is in the same cgroup: with that, all of the sandbox goes (proc_pid_oom_score_adj(5)).
_KILLED_FIRST = b"1000"
# A crash is the task's own affair: a pattern with a pipe has the kernel run a program of the host's on what is left of
# it, as root, unless the limit is 1 byte, which also no file fits in (core(5)). Where it was 0 for good it stays.
_NO_CORE = (resource.RLIMIT_CORE, 1, 1)
_FIRST_FREE: Final = 4  # descriptor: 0, 1 and 2 are the task's, and the next is its channel
_SIGNALS: Final = 64
_SIGKILL, _SIGSTOP = 9, 19
_SIG_IGN, _SIG_SETMASK, _SIGSET = 1, 2, 8  # the last is the size of a set, in bytes
_MOST_CAPABILITIES: Final = 64
_ACTION: Final = struct.Struct("=4Q")  # struct sigaction as the kernel has it: rt_sigaction(2)
_CAPABILITY_VERSION_3: Final = 0x20080522
_TIOCSCTTY: Final = 0x540E
_FPROG: Final = struct.Struct("=H6xQ")  # struct sock_fprog, seccomp(2)
_FILTER: Final = 8  # where the pointer is in it
_GRANTED: Final = "look at what is granted"
_WATCHED: Final = "be watched"
_NO_TERMINAL: Final = -1
# What is granted of these is mostly the same for all tasks.
_USUAL: Final = frozenset({*SYSTEM, "/", "/dev", "/dev/pts", "/dev/shm", "/proc", "/run", "/tmp", "/var"})


class Program(NamedTuple):
    """What the task runs. `ignored` are the signals that its caller had set to be ignored."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    ignored: frozenset[int]
    seccomp: bytes
    watching: Watching | None = None
    terminal: int = _NO_TERMINAL  # the descriptor that is to be its controlling terminal
    rlimits: tuple[Rlimit, ...] = ()
    wall: tuple[landlock.Grant, ...] = ()  # what of its view it may do what to, said once more
    bounds: tuple[Bound, ...] = ()  # all that it is kept to, `rlimits` among them: as of the moment when it begins


def begin(
    init: Remote,
    identity: Identity,
    program: Program,
    stdio: tuple[int, int, int],
    watch: Callable[[int], None],
) -> int:
    """Begin the task in the inner user namespace; returns its id there, when it is a program or has said why not.

    `watch` is given the listener of its filter, before it is executed. Raises OSError when it couldn't be made, with
    the step that failed: then nothing of it has run. Raises ValueError for words that execve(2) can't take, or would
    take for others.
    """
    _check_words(program)
    try:
        program = program._replace(bounds=_bounds(identity, program))
        ours, theirs = pair()
        task = Remote(ours)
        try:
            pid = _fork(init, theirs)
            _enter_own(init, task, identity, pid)
            _have_it_give_up(task, identity, program, stdio, watch)
            execute(task, program.argv, program.environment, program.bounds)
        finally:
            task.close()
    except OSError as failed:
        more = f"; {userns.remedy(failed.errno)}" if failed.errno == errno.ENOSPC else ""
        raise OSError(errno.EPERM, f"could not give up its privileges: {failed.strerror}{more}") from failed
    return pid


def _check_words(program: Program) -> None:
    names = program.environment.keys()
    words = (*program.argv, program.directory, *names, *program.environment.values())
    if any("\0" in word for word in words) or not all(name and "=" not in name for name in names):
        raise ValueError("a word of the task's, or a variable, has what ends it in its midst")


def _bounds(identity: Identity, program: Program) -> tuple[Bound, ...]:
    own = resource_limits.of_processes(among_others=not identity.privileged)
    return (_NO_CORE, *own, *((which, value, value) for which, value in program.rlimits))


def _fork(init: Remote, channel: socket.socket) -> int:
    with channel:
        theirs = init.calls.take(channel.fileno())
        init.calls.fork(theirs, FIRST, leaf=True)
        init.calls.close(theirs)
        init.do()
    return init.value(FIRST)


def _enter_own(init: Remote, task: Remote, identity: Identity, pid: int) -> None:
    """Have it enter the inner user namespace, and init map its ids."""
    calls = task.calls
    # Its id maps are written through /proc, where nothing of a process that can't be dumped is init's (proc(5)).
    _prctl(calls, linux.PR_SET_DUMPABLE, 1)
    unkept = Label()
    score = _open(calls, "/proc/self/oom_score_adj", os.O_WRONLY, but=(ANY,), to=unkept)
    calls.call("write", score, _KILLED_FIRST, len(_KILLED_FIRST), but=(ANY,))
    calls.close(score)
    calls.put(unkept)
    calls.call("unshare", os.CLONE_NEWUSER)
    task.do()
    for name, text in (
        ("setgroups", b"deny"),
        ("uid_map", identity.inner_uids.text().encode()),
        ("gid_map", identity.inner_gids.text().encode()),
    ):
        file = _open(init.calls, f"/proc/{pid}/{name}", os.O_WRONLY, says="open an id map")
        init.calls.call("write", file, text, len(text), says="write an id map")
        init.calls.close(file)
    init.do()


def _have_it_give_up(
    task: Remote, identity: Identity, program: Program, stdio: tuple[int, int, int], watch: Callable[[int], None]
) -> None:
    give_up(task, identity, program, stdio)
    try:
        [heard] = task.do(LISTENER)
    except CallFailed as error:
        if error.step != _WATCHED:
            raise
        why = os.strerror(error.errno or errno.EPERM)
        said = f"the rules have `commands`, and system calls can't be watched here ({why}): `exeat doctor`"
        raise OSError(error.errno, said) from error
    if heard >= 0:
        watch(heard)


class _Same(NamedTuple):
    """What the same is given up by."""

    uid: int
    gid: int
    ignored: frozenset[int]
    ruled: tuple[int, int, int]  # by Landlock
    wall: tuple[landlock.Grant, ...]


def give_up(task: Player, identity: Identity, program: Program, stdio: tuple[int, int, int]) -> None:
    """Have it give everything up, in an order that leaves no way back; the last of it is written and not given yet."""
    usual = tuple(grant for grant in program.wall if grant.path in _USUAL)
    same = _Same(identity.uid, identity.gid, program.ignored, landlock.ruled(), usual)
    # A session of its own: a signal to one's own group crosses pid namespaces, and so does a shared terminal.
    task.calls.call("setsid")
    _own_descriptors(task.calls, program.terminal, stdio)
    ahead.play(task, same, partial(_give_up_rights, same=same))
    task.calls.call("chdir", program.directory)
    _wall_in(task.calls, same, program.wall, stdio)
    _filter(task.calls, program)


def _give_up_rights(task: Player, same: _Same) -> None:
    """Have it give up all that it is, but for where it may read and write: that is only begun with."""
    calls = task.calls
    calls.call("setresgid", *(same.gid,) * 3)
    calls.call("setresuid", *(same.uid,) * 3)
    _prctl(calls, linux.PR_SET_DUMPABLE, 0)  # a change of uid makes of it what fs.suid_dumpable says: proc_sys_fs(5)
    _prctl(calls, linux.PR_SET_SECUREBITS, linux.SECURE)
    _prctl(calls, linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    past = Label()
    for capability in range(_MOST_CAPABILITIES):
        beyond = capability > linux.CAP_LEAST_LAST  # then it may be past the last one that this kernel has
        _prctl(calls, linux.PR_CAPBSET_DROP, capability, but=(errno.EINVAL,) if beyond else (), to=past)
    calls.put(past)
    calls.call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))
    _prctl(calls, linux.PR_SET_NO_NEW_PRIVS, 1)
    for number in range(1, _SIGNALS + 1):
        if number not in (_SIGKILL, _SIGSTOP):
            action = _ACTION.pack(_SIG_IGN if number in same.ignored else 0, 0, 0, 0)
            calls.call("rt_sigaction", number, action, 0, _SIGSET)
    calls.call("rt_sigprocmask", _SIG_SETMASK, bytes(_SIGSET), 0, _SIGSET)
    handled, scoped, size = same.ruled
    if size:  # Landlock's wall, where the kernel has it: see `landlock.restrict`, which is the same
        calls.call("landlock_create_ruleset", struct.pack("=QQQ", handled, 0, scoped), size, 0, into=RULES)
        _grant(calls, same.wall, handled)


def _own_descriptors(calls: Calls, terminal: int, stdio: tuple[int, int, int]) -> None:
    """Have the three as 0, 1 and 2, and everything else closed but its channel."""
    if terminal >= 0:
        calls.call("ioctl", calls.take(terminal), _TIOCSCTTY, 0, says="ioctl TIOCSCTTY")
    for number, descriptor in enumerate(stdio):
        if name := devices.name_of(descriptor):  # the inode of a device of the host's would be all sandboxes'
            mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK)
            node = _open(calls, f"/dev/{name}", mode | os.O_NOCTTY)
            calls.call("dup3", node, number, 0)
            calls.close(node)
        else:
            calls.call("dup3", calls.take(descriptor), number, 0)
    calls.call("close_range", _FIRST_FREE, (1 << 32) - 1, 0)


def _wall_in(calls: Calls, same: _Same, wall: Sequence[landlock.Grant], stdio: tuple[int, int, int]) -> None:
    """Have the rest granted, and nothing more from here on."""
    handled, _, size = same.ruled
    if not size:
        return
    _grant(calls, (grant for grant in wall if grant not in same.wall), handled)
    for number, descriptor in enumerate(stdio):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # terminals and other devices, which it may open again
            _allow(calls, number, landlock.DEVICES & landlock.OF_FILES & handled)
    calls.call("landlock_restrict_self", RULES, 0)
    calls.call("close", RULES)


def _grant(calls: Calls, wall: Iterable[landlock.Grant], handled: int) -> None:
    for grant in wall:
        calls.step(None)  # there may be more of them than one program has room for
        gone, added = Label(), Label()
        place = _open(calls, grant.path, os.O_PATH, but=(errno.ENOENT,), to=gone, says=_GRANTED)
        file = Label()
        calls.is_kind(place, stat.S_IFDIR, to=file, says=_GRANTED)
        _allow(calls, place, grant.rights & handled)
        calls.skip(added)
        calls.put(file)
        _allow(calls, place, grant.rights & handled & landlock.OF_FILES)
        calls.put(added)
        calls.close(place)
        calls.put(gone)


def _allow(calls: Calls, place: Register | int, rights: int) -> None:
    rule = calls.data(struct.pack("=Qi", rights, place if isinstance(place, int) else -1))
    if not isinstance(place, int):
        calls.store(calls.within(rule, 8), place)
    calls.call("landlock_add_rule", RULES, landlock.PATH_BENEATH, rule, 0)


def _filter(calls: Calls, program: Program) -> None:
    """Have the filter loaded whose listener somebody waits for, or where that can't be had the plain one."""
    loaded, plain, older = Label(), Label(), Label()
    watching = program.watching
    if watching is not None:
        if watching.needed:
            # Whoever listens reads its memory, and may as long as it may be dumped; in that is nothing but a program of
            # ours. Nobody else is in its user namespace yet.
            _prctl(calls, linux.PR_SET_DUMPABLE, 1)
        calls.step(_WATCHED if watching.needed else None)
        asks, flags = _instructions(calls, watching.program), linux.FILTER_NEW_LISTENER
        for more, but, to in ((linux.FILTER_WAIT_KILLABLE, (ANY,), older), (0, _unless(watching), plain)):
            calls.call("seccomp", linux.SECCOMP_SET_MODE_FILTER, flags | more, asks, but=but, to=to, into=LISTENER)
            calls.skip(loaded)
            calls.put(to)
    _prctl(calls, linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, _instructions(calls, program.seccomp))
    calls.call("dup", -1, but=(errno.EBADF,), into=LISTENER)  # there is none
    calls.put(loaded)


def _unless(watching: Watching) -> tuple[int, ...]:
    return () if watching.needed else (ANY,)


def _instructions(calls: Calls, program: bytes) -> Data:
    """Have a filter there as seccomp(2) takes it: `struct sock_fprog`."""
    made = calls.data(_FPROG.pack(len(program) // 8, _FPROG.size) + program)
    calls.point(made, 1, _FILTER)
    return made


def _open(
    calls: Calls, path: str, flags: int, *, but: tuple[int, ...] = (), to: Label | None = None, says: str = ""
) -> Register:
    return calls.get("openat", linux.AT_FDCWD, path, flags | os.O_CLOEXEC, but=but, to=to, says=says or f"open {path}")


def _prctl(calls: Calls, option: int, *arguments: Argument, but: tuple[int, ...] = (), to: Label | None = None) -> None:
    calls.call("prctl", option, *arguments, but=but, to=to if but else None, says=f"prctl {linux.OPTIONS[option]}")
