"""How a task begins: its process gives everything up, in an order that leaves no way back, and becomes the program.

It is forked, and does so step by step; or where there is a compiler (`compiled/begin.c`) all of it is done in C in a
process that shares init's memory meanwhile, which is a fifth of a start's time. Both do the same, in the same order.
A task with `commands` is always forked: who watches it reads its memory before it has executed anything.
"""

import contextlib
import errno
import os
import resource
import signal
import socket
from collections.abc import Mapping
from typing import Final, NamedTuple, NoReturn

from enforcer import linux, signals
from enforcer.limits.rlimits import Rlimit, lower
from enforcer.notify import seat
from enforcer.notify.seat import Watching
from enforcer.sandbox import landlock, terminal
from enforcer.sandbox.compiled import library
from enforcer.sandbox.identity import Identity

CANNOT_MAKE, CANNOT_EXECUTE, NOT_FOUND = 125, 126, 127
COMPILED: Final = library.load()
# Before init, which is in the same cgroup and often the largest process there: with it, all of the sandbox goes.
_KILLED_FIRST = 1000
# A crash is the task's own affair: a pattern with a pipe has the kernel run a program of the host's on what is left of
# it, as root, unless the limit is 1 byte, which also no file fits in (core(5)). Where it was 0 for good it stays.
_NO_CORE = (resource.RLIMIT_CORE, 1)
_LONGEST = 4096  # bytes of what is said of a program that can't be executed


class Program(NamedTuple):
    """What the task runs. `ignored` are the signals that its caller had set to be ignored."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    ignored: frozenset[int]
    seccomp: bytes
    watching: Watching | None = None
    terminal: int = -1  # the descriptor that is to be its controlling terminal
    rlimits: tuple[Rlimit, ...] = ()
    wall: tuple[landlock.Grant, ...] = ()  # what of its view it may do what to, said once more


def begin(identity: Identity, program: Program, stdio: tuple[int, int, int], watch: socket.socket) -> int:
    """Begin the task in the inner user namespace, and let go of what is its alone. `watch`: to who watches its calls.

    Returns its pid; raises OSError when it couldn't be made.
    """
    if COMPILED is not None and (program.watching is None or not program.watching.needed):
        pid = _begin_compiled(COMPILED, identity, program, stdio, watch)
        _let_go(stdio, program, watch)
        return pid
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _be_task(theirs, identity, program, stdio, watch)
    theirs.close()
    _let_go(stdio, program, watch)
    if not ours.recv(1):
        raise OSError(errno.ECHILD, "the task's process ended while it was being made")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", identity.inner_uids.text()),
        ("gid_map", identity.inner_gids.text()),
    ):
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    ours.send(b"m")
    said = ours.recv(4096)
    if said:
        raise OSError(errno.EPERM, said.decode("utf-8", "replace"))
    ours.close()
    return pid


def _let_go(stdio: tuple[int, int, int], program: Program, watch: socket.socket) -> None:
    watch.close()
    for descriptor in {*stdio, program.terminal, 0, 1, 2} - {-1}:
        os.close(descriptor)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _begin_compiled(
    compiled: library.Compiled,
    identity: Identity,
    program: Program,
    stdio: tuple[int, int, int],
    watch: socket.socket,
) -> int:
    what = library.Beginning(
        uid=identity.uid,
        gid=identity.gid,
        uid_map=identity.inner_uids.text(),
        gid_map=identity.inner_gids.text(),
        directory=program.directory,
        programs=_programs(program),
        argv=program.argv,
        environment=program.environment,
        ignored=sum(1 << (number - 1) for number in program.ignored),
        stdio=stdio,
        terminal=program.terminal,
        watch=watch,
        wall=program.wall,
        ruled=landlock.ruled(),
        of_files=landlock.OF_FILES,
        of_devices=landlock.DEVICES & landlock.OF_FILES,
        limits=(_NO_CORE, *program.rlimits),
        filter=program.seccomp,
        watched=program.watching.program if program.watching is not None else b"",
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        try:
            pid, error = compiled.begin(what, ours, theirs)
        except OSError as failed:
            raise OSError(errno.EPERM, f"could not give up its privileges: {failed.strerror}") from failed
        if error:
            status, text = _why_not(program, OSError(error, os.strerror(error)))
            ours.send(bytes((status,)) + text)
            ours.recv(1)  # until it is gone: meanwhile it is in our memory
    return pid


def _be_task(
    channel: socket.socket,
    identity: Identity,
    program: Program,
    stdio: tuple[int, int, int],
    watch: socket.socket,
) -> NoReturn:
    """Give everything up, in an order that never leaves a way back, then become the program."""
    try:
        # init writes our id maps through /proc, which a process that can't be dumped doesn't own there.
        linux.prctl(linux.PR_SET_DUMPABLE, 1)
        linux.be_killed(_KILLED_FIRST)
        os.unshare(os.CLONE_NEWUSER)
        channel.send(b"u")
        if channel.recv(1) != b"m":
            os._exit(CANNOT_MAKE)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
        linux.make_uid_0_nobody()
        linux.drop_bounding_set()
        linux.drop_capabilities()
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        # A session of its own: a signal to one's own group crosses pid namespaces, and so does a shared terminal.
        os.setsid()
        if program.terminal >= 0:
            terminal.take(program.terminal)
        _own_stdio(stdio, {channel.fileno(), watch.fileno()})
        signals.dispose(program.ignored)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.chdir(program.directory)
        landlock.restrict(program.wall, (0, 1, 2))
        lower((_NO_CORE, *program.rlimits))
        seat.load(program.seccomp, program.watching, watch)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the program must not start
        with contextlib.suppress(OSError):
            channel.send(f"could not give up its privileges: {error}".encode("utf-8", "replace")[:4096])
        os._exit(CANNOT_MAKE)
    _execute(program, channel)


def _own_stdio(stdio: tuple[int, int, int], keep: set[int]) -> None:
    """Make the three the task's 0, 1 and 2, and close everything else but `keep`."""
    spare = [os.dup(descriptor) for descriptor in stdio]
    for number, descriptor in enumerate(spare):
        os.dup2(descriptor, number, inheritable=True)
    linux.keep_only({0, 1, 2, *keep})


