"""Describes an event in a few words for people, by its kind.

The text is not escaped: the caller passes it through `visible` before printing.
"""

from typing import TYPE_CHECKING

from proxy.telemetry.encoding import timestamp
from proxy.telemetry.events import APPROVALS, Answer, Approval, Destination, Kind, Transferred
from rules.attempt import Protocol
from rules.verdicts import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.telemetry.events import Event

_DEFAULT_PORTS = {Protocol.TLS: ("https", 443), Protocol.HTTP: ("http", 80)}
_REFS = 3  # of a push that are listed
_PATHS = 8  # of changes that are listed; `exeat changes` and `exeat log show` list all
_NS_A_SECOND = 1_000_000_000
_LATEST = 253_402_300_799  # s since 1970: the last second of the year 9999
_ANSWER_WORDS = {
    Answer.APPROVED: "approved",
    Answer.REJECTED: "rejected",
    Answer.PASS: "left to people",
    Answer.TIMEOUT: "not answered in time",
}


def describe(event: "Event") -> str:
    """Describe an event in a few words; escape the text before showing it."""
    return _DESCRIPTIONS[event.kind](event)


def _describe_destination(event: "Event") -> str:
    destination = event.destination or Destination()
    host = destination.name or destination.address or "?"
    port = "" if destination.port is None else f":{destination.port}"
    address = f" ({destination.address})" if destination.name and destination.address else ""
    protocol = f"{event.protocol} " if event.protocol is not None else ""
    via = f" via {destination.via}" if destination.via else ""
    return f"{protocol}{_bracket(host)}{port}{address}{via}"


def _describe_request(event: "Event") -> str:
    http, destination = event.http, event.destination or Destination()
    if http is None or not (http.method or http.host or http.path):  # empty: the client sent no HTTP
        return f"request {_describe_destination(event)}"
    host = destination.name or destination.address or http.host or "?"
    scheme, default_port = (
        _DEFAULT_PORTS.get(event.protocol, ("https", 443)) if event.protocol is not None else ("https", 443)
    )
    port = "" if destination.port in (None, default_port) else f":{destination.port}"
    # A Host field that differs from the name explains the block: show it.
    claimed = f" (Host: {http.host})" if http.host is not None and _host_of(http.host) != host else ""
    return f"{http.method or '?'} {scheme}://{_bracket(host)}{port}{http.path or ''}{claimed}{_describe_push(event)}"


def _describe_push(event: "Event") -> str:
    """Return the refs and the repository of a push."""
    if event.git is None or not event.git.refs:
        return ""
    words = [ref.split(" ") for ref in event.git.refs[:_REFS]]
    refs = ", ".join(each[1] if each[0] == "update" and len(each) > 1 else " ".join(each[:2]) for each in words)
    more = f" and {len(event.git.refs) - _REFS} more" if len(event.git.refs) > _REFS else ""
    return f" (push of {refs}{more} to {event.git.repository})"


def _describe_lookup(event: "Event") -> str:
    if event.dns is None:
        return "lookup"
    question = f"lookup {event.dns.type} {event.dns.question}"
    if not event.dns.answers:
        return question
    answers = ", ".join(event.dns.answers)
    if event.outcome is Outcome.BLOCKED:  # the address of the block page, which gives the reason
        return f"{question} blocked; {answers} serves the block page"
    return f"{question} is {answers}"


def _describe_exit(event: "Event") -> str:
    if event.ending is None:
        return ""
    if event.ending.signal is not None:
        return f" by signal {event.ending.signal}"
    return f" with status {event.ending.status}" if event.ending.status is not None else ""


def _format_bytes(transferred: Transferred | None) -> str:
    return (
        f", {_format_size(transferred.up)} up, {_format_size(transferred.down)} down" if transferred is not None else ""
    )


def _format_duration(seconds: float | None) -> str:
    return f", {seconds:.3g} s" if seconds is not None else ""


def _describe_outcome(event: "Event") -> str:
    """Return the bytes, the duration and the detail of what has ended."""
    return f"{_format_bytes(event.bytes)}{_format_duration(event.duration)}{_format_detail(event)}"


