"""Approval of merges of protected files, where the rules of the task want it.

The terms are those that were kept with the task's changes. The request has the digest of every change, and the merge
computes it again, so only what people looked at is merged. Without an answer nothing is merged. The task is introduced
to the registry of approvals like a sandbox, and removed after this one request.
"""

import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.approvals import client, registration
from enforcer.system.errors import ExeatError
from enforcer.system.started_by import starter_uid
from enforcer.workspace import merge_decision
from enforcer.workspace.change_store import Change
from enforcer.workspace.merge_decision import ChangeDigest, MergeInputs
from enforcer.workspace.safe_path import EntryType
from proxy.approvals import protocol
from proxy.approvals.approval_request import ApprovalRequest, File, Kind
from proxy.approvals.model import MERGING
from proxy.approvals.protocol import Answer, Hello, Introduction, Pending, Result, read_registry_message
from proxy.telemetry.events import Approval
from proxy.wire import message

if TYPE_CHECKING:
    from enforcer.workspace.change_store import Meta
    from enforcer.workspace.git_objects import Difference

type Ask = Callable[[ApprovalRequest], Answer]

_MOST_SHOWN: Final = 200  # paths
_MOST_BROUGHT, _LONGEST = 20, 400  # files in commits, characters of a path
_MOST_COUNTED: Final = 20  # whose lines are counted: a task can make each take a while
_ROOM: Final = 24 << 10  # bytes of them: a question has to fit into one packet, with the rules that want it
_FIRST: Final = {"changed": 1, "mode": 2, "deleted": 3, "added": 4}  # what is shown first; links before all
_NUMBER: Final = 1
_SLACK: Final = 15.0  # seconds beyond `hold` in which an answer has to be there
_LAST_WORD: Final = 2.0  # seconds for why the registry is gone
_LARGEST: Final = 1 << 16  # bytes

type Say = Callable[[str, float], None]  # an approval's id, and when the wait for it ends, seconds since 1970


class MergeApproval(NamedTuple):
    """What may be merged of what is protected: each path of `prints` as that says, if it isn't `refused`."""

    prints: Mapping[str, ChangeDigest | None]
    refused: str = ""  # why none of it may, in words
    approval: Approval | None = None  # that gave it, as events name it

    def holds(self, path: str) -> bool:
        """Whether a path has to stay as it is, for all that was answered."""
        return bool(self.refused) and self.prints.get(path) is not None


NO_TERMS: Final = MergeApproval({})


def request_approval(
    inputs: MergeInputs, changes: Iterable[Change], ask: Ask, brought: Iterable["Difference"] = ()
) -> MergeApproval:
    """Ask for the leave to merge these, where terms were kept and something would be merged. Raises HostError.

    `brought`: protected files that some of them bring along, which people are shown; the digest has them by the names
    of commits, as a reference's content has those.
    """
    meta = inputs.stored.meta
    rules = meta.asks()
    if not rules:
        return NO_TERMS
    found = {change.path: change for change in changes}
    seen = {path: merge_decision.compute_current_digest(inputs, change) for path, change in found.items()}
    wanted = [each for each in seen.values() if each is not None]
    if not wanted:
        return MergeApproval(seen)
    question = make_request(inputs, found, wanted, brought)._replace(rules=rules)
    answer = ask(question)
    if answer.result is not Result.GRANTED:
        return MergeApproval(seen, _refusal(answer))
    if {(grant.rule, grant.digest) for grant in answer.grants} != {(asks.rule, asks.digest) for asks in rules}:
        return MergeApproval(seen, f"approval {answer.approval} is for other terms than these changes were made under")
    again = [each for path in seen if (each := merge_decision.compute_current_digest(inputs, found[path])) is not None]
    if merge_decision.compute_merge_digest(meta, again) != question.digest:
        moved = f"it, or what it replaces, is not what was approved as {answer.approval}: accept again to ask anew"
        return MergeApproval(seen, moved)
    given = tuple(grant.grant for grant in answer.grants)
    return MergeApproval(seen, "", Approval(answer.approval, Kind.MERGE, answer.by, grants=given))