def _execute(program: Program, channel: socket.socket) -> NoReturn:
    """Exec, looking the program up in the task's own PATH."""
    os.set_inheritable(channel.fileno(), False)
    try:
        os.execvpe(program.argv[0], program.argv, dict(program.environment))
    except OSError as error:
        status, text = _why_not(program, error)
    with contextlib.suppress(OSError):
        os.write(2, text)
    channel.close()
    os._exit(status)


def _programs(program: Program) -> list[bytes]:
    """List what is executed, the first that can be: as os.execvpe does."""
    name = os.fsencode(program.argv[0])
    if os.path.dirname(name):
        return [name]
    return [os.path.join(os.fsencode(place), name) for place in os.get_exec_path(dict(program.environment))]


def _why_not(program: Program, error: OSError) -> tuple[int, bytes]:
    """Return the status of what couldn't be executed, 126 or 127 as env(1) has them, and what to say of it."""
    name, status = program.argv[0], CANNOT_EXECUTE
    if isinstance(error, FileNotFoundError) and "/" in name and os.path.lexists(os.path.join(program.directory, name)):
        text = f"exeat: `{name}`: its interpreter is not in the sandbox ({error.strerror})"
    elif isinstance(error, FileNotFoundError | NotADirectoryError):
        status, text = NOT_FOUND, f"exeat: `{name}`: not found in the sandbox"
    else:
        text = f"exeat: `{name}` cannot be executed: {error.strerror}"
    return status, text.encode("utf-8", "replace")[:_LONGEST] + b"\n"
