"""Asking the registry whether changes may be merged: introduced as a sandbox is, and gone again after one question."""

import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enforcer.approvals import registration, start
from enforcer.system.errors import ExeatError
from enforcer.system.started_by import starter
from proxy import message
from proxy.approvals.model import MERGING
from proxy.approvals.protocol import Answer, Ask, Hello, Introduction, Pending, Result, read_reply

if TYPE_CHECKING:
    from enforcer.workspace.kept import Meta
    from proxy.approvals.approval_request import Question

_NUMBER: Final = 1
_SLACK: Final = 15.0  # seconds beyond `hold` in which an answer has to be there
_LAST_WORD: Final = 2.0  # seconds for why the registry is gone
_LARGEST: Final = 1 << 16  # bytes

type Say = Callable[[str, float], None]  # an approval's id, and when the wait for it ends, seconds since 1970


def ask(meta: "Meta", question: "Question", say: Say) -> Answer:
    """Ask, wait for as long as the rules hold it, and return the answer: what goes wrong is one that grants nothing."""
    try:
        connection, end = registration.introduced(_who(meta), Path(meta.journal), start.PATIENCE)
        with connection, end:
            message.send(end, Hello().packed())
            message.send(end, Ask(_NUMBER, question.fitted()).packed())
            hold = min((rule.terms.hold for rule in question.rules), default=0.0)
            return _answer(connection, end, time.monotonic() + hold + _SLACK, say)
    except ExeatError as error:
        return _unavailable(str(error))
    except (OSError, ValueError) as error:  # it is gone, or says what nobody understands; or it is too much to ask
        return _unavailable(str(error))


def _who(meta: "Meta") -> Introduction:
    # Root has the word of the run for who started it; an ordinary user is who the kernel says
    who = meta.started_by if os.getuid() == 0 and meta.started_by >= 0 else starter()
    return Introduction(
        meta.sandbox,
        meta.id + MERGING,
        meta.name,
        dict(meta.labels),
        who,
        os.uname().nodename,
        meta.rule_files,
        meta.workspace,
    )


def _answer(connection: socket.socket, end: socket.socket, deadline: float, say: Say) -> Answer:
    while (left := deadline - time.monotonic()) > 0:
        select.select([connection, end], [], [], left)
        said = _heard(end)
        if said is None:
            if select.select([connection], [], [], 0)[0]:
                return _gone(connection)
            continue
        if not said:
            return _gone(connection)
        match read_reply(said):
            case Pending(number, approval, until) if number == _NUMBER:
                say(approval, until)
            case Answer(number) as answer if number == _NUMBER:
                return answer
            case _:
                pass
    return _unavailable("the registry of approvals doesn't answer")


def _heard(end: socket.socket) -> dict[str, object] | None:
    """Return the next message, if one is there; an empty one is the end. Raises OSError, ValueError."""
    return message.receive(end)[0] if select.select([end], [], [], 0)[0] else None


def _gone(connection: socket.socket) -> Answer:
    """Hear why the registry has left, if it says so."""
    connection.settimeout(_LAST_WORD)
    try:
        data, _ = message.packet(connection, _LARGEST)
    except OSError:
        data = b""
    return _unavailable((data and registration.reason(data)[0]) or "the registry of approvals is gone")


def _unavailable(why: str) -> Answer:
    return Answer(_NUMBER, Result.UNAVAILABLE, why=why)
