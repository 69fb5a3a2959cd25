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
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, NoReturn

from enforcer import linux, signals, userns
from enforcer.limits import shared
from enforcer.limits.rlimits import Bound, Rlimit, lower
from enforcer.notify import seat
from enforcer.notify.seat import Watching
from enforcer.sandbox import landlock, terminal
from enforcer.sandbox.compiled import library
from enforcer.sandbox.identity import Identity
from proxy import rights

CANNOT_MAKE, CANNOT_EXECUTE, NOT_FOUND = 125, 126, 127
COMPILED: Final = library.load()
# Before init, which is in the same cgroup and often the largest process there: with it, all of the sandbox goes.
_KILLED_FIRST = 1000
# A crash is the task's own affair: a pattern with a pipe has the kernel run a program of the host's on what is left of
# it, as root, unless the limit is 1 byte, which also no file fits in (core(5)). Where it was 0 for good it stays.
_NO_CORE = (resource.RLIMIT_CORE, 1, 1)
_LONGEST = 4096  # bytes of what is said of a step that failed, or of a program that can't be executed
_UNSHARED, _MAPPED, _EXECUTES = b"u", b"m", b"x"  # what is said between init and a task's process that it forked


class Program(NamedTuple):
    """What the task runs. `ignored` are the signals that its caller had set to be ignored."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    ignored: frozenset[int]
    seccomp: bytes
    watching: Watching | None = None
    terminal: int = -1  # the descriptor that is to be its controlling terminal, in init
    rlimits: tuple[Rlimit, ...] = ()
    wall: tuple[landlock.Grant, ...] = ()  # what of its view it may do what to, said once more
    bounds: tuple[Bound, ...] = ()  # all that it is kept to, `rlimits` among them: as of the moment when it begins


def begin(identity: Identity, program: Program, stdio: tuple[int, int, int], watch: socket.socket) -> int:
    """Begin the task in the inner user namespace, and let go of what is its alone. `watch`: to who watches its calls.

    Returns its pid; raises OSError when it couldn't be made, with the step that failed: then nothing of it has run.
    Raises ValueError for words that execve(2) can't take, or would take for others.
    """
    _check_words(program)
    try:
        program = program._replace(bounds=_bounds(identity, program))
        with rights.all_that_may_be():  # the task's process has a descriptor to send before it is kept to its own
            if COMPILED is not None and (program.watching is None or not program.watching.needed):
                pid = _begin_compiled(COMPILED, identity, program, stdio, watch)
            else:
                pid = _begin_forked(identity, program, stdio, watch)
    except OSError as failed:
        more = f"; {userns.remedy(failed.errno)}" if failed.errno == errno.ENOSPC else ""
        raise OSError(errno.EPERM, f"could not give up its privileges: {failed.strerror}{more}") from failed
    _let_go(stdio, program, watch)
    return pid


def _check_words(program: Program) -> None:
    names = program.environment.keys()
    words = (*program.argv, program.directory, *names, *program.environment.values())
    if any("\0" in word for word in words) or not all(name and "=" not in name for name in names):
        raise ValueError("a word of the task's, or a variable, has what ends it in its midst")


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
        limits=program.bounds,
        filter=program.seccomp,
        watched=program.watching.program if program.watching is not None else b"",
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        pid, error = compiled.begin(what, ours, theirs)
        if error:
            status, text = _why_not(program, OSError(error, os.strerror(error)))
            ours.send(bytes((status,)) + text)
            ours.recv(1)  # until it is gone: meanwhile it is in our memory
    return pid


def _begin_forked(identity: Identity, program: Program, stdio: tuple[int, int, int], watch: socket.socket) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with _step("clone"):
        pid = os.fork()
    if pid == 0:
        try:
            _be_task(theirs, identity, program, stdio, watch)
        finally:
            os._exit(CANNOT_MAKE)  # whatever it is, what follows is init's
    theirs.close()
    with ours:
        _hear(ours, _UNSHARED)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", identity.inner_uids.text()),
            ("gid_map", identity.inner_gids.text()),
        ):
            with _step("open an id map"):
                descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                with _step("write an id map"):
                    os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
        with _step("send"):
            ours.send(_MAPPED)
        _hear(ours, _EXECUTES)
        ours.recv(1)  # until it is a program, or is gone
    return pid


def _hear(ours: socket.socket, word: bytes) -> None:
    """Wait for a word of the task's process. Raises OSError when it says what failed instead, or ends."""
    with _step("recv"):
        said = ours.recv(_LONGEST)
    if said != word:
        raise OSError(errno.ECHILD, said.decode("utf-8", "replace") or "its process ended")


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    """Say what failed, as begin.c does, where the error doesn't already."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.strerror != os.strerror(error.errno):
            raise
        raise OSError(error.errno, f"{name}: {error.strerror}") from error


def _bounds(identity: Identity, program: Program) -> tuple[Bound, ...]:
    with _step("setrlimit"):
        own = shared.of_processes(among_others=not identity.privileged)
        return (_NO_CORE, *own, *((which, value, value) for which, value in program.rlimits))


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
        with _step("unshare"):
            os.unshare(os.CLONE_NEWUSER)
        with _step("send"):
            channel.send(_UNSHARED)
        if channel.recv(1) != _MAPPED:
            os._exit(CANNOT_MAKE)
        with _step("setresuid"):
            os.setresgid(identity.gid, identity.gid, identity.gid)
            os.setresuid(identity.uid, identity.uid, identity.uid)
        linux.prctl(linux.PR_SET_DUMPABLE, 0)  # a change of uid makes of it what fs.suid_dumpable says: proc_sys_fs(5)
        linux.make_uid_0_nobody()
        linux.drop_bounding_set()
        linux.drop_capabilities()
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        # A session of its own: a signal to one's own group crosses pid namespaces, and so does a shared terminal.
        with _step("setsid"):
            os.setsid()
        if program.terminal >= 0:
            with _step("ioctl TIOCSCTTY"):
                terminal.take(program.terminal)
        _own_stdio(stdio, {channel.fileno(), watch.fileno()})
        with _step("sigaction"):
            signals.dispose(program.ignored)
        with _step("sigprocmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
        with _step("chdir"):
            os.chdir(program.directory)
        with _step("look at what is granted"):
            landlock.restrict(program.wall, (0, 1, 2))
        with _step("sendmsg"):
            seat.load(program.seccomp, program.watching, watch)
        with _step("setrlimit"):
            lower(program.bounds)
        channel.send(_EXECUTES)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the program must not start
        text = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}"
        with contextlib.suppress(OSError):
            channel.send((text or type(error).__name__).encode("utf-8", "replace")[:_LONGEST])
        os._exit(CANNOT_MAKE)
    _execute(program, channel)


def _own_stdio(stdio: tuple[int, int, int], keep: set[int]) -> None:
    """Make the three the task's 0, 1 and 2, and close everything else but `keep`."""
    with _step("fcntl F_DUPFD_CLOEXEC"):
        spare = [os.dup(descriptor) for descriptor in stdio]
    with _step("dup2"):
        for number, descriptor in enumerate(spare):
            os.dup2(descriptor, number, inheritable=True)
    linux.keep_only({0, 1, 2, *keep})


def _execute(program: Program, channel: socket.socket) -> NoReturn:
    """Exec, looking the program up in the task's own PATH."""
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
