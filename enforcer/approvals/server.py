"""Approvals server: takes the connections of people and of runs, one request each, and identifies each caller.

Only this user introduces sandboxes. Others are known by their uid or token, and see and answer what they may: on root's
server the users of this host that approvers.yaml names.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Coroutine, Hashable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from enforcer.approvals import client, connections
from enforcer.approvals.client import VERSION
from enforcer.approvals.connections import GateConnection, PacketConnection
from enforcer.approvals.handlers import REQUESTS, Request, RequestFailedError
from enforcer.system.errors import HostError
from proxy.approvals.approval_request import MalformedMessageError
from proxy.approvals.protocol import Hello, read_introduction
from proxy.approvals.store import StoreError

if TYPE_CHECKING:
    from collections import deque

    from enforcer.approvals.app import App
    from proxy.approvals.protocol import WorkerMessage

_MOST_ASKING: Final = 256  # connections that have said nothing yet
_PATIENCE: Final = 5.0  # seconds in which they have to
_MOST_OF_ONE: Final = 16  # connections of one of the host's other users
_ACCEPTED_AT_ONCE: Final = 32
_REST: Final = 0.2  # seconds
_TURNS_AWAY: Final = 5
_REFUSED: Final = 1  # exit statuses
_MISUSE: Final = 2


class _Introduced(NamedTuple):
    line: PacketConnection
    gate: GateConnection
    task: str


class Server:
    """All connections of one registry. For its loop."""

    def __init__(self, app: "App", told: "deque[str]") -> None:
        self._app = app
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._listeners: list[socket.socket] = []
        self._host: Path | None = None
        self._lines: dict[PacketConnection, int] = {}  # all that are open, and whose: uids
        self._asking = 0
        self._closing = False
        self._gates: dict[Hashable, _Introduced] = {}
        self._numbers = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def gates(self) -> int:
        """How many sandboxes there are."""
        return len(self._gates)

    @property
    def tasks(self) -> list[str]:
        """Which tasks have a gate here."""
        return [introduced.task for introduced in self._gates.values()]

    @property
    def told(self) -> list[str]:
        """What an admin should know, the latest last."""
        return list(self._told)

    @property
    def is_needed(self) -> bool:
        """Whether anybody is connected."""
        return bool(self._lines)

    def listen(self, listener: socket.socket, *, strangers: bool = False) -> None:
        """Take connections there; of `strangers` too."""
        listener.setblocking(False)
        self._listeners.append(listener)
        self._loop.add_reader(listener, partial(self._accept, listener, strangers))

    def listen_host(self, *, wanted: bool) -> None:
        """Be reachable by the host's other users, if root's approvers.yaml names some. Idempotent. Raises HostError."""
        path = client.host_socket()
        if not wanted or path is None or self._host is not None or os.geteuid() != 0:
            return
        try:
            with contextlib.suppress(FileExistsError):
                path.parent.mkdir()
                path.parent.chmod(0o755)
            status = path.parent.lstat()
        except OSError as error:
            raise HostError(f"cannot make the directory `{path.parent}`: {error.strerror}") from error
        if status.st_uid != 0 or status.st_mode & 0o022:
            raise HostError(f"`{path.parent}` is not root's alone to write: others could listen there")
        self.listen(client.bind(path.parent, 0o666, path.name), strangers=True)
        self._host = path

    def is_alone(self, directory: Path) -> bool:
        """Stop listening, if nobody has come meanwhile: then this registry may end."""
        own = directory / client.SOCKET
        own.unlink(missing_ok=True)  # from here on nobody comes any more
        for listener in self._listeners:
            self._accept(listener, listener is not self._listeners[0])
        if not self._lines:
            return True
        fresh = client.bind(directory, 0o600)
        self._loop.remove_reader(self._listeners[0])
        self._listeners.pop(0).close()
        self.listen(fresh)
        self._listeners.insert(0, self._listeners.pop())
        return False

    def close(self) -> None:
        """Hear nobody any more."""
        self._closing = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        if self._host is not None:
            self._host.unlink(missing_ok=True)
        for line in tuple(self._lines):
            line.close()
        for introduced in tuple(self._gates.values()):
            introduced.gate.close()

    # --- connections ---

    def _accept(self, listener: socket.socket, strangers: bool) -> None:  # noqa: FBT001  a callback's
        for _ in range(_ACCEPTED_AT_ONCE):
            if self._asking >= _MOST_ASKING:
                self._loop.remove_reader(listener)  # whoever waits does so in its queue
                self._loop.call_later(_REST, self._resume, listener, strangers)
                return
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                peer = connections.check(connection, stranger=strangers)
            except connections.UntrustedPeerError as refused:
                _refuse(connection, str(refused))
                continue
            if strangers and self._lines_of(peer.uid) >= _MOST_OF_ONE:
                _refuse(connection, "you have too many connections here")
                continue
            self._let_in(connection, peer)

    def _lines_of(self, uid: int) -> int:
        return sum(of == uid for of in self._lines.values())

    def _resume(self, listener: socket.socket, strangers: bool) -> None:  # noqa: FBT001  a callback's
        if listener in self._listeners:
            self._loop.add_reader(listener, partial(self._accept, listener, strangers))

    def _let_in(self, connection: socket.socket, peer: connections.Peer) -> None:
        heard: list[bool] = []
        timer: asyncio.TimerHandle

        def hear(line: PacketConnection, said: dict[str, object], descriptors: list[int]) -> None:
            if heard:
                line.close()  # there is one request a connection
                return
            heard.append(True)
            self._asking -= 1
            timer.cancel()
            self._take(line, peer, said, descriptors)

        def ended(line: PacketConnection) -> None:
            timer.cancel()
            self._asking -= not heard
            heard.append(True)
            self._lines.pop(line, None)
            self._left(line)

        self._asking += 1
        line = PacketConnection(connection, hear, ended, partial(_received, peer=peer), pieces=True)
        timer = self._loop.call_later(_PATIENCE, line.close)
        self._lines[line] = peer.uid

    def _take(
        self, line: PacketConnection, peer: connections.Peer, said: dict[str, object], descriptors: list[int]
    ) -> None:
        if said.pop("exeat", None) != VERSION:
            why = f"this approvals server speaks version {VERSION}; `exeat --version` says which you have"
            self._fail(line, why, _MISUSE)
        elif said.get("what") == "introduce":
            end = os.dup(descriptors[0]) if descriptors and peer.uid == os.geteuid() else -1
            self._begin(self._introduce(line, said, end))
        else:
            self._begin(self._answer(line, peer, said))

    def _fail(self, line: PacketConnection, why: str, status: int = _REFUSED) -> None:
        line.say({"failed": why, "status": status})
        line.finish()

    async def _answer(self, line: PacketConnection, peer: connections.Peer, said: dict[str, object]) -> None:
        try:
            request = Request.by(self._app, self, peer, said, line)
            does = REQUESTS.get(str(said.get("what")))
            if does is None:
                self._fail(line, "this asks for nothing that there is", _MISUSE)
            else:
                await does(request)
        except RequestFailedError as cannot:
            self._fail(line, str(cannot), cannot.status)
        except StoreError as error:
            self._fail(line, str(error), HostError.status)

    # --- sandboxes ---

    async def _introduce(self, line: PacketConnection, said: dict[str, object], end: int) -> None:
        """Take a sandbox, whose gate has the other end of `end`; less than 0: nobody may."""
        self._numbers += 1
        number = self._numbers
        if end < 0:
            self._fail(line, "a sandbox is introduced by whoever made it, with its gate's end")
            return
        sock = socket.socket(fileno=end)
        try:
            who, journal = said.get("who"), said.get("journal")
            if not isinstance(who, dict) or not isinstance(journal, str) or not journal.startswith("/"):
                raise MalformedMessageError("an introduction says who, and where the journal is")
            introduction = read_introduction(who)
            self._app.journals.introduced(introduction.task, Path(journal))
            await self._app.registry.introduce(number, introduction)
        except (ValueError, StoreError) as error:
            sock.close()
            self._fail(line, str(error), HostError.status if isinstance(error, StoreError) else _REFUSED)
            return
        gate = GateConnection(sock, partial(self._hear, number), partial(self._broken, line))
        self._app.replies[number] = gate.reply
        if said.get("hears") is True:
            self._app.makers[introduction.task] = line.say
        self._gates[number] = _Introduced(line, gate, introduction.task)
        if line.closed:
            self._left(line)

    async def _hear(self, number: Hashable, word: "WorkerMessage | None") -> None:
        """Do what a gate says; at its end what it waited for is nobody's, and its task may have another."""
        await self._app.registry.received(number, Hello() if word is None else word)

    def _broken(self, line: PacketConnection, why: str) -> None:
        """Give a gate up that something went wrong with: whoever introduced it does so again."""
        self._told.append(why)
        line.close()

    def _left(self, line: PacketConnection) -> None:
        """Take note that a connection is over: with it the sandbox that was introduced over it, unless we end."""
        if self._closing:
            return
        for number, introduced in tuple(self._gates.items()):
            if introduced.line is line:
                del self._gates[number]
                if self._app.makers.get(introduced.task) == line.say:
                    del self._app.makers[introduced.task]
                introduced.gate.close()
                self._begin(self._leave(number, introduced.gate))

    async def _leave(self, number: Hashable, gate: GateConnection) -> None:
        await gate.ended()
        self._app.replies.pop(number, None)
        await self._app.registry.leave(number)

    def _begin(self, what: "Coroutine[Any, Any, None]") -> None:
        task = self._loop.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def turn_away(listener: socket.socket, why: str) -> None:
    """Say to who has come, and comes in a moment, why there will be no registry."""
    listener.setblocking(False)
    for _ in range(_TURNS_AWAY):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                _refuse(connection, why, HostError.status)
        await asyncio.sleep(_REST)


def _received(connection: socket.socket, peer: connections.Peer) -> connections.Packet:
    try:
        return connections.receive(connection, peer)
    except connections.UntrustedPeerError as stranger:
        raise OSError(str(stranger)) from stranger


def _refuse(connection: socket.socket, why: str, status: int = _REFUSED) -> None:
    """Say why somebody isn't served, if they listen."""
    connection.setblocking(False)
    with contextlib.suppress(OSError):
        connection.send(json.dumps({"failed": why, "status": status}).encode())
        connection.recv(1)  # what is left unread makes a reset of the end, and the other side would not hear why
    connection.close()
