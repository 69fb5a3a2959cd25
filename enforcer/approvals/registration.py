"""Registration of a sandbox with the approvals server: introduced once, and again where a server has died.

The worker has one end of a pair and the server the other (invariant 4). The connection of the introduction stays open:
its end tells either side of the other's death. Without a server every ask is denied, and the task goes on.
"""

import contextlib
import os
import selectors
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enforcer.approvals import client
from enforcer.system.errors import ExeatError, HostError
from enforcer.system.notices import print_notice
from enforcer.system.started_by import starter_uid
from proxy.approvals.protocol import Introduction
from proxy.event_loop.rate_limiter import RateLimiter
from proxy.wire import message, strict_json

if TYPE_CHECKING:
    from enforcer.policy.run_request import RunRequest
    from enforcer.worker.worker import Worker
    from proxy.sandbox.sandbox_state import SandboxState

_RESTS: Final = (0.0, 1.0, 5.0, 30.0)  # seconds before one that dies again and again is tried again
_FORGIVEN: Final = 60.0  # seconds after which one has lived long
_LONGEST: Final = 500  # characters of what it says
_TOLD: Final = (5, 0.1)  # questions at once, and a second, that are told at the run's terminal
_SHOWN: Final = 100  # columns of what is asked
_LARGEST: Final = 1 << 16  # bytes


class Registration:
    """One sandbox's place. For one thread. Close it."""

    def __init__(self, who: Introduction, journal: Path) -> None:
        self._who = who
        self._journal = journal
        self._connection: socket.socket | None = None
        self._selector: selectors.BaseSelector | None = None
        self._began: float | None = None  # when the last one took it in; None: that one's death has been counted
        self._deaths = 0
        self._due: float | None = None  # when it is to be introduced again; None: it is introduced, or may not be
        self._room = RateLimiter(*_TOLD)
        self._more = False  # whether it is said that there are more questions than are told
        self.given: dict[str, int] = {}  # the worker's end, for whoever hands over what it gets

    def begin(self) -> None:
        """Introduce the sandbox. Where that fails it is said, and tried again: whatever asks is denied until then."""
        try:
            self.given = {"approvals": self._introduce(client.PATIENCE)}
        except ExeatError as error:
            print_notice(f"nobody can approve anything for now: {error}")
            self._rest()

    def later(self) -> None:
        """Introduce the sandbox at the next turn."""
        self._due = time.monotonic()

    def handed_over(self) -> None:
        """Close the worker's end here: the registry is to notice when the worker has ended. Idempotent."""
        while self.given:
            os.close(self.given.popitem()[1])

    def _introduce(self, patience: float) -> int:
        self._connection, theirs = introduced(self._who, self._journal, patience, hears=True)
        self._began = time.monotonic()
        self._due = None
        return theirs.detach()

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Have its end noticed by a loop that calls `turn` then."""
        self._selector = selector
        if self._connection is not None:
            selector.register(self._connection, selectors.EVENT_READ, self.hear)

    def wait(self) -> float:
        """Return in how many seconds `turn` is to be called."""
        return _FORGIVEN if self._due is None else max(0.0, self._due - time.monotonic())

    def turn(self, gate: "Worker") -> None:
        """Introduce it anew where that is due, and give its worker the new end."""
        if self._due is None or time.monotonic() < self._due:
            return
        try:
            end = self._introduce(0.0)
        except ExeatError:
            self._rest()
            return
        gate.send({"approvals": True}, [end])
        os.close(end)
        if self._selector is not None:
            self.watch(self._selector)

    def hear(self) -> None:
        """Hear what the registry says of the sandbox: why it doesn't serve it, or its end."""
        connection = self._connection
        if connection is None:
            return
        try:
            data, _ = message.packet(connection, _LARGEST)
        except OSError:
            data = b""
        if data and (what := _asked(data)):
            self._tell(what)
            return
        self.close()
        why, again = reason(data) if data else ("", True)
        if why:
            print_notice(f"nobody can approve anything{' for now' if again else ''}: {why}")
        if again:
            self._rest()

    def _tell(self, what: str) -> None:
        """Say at the run's terminal what waits for people: whoever sits there sees a task that does nothing."""
        if self._room.take():
            self._more = False
            print_notice(what)
        elif not self._more:  # a task may have as many questions as it likes
            self._more = True
            print_notice("there are more approval requests: `exeat approvals` lists them")

    def close(self) -> None:
        """Have no place any more. Idempotent."""
        self.handed_over()
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._selector is not None:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(connection)
            connection.close()

    def _rest(self) -> None:
        lived = self._began is not None and time.monotonic() - self._began > _FORGIVEN
        self._began = None
        self._deaths = 0 if lived else min(self._deaths + 1, len(_RESTS) - 1)
        self._due = time.monotonic() + _RESTS[self._deaths]


def introduced(
    who: Introduction, journal: Path, patience: float, *, hears: bool = False
) -> tuple[socket.socket, socket.socket]:
    """Introduce somebody to the registry; return that connection, which stays open, and the end that asks.

    `hears`: over the first is told what people are asked. Raises HostError.
    """
    connection = client.connected(patience)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        said = {"what": "introduce", "who": who.packed(), "journal": str(journal), "hears": hears}
        message.send_packet(connection, client.packet(said), [ours.fileno()])
    except OSError as error:
        connection.close()
        theirs.close()
        raise HostError(f"the approvals server has stopped again: {error.strerror}") from error
    finally:
        ours.close()
    return connection, theirs


def introduction(wanted: "RunRequest", sandbox_state: "SandboxState") -> Introduction:
    """Say of a sandbox what people are to know who are asked on its behalf."""
    return Introduction(
        sandbox=sandbox_state.id,
        task=sandbox_state.task.id,
        name=sandbox_state.task.name,
        labels=dict(sandbox_state.task.labels),
        started_by=starter_uid(),
        host=os.uname().nodename,
        rule_files=rule_files(wanted),
        workspace=wanted.workspace,
    )


def rule_files(wanted: "RunRequest") -> tuple[str, ...]:
    """Return the rule files that a run was started with, as whole paths."""
    return tuple(map(_whole, wanted.rules))


def _whole(path: str) -> str:
    """Return a path from the root, without `..` where that leads to the same file: over a link it may not."""
    joined = os.path.join(os.getcwd(), path)
    short = os.path.normpath(joined)
    try:
        return short if os.path.samefile(short, joined) else joined
    except OSError:
        return joined


def _asked(data: bytes) -> str:
    """Return the line about a new approval request for the terminal; empty: the data is something else."""
    from proxy.telemetry.visible import fitted, unpadded, visible

    with contextlib.suppress(ValueError, KeyError, TypeError):
        asked = strict_json.loads(data)["asked"]
        what = fitted(unpadded(visible(str(asked["what"]))), _SHOWN)
        whose = asked["rules"] or "requested by the task itself"  # over the info API
        return f"approval requested: {what} ({whose}): `exeat approvals show {asked['id']}`"
    return ""


def reason(data: bytes) -> tuple[str, bool]:
    """Return why the registry doesn't serve a sandbox, and whether it may later: its store may be there then."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = strict_json.loads(data)
        return str(said["failed"])[:_LONGEST], said.get("status") == HostError.status
    return "the approvals server has another protocol version", False
