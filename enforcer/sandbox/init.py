"""Process 1 of a sandbox: makes the view, starts the task, reaps what it leaves, passes signals on.

It holds the sandbox's capabilities, so the task must not reach it: it is not dumpable (no ptrace, no /proc/1/mem, no
pidfd_getfd), lives in the outer user namespace while the task lives in the inner one, and has no signal handlers that
a task could use: the kernel drops every signal to process 1 that it doesn't handle (pid_namespaces(7)).
"""

import contextlib
import errno
import os
import resource
import selectors
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from enforcer import linux, signals
from enforcer.limits.rlimits import Rlimit, lower
from enforcer.notify import seat
from enforcer.notify.seat import Watching
from enforcer.sandbox import build, landlock, shipping, terminal
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.steps import Bind, Review, Show, Step
from enforcer.sandbox.walking import cover_again
from proxy import message

CANNOT_MAKE, CANNOT_EXECUTE, NOT_FOUND = 125, 126, 127
# Before init, which is in the same cgroup and often the largest process there: with it, all of the sandbox goes.
_KILLED_FIRST = 1000
# A crash is the task's own affair: a pattern with a pipe has the kernel run a program of the host's on what is left of
# it, as root, unless the limit is 1 byte, which also no file fits in (core(5)). Where it was 0 for good it stays.
_NO_CORE = (resource.RLIMIT_CORE, 1)


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


class Task(NamedTuple):
    """What a sandbox is for. Descriptors in it are numbers of who sends it: `here` has them as they are with us."""

    identity: Identity
    steps: tuple[Step, ...]  # those of its view that are left
    program: Program
    stdio: tuple[int, int, int]
    hostname: str
    umask: int

    def here(self, numbers: Mapping[int, int]) -> "Task":
        """Return it with the descriptors that came with it."""
        first, second, third = (numbers[number] for number in self.stdio)
        program = self.program
        if program.terminal >= 0:
            program = program._replace(terminal=numbers[program.terminal])
        steps = tuple(_with(step, numbers) for step in self.steps)
        return self._replace(steps=steps, program=program, stdio=(first, second, third))


def _with(step: Step, numbers: Mapping[int, int]) -> Step:
    if isinstance(step, Bind) and step.tree is not None:
        return step._replace(tree=numbers[step.tree])
    if isinstance(step, Show) and step.staged is not None:
        return step._replace(staged=numbers[step.staged])
    if isinstance(step, Review):
        tree, staged = (None if each is None else numbers[each] for each in (step.tree, step.staged))
        return step._replace(tree=tree, staged=staged)
    return step


def run(
    control: socket.socket,
    steps: Sequence[Step],
    *,
    counters: Callable[[], Mapping[str, int]],
    watch: socket.socket,
) -> NoReturn:
    """Be process 1: take `steps` of the view, wait for the task that this is for, and start it.

    Never returns; what goes wrong is told over `control`. `watch`: to who watches the task's calls.
    """
    try:
        linux.call_yourself("exeat-init")  # the arguments of `exeat run` are none of the task's business
        build.begin()
        build.take(steps)
        what, numbers = shipping.unpack(control)
        task: Task = what.here(numbers)
        socket.sethostname(task.hostname)
        build.take(task.steps)
        build.finish()
        os.umask(task.umask)
        pid = _start(task.identity, task.program, task.stdio, watch)
    except OSError as error:
        _tell(control, {"failed": error.strerror or str(error)})
        os._exit(CANNOT_MAKE)
    except BaseException as error:  # noqa: BLE001 - whatever it is, no task may run half made
        _tell(control, {"failed": f"{type(error).__name__}: {error}"})
        os._exit(CANNOT_MAKE)
    _serve(control, pid, counters)
    os._exit(0)


def _tell(control: socket.socket, what: Mapping[str, object]) -> None:
    with contextlib.suppress(OSError):
        message.send(control, what)


def _start(identity: Identity, program: Program, stdio: tuple[int, int, int], watch: socket.socket) -> int:
    """Fork the task into the inner user namespace. Returns its pid; raises OSError when it couldn't be made."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _be_task(theirs, identity, program, stdio, watch)
    theirs.close()
    watch.close()
    for descriptor in {*stdio, program.terminal, 0, 1, 2} - {-1}:
        os.close(descriptor)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
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
    """Exec, looking the program up in the task's own PATH. 126 and 127 as env(1) has them."""
    os.set_inheritable(channel.fileno(), False)
    status, name = NOT_FOUND, program.argv[0]
    try:
        os.execvpe(name, program.argv, dict(program.environment))
    except FileNotFoundError as error:
        text = f"exeat: `{name}`: not found in the sandbox"
        if "/" in name and os.path.lexists(name):
            status, text = CANNOT_EXECUTE, f"exeat: `{name}`: its interpreter is not in the sandbox ({error.strerror})"
    except NotADirectoryError:
        text = f"exeat: `{name}`: not found in the sandbox"
    except OSError as error:
        status, text = CANNOT_EXECUTE, f"exeat: `{name}` cannot be executed: {error.strerror}"
    with contextlib.suppress(OSError):
        os.write(2, text.encode("utf-8", "replace") + b"\n")
    channel.close()
    os._exit(status)


def _serve(control: socket.socket, task: int, counters: Callable[[], Mapping[str, int]]) -> None:
    """Reap until the task is gone; meanwhile pass on signals and answer for the kernel's counts."""
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    _tell(control, {"started": True})
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(awake, selectors.EVENT_READ)
    while (status := _reap(task)) is None:
        for key, _ in selector.select():
            if key.fileobj is control:
                asked, _ = message.receive(control)
                if not asked:
                    os._exit(CANNOT_MAKE)  # whoever wanted this is gone: ending takes the whole namespace along
                number = asked.get("signal")
                if isinstance(number, int):
                    with contextlib.suppress(OSError):
                        # What a terminal would have sent to everyone in its foreground goes to the task's whole group.
                        (os.killpg if asked.get("group") else os.kill)(task, number)
                elif "counters" in asked:
                    _tell(control, {"counters": _counted(counters)})
                elif isinstance(paths := asked.get("cover"), list):
                    _cover(paths)
            else:
                os.read(awake, 4096)
    _tell(control, {"ended": status, "counters": _counted(counters)})


def _cover(paths: list[str]) -> None:
    """Cover anew what stands where rule files, and directories above them, were covered or pinned; outermost first."""
    for path in paths:
        with contextlib.suppress(OSError):  # it is gone again: there is nothing to cover
            cover_again(path)


def _counted(counters: Callable[[], Mapping[str, int]]) -> dict[str, int]:
    try:
        return dict(counters())
    except OSError:
        return {}


def _reap(task: int) -> int | None:
    """Collect every ended child; the task's wait status once it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == task:
                status = ended
    return status
