"""Process 1 of a sandbox: makes the view, starts the task, reaps what it leaves, passes signals on.

It holds the sandbox's capabilities, so the task must not reach it: it is not dumpable (no ptrace, no /proc/1/mem, no
pidfd_getfd), lives in the outer user namespace while the task lives in the inner one, and has no signal handlers that
a task could use: the kernel drops every signal to process 1 that it doesn't handle (pid_namespaces(7)).
"""

import contextlib
import functools
import os
import selectors
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from enforcer import linux
from enforcer.errors import HostError
from enforcer.sandbox import begin, build, shipping, terminal
from enforcer.sandbox.begin import CANNOT_MAKE, Program
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.room import full
from enforcer.sandbox.steps import Bind, Review, Show, Step
from enforcer.sandbox.terminal import Likeness
from enforcer.sandbox.walking import cover_again
from proxy import message


class Task(NamedTuple):
    """What a sandbox is for. Descriptors in it are numbers of who sends it: `here` has them as they are with us."""

    identity: Identity
    steps: tuple[Step, ...]  # those of its view that are left
    program: Program
    stdio: tuple[int, int, int]
    hostname: str
    named: bool  # whether rules or options say so
    umask: int
    terminal: Likeness | None = None  # what its own is to be like; None: it has none

    def here(self, numbers: Mapping[int, int]) -> "Task":
        """Return it with the descriptors that came with it."""
        first, second, third = (numbers.get(number, number) for number in self.stdio)
        steps = tuple(_with(step, numbers) for step in self.steps)
        return self._replace(steps=steps, stdio=(first, second, third))

    def at(self, own: int) -> "Task":
        """Return it with the terminal that was made for it."""
        first, second, third = (own if number == terminal.OWN else number for number in self.stdio)
        return self._replace(program=self.program._replace(terminal=own), stdio=(first, second, third))


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
        while not isinstance(what, Task):  # more of the view, before all of it is known
            build.take(what)
            what, numbers = shipping.unpack(control)
        task = what.here(numbers)
        _call_host(task.hostname, needed=task.named)
        build.take(task.steps)
        build.finish()
        if task.terminal is not None:
            task = task.at(_own_terminal(control, task.terminal, task.identity))
        os.umask(task.umask)
        pid = begin.begin(task.identity, task.program, task.stdio, watch)
    except (OSError, HostError) as error:
        _tell(control, {"failed": getattr(error, "strerror", None) or str(error)})
        os._exit(CANNOT_MAKE)
    except BaseException as error:  # noqa: BLE001 - whatever it is, no task may run half made
        _tell(control, {"failed": f"{type(error).__name__}: {error}"})
        os._exit(CANNOT_MAKE)
    reviewed = next((step.source for step in task.steps if isinstance(step, Review)), "")
    _serve(control, pid, functools.partial(_looked, counters, task.program.rlimits, reviewed))
    os._exit(0)


def _own_terminal(control: socket.socket, like: Likeness, identity: Identity) -> int:
    """Make the task's terminal, and give the half that isn't the task's to who carries what passes.

    Returns when that is done: a key that is typed before is the caller's terminal's still, and ^C would mean the run.
    """
    try:
        primary, secondary = terminal.make(like, identity.owner[0])
    except OSError as error:
        raise OSError(error.errno, f"could not make its terminal: {error.strerror}") from error
    carried, until = os.pipe()
    message.send(control, {"terminal": True}, [primary, until])
    for descriptor in (primary, until):
        os.close(descriptor)
    os.read(carried, 1)  # until who has the other end closes it
    os.close(carried)
    return secondary


def _call_host(name: str, *, needed: bool) -> None:
    """Name the sandbox's host. Filters of containers may refuse that: a name that nobody asked for is left out then."""
    try:
        socket.sethostname(name)
    except PermissionError as error:
        if needed and socket.gethostname() != name:
            why = f"`hostname` can't be `{name}`: the filter that this runs under refuses sethostname(2)"
            remedy = "in a container, leave it out, or say the same to the container's engine (`--hostname`)"
            raise OSError(error.errno, f"{why}; {remedy}") from error


def _tell(control: socket.socket, what: Mapping[str, object]) -> None:
    with contextlib.suppress(OSError):
        message.send(control, what)


def _serve(control: socket.socket, task: int, look: Callable[[], dict[str, object]]) -> None:
    """Reap until the task is gone; meanwhile pass on signals and tell what there is to see in here."""
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
                    _tell(control, look())
                elif isinstance(paths := asked.get("cover"), list):
                    _cover(paths)
            else:
                os.read(awake, 4096)
    _tell(control, {"ended": status, **look()})


def _cover(paths: list[str]) -> None:
    """Cover anew what stands where rule files, and directories above them, were covered or pinned; outermost first."""
    for path in paths:
        with contextlib.suppress(OSError):  # it is gone again: there is nothing to cover
            cover_again(path)


def _looked(
    counters: Callable[[], Mapping[str, int]], rlimits: Sequence[tuple[int, int]], reviewed: str
) -> dict[str, object]:
    """Return the kernel's counts, and where the task is at one of its limits, where."""
    found: dict[str, object] = {"counters": {}}
    with contextlib.suppress(OSError):
        found["counters"] = dict(counters())
    with contextlib.suppress(OSError):
        reached: dict[str, object] = {"disk": left} if (left := full()) else {}
        if rlimits or reviewed:
            from enforcer.limits.inside import look  # by whoever made this sandbox already: here it can't be read

            reached |= look(rlimits, reviewed)
        if reached:
            found["at"] = reached
    return found


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
