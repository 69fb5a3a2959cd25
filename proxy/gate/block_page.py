"""Block page: HTTP answer to a denied request or connection, with the reason and what to do next.

Pure: it makes bytes, others send them. Everything a task wrote comes back escaped (invariant 7): as JSON in ASCII
without a character that HTML knows, or as printable ASCII text. Nothing here says more than decision and attempt do.
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from proxy.request.messages import ResponseHead
from rules.addresses import normalize
from rules.explain.reasons import NEEDED, REASONS, opened_otherwise, remedy_for
from rules.names import HOST, INFO_API, HostName
from rules.verdicts import Outcome, Reason

if TYPE_CHECKING:
    from rules.addresses import Address
    from rules.decision import Decision

LONGEST = 500  # characters of what a task wrote that are worth showing
TYPES = "https://exeat.example/reasons/"  # names the kinds of problem (RFC 9457 section 3.1.1); nothing is served there

WHY: Final = f"http://{INFO_API}/why"  # where a task asks about its refusals

_FOR_GIT: Final = b"text/plain; charset=us-ascii"
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
    status: HTTPStatus | None = None  # None: what the reason stands for
    target: "HostName | Address | None" = None  # that was asked for, where it is known
    advice: str = ""  # what can be done, where that is not what the reason has
    approval: str = ""  # the id of what people were asked about it
    has_info_api: bool = True  # whether the task can ask about it at `exeat.internal`

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
            return _opened_by(self.target)
        return remedy_for(self.decision.reason, visible(self.event))


def _opened_by(target: "HostName | Address") -> str:
    """Say which rule would allow a target that is not public."""
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
    phrase: str  # for HTTP/1: all that some clients show (pip, wget)
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
    """Return the page for a client that calls itself `user_agent`, or that makes a call of gRPC, answered as `grpc`.

    git shows its user a body only when it is text/plain (`remote: ...`), so git gets text, and everybody else JSON.
    """
    decision = refusal.decision
    status = refusal.status or STATUS.get(decision.reason, HTTPStatus.FORBIDDEN)
    if grpc:
        return _call(refusal, status, grpc)
    text = user_agent.startswith("git/")
    body = _text(refusal) if text else _problem(refusal, status)
    return Page(
        status=status,
        phrase=f"{'Blocked' if status < HTTPStatus.INTERNAL_SERVER_ERROR else 'Failed'} by Exeat: {decision.reason}",
        headers=(
            (b"Content-Type", _FOR_GIT if text else b"application/problem+json"),
            (b"Content-Length", b"%d" % len(body)),
            (b"Cache-Control", b"no-store"),
            (b"X-Exeat-Decision", _header(refusal)),
        ),
        body=body,
    )


def _call(refusal: Refusal, status: HTTPStatus, kind: bytes) -> Page:
    """Return a denial as a gRPC status: a response of trailers only (gRPC over HTTP/2, "Responses").

    gRPC-Web has the status in the head's fields, too; over HTTP/1 the connection's end follows.
    """
    failed = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    code = _UNAVAILABLE if failed else _GRPC_STATUS.get(status, _PERMISSION_DENIED)
    lines = _lines(refusal)
    return Page(
        status=HTTPStatus.OK,
        phrase="OK",
        headers=(
            (b"Content-Type", kind),
            *(() if kind == FOR_GRPC else ((b"Content-Length", b"0"),)),
            (b"Grpc-Status", b"%d" % code),
            (b"Grpc-Message", ("exeat: " + "; ".join(lines)).replace("%", "%25").encode("ascii")),
            (b"Cache-Control", b"no-store"),
            (b"X-Exeat-Decision", _header(refusal)),
        ),
        body=b"",
    )


def is_for_git(refusal: Page) -> bool:
    """Whether a page was made for git."""
    return (b"Content-Type", _FOR_GIT) in refusal.headers


def visible(text: str) -> str:
    """Return `text` in printable ASCII, escaped as Python does and cut at LONGEST characters."""
    cut = text[:LONGEST]
    shown = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in cut)
    return shown + ("..." if len(text) > LONGEST else "")


def _header(refusal: Refusal) -> bytes:
    """Return the decision as a structured field: an item with parameters (RFC 9651 section 3.3)."""
    decision = refusal.decision
    value = f"{decision.verdict};reason={decision.reason}"
    if decision.rules:
        value += f";rule={_quoted(decision.rules[0])}"
    if refusal.event:
        value += f";event={_quoted(refusal.event)}"
    if refusal.approval:
        value += f";approval={_quoted(refusal.approval)}"
    return value.encode("ascii")


def _quoted(text: str) -> str:
    escaped = visible(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _problem(refusal: Refusal, status: int) -> bytes:
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
        near = decision.nearest
        value["nearest"] = {
            "rule": visible(near.rule),
            "field": visible(near.field),
            "wanted": visible(near.wanted),
            "got": visible(near.got),
        }
    if refusal.event:
        value["event"] = visible(refusal.event)
    if refusal.approval:
        value["approval"] = visible(refusal.approval)
        value["ask"] = where_to_ask(refusal.approval)
    if refusal.is_listed:
        value["more"] = WHY
    # ASCII already; these three are only dangerous to a reader that takes JSON for HTML
    text = json.dumps(value, indent=2).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return text.encode("ascii") + b"\n"


def _text(refusal: Refusal) -> bytes:
    more = [f"more about it: GET {WHY}"] if refusal.is_listed else []
    return "".join(f"exeat: {line}\n" for line in (*_lines(refusal), *more)).encode("ascii")


def _lines(refusal: Refusal) -> list[str]:
    """Return what happened, by which rule, and what to do next, one sentence each."""
    decision = refusal.decision
    what, remedy = refusal.title, refusal.remedy
    lines = [f"{what}: {visible(refusal.attempt)}"]
    if refusal.detail:
        lines.append(visible(refusal.detail))
    lines.append(f"verdict {decision.verdict}, reason {decision.reason}" + _by(decision))
    if decision.nearest:
        near = decision.nearest
        lines.append(
            f"nearest rule {visible(near.rule)}: its {visible(near.field)} wants {visible(near.wanted)}, "
            f"this was {visible(near.got)}"
        )
    lines.append(remedy)
    if refusal.approval:
        lines.append(f"what became of it: GET {where_to_ask(refusal.approval)}")
    return lines


def where_to_ask(approval: str) -> str:
    """Return the URL where a task reads the state of an approval."""
    return f"http://{INFO_API}/requests/{visible(approval)}"


def _by(decision: "Decision") -> str:
    rule = f", rule {visible(decision.rules[0])}" if decision.rules else ""
    return rule + (f" ({visible(decision.why)})" if decision.why else "")
