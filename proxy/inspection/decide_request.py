"""Decides on one request: parses its head, checks it against the connection's host, and asks the policy.

Pure. The host comes from the gate, never from the request, which may only repeat it (invariant 3). The checks that come
before the rules also apply under audit mode. A WebDAV request that names a second path (RFC 4918 section 10.3) is
decided by both paths.

When the rules or the date change, `decide_request_again` decides on a request under way: its head, the refs of a push,
and the address that it was sent to. The checks that come before the rules are not repeated.
"""

import re
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from proxy.approvals.approval_request import explain_unapprovable
from proxy.dialing.connect_race import address_text
from proxy.inspection.stages.git import decide_push, deny_all, git_request, strictest
from proxy.inspection.stages.request_context import RequestDecision, ReviewResult
from proxy.request import request_head
from proxy.request.messages import WebOrigin
from proxy.request.request_head import UnclearError, read_authority, values
from proxy.request.websocket_frames import is_handshake
from rules.attempt import NO_CREDENTIAL, Attempt, GitRequest, GitService, Request
from rules.decision import Decision, deny
from rules.matching.judge import defer_approval
from rules.verdicts import Mode, Outcome, Reason, Scan, Trust, Verdict

if TYPE_CHECKING:
    from proxy.dialing.address_check import DialError
    from proxy.dialing.connect_race import Hop
    from proxy.event_loop.turn import Sliced
    from proxy.inspection.stages.git import PushDecision
    from proxy.request.git_push import Push
    from proxy.request.request_head import Head, RequestedResource
    from proxy.sandbox.sandbox_state import SandboxState
    from proxy.secrets.injection import CarriedSecrets, SecretInjector
    from rules.decision import Limits
    from rules.matching.policy import Policy


_METHODS: Final = frozenset({"COPY", "MOVE"})
# Simple-ref: an absolute URI, or a path (RFC 4918 section 8.3), in which `//` would begin a host
_DESTINATION: Final = re.compile(r"(?:(https?)://([^/?#]+))?(/(?!/)[!-\"$-~]*)", re.IGNORECASE)
_PORTS: Final = {"https": 443, "http": 80}


def second_path(head: "Head", resource: "RequestedResource", origin: "WebOrigin") -> str | None:
    """Return the second path that a COPY or MOVE request names (RFC 4918); None: none. Raises UnclearError."""
    if resource.method not in _METHODS:
        return None
    named = values(head, b"destination")
    if not named:
        return None
    match = _DESTINATION.fullmatch(named[0])
    if match is None or len(named) > 1:
        raise UnclearError("its `Destination` is not one path of this host, or one URL")
    scheme, authority, path = match.groups()
    if scheme is not None:
        host = read_authority(authority.encode(), _PORTS[scheme.lower()])
        if host != (origin.target, origin.port) or (scheme.lower() == "https") is not origin.tls:
            raise UnclearError("its `Destination` is at another host", Reason.NAME_MISMATCH)
    return str(path)


_WITH_OPTIONS = "the push has options (`git push -o`), which no rule can check"
LONGEST_SHOWN = 2000  # bytes of an unreadable head that are worth decoding for the page


@dataclass(frozen=True, slots=True)
class RuleInputs:
    """What the rules for one host look at beside method and path; the rest is not parsed."""

    policy: "Policy"
    requests: bool
    headers: bool
    git: bool
    people: bool = False  # a rule asks people, who see the request line and decide on it
    git_for_events: bool = False  # no rule looks at git, and audit mode records it for `exeat learn`

    @classmethod
    def of(cls, policy: "Policy", origin: WebOrigin) -> "RuleInputs":
        """Return what the rules of a policy look at for requests to `origin`."""
        requests, headers, git, people = policy.looks_at(origin.target, origin.port)
        return cls(policy, requests, headers, git, people, policy.settings.mode is Mode.AUDIT and not git)


