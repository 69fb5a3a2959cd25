"""Block page: HTTP answer to a denied request or connection, with the reason and what to do next.

Pure: builds bytes, which other modules send. All text that a task wrote is escaped (invariant 7): as ASCII JSON without
HTML's special characters, or as printable ASCII text. A page has no information besides decision and attempt.
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from proxy.request.messages import ResponseHead
from rules.explain.reasons import NEEDED, REASONS, opened_otherwise, remedy_for
from rules.values.addresses import normalize
from rules.values.names import HOST, INFO_API, HostName
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from rules.decision import Decision
    from rules.values.addresses import Address

LONGEST = 500  # characters of a task's text that a page shows
TYPES = (
    "https://exeat.example/reasons/"  # identifies kinds of problem (RFC 9457 section 3.1.1); no server answers there
)

WHY: Final = f"http://{INFO_API}/why"  # where a task reads the list of its denials

_GIT_CONTENT_TYPE: Final = b"text/plain; charset=us-ascii"
FOR_GRPC: Final = b"application/grpc"
# gRPC's own codes (grpc.io/grpc/core/md_doc_statuscodes.html)
_PERMISSION_DENIED, _UNAVAILABLE = 7, 14
_GRPC_STATUS: Final = {
    HTTPStatus.BAD_REQUEST: 3,  # INVALID_ARGUMENT
    HTTPStatus.REQUEST_URI_TOO_LONG: 3,
    HTTPStatus.TOO_MANY_REQUESTS: 8,  # RESOURCE_EXHAUSTED
}

STATUS: Final = {
    Reason.AMBIGUOUS_REQUEST: HTTPStatus.BAD_REQUEST,
    Reason.URL_TOO_LONG: HTTPStatus.REQUEST_URI_TOO_LONG,
    Reason.LIMIT_EXCEEDED: HTTPStatus.TOO_MANY_REQUESTS,
    Reason.UNRESOLVED: HTTPStatus.BAD_GATEWAY,
    Reason.UPSTREAM_UNTRUSTED: HTTPStatus.BAD_GATEWAY,
    Reason.UPSTREAM_FAILED: HTTPStatus.BAD_GATEWAY,
    Reason.CLIENT_CERTIFICATE: HTTPStatus.BAD_GATEWAY,
    Reason.JOURNAL_FAILED: HTTPStatus.SERVICE_UNAVAILABLE,
    Reason.GATE_ERROR: HTTPStatus.SERVICE_UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A denied or failed attempt, as its task sees it.

    `attempt` is written as in a rule test: `GET https://host/path`, `tcp host:port`. `detail` adds the cause where the
    reason alone doesn't say it. `event` is the id of the decision event in the journal.
    """

    decision: "Decision"
    attempt: str
    event: str = ""
    detail: str = ""
    status: HTTPStatus | None = None  # None: the status of the reason
    target: "HostName | Address | None" = None  # requested host, if known
    advice: str = ""  # remedy, if the reason has none that fits
    approval: str = ""  # id of the approval request
    has_info_api: bool = True  # whether the task can use `exeat.internal`

    @property
    def is_listed(self) -> bool:
        """Whether `/why` lists it: the gate denied it, or it has an event."""
        return self.has_info_api and (self.decision.outcome is Outcome.BLOCKED or bool(self.event))

    @property
    def title(self) -> str:
        """What happened."""
        if self.decision.reason is Reason.NON_PUBLIC_ADDRESS and not isinstance(self.target, HostName | None):
            return "the address is not public"
        return REASONS[self.decision.reason].meaning

    @property
    def remedy(self) -> str:
        """What to do next."""
        if self.approval and self.decision.reason is Reason.APPROVAL_TIMEOUT:
            id_ = visible(self.approval)
            return f"it waits for approval {id_}: try the same again, which passes once that is given, or asks again"
        if self.advice:
            return self.advice
        if self.decision.reason is Reason.NON_PUBLIC_ADDRESS and self.target is not None:
            return _rule_remedy(self.target)
        return remedy_for(self.decision.reason, visible(self.event))


def _rule_remedy(target: "HostName | Address") -> str:
    """Describe the rule that would allow a non-public target."""
    if target == HOST:
        return f"`{HOST}` needs {NEEDED}"
    if otherwise := opened_otherwise(target):
        return otherwise
    if isinstance(target, HostName) or (target.version == 6 and target.scope_id is not None):
        return REASONS[Reason.NON_PUBLIC_ADDRESS].remedy
    return f"add a rule `to: {normalize(target)}`, if it is meant"


@dataclass(frozen=True, slots=True)
class Page:
    """A block page as an HTTP response."""

    status: int
    phrase: str  # for HTTP/1: some clients show only this (pip, wget)
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def http1(self, *, body: bool = True) -> bytes:
        """Return the response as HTTP/1.1, which ends its connection; `body` is False for HEAD."""
        head = b"".join(b"%s: %s\r\n" % field for field in self.headers)
        line = f"HTTP/1.1 {self.status} {self.phrase}\r\n".encode()
        return line + head + b"Connection: close\r\n\r\n" + (self.body if body else b"")


def page_head(page: "Page", *, last: bool = False) -> ResponseHead:
    """Return the head of a page. `last`: the connection closes after it."""
    fields = page.headers
    if last:
        fields = (*(field for field in fields if field[0].lower() != b"connection"), (b"Connection", b"close"))
    return ResponseHead(b"HTTP/1.1", page.status, page.phrase.encode("ascii"), fields)


