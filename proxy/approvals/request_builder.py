"""Builds approval requests from attempts that the gate holds, and the reasons of answers. Pure.

A request says what was decided on and never more: nobody is asked to approve what the rules didn't see.
"""

from typing import TYPE_CHECKING, Final

from proxy.approvals.approval_request import ApprovalRequest, Kind, Program, Ref, rules_of
from proxy.approvals.protocol import Answer, Result
from rules.attempt import Protocol
from rules.verdicts import Reason

if TYPE_CHECKING:
    from proxy.approvals.approval_request import Source
    from proxy.request.git_push import Push
    from proxy.request.request_head import Head
    from proxy.telemetry.events import Process
    from rules.attempt import Attempt
    from rules.decision import Decision

ROUNDS: Final = 8  # times that one attempt is asked about: what is granted may bring up what another layer asks
REASONS: Final = {
    Result.UNAVAILABLE: Reason.APPROVAL_UNAVAILABLE,
    Result.DENIED: Reason.APPROVAL_DENIED,
    Result.TIMEOUT: Reason.APPROVAL_TIMEOUT,
    Result.FLOOD: Reason.APPROVAL_FLOOD,
    Result.WIDE: Reason.APPROVAL_UNAVAILABLE,
}


def reason_of(answer: Answer) -> Reason:
    """Return why what was asked about is refused."""
    return REASONS.get(answer.result, Reason.APPROVAL_UNAVAILABLE)


def in_vain(decision: "Decision") -> str:
    """Say why nobody is asked what rules of the policy ask, if so: approving it would not let it out."""
    if decision.reason is not Reason.APPROVAL_UNAVAILABLE or decision.passes or decision.asks:
        return ""
    asks = ", ".join(f"`{rule}`" for rule in decision.rules)
    return f"no rule lets this out, so an approval of what {asks} asks would open nothing"


def about_connection(
    sources: "tuple[Source, ...]", attempt: "Attempt", decision: "Decision", process: "Process | None" = None
) -> ApprovalRequest:
    """Ask about all that goes over a connection, or a flow of datagrams."""
    if attempt.protocol is not Protocol.UDP:
        return _question(Kind.CONNECTION, sources, attempt, decision, process)
    question = _question(Kind.UDP, sources, attempt, decision, process)
    # Nobody waits on a line for a datagram: its client hears no at once, and what it sends again has the answer
    rules = tuple(rule._replace(terms=rule.terms._replace(hold=0.0)) for rule in question.rules)
    return question._replace(rules=rules)


def about_request(  # noqa: PLR0917 - what is known of a request
    sources: "tuple[Source, ...]",
    attempt: "Attempt",
    decision: "Decision",
    head: "Head | None" = None,
    push: "Push | None" = None,
    process: "Process | None" = None,
    event: str = "",
    secrets: tuple[str, ...] = (),
    quiet: frozenset[str] = frozenset(),
) -> ApprovalRequest:
    """Ask about one request, a push with all of its refs; `event` is that of its connection.

    Without a `head` it is not tried yet. `secrets` are the ids of those that the gate puts into it, `quiet` the refs
    that are told nowhere else.
    """
    request = attempt.request
    assert request is not None
    found = _question(Kind.REQUEST, sources, attempt, decision, process)._replace(
        method=request.method,
        path=request.path,
        size=_size(head, body=request.body),
        websocket=request.websocket,
        secrets=secrets,
        event=event,
        beforehand=head is None,
    )
    if request.git is None:
        return found
    found = found._replace(repo=request.git.repo)
    if push is not None:
        refs = zip(push.commands, push.objects, strict=True)
        named = tuple(
            Ref(command.ref, command.change.value, old, new, command.ref in quiet) for command, (old, new) in refs
        )
        return found._replace(kind=Kind.PUSH, refs=named)
    if request.git.ref is not None:
        change = "" if request.git.change is None else request.git.change.value
        return found._replace(kind=Kind.PUSH, refs=(Ref(request.git.ref, change),))
    return found


def about_program(
    sources: "tuple[Source, ...]",
    argv: tuple[str, ...],
    decision: "Decision",
    process: "Process | None" = None,
    *,
    whole: bool,
) -> ApprovalRequest:
    """Ask about a program that is about to start with these words; not `whole`: there are more of them."""
    return ApprovalRequest(
        Kind.COMMAND,
        argv=argv,
        process=program(process),
        rules=rules_of(decision.approval),
        revision=decision.revision,
        tainted_by=sources,
        cut=not whole,
    )


def program(process: "Process | None") -> Program | None:
    """Return who it is, as far as that is known."""
    return None if process is None else Program(process.pid, process.exe, process.argv, process.ancestors)


def _question(
    kind: Kind, sources: "tuple[Source, ...]", attempt: "Attempt", decision: "Decision", process: "Process | None"
) -> ApprovalRequest:
    return ApprovalRequest(
        kind,
        attempt.protocol.value,
        str(attempt.target),
        attempt.port,
        process=program(process),
        rules=rules_of(decision.approval),
        revision=decision.revision,
        tainted_by=sources,
        pattern=decision.pattern,
    )


def _size(head: "Head | None", *, body: bool) -> int | None:
    """Return how many bytes of a body follow; None: nobody knows."""
    if not body:
        return 0
    if head is None:
        return None
    length = [value for name, value in head.fields if name.lower() == b"content-length"]
    if head.version == b"HTTP/2.0":
        return int(length[0]) if len(length) == 1 and length[0].isdigit() else None
    from proxy.request.request_head import Unclear, body_size  # loaded where there is a head

    try:
        return body_size(head)
    except Unclear:
        return None