def decide(
    sandbox: "SandboxState",
    origin: WebOrigin,
    head: "Head",
    inputs: RuleInputs,
    *,
    body: bool,
    push: "Push | None" = None,
    content: bytes | None = None,
    granted: frozenset[str] = frozenset(),
) -> RequestDecision:
    """Decide on one request. If it is malformed, or names another host, it is denied before any rule is evaluated.

    `body`: the request has one. `push` and `content` were read from it, if an earlier decision required that.
    `granted` has the digests of rules with `ask` that were approved for it.
    """
    policy = inputs.policy
    try:
        resource = request_head.read(head, tls=origin.tls)
    except request_head.UnclearError as problem:
        return unclear(sandbox, head, problem)
    carried = (
        None
        if sandbox.secret_injector is None
        else _carried(sandbox.secret_injector, origin, head, content if body else b"")
    )
    denial = _deny_misdirected(sandbox, origin, head, resource, inputs)
    if resource.upgrade:
        denial = denial or _deny_upgrade(sandbox, head, resource, body=body)
    denial = denial or (carried and _deny_misplaced_placeholder(sandbox, head, carried))
    if denial is not None:
        return denial
    try:
        git = _git(head, resource, inputs) if inputs.git or inputs.git_for_events else None
        named = resource.method in _METHODS and (inputs.requests or inputs.people)
        other = second_path(head, resource, origin) if named else None
    except request_head.UnclearError as problem:
        return unclear(sandbox, head, problem)
    headers = request_head.as_text(head.fields) if inputs.headers else ()
    task = sandbox.task
    credential = None if carried is None else NO_CREDENTIAL if carried.bare else carried.credential
    request = Request(resource.method, resource.path, headers, body, resource.websocket, git, credential)
    attempt = Attempt(
        origin.protocol, origin.target, origin.port, request, task.name, task.labels, sandbox.calendar.today(),
        sandbox.tainted, granted,
    )  # fmt: skip
    shown_fields = resource.method, resource.path, resource
    if push is not None and push.commands and git is not None:  # the rules of now may have none about git
        push_decision, advice = _decide_push(sandbox, policy, attempt, push, options=inputs.git_for_events)
        return RequestDecision(
            push_decision.decision,
            *shown_fields,
            push_decision.attempts[0],
            push_decision.detail,
            pushed=push_decision,
            advice=advice,
        )
    decision = policy.decide(attempt)
    if other is not None:
        decision = _with_other_path(policy, attempt, decision, other)
    has_refs = git is not None and git.service is GitService.PUSH and resource.method == "POST"  # not what comes before
    if decision.needs_approval and inputs.git and git is not None and (not has_refs or push is not None):
        attempt, decision = _before_a_push(policy, attempt, decision)
    passes = decision.outcome.passes
    may_pass = passes or decision.needs_approval
    if carried is not None and carried.unread and (may_pass or _may_pass(policy, attempt, carried)):
        return RequestDecision(decision, *shown_fields, attempt, body_wanted=True)
    detail = "" if passes else _why(decision, credential, other)
    refs_wanted = may_pass and push is None and has_refs
    return RequestDecision(
        decision, *shown_fields, attempt, detail, refs_wanted=refs_wanted, refs_for_events=inputs.git_for_events
    )


def _deny_upgrade(
    sandbox: "SandboxState", head: "Head", resource: "RequestedResource", *, body: bool
) -> RequestDecision | None:
    """Deny a malformed WebSocket handshake, and upgrades to other protocols that the request requires."""
    if resource.websocket and not is_handshake(head, body=body):
        return _denied(sandbox, head, Reason.PROTOCOL_MISMATCH, "this is no valid WebSocket handshake (RFC 6455)")
    return _deny_foreign_upgrade(sandbox, head, resource.foreign) if resource.foreign else None


def _git(head: "Head", resource: "RequestedResource", inputs: RuleInputs) -> GitRequest | None:
    """Return the git operation of a request. Raises UnclearError if a rule looks at it."""
    try:
        return git_request(resource.method, resource.path, request_head.values(head, b"content-type"))
    except request_head.UnclearError:
        if inputs.git:
            raise
        return None


def _with_other_path(policy: "Policy", attempt: Attempt, first: Decision, other: str) -> Decision:
    """Decide on the second path, too; the stricter decision applies."""
    request = attempt.request
    if request is None or not (first.outcome.passes or first.needs_approval):
        return first
    second = policy.decide(attempt._replace(request=request._replace(path=other)))
    if not (second.outcome.passes or second.needs_approval):
        return second
    if first.needs_approval or second.needs_approval:  # people would be shown one of both
        return deny(policy, Reason.AMBIGUOUS_REQUEST)
    return strictest(first, second)