def _format_detail(event: "Event") -> str:
    return f": {event.detail}" if event.detail else ""


def _format_size(count: int) -> str:
    """Return bytes in a unit that leaves at most four digits (IEC 80000-13)."""
    if count < 10_000:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _host_of(authority: str) -> str:
    """Return the host of a Host field, an IPv6 address without its brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority if authority.count(":") > 1 else authority.partition(":")[0]


def _describe_exchange(event: "Event") -> str:
    status = f"{event.http.status} to " if event.http is not None and event.http.status is not None else ""
    return f"{status}{_describe_request(event)}{_describe_outcome(event)}"


def _describe_tampering(event: "Event") -> str:
    at = ", ".join(event.paths) if event.destination is None else _describe_destination(event)
    return f"tampering at {at}{_format_detail(event)}"


def _describe_changes(event: "Event") -> str:
    by = f" by {event.by}" if event.by else ""
    others = " and others" if len(event.paths) > _PATHS else ""
    paths = f": {', '.join(event.paths[:_PATHS])}{others}" if event.paths else ""
    approval = event.approval
    given = f" (approval {approval.id} by {', '.join(approval.by)})" if approval is not None and approval.by else ""
    return f"{event.kind.value.replace('.', ' ')}{by}{paths}{given}{_format_detail(event)}"


def _describe_agent(event: "Event") -> str:
    agent = event.agent
    if agent is None:
        return "the task says something"
    tool = f" {agent.tool}" if agent.tool else ""
    service = f" (as {agent.service})" if agent.service else ""
    # The task chose all of the text, so a fixed prefix comes first: it can't pass for another event.
    return f"the task says {agent.name or agent.source}{tool}{service}"


def _describe_journal(event: "Event") -> str:
    mark = event.journal
    if mark is None:
        return f"journal{_format_detail(event)}"
    line = "" if mark.lines is None else f" at line {mark.lines}"
    return f"{event.kind.value.replace('.', ' ')} {mark.segment}{line}{_format_detail(event)}"


def _describe_subject(event: "Event") -> str:
    """Return what the approval request is for."""
    if event.argv:
        return f"run {' '.join(event.argv)}"
    if event.http is not None:
        return _describe_request(event)
    if event.destination is not None:
        return _describe_destination(event)
    return ", ".join(event.paths) or (event.approval.about if event.approval is not None else "") or "something"


def _describe_approval(event: "Event") -> str:
    approval = event.approval or Approval()
    name = f"approval {approval.id}" if approval.id else "no approval"
    by = f" by {', '.join(approval.by)}" if approval.by else ""
    return f"{name} {_APPROVAL_DESCRIPTIONS[event.kind](event, approval)}{by}{_format_comment(approval, event)}"


def _format_comment(approval: Approval, event: "Event") -> str:
    comment = "; ".join(each for each in (approval.why, event.detail) if each)
    return f": {comment}" if comment else ""


def _describe_pending(event: "Event", approval: Approval) -> str:
    again = " again" if approval.joined else ""
    actor = "requested by the task" if approval.agent else "requested"
    return f"{actor}{again} for {_describe_subject(event)}"


def _describe_answer(event: "Event", approval: Approval) -> str:
    word = "answered" if approval.answer is None else _ANSWER_WORDS.get(approval.answer, str(approval.answer))
    more = ", more approvals needed," if approval.answer is Answer.APPROVED and not approval.final else ""
    return f"{word} for {_describe_subject(event)}{_format_grant(approval)}{more}"


def _format_grant(approval: Approval, left: str = "") -> str:
    """Return the scope and the limits of a grant."""
    terms = [f"this {approval.width}"] if approval.width else []
    if approval.uses is not None:
        terms.append(f"{approval.uses} {'use' if approval.uses == 1 else 'uses'}{left}")
    if approval.bytes is not None:
        terms.append(f"{_format_size(approval.bytes)}{left}")
    if approval.until is not None and 0 <= approval.until <= _LATEST:
        terms.append(f"until {timestamp(approval.until * _NS_A_SECOND)[:19]}Z")
    return f" ({', '.join(terms)})" if terms else ""


_APPROVAL_DESCRIPTIONS: "Mapping[Kind, Callable[[Event, Approval], str]]" = {
    Kind.APPROVAL_ASKED: _describe_pending,
    Kind.APPROVAL_SEEN: lambda _event, _approval: "seen",
    Kind.APPROVAL_ANSWERED: _describe_answer,
    Kind.APPROVAL_EXPIRED: lambda event, _approval: f"expired for {_describe_subject(event)}",
    Kind.APPROVAL_USED: lambda event, approval: (
        f"used for {_describe_subject(event)}{_format_grant(approval, ' left')}"
    ),
    Kind.APPROVAL_REFUSED: lambda event, approval: (
        f"refused for {_describe_subject(event)}{f' ({approval.answer})' if approval.answer is not None else ''}"
    ),
    Kind.APPROVAL_STALE: lambda event, _approval: f"stale, its client left: {_describe_subject(event)}",
}


def _describe_anomaly(event: "Event") -> str:
    unusual = event.unusual
    if unusual is None:
        return f"anomaly{_format_detail(event)}"
    runs = f"{unusual.runs} earlier runs"
    if unusual.what == "destination":
        return f"anomaly: {_describe_destination(event)}, new after {runs}{_format_detail(event)}"
    sent = f"{_format_size(unusual.got)} sent, at most {_format_size(unusual.usual)} in {runs}"
    return f"anomaly: {sent}{_format_detail(event)}"


_DESCRIPTIONS: "Mapping[Kind, Callable[[Event], str]]" = {
    Kind.GATE_ERROR: lambda event: f"error in {event.fault.where}: {event.fault.detail}" if event.fault else "error",
    Kind.CONNECTION_DECIDED: lambda event: f"connect {_describe_destination(event)}{_format_detail(event)}",
    Kind.CONNECTION_CLOSED: lambda event: f"closed {_describe_destination(event)}{_describe_outcome(event)}",
    Kind.REQUEST_DECIDED: _describe_exchange,
    Kind.REQUEST_COMPLETED: _describe_exchange,
    Kind.DNS_DECIDED: _describe_lookup,
    Kind.TASK_STARTED: lambda event: f"task started: {' '.join(event.argv)}",
    Kind.TASK_ENDED: lambda event: f"task ended{_describe_exit(event)}{_format_duration(event.duration)}",
    Kind.TASK_LIMITED: lambda event: f"task limited{_format_detail(event)}",
    Kind.RULES_LOADED: lambda event: (
        f"rules {event.revision[:12]} loaded{f' instead of {event.previous[:12]}' if event.previous else ''} "
        f"from {', '.join(event.sources)}"
    ),
    Kind.RULES_REJECTED: lambda event: f"rules rejected, {event.revision[:12]} stays: {'; '.join(event.problems)}",
    Kind.TAMPERING_DETECTED: _describe_tampering,
    Kind.SECRET_DETECTED: lambda event: f"leak in {_describe_request(event)}{_format_detail(event)}",
    Kind.COMMAND_DECIDED: lambda event: f"run {' '.join(event.argv)}{_format_detail(event)}",
    Kind.SYSCALL_DENIED: lambda event: (
        f"system call {event.call}{f' by {event.process.exe}' if event.process and event.process.exe else ''}"
        f"{_format_detail(event)}"
    ),
    Kind.AGENT_SAID: _describe_agent,
    Kind.FLAG_SEEN: lambda event: f"flagged event {event.cause} reviewed by {event.by or 'an unknown user'}",
    Kind.TASK_TAINTED: lambda event: (
        f"task tainted by reading from {_describe_destination(event)}{_format_detail(event)}"
    ),
    Kind.ANOMALY_DETECTED: _describe_anomaly,
    **dict.fromkeys((kind for kind in Kind if kind.startswith("changes.")), _describe_changes),
    **dict.fromkeys((kind for kind in Kind if kind.startswith("journal.")), _describe_journal),
    **dict.fromkeys(APPROVALS, _describe_approval),
}
