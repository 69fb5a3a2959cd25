"""The decision on a request: at its head, before a byte of its body, before anything is dialled.

An address that the rules don't let be dialled is part of the decision (invariant 9), so the name is looked up first; no
name is looked up for a request that the rules deny, nor, unless a rule spells it out, for one that people are asked
about before they have answered.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxy.approvals.protocol import Result
from proxy.approvals.request_builder import reason_of
from proxy.dialing.connecting import DialFailed, written
from proxy.dialing.preflight import approved, in_vain, refused
from proxy.event_loop.slices import at_once, in_turns
from proxy.gate.block_page import is_for_git
from proxy.inspection.git import FEW_REFS, report
from proxy.inspection.judging import unanswered, unclear, undialled
from proxy.inspection.messages import relayed, settle
from proxy.inspection.pending import Held, HeldBody, HeldPush
from proxy.request.request_head import Unclear
from rules.settings import Via
from rules.verdicts import Reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.approvals.client import Asking
    from proxy.dialing.connecting import Hop
    from proxy.event_loop.slices import Sliced
    from proxy.gate.block_page import Page
    from proxy.inspection.context import Far
    from proxy.inspection.judging import Ruling
    from proxy.inspection.session import Session
    from proxy.request.request_head import Head
    from rules.attempt import Attempt
    from rules.matching.policy import Policy

type Found = tuple[Hop, ...] | DialFailed


@dataclass(slots=True)
class RequestContext:
    """One request, as it is decided, and what was decided: a refusal, or where it may go. Neither yet: `held`."""

    key: str
    head: "Head"  # as it came; once it may pass, as it is sent
    body: bool  # whether one follows; one that isn't known counts
    held: "Held | None" = None  # what has to come of it before it can be decided
    refusal: "Page | None" = None
    is_last: bool = False  # it can't be read, and so neither can what comes after it
    reads_on: bool = False  # it is answered when all of it has come: git hears nobody before that
    addresses: "tuple[Hop, ...] | None" = None  # those that may be dialled for it
    authorities: tuple[bytes, ...] = ()  # certificates that its server may be verified with, those of `ca:`


class Requests:
    """Decides the requests of one session, each at its head."""

    def __init__(
        self, session: "Session", addresses: "Callable[[Attempt], Found | Awaitable[Found]]", *, holds: bool = True
    ) -> None:
        """`addresses` says where an attempt may be dialled to, or why nowhere, at once or in a while.

        `holds`: the caller knows what to do with what is `held`; else what would need it is refused.
        """
        self._session = session
        self._addresses = addresses
        self._holds = holds

    def requestheaders(self, request: RequestContext) -> "Awaitable[None] | None":
        """Decide: afterwards there is a refusal, or addresses to dial.

        Or neither, and `held`: then this is called again once that is complete.
        """
        head = request.head
        ruling = self._ruled(request, head)
        if ruling is None:
            return None
        asking = self._session.recorder.tenant.asking
        if asking is not None and ruling.decision.asks and ruling.attempt is not None:
            return self._ask(request, head, ruling, asking)
        return self._carry_out(request, head, ruling)

    def _ruled(self, request: RequestContext, head: "Head") -> "Ruling | None":
        """Decide by what was read; None: more of it has to be."""
        session = self._session
        held: Held | None = request.held
        read = (held.push, held.content) if held is not None and held.problem is None else (None, None)
        body = request.body
        ruling = session.rule(
            head, body=body, push=read[0], content=read[1], granted=session.asked_about.granted(request.key)
        )
        if held is not None:
            session.release(request.key)
            if held.problem is None and (ruling.refs_wanted or ruling.body_wanted) and not ruling.refs_for_events:
                held.problem = Unclear("it is a push, and its body is wanted for another reason too")
        elif ruling.refs_wanted or ruling.body_wanted:
            held = HeldPush.of(head) if ruling.refs_wanted else HeldBody()
            if not self._holds:
                held.problem = Unclear("no bodies are read here", Reason.PROTOCOL_MISMATCH)
            if held.problem is not None and ruling.refs_for_events:
                return ruling
            held.attempt = ruling.attempt
            request.held = held
            if held.problem is None:
                session.hold(request.key, head)
                return None
        may_pass = (ruling.decision.passes or ruling.decision.asks) and not ruling.refs_for_events
        if held is not None and held.problem is not None and may_pass:
            return unclear(session.recorder.tenant, head, held.problem)
        return ruling

    async def _ask(self, request: RequestContext, head: "Head", ruling: "Ruling", asking: "Asking") -> None:
        """Ask people, until what they say, or the rules by then, decide."""
        asked_about = self._session.asked_about
        waiting = asked_about.begin(request.key, head, ruling, asking)
        while ruling.decision.asks:
            if not waiting.is_about(ruling.decision):
                failure = await self._in_vain(ruling)
                if not asked_about.has(request.key, waiting):
                    return  # its connection is gone, and that was told
                if failure is not None:
                    ruling = undialled(ruling, failure)
                    ruling = replace(ruling, decision=refused(ruling.decision, failure))
                    break
                held: Held | None = request.held
                waiting.ask(asked_about.question(ruling, head, held), ruling.decision)
            answer = await waiting.word()
            if answer is not None and answer.result is not Result.GRANTED:
                ruling = unanswered(self._session.recorder.tenant, ruling, reason_of(answer), answer.why)
                break
            await self._judge_ahead(request)
            if not asked_about.has(request.key, waiting):
                return  # its connection is gone, and that was told
            found = self._ruled(request, head)
            if found is None:  # under other rules more has to be read first
                asked_about.settle(request.key)
                return
            ruling = waiting.ruling = found
        pending = self._carry_out(request, head, ruling)
        if pending is not None:
            await pending

    async def _judge_ahead(self, request: RequestContext) -> None:
        """Decide again on the refs of a push, in slices, as of now: what was decided on them before holds no more."""
        held: Held | None = request.held
        if held is None or held.attempt is None:
            return
        tenant = self._session.recorder.tenant
        granted = self._session.asked_about.granted(request.key)
        held.attempt = held.attempt._replace(at=tenant.calendar.today(), tainted=tenant.tainted, granted=granted)
        await in_turns(held.judging(self._session))

    async def _in_vain(self, ruling: "Ruling") -> DialFailed | None:
        """Return why an approval would open nothing; None: it may."""
        assert ruling.attempt is not None
        would = approved(self._session.recorder.tenant.policy, ruling.attempt, ruling.decision)
        if would is None:
            return None
        found = self._addresses(would)
        return in_vain(found if isinstance(found, tuple | DialFailed) else await found)

    def _carry_out(self, request: RequestContext, head: "Head", ruling: "Ruling") -> "Awaitable[None] | None":
        """Look up where it may go, if it may, and tell."""
        if ruling.attempt is None or not ruling.decision.passes:
            self._decided(request, head, ruling, ())
            return None
        policy = self._session.recorder.tenant.policy
        found = self._addresses(ruling.attempt)
        if not isinstance(found, tuple | DialFailed) or (ruling.pushed and len(ruling.pushed.attempts) > FEW_REFS):
            return self._later(request, head, ruling, policy, found)
        return self._found(request, head, ruling, at_once(among(policy, ruling, found)))

    def _found(
        self, request: RequestContext, head: "Head", ruling: "Ruling", found: "Found"
    ) -> "Awaitable[None] | None":
        """Go on with what may be dialled; where people are to be asked about the address, with that."""
        asking = self._session.recorder.tenant.asking
        if isinstance(found, DialFailed) and found.held is not None and asking is not None:
            return self._ask(request, head, replace(ruling, decision=found.held), asking)
        self._decided(request, head, ruling, found)
        return None

    async def _later(
        self,
        request: RequestContext,
        head: "Head",
        ruling: "Ruling",
        policy: "Policy",
        found: "Found | Awaitable[Found]",
    ) -> None:
        tenant = self._session.recorder.tenant
        addresses = found if isinstance(found, tuple | DialFailed) else await found
        addresses = await in_turns(among(policy, ruling, addresses))
        attempt = ruling.attempt
        same = attempt is not None and tenant.calendar.today() == attempt.at and tenant.tainted is attempt.tainted
        if tenant.policy is policy and same:
            if pending := self._found(request, head, ruling, addresses):
                await pending
            return
        await self._judge_ahead(request)
        if pending := self.requestheaders(
            request
        ):  # by now it is for other rules, or another day, and nothing was told
            await pending

    def _decided(self, request: RequestContext, head: "Head", ruling: "Ruling", found: "Found") -> None:
        session = self._session
        if (waiting := session.asked_about.settle(request.key)) is not None:
            ruling = replace(ruling, approval=waiting.approval, grants=waiting.grants)
        if isinstance(found, DialFailed):
            ruling = undialled(ruling, found)
        if not isinstance(found, DialFailed):
            found = relayed(found, head, ruling)
        first = None if isinstance(found, DialFailed) or not found else found[0]
        via = str(first) if isinstance(first, Via) else None
        address = None if first is None or isinstance(first, Via) else written(first)
        page = session.admit(request.key, head, ruling, via, address)
        if page is not None:
            told = report(ruling.pushed, page) if ruling.pushed and is_for_git(page) else None
            request.refusal = told or page
            request.reads_on = told is not None
            request.is_last = ruling.asked is None
            return
        assert ruling.asked is not None
        assert not isinstance(found, DialFailed)
        packed = not (ruling.asked.websocket and ruling.decision.scan.blocks)  # ... messages can't be looked into
        request.head = settle(head, ruling.asked, session.place, extensions=packed)
        request.addresses = found
        policy = session.recorder.tenant.policy
        every = policy.settings.upstream_ca
        files = ruling.decision.ca if every is None else (*ruling.decision.ca, every)
        request.authorities = tuple(policy.authorities[path] for path in files)


def among(policy: "Policy", ruling: "Ruling", found: "Found") -> "Sliced[Found]":
    """Return those of the addresses that were found which every ref of a push may go to."""
    if isinstance(found, DialFailed) or ruling.pushed is None or not ruling.decision.passes:
        return found
    for attempt in ruling.pushed.attempts[1:]:
        reasons = [policy.check_address(attempt, address) for address in found]
        found = tuple(address for address, reason in zip(found, reasons, strict=True) if reason is None)
        if not found:
            return DialFailed(next(filter(None, reasons), Reason.UNRESOLVED), "no address will do for every ref")
        yield
    return found


def is_good(connection: "Far", policy: "Policy", attempt: "Attempt", address: "Hop") -> bool:
    """Whether `policy` lets a request go to the address that a connection leads to."""
    key = (policy, attempt.at, attempt.request, attempt.tainted, attempt.granted)
    if connection.good_for != key:
        connection.good_for = None if policy.check_address(attempt, address) else key
    return connection.good_for is not None
