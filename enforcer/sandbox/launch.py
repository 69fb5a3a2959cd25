"""From a plan to a running task: an empty sandbox (`hull`) is told what it is for; its sockets go to the worker."""

import contextlib
import os
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from enforcer.limits.fence import Fence
from enforcer.notify.seat import SOCKET as WATCH
from enforcer.sandbox import hull, init, shipping
from enforcer.sandbox.begin import Program
from enforcer.sandbox.hull import Hull, Network
from enforcer.sandbox.identity import Identity
from enforcer.sandbox.steps import Step
from enforcer.sandbox.terminal import Likeness
from proxy import message

_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


class Recipe(NamedTuple):
    """Everything that a sandbox is made of. `gate` is where the sockets made inside are sent."""

    identity: Identity
    steps: Sequence[Step]
    program: Program
    stdio: tuple[int, int, int]
    network: Callable[[], Network]
    gate: socket.socket
    hostname: str
    fence: Fence
    held: tuple[int, ...] = ()  # locks that last as long as anything of the sandbox does
    given: Mapping[str, int] = _NOTHING  # what the worker gets with the sandbox's sockets, by name
    named: bool = True  # whether rules or options say what its host is called
    terminal: Likeness | None = None  # what the task's own is to be like; None: it has none


class Sandbox(NamedTuple):
    """A launched sandbox: its outermost process and the channel to its init."""

    pid: int
    control: socket.socket
    hull: Hull


def launch(recipe: Recipe, empty: Hull | None = None) -> Sandbox:
    """Start the sandbox, in `empty` if its view begins as this one does. It is the caller's to `end`.

    It reports over its channel: `terminal`, with our half of that, `started`, `failed`, then `ended`. Raises HostError
    when it could not be made.
    """
    if empty is not None and not _begins_with(recipe.steps, empty.done):
        empty.end()
        empty = None
    made = empty or hull.prepare(recipe.identity, recipe.fence, recipe.network)
    try:
        names, sockets, first = made.ready()
        if empty is not None:
            made.adopt(first)
        _hand_over(recipe, names, sockets)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # why it ended it has said over its channel
            watching = recipe.program.watching
            shipping.ship(made.steer, None if watching is None else watching.filters, recipe.held, has=made.has)
            shipping.ship(made.control, _task(recipe, len(made.done)), _descriptors(recipe), has=made.has)
    except BaseException:
        made.end()
        raise
    return Sandbox(made.pid, made.control, made)


def _begins_with(steps: Sequence[Step], done: Sequence[Step]) -> bool:
    """Whether these are the very steps: a directory and a file system of the same name would be equal tuples."""
    first = steps[: len(done)]
    return len(first) == len(done) and all(type(a) is type(b) and a == b for a, b in zip(first, done, strict=True))


def settle(sandbox: Sandbox) -> None:
    """Wait until nothing of the task is left and the outermost process has told what it watched, for a moment.

    That one and init may still be there afterwards: to end takes them longer than that.
    """
    poll = select.poll()
    poll.register(sandbox.hull.steer, select.POLLIN)
    sandbox.hull.settled = bool(poll.poll(hull.LAST_WORDS * 1000))
    if not sandbox.hull.settled:
        end(sandbox)


def end(sandbox: Sandbox) -> None:
    """Kill whatever is left of a sandbox. Its namespaces go with its processes. Idempotent."""
    sandbox.hull.end()


def _hand_over(recipe: Recipe, names: list[str], sockets: list[int]) -> None:
    """Send the worker what the sandbox made, and what comes from outside beside it; no copy stays."""
    given = dict(zip(names, sockets, strict=True))
    if recipe.program.watching is None:
        os.close(given.pop(WATCH))
    try:
        everything = {**given, **recipe.given}
        message.send(recipe.gate, {"sockets": list(everything)}, list(everything.values()))
    finally:
        for descriptor in given.values():
            os.close(descriptor)


def _task(recipe: Recipe, done: int) -> init.Task:
    mask = os.umask(0o077)
    os.umask(mask)
    identity = recipe.identity._replace(slot=-1)  # the outermost process holds it
    steps, name = tuple(recipe.steps[done:]), recipe.hostname
    return init.Task(identity, steps, recipe.program, recipe.stdio, name, recipe.named, mask, recipe.terminal)


def _descriptors(recipe: Recipe) -> set[int]:
    found = {getattr(step, name, None) for step in recipe.steps for name in ("tree", "staged")}
    return {each for each in (*recipe.stdio, *found) if each is not None and each >= 0}
