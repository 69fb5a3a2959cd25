"""Request handlers of the approvals server, for approvers and commands; each checks the caller's identity."""

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.approvals import client
from enforcer.approvals.app import FORGIVEN
from proxy.approvals.approval_card import summary
from proxy.approvals.model import ApprovalState, GrantTerms, Vote
from proxy.approvals.votes import CastVote, VoteRefusedError
from proxy.telemetry.journal.writer import JournalWriteError
from proxy.telemetry.views.causality import instant_of

if TYPE_CHECKING:
    from enforcer.approvals.app import App
    from enforcer.approvals.connections import PacketConnection, Peer
    from enforcer.approvals.server import Server
    from proxy.approvals.model import Approval
    from proxy.approvals.people import Actor

_MISUSE: Final = 2
_BATCH: Final = 50  # questions a packet
_LONGEST_WHY: Final = 2000  # characters
_LONGEST_ID: Final = 64
_MOST_ACKS: Final = 1000  # events that are acknowledged at a time
_ENDED: Final = (
    ApprovalState.APPROVED,
    ApprovalState.REJECTED,
    ApprovalState.EXPIRED,
    ApprovalState.SUPERSEDED,
    ApprovalState.OVER,
)
_VOTES: Final = {"approve": Vote.APPROVE, "reject": Vote.REJECT}
_NEVER: Final = 1e18  # seconds since 1970


class RequestFailedError(Exception):
    """The request failed; the text is for the caller. `status`: the command's exit status."""

    def __init__(self, why: str, status: int = 1) -> None:
        super().__init__(why)
        self.status = status


class Request(NamedTuple):
    """One request: its caller, its fields, and the connection for the answer."""

    app: "App"
    server: "Server"
    who: "Actor"
    said: Mapping[str, object]
    line: "PacketConnection"
    ours: bool = True  # the caller owns this registry

    @classmethod
    def by(
        cls, app: "App", server: "Server", peer: "Peer", said: dict[str, object], line: "PacketConnection"
    ) -> "Request":
        """Identify the caller by the token if there is one, else by the uid. Raises RequestFailedError."""
        ours = peer.uid == os.geteuid()
        people, token = app.registry.people, said.pop("token", None)
        own = people.by_uid(peer.uid, os.uname().nodename)
        if token is None:
            if not ours and not own.known:
                raise RequestFailedError(f"{people.nobody(own)}{_because(app, ours)}")
            return cls(app, server, own, said, line, ours)
        now = app.registry.clock.now()
        if app.wrong.refuses(peer.uid, now):
            raise RequestFailedError(f"too many tokens that are nobody's: none is looked at for {FORGIVEN:g} seconds")
        found = people.by_token(str(token))
        if found is None:
            more = "; no more are looked at for a while" if app.wrong.add(peer.uid, now) else ""
            app.journals.recorder(None).refused("", None, f"a token that is nobody's{more}", own.name)
            raise RequestFailedError(f"this token is nobody's{_because(app, ours)}")
        return cls(app, server, found, said, line, ours)

    def answer(self, what: Mapping[str, object]) -> None:
        """Send the only answer."""
        self.line.say({"answer": what})
        self.line.finish()

    def text(self, key: str, longest: int) -> str:
        """Return a text field. Raises RequestFailedError."""
        value = self.said.get(key, "")
        if not isinstance(value, str) or len(value) > longest:
            raise RequestFailedError(f"`{key}` must be a text of at most {longest} characters", _MISUSE)
        return value


def _because(app: "App", ours: bool) -> str:  # noqa: FBT001
    """Return a note if approvers.yaml is broken; only its owner sees the details."""
    if not app.broken:
        return ""
    return f"; {app.broken if ours else 'approvers.yaml is broken, as `exeat status` tells whose it is'}"


async def _listed(request: Request, states: "Iterable[ApprovalState]", since: float = 0.0) -> None:
    """Send approval requests, oldest first, a batch per packet, as the client reads them."""
    registry = request.app.registry
    after = (since, "")
    wanted = tuple(states)
    while not request.line.closed:
        async with registry.reading() as t:
            batch = await t.listed(wanted, after, _BATCH)
            tasks = [(approval, await t.task(approval.task)) for approval in batch]
            found = [await summary(t, approval, task) for approval, task in tasks if task is not None]
        broken = {"broken": request.app.broken} if request.ours and request.app.broken else {}
        request.line.say({"answer": {"approvals": found, **broken}})
        await request.line.drained()
        if len(batch) < _BATCH:
            break
        after = (batch[-1].asked, batch[-1].id)
    request.line.finish()


async def _history(request: Request) -> None:
    since = request.said.get("since", 0)
    await _listed(request, (*_ENDED, ApprovalState.PENDING), float(since) if isinstance(since, int | float) else 0.0)


async def _found(request: Request) -> "Approval":
    given = request.text("id", _LONGEST_ID).lower()
    async with request.app.registry.reading() as t:
        found = await t.beginning(given) if given else []
        if len(found) > 1:
            found = [each for each in found if each.state is ApprovalState.PENDING] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise RequestFailedError(f"more than one approval request begins with `{given}`: write more of the id")
    shown = ascii(given)[1:-1]
    raise RequestFailedError(f"there is no approval request `{shown}`; `exeat approvals` lists pending requests")