def make_request(
    inputs: MergeInputs,
    changes: Mapping[str, Change],
    wanted: Sequence[ChangeDigest],
    brought: Iterable["Difference"] = (),
) -> ApprovalRequest:
    """Return what people are asked, without the rules that want it: bounded, and with the digest of all."""
    meta = inputs.stored.meta
    inside = [*dict.fromkeys(brought)]
    return ApprovalRequest(
        Kind.MERGE,
        files=(*map(_brought, inside[:_MOST_BROUGHT]), *_shown(inputs, changes, wanted)),
        total=len(wanted) + len(inside),
        digest=merge_decision.compute_merge_digest(meta, wanted),
        revision=meta.revision,
    )


def _brought(each: "Difference") -> File:
    """Say what a commit or an index has; a path, and where it is, of which a question has room for some."""
    was, now = (f"file {version.mode & 0o7777:04o}" if version.mode else "" for version in (each.was, each.now))
    return File(each.path[:_LONGEST], "", each.kind.value, was, f"{now}, in {each.where}".lstrip(", "))


def _shown(inputs: MergeInputs, changes: Mapping[str, Change], wanted: Iterable[ChangeDigest]) -> tuple[File, ...]:
    """Return what there is room to show, what may do most first."""
    from enforcer.workspace.show_changes import count_lines

    shown: list[File] = []
    room = _ROOM
    for each in sorted(wanted, key=_urgency)[:_MOST_SHOWN]:
        content = each.now.content if each.now.what == EntryType.FILE else ""
        file = File(each.path, content, each.kind, each.was.describe(), each.now.describe())
        room -= sum(len(os.fsencode(text)) for text in (file.path, file.was, file.now)) * 3 + 256
        if room < 0 and shown:
            break
        is_counted = EntryType.FILE in (each.was.what, each.now.what) and len(shown) < _MOST_COUNTED
        lines = count_lines(inputs, changes[each.path]) if is_counted else None
        shown.append(file if lines is None else file._replace(added=lines.added, deleted=lines.deleted))
    return tuple(shown)


def _urgency(each: ChangeDigest) -> tuple[int, bytes]:
    return 0 if each.now.what == EntryType.LINK else _FIRST.get(each.kind, 0), os.fsencode(each.path)


def _refusal(answer: Answer) -> str:
    """Say why nothing may be merged."""
    named = f" {answer.approval}" if answer.approval else ""
    match answer.result:
        case Result.TIMEOUT:
            return f"it waits for approval{named}: accept again when that is given"
        case Result.DENIED:
            why = f": {answer.why}" if answer.why else ""
            return f"{', '.join(answer.by) or 'somebody'} said no to approval{named}{why}"
        case _:
            return f"it needs an approval, and nobody could be asked: {answer.why or answer.result}"


def submit(meta: "Meta", question: ApprovalRequest, say: Say) -> Answer:
    """Ask, wait for as long as the rules hold it, and return the answer: what goes wrong is one that grants nothing."""
    try:
        connection, end = registration.introduced(_who(meta), Path(meta.journal), client.PATIENCE)
        with connection, end:
            message.send(end, Hello().packed())
            message.send(end, protocol.Submit(_NUMBER, question.fitted()).packed())
            hold = min((rule.terms.hold for rule in question.rules), default=0.0)
            return _answer(connection, end, time.monotonic() + hold + _SLACK, say)
    except ExeatError as error:
        return _unavailable(str(error))
    except (OSError, ValueError) as error:  # it is gone, or says what nobody understands; or it is too much to ask
        return _unavailable(str(error))


def _who(meta: "Meta") -> Introduction:
    # Root has the word of the run for who started it; an ordinary user is who the kernel says
    who = meta.started_by if os.getuid() == 0 and meta.started_by >= 0 else starter_uid()
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
        match read_registry_message(said):
            case Pending(number, approval, until) if number == _NUMBER:
                say(approval, until)
            case Answer(number) as answer if number == _NUMBER:
                return answer
            case _:
                pass
    return _unavailable("the approvals server does not answer")


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
    return _unavailable((data and registration.reason(data)[0]) or "the approvals server has stopped")


def _unavailable(why: str) -> Answer:
    return Answer(_NUMBER, Result.UNAVAILABLE, why=why)