def page(refusal: Refusal, user_agent: str = "", *, grpc: bytes = b"") -> Page:
    """Return the page for a client with this `user_agent`, or the response of type `grpc` to a gRPC call.

    git shows a body only if it is text/plain (`remote: ...`), so git gets text, and all others JSON.
    """
    decision = refusal.decision
    status = refusal.status or STATUS.get(decision.reason, HTTPStatus.FORBIDDEN)
    if grpc:
        return _grpc_page(refusal, status, grpc)
    text = user_agent.startswith("git/")
    body = _git_text(refusal) if text else _problem_document(refusal, status)
    return Page(
        status=status,
        phrase=f"{'Blocked' if status < HTTPStatus.INTERNAL_SERVER_ERROR else 'Failed'} by Exeat: {decision.reason}",
        headers=(
            (b"Content-Type", _GIT_CONTENT_TYPE if text else b"application/problem+json"),
            (b"Content-Length", b"%d" % len(body)),
            (b"Cache-Control", b"no-store"),
            (b"X-Exeat-Decision", _decision_header(refusal)),
        ),
        body=body,
    )


def _grpc_page(refusal: Refusal, status: HTTPStatus, kind: bytes) -> Page:
    """Return a denial as a gRPC status: a response of trailers only (gRPC over HTTP/2, "Responses").

    gRPC-Web has the status in header fields too; over HTTP/1 the connection then ends.
    """
    failed = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    code = _UNAVAILABLE if failed else _GRPC_STATUS.get(status, _PERMISSION_DENIED)
    lines = _sentences(refusal)
    return Page(
        status=HTTPStatus.OK,
        phrase="OK",
        headers=(
            (b"Content-Type", kind),
            *(() if kind == FOR_GRPC else ((b"Content-Length", b"0"),)),
            (b"Grpc-Status", b"%d" % code),
            (b"Grpc-Message", ("exeat: " + "; ".join(lines)).replace("%", "%25").encode("ascii")),
            (b"Cache-Control", b"no-store"),
            (b"X-Exeat-Decision", _decision_header(refusal)),
        ),
        body=b"",
    )


def is_for_git(refusal: Page) -> bool:
    """Whether a page was made for git."""
    return (b"Content-Type", _GIT_CONTENT_TYPE) in refusal.headers


def visible(text: str) -> str:
    """Return `text` in printable ASCII, escaped as Python does and cut at LONGEST characters."""
    cut = text[:LONGEST]
    shown = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in cut)
    return shown + ("..." if len(text) > LONGEST else "")


def _decision_header(refusal: Refusal) -> bytes:
    """Return the decision as a structured field: an item with parameters (RFC 9651 section 3.3)."""
    decision = refusal.decision
    value = f"{decision.verdict};reason={decision.reason}"
    if decision.rules:
        value += f";rule={_quote(decision.rules[0])}"
    if refusal.event:
        value += f";event={_quote(refusal.event)}"
    if refusal.approval:
        value += f";approval={_quote(refusal.approval)}"
    return value.encode("ascii")


def _quote(text: str) -> str:
    escaped = visible(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _problem_document(refusal: Refusal, status: int) -> bytes:
    """Return a problem document (RFC 9457 section 3.1) with members of our own (section 3.2)."""
    decision = refusal.decision
    what, remedy = refusal.title, refusal.remedy
    value: dict[str, object] = {
        "type": TYPES + decision.reason,
        "title": what,
        "status": status,
        "detail": visible(refusal.detail) or f"{what}: `{visible(refusal.attempt)}`",
        "attempt": visible(refusal.attempt),
        "verdict": decision.verdict,
        "reason": decision.reason,
        "rules": [visible(rule) for rule in decision.rules],
        "remedy": remedy,
    }
    if decision.why:
        value["why"] = visible(decision.why)
    if decision.nearest:
        nearest = decision.nearest
        value["nearest"] = {
            "rule": visible(nearest.rule),
            "field": visible(nearest.field),
            "wanted": visible(nearest.wanted),
            "got": visible(nearest.got),
        }
    if refusal.event:
        value["event"] = visible(refusal.event)
    if refusal.approval:
        value["approval"] = visible(refusal.approval)
        value["ask"] = where_to_ask(refusal.approval)
    if refusal.is_listed:
        value["more"] = WHY
    # ASCII already; escape three more characters for clients that display JSON as HTML
    text = json.dumps(value, indent=2).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return text.encode("ascii") + b"\n"


def _git_text(refusal: Refusal) -> bytes:
    more = [f"more about it: GET {WHY}"] if refusal.is_listed else []
    return "".join(f"exeat: {line}\n" for line in (*_sentences(refusal), *more)).encode("ascii")


def _sentences(refusal: Refusal) -> list[str]:
    """Return what happened, the rule, and what to do next, one sentence each."""
    decision = refusal.decision
    what, remedy = refusal.title, refusal.remedy
    lines = [f"{what}: {visible(refusal.attempt)}"]
    if refusal.detail:
        lines.append(visible(refusal.detail))
    lines.append(f"verdict {decision.verdict}, reason {decision.reason}" + _rule_and_reason(decision))
    if decision.nearest:
        nearest = decision.nearest
        lines.append(
            f"nearest rule {visible(nearest.rule)}: its {visible(nearest.field)} wants {visible(nearest.wanted)}, "
            f"this was {visible(nearest.got)}"
        )
    lines.append(remedy)
    if refusal.approval:
        lines.append(f"what became of it: GET {where_to_ask(refusal.approval)}")
    return lines


def where_to_ask(approval: str) -> str:
    """Return the URL where a task reads the state of an approval."""
    return f"http://{INFO_API}/requests/{visible(approval)}"


def _rule_and_reason(decision: "Decision") -> str:
    rule = f", rule {visible(decision.rules[0])}" if decision.rules else ""
    return rule + (f" ({visible(decision.why)})" if decision.why else "")
