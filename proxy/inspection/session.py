"""One client connection as its requests see it: where it leads, who speaks, and what is told of each request.

Home of invariant 6 for requests: `admit` tells exactly one decision before anything passes, and `complete` tells once
how it ended. Nothing here touches a socket or mitmproxy.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.dlp.head_scan import shown as shown_of
from proxy.gate.block_page import Page, Refusal, page
from proxy.inspection.judging import (
    Looks,
    Place,
    Ruling,
    attempts_of,
    denied,
    judge,
    misuse,
    shown,
    standing,
    unanswered,
    unclear,
)
from proxy.inspection.leaking import NOT_LOOKED, Leaks, Looked, Outgoing, Seen
from proxy.inspection.pending import Waitings
from proxy.inspection.record import Exchange, Teller
from proxy.request.request_head import Unclear, grpc_kind, may_trail, too_costly, user_agent
from proxy.sandbox.rule_limits import Connections, Exceeded, budgets, cut_by, exceeded
from proxy.sandbox.tenant import UNNOTED
from proxy.telemetry.events import GONE
from proxy.telemetry.journal.writer import JournalFailed
from rules.decision import Decision
from rules.verdicts import Outcome, Reason, Scan, Trust, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.approvals.leases import Grant, Lease
    from proxy.dialing.connecting import Hop
    from proxy.event_loop.slices import Sliced
    from proxy.inspection.pending import Waiting
    from proxy.request.git_push import Push
    from proxy.request.request_head import Head
    from proxy.sandbox.rule_limits import Meter
    from proxy.supervisor_channel.channel import Whose
    from proxy.telemetry.journal.recorder import Recorder
    from rules.limits import Limits

LONG_HEAD = 4 << 10  # bytes: what is longer is looked through in slices
UNTOLD = ""  # the event of what no event was written for


class Session:
    """The requests of one client connection."""

    __slots__ = (
        "_advice", "_approval", "_connections", "_detail", "_exchanges", "_held", "_leaks", "_looks", "_seen",
        "_teller",
        "asked", "asked_about", "cause", "client_left", "cut", "ending", "held", "place", "recorder", "refused",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917 - what is known of a connection
        self,
        recorder: "Recorder",
        place: Place,
        cause: str,
        refused: Decision | None = None,
        detail: str = "",
        advice: str = "",
        whose: "Whose | None" = None,
        approval: str = "",
    ) -> None:
        """`detail`, `advice` and `approval` are for the pages of a connection that was `refused`.

        `whose` says who opened it.
        """
        self._approval = approval
        self.asked_about = Waitings(recorder, cause, whose)
        self.cut: Callable[[frozenset[str]], None] = lambda _: None  # ends requests (by their keys) in the middle
        self.recorder = recorder
        self.place = place
        self.cause = cause  # id of the connection's decision event
        self.refused = refused  # the connection was denied: its requests are told so, and nothing is decided again
        self._detail = detail
        self._advice = advice
        self.asked = 0  # requests so far
        self.ending: Reason | None = None  # why the connection didn't end by itself
        self.client_left = False  # its end, or its cut, was seen
        self._exchanges: dict[str, Exchange] = {}
        self._connections = Connections()  # whose limits count this one
        self.held = 0  # bytes of bodies that are kept until their requests are decided
        self._held: dict[str, Head] = {}
        self._looks: Looks | None = None
        self._leaks = Leaks(recorder)
        self._seen: dict[tuple[str, bool], Seen] = {}  # of heads that aren't decided yet, strictly or not
        self._teller = Teller(recorder, place, cause, whose)

    def rule(
        self,
        head: "Head",
        *,
        body: bool,
        push: "Push | None" = None,
        content: bytes | None = None,
        granted: frozenset[str] = frozenset(),
    ) -> Ruling:
        """Decide on a request that a body follows or doesn't; nothing is told yet. Again, when more is read."""
        self.asked += push is None and content is None
        if self.refused is not None:
            ruling = Ruling(self.refused, *shown(head), detail=self._detail, advice=self._advice)
            if where := misuse(self.recorder.tenant, self.place, head):  # worse than what refused the connection
                decision = denied(self.recorder.tenant, Reason.SECRET_MISUSE)
                ruling = replace(ruling, decision=decision, detail=where, advice="", misused=True)
            return ruling
        policy = self.recorder.tenant.policy
        if self._looks is None or self._looks.policy is not policy:
            self._looks = Looks.of(policy, self.place)
        return judge(
            self.recorder.tenant, self.place, head, self._looks, body=body, push=push, content=content, granted=granted
        )

    def may_trail(self, name: bytes) -> bool:
        """Whether a field may come after a body. None may where rules look at headers: they were decided on before."""
        return may_trail(name) and self._looks is not None and not self._looks.headers

    def hold(self, key: str, head: "Head") -> None:
        """Note a request that can't be decided before more of it is there."""
        self._held[key] = head

    def release(self, key: str) -> None:
        """Forget that it was held: it is decided now."""
        self._held.pop(key, None)

    def abandon(self, key: str) -> None:
        """Tell of a held request that more of never came."""
        self._seen.pop((key, False), None)
        self._seen.pop((key, True), None)
        if head := self._held.pop(key, None):
            self.admit("", head, unclear(self.recorder.tenant, head, Unclear("the request broke off")))

    def misread(self, head: "Head", problem: "Unclear") -> Page:
        """Refuse, and tell, what could not even be parsed; `head` holds what could be made out."""
        self.asked += 1
        if self.refused is not None:
            return self._page(Ruling(self.refused, *shown(head)), head, self.cause)
        page = self.admit("", head, unclear(self.recorder.tenant, head, problem))
        assert page is not None
        return page

    def admit(
        self, key: str, head: "Head", ruling: Ruling, via: str | None = None, address: str | None = None
    ) -> Page | None:
        """Record the decision and return the page that refuses it; None: the request may pass, under `key`.

        `via` is the proxy that it is to go through, `address` the one that is dialled first, where that is known.
        """
        if self.refused is not None:
            if ruling.misused:
                self._teller.tampered(self.cause, ruling.detail)
            return self._page(ruling, head, self.cause)
        ruling, looked = self._looked_at(ruling, head, key)
        self._seen.pop((key, False), None)
        self._seen.pop((key, True), None)
        ruling, lease = self._leased(ruling, key)
        ruling, meter = self._metered(ruling, head)
        if lease is not None and not ruling.decision.passes:
            lease.end()
        http = self._teller.http(ruling, head)
        try:
            cause = self._teller.decided(ruling, http, via, address)
        except JournalFailed:  # whatever was decided: what can't be told doesn't pass (invariant 6)
            if lease is not None:
                lease.end()
            decision = denied(self.recorder.tenant, Reason.JOURNAL_FAILED)
            return self._page(Ruling(decision, ruling.method, ruling.path), head, UNTOLD)
        if ruling.misused:
            self._teller.tampered(cause, ruling.detail)
        if looked.found:
            self._teller.leaked(cause, http, ruling.decision.rules, " and ".join(looked.found), blocked=looked.blocked)
        if not ruling.decision.passes or ruling.asked is None:
            return self._page(ruling, head, cause)
        rules = ruling.decision.rules
        exchange = Exchange(cause, http, meter, attempts_of(ruling), via, looked=looked, rules=rules)
        exchange.lease = lease
        self._exchanges[key] = exchange
        if ruling.decision.trust is Trust.TRUSTED or self._reads(ruling.decision, cause):
            return None
        exchange.by = denied(self.recorder.tenant, Reason.APPROVAL_UNAVAILABLE)
        self.complete(key, None, detail=UNNOTED)
        return self._page(replace(ruling, decision=exchange.by, detail=UNNOTED), head, cause)

    def _reads(self, decision: Decision, cause: str) -> bool:
        return self.recorder.tenant.reads(decision, self.place.target, self.place.port, cause)

    def _leased(self, ruling: Ruling, key: str) -> "tuple[Ruling, Lease | None]":
        """Have what passes under grants end with them; where one has ended already, deny."""
        tenant = self.recorder.tenant
        if not ruling.grants or not ruling.decision.passes or ruling.asked is None:
            return ruling, None
        lease = tenant.lease(ruling.grants, lambda grant: self._grant_over(key, grant))
        if lease is not None:
            return ruling, lease
        decision = ruling.decision
        by = denied(tenant, Reason.EXPIRED)._replace(rules=decision.rules, pattern=decision.pattern)
        return replace(ruling, decision=by, detail="its approval has ended meanwhile"), None

    def _grant_over(self, key: str, grant: "Grant") -> None:
        """End a request whose grant has ended. Called from the loop."""
        exchange = self._exchanges.get(key)
        if exchange is not None:
            exchange.by = denied(self.recorder.tenant, Reason.EXPIRED)._replace(rules=(grant.rule,))
            self.cut(frozenset({key}))

    def reviewing(self, leads_to: "Mapping[str, Hop]") -> "Sliced[frozenset[str]]":
        """Decide again on the requests under way; returns those that are to end. `leads_to`: where each was sent."""
        for key, exchange in list(self._exchanges.items()):
            yield from self._reviewing(exchange, leads_to.get(key))
        return frozenset(key for key, exchange in self._exchanges.items() if exchange.by is not None)

    def may_go(self, key: str, leads_to: "Hop | None") -> "Sliced[bool]":
        """Whether a request may be sent to where its connection leads: there may be other rules since it was let out.

        A review sees no address while there is only a dial, so then it is asked for here.
        """
        exchange = self._exchanges.get(key)
        if exchange is None:
            return False
        exchange.address = None if isinstance(leads_to, tuple) else leads_to  # a proxy's is its own to know
        tenant, by = self.recorder.tenant, None
        while exchange.reviewed and by != (now := (tenant.policy, tenant.calendar.today(), tenant.tainted)):
            by = now  # others may come into force between two slices
            yield from self._reviewing(exchange, leads_to)
        return exchange.by is None

    def revoke_all(self, decision: Decision) -> None:
        """Note that the connection may not go on, nor anything on it."""
        self.ending = decision.reason
        for exchange in self._exchanges.values():
            exchange.by = decision

    def _metered(self, ruling: Ruling, head: "Head") -> "tuple[Ruling, Meter | None]":
        """Count what is let out against its rules' limits; where one is used up, deny."""
        limits, left = ruling.decision.limits, budgets(ruling.grants)
        if not (limits or left) or not ruling.decision.passes or ruling.asked is None:
            return ruling, None
        found = self.recorder.tenant.meters.admit(limits, self._connections, head.size, left)
        if isinstance(found, Exceeded):
            return replace(ruling, decision=exceeded(ruling.decision, found), detail=str(found)), None
        return ruling, found

    def look_through(self, key: str, head: "Head") -> "Sliced[None]":
        """Look for secrets in a long head before it is decided on, in slices: `admit` has no time for that."""
        if head.size <= LONG_HEAD or too_costly(head) or self.refused is not None:
            return  # it is short, or will be refused
        for strict in {False, self.recorder.tenant.policy.needs.strict_scan and self._is_unnamed()}:
            if (key, strict) not in self._seen:
                self._seen[key, strict] = yield from self._leaks.looking(head, strict=strict)

    def _is_unnamed(self) -> bool:
        """Whether no rule and no secret names the host: nobody uses a credential there as a matter of course."""
        return not self.recorder.tenant.policy.needs.names_host(self.place.target)

    def _looked_at(self, ruling: Ruling, head: "Head", key: str) -> "tuple[Ruling, Looked]":
        """Look for secrets in the head of what is let out; where one has to stay, deny."""
        decision = ruling.decision
        if not decision.passes or ruling.asked is None:
            return ruling, NOT_LOOKED
        strict = decision.scan is Scan.STRICT and self._is_unnamed()
        looked = self._leaks.head(
            decision.scan, head, self.cause, strict=strict, seen=self._seen.pop((key, strict), None)
        )
        if looked.hides:
            method, path = shown_of(ruling.method, ruling.path, whole=looked.whole)
            ruling = replace(ruling, method=method, path=path)
        if not looked.blocked:
            return ruling, looked
        refused = denied(self.recorder.tenant, Reason.LEAK)._replace(rules=decision.rules, pattern=decision.pattern)
        return replace(ruling, decision=refused, detail=" and ".join(looked.found)), looked

    def outgoing(self, key: str, head: "Head", *, websocket: bool = False) -> "Outgoing | None":
        """Look at what follows the head of a request that was let out, its body or messages; None: nobody does."""
        exchange = self._exchanges.get(key)
        if exchange is None or exchange.looked.action is Scan.OFF:
            return None

        def tell(detail: str) -> None:
            self._teller.leaked(exchange.cause, exchange.http, exchange.rules, detail, blocked=False)

        body = self._leaks.body(exchange.looked, head, unnamed=self._is_unnamed(), websocket=websocket)
        exchange.outgoing = Outgoing(self._leaks, exchange.looked.action, body, exchange.cause, tell)
        return exchange.outgoing

    def leaking(self, key: str, head: "Head", detail: str) -> Page:
        """Tell that a request under way is about to bring out a secret; returns the page to end it with."""
        exchange = self._exchanges.get(key)
        rules = exchange.rules if exchange else ()
        decision = denied(self.recorder.tenant, Reason.LEAK)._replace(rules=rules)
        if exchange is not None:
            exchange.by = decision
            self._teller.leaked(exchange.cause, exchange.http, rules, detail, blocked=True)
        return self._page(Ruling(decision, *shown(head), detail=detail), head, exchange.cause if exchange else UNTOLD)

    def misused(self, key: str, head: "Head", detail: str) -> Page:
        """Tell that a request under way brings a placeholder where none belongs; returns the page to end it with."""
        decision = denied(self.recorder.tenant, Reason.SECRET_MISUSE)
        exchange = self._exchanges.get(key)
        if exchange is not None:
            exchange.by = decision
            self._teller.tampered(exchange.cause, detail)
        return self._page(Ruling(decision, *shown(head), detail=detail), head, exchange.cause if exchange else UNTOLD)

    def stray(self, key: str, detail: str) -> None:
        """Tell that what goes on under a request is not what was let out."""
        exchange = self._exchanges.get(key)
        if exchange is not None:
            exchange.by = denied(self.recorder.tenant, Reason.PROTOCOL_MISMATCH)._replace(rules=exchange.rules)
            self.complete(key, None, detail=detail)

    def _reviewing(self, exchange: Exchange, leads_to: "Hop | None") -> "Sliced[None]":
        exchange.reviewed = True
        now = yield from standing(self.recorder.tenant, exchange.attempts, leads_to)
        exchange.by = now.denial or exchange.by or self._count_anew(exchange, now.limits)
        if exchange.outgoing is not None:
            exchange.outgoing.tighten(now.scan)

    def _count_anew(self, exchange: Exchange, limits: "tuple[tuple[str, Limits], ...]") -> Decision | None:
        """Let a request go on under the limits of the rules that are in force now; or say why it may not."""
        found = self.recorder.tenant.meters.go_on(limits, self._connections, exchange.meter)
        if isinstance(found, Exceeded):
            return denied(self.recorder.tenant, Reason.LIMIT_EXCEEDED)._replace(rules=(found.rule,))
        exchange.meter = found
        return None

    def failure(self, head: "Head", reason: Reason, detail: str, advice: str = "") -> Page:
        """Return the page for a request that was let out and then let down."""
        decision = Decision(verdict=Verdict.ALLOW, outcome=Outcome.FAILED, reason=reason)
        return self._page(Ruling(decision, *shown(head), detail=detail, advice=advice), head, UNTOLD)

    def exchange(self, key: str) -> Exchange | None:
        """Return the open request with this key."""
        return self._exchanges.get(key)

    def complete(
        self,
        key: str,
        status: int | None,
        outcome: Outcome = Outcome.PASSED,
        reason: Reason | None = None,
        detail: str = "",
    ) -> None:
        """Tell how a request ended, and in words what went wrong; nothing for one that was refused or ended before.

        `status` None: that of the response which was passed on, if there was one.
        """
        exchange = self._exchanges.pop(key, None)
        if exchange is None:
            return
        if exchange.lease is not None:
            exchange.lease.end()
        if exchange.outgoing is not None:
            exchange.outgoing.finish()
        by = exchange.by
        if by is None and reason is Reason.LIMIT_EXCEEDED and exchange.meter is not None:
            now = Decision(revision=self.recorder.tenant.policy.revision)
            by = cut_by(now, exchange.meter.rule_over())
        if by is not None:
            outcome, reason = Outcome.BLOCKED, by.reason
        status = exchange.status if status is None else status
        self._teller.completed(exchange, status, outcome, reason, by, detail)

    def left(self, key: str) -> None:
        """Record the end of a request whose client has left; where the gate ends the connection, that is why."""
        exchange = self._exchanges.get(key)
        if exchange is None or exchange.by is not None or self.ending is not None:
            self.complete(key, None, Outcome.FAILED, self.ending)
        else:
            outcome, detail = exchange.left()
            self.complete(key, None, outcome, detail=detail)

    def end(self) -> None:
        """Tell the end of every request that is still open: their connection is gone."""
        for key in list(self._held):
            self.abandon(key)
        for waiting in self.asked_about.settle_all():
            self._give_up(waiting)
        self._connections.close()
        for key in list(self._exchanges):
            if self.client_left:
                self.left(key)
            else:
                self.complete(key, None, Outcome.FAILED, self.ending)

    def _give_up(self, waiting: "Waiting") -> None:
        """Tell of a request that people were asked about, and whose connection is gone."""
        detail = GONE if self.ending is None else ""
        reason = self.ending or Reason.APPROVAL_TIMEOUT
        ruling = unanswered(self.recorder.tenant, waiting.ruling, reason, detail)
        self.admit("", waiting.head, replace(ruling, approval=waiting.approval))

    def _page(self, ruling: Ruling, head: "Head", event: str) -> Page:
        attempt = f"{ruling.method} {self.place}{ruling.path}"
        refusal = Refusal(
            ruling.decision, attempt, event, ruling.detail, ruling.status, self.place.target, ruling.advice,
            ruling.approval or self._approval, self.recorder.tenant.desk,
        )  # fmt: skip
        return page(refusal, user_agent(head), grpc=grpc_kind(head))
