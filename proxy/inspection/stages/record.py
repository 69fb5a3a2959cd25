"""Records the events of a connection's requests, each field as detailed as rules want (`log: pattern`).

Whether something is recorded, and that it is recorded once, is the session's (invariant 6).
"""

import time
from typing import TYPE_CHECKING, Final

from proxy.dialing.connect_race import address_text
from proxy.request.request_head import named
from proxy.telemetry.events import Git, Http, Kind
from rules.values.names import HostName
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.inspection.stages.request_context import RequestContext, RequestDecision
    from proxy.request.messages import WebOrigin
    from proxy.request.request_head import Head
    from proxy.sandbox.recorder import Recorder
    from proxy.supervisor_channel.channel import Attribution
    from rules.decision import Decision
    from rules.verdicts import Outcome


# Reasons that stand for many causes, each with a remedy of its own
_SAID: Final = frozenset({Reason.PROTOCOL_MISMATCH, Reason.AMBIGUOUS_REQUEST, Reason.SECRET_NOT_SENT})


class RequestRecord:
    """Records the requests of one connection; each event has its origin and process."""

    __slots__ = ("_address", "_attribution", "_cause", "_name", "_origin", "_recorder")

    def __init__(
        self, recorder: "Recorder", origin: "WebOrigin", cause: str, attribution: "Attribution | None"
    ) -> None:
        """`cause` is the event of the connection."""
        self._recorder = recorder
        self._origin = origin
        self._cause = cause
        self._attribution = attribution
        target = origin.target
        self._name: str | None = target if isinstance(target, HostName) else None
        self._address = None if self._name else str(target)

    def http(self, request_decision: "RequestDecision", head: "Head") -> Http:
        """Return what events say of a request: the host that was asked for, which may not be this one.

        Of the path no more than the rules want told: `log: pattern`.
        """
        host = self._origin.authority if request_decision.resource else named(head)
        pattern = request_decision.decision.pattern
        path = request_decision.path if pattern is None else pattern
        said = Http(request_decision.method, host.decode("utf-8", "replace"), path, pattern=pattern is not None)
        request = None if request_decision.attempt is None else request_decision.attempt.request
        if request is None:
            return said
        query = len(request.path.partition("?")[2].encode("utf-8", "surrogateescape"))
        return said._replace(body=request.body, websocket=request.websocket, query=query)

    def decided(
        self, request_decision: "RequestDecision", http: Http, via: str | None, address: str | None = None
    ) -> str:
        """Record the decision and return the event's id. Raises JournalWriteError.

        `address`: the first that is dialled for a name, or the one that it is refused for.
        """
        return self._recorder.decided(
            Kind.REQUEST_DECIDED,
            request_decision.decision,
            name=self._name,
            address=address or self._address,
            port=self._origin.port,
            protocol=self._origin.protocol,
            http=http,
            git=_git(request_decision),
            process=None if self._attribution is None else self._attribution.process,
            cause=self._cause,
            via=via,
            detail=_detail(request_decision),
            approval=request_decision.approval,
        )

    def completed(  # noqa: PLR0917 - what is known of an end
        self,
        request: "RequestContext",
        status: int | None,
        outcome: "Outcome",
        reason: "Reason | None",
        by: "Decision | None",
        detail: str,
    ) -> None:
        """Record how a request ended. Never raises."""
        http = request.http
        self._recorder.completed(
            request.event,
            name=self._name,
            address=self._address if request.address is None else address_text(request.address),
            port=self._origin.port,
            protocol=self._origin.protocol,
            http=Http(http.method, http.host, http.path, status, pattern=http.pattern),
            up=request.up,
            down=request.down,
            seconds=time.monotonic() - request.started,
            outcome=outcome,
            reason=reason,
            by=by,
            via=request.via,
            detail=detail,
        )

    def record_secret(self, cause: str, http: Http, rules: tuple[str, ...], detail: str, *, blocked: bool) -> None:
        """Record a secret found in a request."""
        self._recorder.record_secret(
            cause, detail, rules=rules, blocked=blocked, name=self._name, address=self._address,
            port=self._origin.port, protocol=self._origin.protocol, http=http,
        )  # fmt: skip

    def record_tampering(self, cause: str, detail: str) -> None:
        """Record a misplaced placeholder."""
        self._recorder.record_tampering(cause, detail, name=self._name, address=self._address, port=self._origin.port)


def _git(request_decision: "RequestDecision") -> Git | None:
    """Return the git fields of an event; None where the event hides the path."""
    request = None if request_decision.attempt is None else request_decision.attempt.request
    if request is None or request.git is None or request_decision.resource is None:
        return None
    if (
        request_decision.decision.pattern is not None or request_decision.path != request_decision.resource.path
    ):  # `log: pattern`, or a secret is in it
        return None
    refs = () if request_decision.pushed is None else request_decision.pushed.commands
    return Git(request.git.service, request.git.repo, refs)


def _detail(request_decision: "RequestDecision") -> str:
    """Return the detail of an event; without a push's ref where the rules log only patterns."""
    if not (request_decision.undialled or request_decision.approval or request_decision.decision.reason in _SAID):
        return ""
    pushed = request_decision.pushed
    if pushed is None or request_decision.detail != pushed.detail:
        return request_decision.detail
    counts = pushed.attempts[0].request
    quiet = counts is None or counts.git is None or counts.git.ref in pushed.quiet
    return "" if quiet or _git(request_decision) is None else request_decision.detail