def _decide_push(
    sandbox: "SandboxState", policy: "Policy", attempt: Attempt, push: "Push", *, options: bool
) -> "tuple[PushDecision, str]":
    """Decide on a push whose refs are parsed; also return advice, if the reason has none.

    `options`: it may have push options, because no rule looks at its refs.
    """
    push_decision = decide_push(policy, attempt, push)
    if (
        options
        or not push.asks_more
        or not (push_decision.decision.outcome.passes or push_decision.decision.needs_approval)
    ):
        return push_decision, ""
    return deny_all(
        push_decision, deny(sandbox.policy, Reason.AMBIGUOUS_REQUEST), _WITH_OPTIONS
    ), "push without options"


def _may_pass(policy: "Policy", attempt: Attempt, carried: "CarriedSecrets") -> bool:
    """Whether a request may be allowed or need approval with one of the secrets that its body may carry."""
    request = attempt.request
    if request is None:
        return False
    ways = (attempt._replace(request=request._replace(credential=one)) for one in carried.may_carry)
    return any(decision.outcome.passes or decision.needs_approval for decision in map(policy.decide, ways))


def misuse(sandbox: "SandboxState", origin: WebOrigin, head: "Head") -> str:
    """Return which secret's placeholder is where it doesn't belong; empty: none."""
    carried = None if sandbox.secret_injector is None else _carried(sandbox.secret_injector, origin, head)
    return carried.wrong if carried is not None and carried.misused else ""


def _deny_foreign_upgrade(sandbox: "SandboxState", head: "Head", protocol: str) -> RequestDecision:
    """Deny a request that requires an upgrade to a protocol that can't be inspected."""
    said = f"the request requires an upgrade to `{protocol}`, which can't be inspected; only WebSocket can"
    spdy = "use a kubectl that uses WebSockets (1.31, or `KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true`)"
    advice = "an admin can set `tls: splice` for the host"
    if protocol.lower().startswith("spdy/"):
        advice = f"{spdy}, or {advice}"
    return replace(_denied(sandbox, head, Reason.PROTOCOL_MISMATCH, said), advice=advice)


def _deny_misplaced_placeholder(
    sandbox: "SandboxState", head: "Head", carried: "CarriedSecrets"
) -> RequestDecision | None:
    """Deny a request whose placeholder can't be replaced: misplaced, withheld, or wrongly signed."""
    if carried.misused:
        return replace(_denied(sandbox, head, Reason.SECRET_MISUSE, carried.wrong), misused=True)
    if carried.withheld:
        return _denied(sandbox, head, Reason.SECRET_NOT_SENT, carried.wrong)
    return _denied(sandbox, head, Reason.PROTOCOL_MISMATCH, carried.flaw) if carried.flaw else None


def _carried(
    injector: "SecretInjector", origin: WebOrigin, head: "Head", content: bytes | None = None
) -> "CarriedSecrets":
    return injector.read(head, origin.target, origin.port, tls=origin.tls, content=content)


def _why(decision: Decision, credential: str | None, other: str | None) -> str:
    """Return the detail of a denial beside its reason; for a second path only that it has one."""
    if decision.reason is Reason.CREDENTIAL_MISMATCH:
        return _mismatch(credential)
    too = "" if other is None or decision.needs_approval else "the rules must allow its `Destination`, too"
    return explain_unapprovable(decision) or too


def _mismatch(credential: str | None) -> str:
    """Return which credential a request carries where rules require a secret of Exeat's."""
    if credential == NO_CREDENTIAL:
        return "the request brings no credential"
    if credential:
        return f"the request brings the placeholder of `{credential}`"
    return "the request brings a credential that is not ours, or more than one"


def _deny_misdirected(
    sandbox: "SandboxState", origin: WebOrigin, head: "Head", resource: "RequestedResource", inputs: RuleInputs
) -> RequestDecision | None:
    """Deny a request for another host or port, or with headers that override its method, path or host."""
    if resource.host != origin.target or resource.port != origin.port:
        # RFC 9110 section 15.5.20: an HTTP/2 client that coalesced two names asks again on a connection of its own
        http2 = head.version == b"HTTP/2.0"
        status = HTTPStatus.MISDIRECTED_REQUEST if http2 else None
        asked_for = request_head.authority(resource.host, resource.port, tls=origin.tls).decode()
        detail = f"this connection was made to `{origin.authority.decode()}`, and the request asks for `{asked_for}`"
        return _denied(sandbox, head, Reason.NAME_MISMATCH, detail, status)
    if resource.overrides and (inputs.requests or inputs.people):
        said = "a header or a parameter names another method, path or host than the request"
        return _denied(sandbox, head, Reason.AMBIGUOUS_REQUEST, said)
    return None


