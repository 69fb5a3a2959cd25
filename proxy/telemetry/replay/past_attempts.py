"""Rebuilds attempts from their events, to decide them again by other rules.

An event lacks some input of the rules: it never has a query, a body or headers, and of a name's addresses only the one
that was dialled. An attempt that can't be rebuilt gets a reason; nothing is guessed or skipped. A journal may contain
any text that a sandbox made up: names and addresses pass the same parsers as in the gate.
"""

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.telemetry.events import DECISIONS, Kind
from proxy.telemetry.masking import MASK
from rules.attempt import Attempt, GitRequest, GitService, Protocol, RefChange, Request
from rules.rule import strip_git_suffix
from rules.values.addresses import parse_address
from rules.values.names import HostName, InvalidNameError
from rules.verdicts import Outcome, Reason, Verdict

if TYPE_CHECKING:
    from datetime import date

    from proxy.telemetry.events import Event, Http
    from proxy.telemetry.events import Git as SaidGit
    from rules.values.addresses import Address

# Decided before the rules: other rules don't change the decision.
BEFORE_RULES: Final = frozenset({
    Reason.INVALID_NAME, Reason.NAME_MISMATCH, Reason.SNI_MISSING, Reason.AMBIGUOUS_PATH, Reason.AMBIGUOUS_REQUEST,
    Reason.QUIC, Reason.ICMP, Reason.UNRESOLVED,
})  # fmt: skip
# The rules required an approval, whatever the answer was.
_ASKED: Final = frozenset({
    Reason.APPROVAL_UNAVAILABLE, Reason.APPROVAL_GRANTED, Reason.APPROVAL_DENIED, Reason.APPROVAL_TIMEOUT,
    Reason.APPROVAL_FLOOD,
})  # fmt: skip
# The event has all that the rules used: method, path, name and port.
_BY_RULES: Final = frozenset({
    *_ASKED, Reason.RULE, Reason.NO_RULE, Reason.DEFAULT_RULE, Reason.LAYER, Reason.EXPIRED, Reason.DNS_DENIED,
    Reason.DNS_TYPE, Reason.PROTOCOL_MISMATCH, Reason.ECH, Reason.NON_PUBLIC_ADDRESS,
    Reason.ADDRESS_NOT_LISTED, Reason.UDP,
})  # fmt: skip
_BY_WHAT_IS_RECORDED: Final = frozenset({Reason.BODY_NOT_ALLOWED, Reason.URL_TOO_LONG})  # where `http.body` is
_FOR_ITS_ADDRESS: Final = frozenset({Reason.NON_PUBLIC_ADDRESS, Reason.ADDRESS_NOT_LISTED})
RESOLVED_TYPES: Final = frozenset({"A", "AAAA", "HTTPS", "SVCB"})  # answered for any allowed name
_REVERSE: Final = (".in-addr.arpa", ".ip6.arpa")  # resolver.py: independent of the rules
_CUT_NOTE: Final = re.compile(r"\[\d+ more\]$")  # masking.cut
_METHODS_WITHOUT_BODY: Final = frozenset({"GET", "HEAD"})
_LONGEST_QUERY: Final = 1 << 16  # bytes
_WITH_SECOND_PATHS: Final = frozenset({"COPY", "MOVE"})  # inspection/decide_request.py
UNRECORDED_KIND: Final = "whether a request had a body or was a WebSocket, which this journal doesn't record"
UNRECORDED_REFS: Final = "the refs of a push, which the journal doesn't record"


class RuleOutcome(StrEnum):
    """Outcome of an attempt under the rules, before the network."""

    BLOCKED = "blocked"
    ASKED = "asked"
    AUDITED = "audited"
    FLAGGED = "flagged"
    ALLOWED = "allowed"

    @property
    def passes(self) -> bool:
        """Whether the attempt was allowed."""
        return self not in {RuleOutcome.BLOCKED, RuleOutcome.ASKED}


class PastAttempt(NamedTuple):
    """Attempt rebuilt from its event. Exactly one of `attempt`, `lookup` and `problem` is set."""

    event: "Event"
    fate: RuleOutcome
    attempt: Attempt | None = None
    lookup: HostName | None = None
    address: "Address | None" = None  # the dialled address of a name
    pushed: tuple[GitRequest, ...] = ()  # one for each ref of a push; the first is that of `attempt`
    unrecorded: tuple[str, ...] = ()  # parts of the request that the event lacks
    problem: str = ""  # why the attempt can't be decided again
    fixed: bool = False  # because no rule decides it


def rebuild_attempt(event: "Event", at: "date | None") -> PastAttempt | None:
    """Rebuild the attempt of an event, as if on the day `at`; None: not an attempt."""
    if event.kind not in DECISIONS:
        return None
    fate = outcome_under_rules(event.outcome, event.verdict, event.reason)
    reason = event.reason
    is_allowed = fate.passes or event.outcome is Outcome.FAILED
    if not is_allowed and reason in BEFORE_RULES:
        return PastAttempt(event, fate, problem=f"decided before any rule is asked ({reason})", fixed=True)
    is_recorded = event.http is not None and event.http.body is not None and reason in _BY_WHAT_IS_RECORDED
    if not is_allowed and not is_recorded and reason not in _BY_RULES:
        return PastAttempt(event, fate, problem=f"blocked for what the journal doesn't record ({reason})")
    return _rebuild_lookup(event, fate) if event.kind is Kind.DNS_DECIDED else _rebuild_attempt(event, fate, at)


