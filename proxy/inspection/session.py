"""One client connection as its requests see it: where it leads, who speaks, and what is told of each request.

Home of invariant 6 for requests: `admit` tells exactly one decision before anything passes, and `complete` tells once
how it ended. Nothing here touches a socket or mitmproxy.
"""

import time
from typing import TYPE_CHECKING

from proxy.inspection.heads import named, user_agent
from proxy.inspection.judging import Place, Ruling, denied, judge, shown, unclear
from proxy.refusal import Page, Refusal, page
from proxy.telemetry.events import Http, Kind
from proxy.telemetry.journal import JournalFailed
from rules.decision import Decision
from rules.names import HostName
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from proxy.inspection.heads import Head, Unclear
    from proxy.telemetry.recorder import Recorder

UNTOLD = ""  # the event of what no event was written for


class Exchange:
    """One request that was let out, until its answer is through."""

    __slots__ = ("cause", "down", "http", "started", "up")

    def __init__(self, cause: str, http: Http) -> None:
        self.cause = cause
        self.http = http
        self.started = time.monotonic()
        self.up = self.down = 0  # bytes of body

    def sent(self, data: bytes) -> bytes:
        """Count a piece of the request's body on its way."""
        self.up += len(data)
        return data

    def received(self, data: bytes) -> bytes:
        """Count a piece of the response's body on its way."""
        self.down += len(data)
        return data


class Session:
    """The requests of one client connection."""

    __slots__ = ("_exchanges", "asked", "cause", "ending", "place", "recorder", "refused")

    def __init__(self, recorder: "Recorder", place: Place, cause: str, refused: Decision | None = None) -> None:
        self.recorder = recorder
        self.place = place
        self.cause = cause  # id of the connection's decision event
        self.refused = refused  # the connection was denied: its requests are told so, and nothing is decided again
        self.asked = 0  # requests so far
        self.ending: Reason | None = None  # why the connection didn't end by itself
        self._exchanges: dict[str, Exchange] = {}

    def rule(self, head: "Head") -> Ruling:
        """Decide on a request; nothing is told yet."""
        self.asked += 1
        if self.refused is not None:
            return Ruling(self.refused, *shown(head))
        return judge(self.recorder.tenant, self.place, head)

    def misread(self, head: "Head", problem: "Unclear") -> Page:
        """Refuse, and tell, what could not even be parsed; `head` holds what could be made out."""
        self.asked += 1
        if self.refused is not None:
            return self._page(Ruling(self.refused, *shown(head)), head, self.cause)
        page = self.admit("", head, unclear(self.recorder.tenant, head, problem))
        assert page is not None
        return page

    def admit(self, key: str, head: "Head", ruling: Ruling) -> Page | None:
        """Tell what was decided and return the page that refuses it; None: the request may pass, under `key`."""
        if self.refused is not None:
            return self._page(ruling, head, self.cause)
        http = self._http(ruling, head)
        try:
            cause = self._tell(ruling.decision, http)
        except JournalFailed:  # whatever was decided: what can't be told doesn't pass (invariant 6)
            decision = denied(self.recorder.tenant, Reason.JOURNAL_FAILED)
            return self._page(Ruling(decision, ruling.method, ruling.path), head, UNTOLD)
        if not ruling.decision.passes or ruling.asked is None:
            return self._page(ruling, head, cause)
        self._exchanges[key] = Exchange(cause, http)
        return None

    def failure(self, head: "Head", reason: Reason, detail: str) -> Page:
        """Return the page for a request that was let out and then let down."""
        decision = Decision(verdict=Verdict.ALLOW, outcome=Outcome.FAILED, reason=reason)
        return self._page(Ruling(decision, *shown(head), detail=detail), head, UNTOLD)

    def exchange(self, key: str) -> Exchange | None:
        """Return the open request with this key."""
        return self._exchanges.get(key)

    def complete(
        self, key: str, status: int | None, outcome: Outcome = Outcome.PASSED, reason: Reason | None = None
    ) -> None:
        """Tell how a request ended; nothing for one that was refused or has ended before."""
        exchange = self._exchanges.pop(key, None)
        if exchange is None:
            return
        name, address = self._name_and_address()
        self.recorder.completed(
            exchange.cause,
            name=name,
            address=address,
            port=self.place.port,
            protocol=self.place.protocol,
            http=Http(exchange.http.method, exchange.http.host, exchange.http.path, status),
            up=exchange.up,
            down=exchange.down,
            seconds=time.monotonic() - exchange.started,
            outcome=outcome,
            reason=reason,
        )

    def end(self) -> None:
        """Tell the end of every request that is still open: their connection is gone."""
        for key in list(self._exchanges):
            self.complete(key, None, Outcome.FAILED, self.ending)

    def _tell(self, decision: Decision, http: Http) -> str:
        name, address = self._name_and_address()
        return self.recorder.decided(
            Kind.REQUEST_DECIDED,
            decision,
            name=name,
            address=address,
            port=self.place.port,
            protocol=self.place.protocol,
            http=http,
            cause=self.cause,
        )

    def _name_and_address(self) -> tuple[str | None, str | None]:
        target = self.place.target
        return (target, None) if isinstance(target, HostName) else (None, str(target))

    def _http(self, ruling: Ruling, head: "Head") -> Http:
        """Return what the event says: the host that was asked for, which may not be this one."""
        host = self.place.authority if ruling.asked else named(head)
        return Http(ruling.method, host.decode("utf-8", "replace"), ruling.path)

    def _page(self, ruling: Ruling, head: "Head", event: str) -> Page:
        attempt = f"{ruling.method} {self.place}{ruling.path}"
        refusal = Refusal(ruling.decision, attempt, event=event, detail=ruling.detail, status=ruling.status)
        return page(refusal, user_agent(head))