def _before_a_push(policy: "Policy", attempt: Attempt, decision: Decision) -> tuple[Attempt, Decision]:
    """Let out what comes before a push that people are asked about, its advertisement and the empty probe.

    Only where the same repository may be fetched from: then it says no more than a task can say there anyway.
    """
    request = attempt.request
    assert request is not None
    if request.git is None or request.git.service is not GitService.PUSH:
        return attempt, decision
    path = request.path.replace("git-receive-pack", "git-upload-pack")
    fetching = request._replace(path=path, git=GitRequest(GitService.FETCH, request.git.repo))
    if not policy.decide(attempt._replace(request=fetching)).may_send_now:
        return attempt, decision
    digests = attempt.granted.union(asks.digest for asks in decision.approval)
    could = attempt._replace(granted=digests)  # as a push that was approved: where it may go is checked with that
    return (could, defer_approval(decision)) if policy.decide(could).may_send_now else (attempt, decision)


def unclear(sandbox: "SandboxState", head: "Head", problem: request_head.UnclearError) -> RequestDecision:
    """Return the denial of a request that can't be parsed."""
    return replace(_denied(sandbox, head, problem.reason, str(problem)), advice=problem.advice)


def shown(head: "Head") -> tuple[str, str]:
    """Return method and path of an unparsed head for events."""
    method, path = (part[:LONGEST_SHOWN].decode("utf-8", "replace") for part in (head.method, head.path))
    return method, path


def fail_undialled(request_decision: RequestDecision, failure: "DialError") -> RequestDecision:
    """Return the denial of an allowed request that can't be dialed, or may not be (invariant 9)."""
    reason = failure.reason
    if reason in (Reason.UNRESOLVED, Reason.UPSTREAM_FAILED):  # nobody's refusal
        decision = request_decision.decision._replace(outcome=Outcome.FAILED, reason=reason)
    else:
        decision = request_decision.decision._replace(verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=reason)
    refused_at = None if failure.address is None else address_text(failure.address)
    return replace(
        request_decision,
        decision=decision,
        detail=failure.detail,
        advice=failure.advice,
        undialled=True,
        refused_at=refused_at,
    )


def deny_unanswered(
    sandbox: "SandboxState", request_decision: RequestDecision, reason: Reason, detail: str
) -> RequestDecision:
    """Return the denial of a pending request without an approval."""
    decision = request_decision.decision._replace(
        verdict=Verdict.DENY, outcome=Outcome.BLOCKED, reason=reason, approval=(), revision=sandbox.policy.revision
    )
    pushed = request_decision.pushed
    if pushed is not None:
        refs = tuple((ref, one._replace(reason=reason) if one.needs_approval else one) for ref, one in pushed.refs)
        pushed = pushed._replace(decision=decision, refs=refs)
    return replace(request_decision, decision=decision, detail=detail, pushed=pushed)


def _denied(
    sandbox: "SandboxState", head: "Head", reason: Reason, detail: str, status: HTTPStatus | None = None
) -> RequestDecision:
    return RequestDecision(deny(sandbox.policy, reason), *shown(head), detail=detail, status=status)


def attempts_of(request_decision: "RequestDecision") -> "tuple[Attempt, ...]":
    """Return the attempts of a request: one, or one a ref of a push."""
    if request_decision.pushed is not None:
        return request_decision.pushed.attempts
    return () if request_decision.attempt is None else (request_decision.attempt,)


def decide_request_again(
    sandbox: "SandboxState", attempts: "tuple[Attempt, ...]", leads_to: "Hop | None"
) -> "Sliced[ReviewResult]":
    """Decide again on a request under way, one ref of a push in a slice. `leads_to`: where it was sent."""
    policy, today = sandbox.policy, sandbox.calendar.today()
    limits: dict[tuple[str, Limits], None] = {}
    scans: list[Scan] = []
    untrusted = None
    for attempt in attempts:
        attempt = attempt._replace(at=today, tainted=sandbox.tainted)  # noqa: PLW2901 - the same one, by now
        decision = policy.decide(attempt)
        if not decision.outcome.passes:
            return ReviewResult(decision)
        limits.update(dict.fromkeys(decision.limits))
        scans.append(decision.scan)
        untrusted = untrusted if decision.trust is Trust.TRUSTED else decision
        problem = None if leads_to is None else policy.check_address(attempt, leads_to)
        if problem is not None:
            return ReviewResult(deny(sandbox.policy, problem))
        yield
    return ReviewResult(None, tuple(limits), Scan.strictest(scans), untrusted)