def outcome_under_rules(outcome: Outcome | None, verdict: Verdict | None, reason: Reason | None) -> RuleOutcome:
    """Return the outcome under the rules; unknown values count as blocked."""
    if outcome is Outcome.WOULD_BLOCK:
        return RuleOutcome.AUDITED
    if verdict is Verdict.ASK or reason in _ASKED:
        return RuleOutcome.ASKED
    if outcome in {Outcome.PASSED, Outcome.FAILED}:
        return RuleOutcome.FLAGGED if verdict is Verdict.FLAG else RuleOutcome.ALLOWED
    return RuleOutcome.BLOCKED


def _rebuild_lookup(event: "Event", fate: RuleOutcome) -> PastAttempt:
    try:
        if event.dns is None:
            return PastAttempt(event, fate, problem="its question is missing")
        if event.dns.question.lower().rstrip(".").endswith(_REVERSE):
            return PastAttempt(event, fate, problem="a lookup of an address's name", fixed=True)
        return PastAttempt(event, fate, lookup=HostName.parse(event.dns.question))
    except InvalidNameError:
        return PastAttempt(event, fate, problem="its name can't be read")


def _rebuild_attempt(event: "Event", fate: RuleOutcome, at: "date | None") -> PastAttempt:  # noqa: PLR0911  a list of what may be missing
    destination, task = event.destination, event.task
    if destination is None or destination.port is None or event.protocol is None:
        return PastAttempt(event, fate, problem="its destination or protocol is missing")
    address = None if destination.address is None else parse_address(destination.address)
    target: HostName | Address | None = address
    if destination.name is not None:
        try:
            target = HostName.parse(destination.name)
        except InvalidNameError:
            return PastAttempt(event, fate, problem="its name can't be read")
        if event.reason in _FOR_ITS_ADDRESS and address is None and not fate.passes:
            return PastAttempt(
                event, fate, problem=f"refused for an address that the journal doesn't record ({event.reason})"
            )
    if target is None:
        return PastAttempt(event, fate, problem="its destination can't be read")
    request: Request | None = None
    pushed: tuple[GitRequest, ...] = ()
    unrecorded: tuple[str, ...] = ()
    if event.kind is Kind.REQUEST_DECIDED:
        http = event.http
        if http is None or not http.method or not http.path:
            return PastAttempt(event, fate, problem="its method or path is missing")
        if problem := _explain_incomplete(http):
            return PastAttempt(event, fate, problem=problem)
        try:
            pushed = () if event.git is None else _rebuild_git(event.git)
        except ValueError:
            return PastAttempt(event, fate, problem="what git asked for can't be read")
        request = _rebuild_request(http, pushed[0] if pushed else None)
        unrecorded = _find_unrecorded(http, event.git)
    # Of UDP that was refused the address is the one that stands for the name in the sandbox
    dialled = address if isinstance(target, HostName) and (event.protocol is not Protocol.UDP or fate.passes) else None
    attempt = Attempt(event.protocol, target, destination.port, request, task.name, task.labels, at)
    return PastAttempt(event, fate, attempt=attempt, address=dialled, pushed=pushed, unrecorded=unrecorded)


def _rebuild_request(http: "Http", git: GitRequest | None) -> Request:
    """Rebuild a request, with a placeholder query of the recorded length."""
    assert http.method is not None
    assert http.path is not None
    query = f"?{'x' * min(http.query, _LONGEST_QUERY)}" if http.query > 0 else ""
    return Request(http.method, http.path + query, body=bool(http.body), websocket=http.websocket, git=git)


def _rebuild_git(recorded: "SaidGit") -> tuple[GitRequest, ...]:
    """Rebuild the git operations: one for a fetch or the start of a push, else one a ref. Raises ValueError."""
    texts = (recorded.repository, *recorded.refs)
    if any(MASK in text for text in texts):
        raise ValueError("a secret was in it, which the journal doesn't record")
    for text in texts:
        text.encode("utf-8", "surrogateescape")  # raises for text that no gate wrote
    service, repo = GitService(recorded.service), strip_git_suffix(recorded.repository.removeprefix("/"))
    if service is GitService.FETCH or not recorded.refs:
        return (GitRequest(service, repo),)
    refs = [each.split(" ") for each in recorded.refs if not _CUT_NOTE.search(each)]
    if not all(len(each) >= 2 for each in refs):
        raise ValueError("a ref needs a change and a name")
    return tuple(GitRequest(service, repo, each[1], RefChange(each[0])) for each in refs) or (
        GitRequest(service, repo),
    )


def _find_unrecorded(http: "Http", git: "SaidGit | None") -> tuple[str, ...]:
    """Return the parts of a request that rules may inspect and the event lacks."""
    unrecorded = []
    if http.body is None and http.method in _METHODS_WITHOUT_BODY:
        unrecorded.append(UNRECORDED_KIND)
    if http.method in _WITH_SECOND_PATHS:
        unrecorded.append("the `Destination` of a request, which the journal doesn't record")
    path = "" if http.path is None else http.path
    if http.method == "POST" and path.endswith("/git-receive-pack") and git is None:
        unrecorded.append(UNRECORDED_REFS)
    if git is not None and any(map(_CUT_NOTE.search, git.refs)):
        unrecorded.append(UNRECORDED_REFS)
    return tuple(unrecorded)


def _explain_incomplete(http: "Http") -> str:
    """Return why a request can't be rebuilt from method and path; empty if it can."""
    method, path = http.method or "", http.path or ""
    if http.pattern or (http.body is None and "*" in path.replace(MASK, "")):
        return "its path is not told (`log: pattern`)"
    if _CUT_NOTE.search(path) or _CUT_NOTE.search(method):
        return "its path is longer than what the journal keeps"
    if MASK in path or MASK in method:
        return "a secret was in its path, which the journal doesn't record"
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that is no escaped byte: no gate wrote it
        return "its path can't be read"
    return ""
