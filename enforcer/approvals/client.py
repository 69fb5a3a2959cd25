"""Client of the approvals server for commands: one request a connection, as JSON objects in packets.

Requests: `{"exeat": 1, "what": ..., ...}`, with a `token` where somebody is to be known by that and not by their uid.
Answers: any number of `{"answer": {...}}`, or one `{"failed": text, "status": exit status}`; then the connection ends.
One that is too long for a packet comes in pieces of its text: `{"piece": text, "more": whether it goes on}`.
"""

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final

from enforcer.approvals import start
from enforcer.system.errors import ExeatError, HostError
from proxy.wire import message, strict_json

VERSION: Final = 1
_PATIENCE: Final = 30.0  # seconds
_LARGEST: Final = 1 << 18  # bytes
_TRIES: Final = 3  # of registries that end in this very moment


class Refused(ExeatError):  # noqa: N818  what happened
    """The registry can't do what was asked, in its own words."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def packet(what: Mapping[str, object]) -> bytes:
    """Return a request as it is sent."""
    return json.dumps({"exeat": VERSION, **what}, ensure_ascii=False).encode("utf-8", "surrogatepass")


def ask(what: Mapping[str, object]) -> list[dict[str, Any]]:
    """Ask this user's registry, started if there is none, and return all answers. Raises ExeatError."""
    for _ in range(_TRIES):
        with start.connected() as connection:
            if answers := list(_answers(connection, what)):
                return answers
    raise HostError("the registry of approvals does not answer", f"see `{start.log_path(start.approvals_directory())}`")


def is_running() -> bool:
    """Whether this user has a registry now. Raises ExeatError."""
    connection = start.there(start.own_socket(start.approvals_directory()))
    if connection is not None:
        connection.close()
    return connection is not None


def ask_running(what: Mapping[str, object]) -> list[dict[str, Any]] | None:
    """Ask this user's registry if there is one; None: there is none. Raises ExeatError."""
    connection = start.there(start.own_socket(start.approvals_directory()))
    if connection is None:
        return None
    with connection:
        return list(_answers(connection, what)) or None


def ask_host(what: Mapping[str, object]) -> list[dict[str, Any]] | None:
    """Ask root's registry, which other users reach too; None: there is none. Raises ExeatError."""
    path = start.host_socket()
    connection = None if path is None else start.there(path, owner=0)
    if connection is None:
        return None
    with connection:
        return list(_answers(connection, what)) or None


def follow(what: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """Ask this user's registry for what happens from now on, until it ends. Raises ExeatError."""
    with start.connected() as connection:
        yield from _answers(connection, what, patience=None)


def follow_host(what: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """Ask root's registry, if there is one, for what happens from now on, until it ends. Raises ExeatError."""
    path = start.host_socket()
    connection = None if path is None else start.there(path, owner=0)
    if connection is not None:
        with connection:
            yield from _answers(connection, what, patience=None)


def _answers(
    connection: socket.socket, what: Mapping[str, object], patience: float | None = _PATIENCE
) -> Iterator[dict[str, Any]]:
    connection.settimeout(patience)
    try:
        with contextlib.suppress(BrokenPipeError):  # it may have said why it is leaving
            connection.send(packet(what))
        text = ""
        while data := message.packet(connection, _LARGEST)[0]:
            said = strict_json.loads(data)
            if "piece" in said:
                text += said["piece"]
                if said["more"]:
                    continue
                said, text = strict_json.loads(text), ""
            if "failed" in said:
                raise Refused(str(said["failed"]), int(said.get("status", HostError.status)))
            yield said["answer"]
    except ConnectionError:
        return  # it ended
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError("the registry of approvals does not answer", "see its log") from error