async def _show(request: Request) -> None:
    approval = await _found(request)
    told = await request.app.card(approval.id)
    await request.app.registry.seen(approval.id, request.who)
    request.answer(told)


async def _answer(request: Request) -> None:
    approval = await _found(request)
    vote = _VOTES.get(str(request.said.get("vote")))
    if vote is None:
        raise RequestFailedError("an answer is `approve` or `reject`", _MISUSE)
    words = request.said.get("for", [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise RequestFailedError("`for` is a list of texts", _MISUSE)
    try:
        offer = GrantTerms.parse(words, request.text("covers", 32))
    except ValueError as error:
        raise RequestFailedError(str(error), _MISUSE) from error
    said = CastVote(request.who, vote, offer, request.text("why", _LONGEST_WHY), request.text("as_rule", 512))
    try:
        decided = await request.app.registry.decide(approval.id, said)
    except VoteRefusedError as refused:
        raise RequestFailedError(f"{approval.id}: {refused}{_because(request.app, request.ours)}") from refused
    except JournalWriteError as error:
        raise RequestFailedError(
            f"{approval.id}: this can't be told in the journal, so it doesn't count: {error}", 125
        ) from error
    request.answer(
        {
            "id": approval.id,
            "state": decided.approval.state,
            "final": decided.final,
            "by": request.who.name,
            "text": f"{approval.id}: {decided.text}",
            "grants": [grant.id for grant in decided.grants],
        }
    )


async def _revoke(request: Request) -> None:
    try:
        text = await request.app.registry.revoke(
            request.text("grant", _LONGEST_ID).lower(), request.who, request.text("why", _LONGEST_WHY)
        )
    except VoteRefusedError as refused:
        raise RequestFailedError(str(refused)) from refused
    request.answer({"text": text})


async def _watch(request: Request) -> None:
    """Tell of everything from now on, what waits already first, until whoever watches has enough."""
    line, app = request.line, request.app

    def tell(told: dict[str, object]) -> None:
        if line.closed:
            app.watchers.discard(tell)
        else:
            line.say({"answer": told})

    async with app.registry.reading() as t:
        pending = await t.listed((ApprovalState.PENDING,), (-1.0, ""), app.registry.people.bounds.pending)
    app.watchers.add(tell)
    for approval in pending:
        tell(await app.card(approval.id))
        await app.registry.seen(approval.id, request.who)
        await line.drained()


async def _status(request: Request) -> None:
    async with request.app.registry.reading() as t:
        pending = await t.counted()
    request.answer(
        {
            "pid": os.getpid(),
            "uid": os.geteuid(),
            "socket": str(request.app.directory / client.SOCKET),
            "gates": request.server.gates,
            "pending": pending,
            "people": len(request.app.registry.people.people),
            "file": request.app.registry.people.file,
            "broken": request.app.broken,
            "told": request.app.standing(request.server.told),
        }
    )


async def _tasks(request: Request) -> None:
    """Say of each task that has a gate here what it waits for, and whether it has read from strangers."""
    found = []
    async with request.app.registry.reading() as t:
        for task in request.server.tasks:
            pending, tainted = await t.counted(task), await t.taints(task, 1)
            found.append({"task": task, "pending": pending, "tainted": bool(tainted)})
    for at in range(0, len(found) or 1, _BATCH):
        request.line.say({"answer": {"tasks": found[at : at + _BATCH]}})
    request.line.finish()


async def _ack(request: Request) -> None:
    events = request.said.get("events")
    if not isinstance(events, list):
        raise RequestFailedError("`events` is a list of ids", _MISUSE)
    ids, recorder = list(map(str, events)), request.app.journals.recorder(None)
    try:
        for event in ids[:_MOST_ACKS]:
            if instant_of(event) is not None:
                recorder.looked_at(event, request.who.name)
        if len(ids) > _MOST_ACKS or not all(0 < len(each) <= _LONGEST_ID and each.isascii() for each in ids):
            raise RequestFailedError("these are no events' ids", _MISUSE)
        async with request.app.registry.transaction() as t:
            new = await t.acknowledge(ids, request.who.name)
    except JournalWriteError as error:
        raise RequestFailedError(f"this can't be told in the journal, so it doesn't count: {error}", 125) from error
    request.answer({"new": new})


async def _acks(request: Request) -> None:
    after = ""
    while not request.line.closed:
        async with request.app.registry.reading() as t:
            acks = [{"event": event, "by": person, "at": at} for event, person, at in await t.acknowledged(after)]
        request.line.say({"answer": {"acks": acks}})
        await request.line.drained()
        if not acks:
            break
        after = str(acks[-1]["event"])
    request.line.finish()


REQUESTS: Final[Mapping[str, Callable[[Request], Awaitable[None]]]] = {
    "list": lambda request: _listed(request, (ApprovalState.PENDING,)),
    "history": _history,
    "show": _show,
    "answer": _answer,
    "revoke": _revoke,
    "watch": _watch,
    "status": _status,
    "tasks": _tasks,
    "ack": _ack,
    "acks": _acks,
}
