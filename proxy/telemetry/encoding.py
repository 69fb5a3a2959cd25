"""An event as one line of JSON, and back.

Every byte written is printable ASCII but for the newline that ends the line (invariant 7): whatever a sandbox put into
a name can neither break a line, nor drive the terminal of whoever reads it, nor be taken for a key. Lines are put
together from pieces, and pieces that come again and again are kept: this runs once or twice for every connection.
"""

from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING

from proxy.telemetry.events import Event
from proxy.telemetry.pieces import duration, joined, number_or_none, quoted, quoted_list, quoted_members, timestamp

if TYPE_CHECKING:
    from proxy.telemetry.events import (
        Agent,
        Approval,
        Destination,
        Dns,
        Ending,
        Fault,
        Git,
        Http,
        Mark,
        Origin,
        Process,
        StartedBy,
        Tls,
        Unusual,
    )
    from rules.attempt import Protocol
    from rules.verdicts import Mode, Outcome, Reason, Verdict

LONGEST_LINE = 1024 * 1024  # bytes; more than all of these together can come to
_plain = encode_basestring_ascii
_ID = 36  # characters of an event's id
_RARE = Event._fields.index("argv")  # where those begin that hardly any attempt has
_UNSAID = tuple(Event._field_defaults[field] for field in Event._fields[_RARE:])


@lru_cache(maxsize=1024)
def _judgement(  # noqa: PLR0917  a cache is fastest by position
    verdict: "Verdict | None",
    outcome: "Outcome | None",
    reason: "Reason | None",
    rules: tuple[str, ...],
    revision: str,
    mode: "Mode | None",
) -> str:
    """Return the part of a line that is the same whenever the same rules decide."""
    pieces = []
    if verdict is not None:
        pieces.append(f'"verdict":"{verdict.value}"')
    if outcome is not None:
        pieces.append(f'"outcome":"{outcome.value}"')
    if reason is not None:
        pieces.append(f'"reason":"{reason.value}"')
    if rules:
        pieces.append(f'"rules":{quoted_list(rules)}')
    if revision:
        pieces.append(f'"revision":{quoted(revision)}')
    if mode is not None:
        pieces.append(f'"mode":"{mode.value}"')
    return "".join(f",{piece}" for piece in pieces)


class _LastOrigin:
    """The encoded form of the origin seen last: a process serves few, one after the other."""

    __slots__ = ("origin", "text")

    def __init__(self) -> None:
        self.origin: Origin | None = None
        self.text = ""

    def encoded(self, origin: "Origin") -> str:
        self.text = _origin(origin)
        self.origin = origin
        return self.text


_last_origin = _LastOrigin()


def encode(event: Event) -> bytes:
    """Return the event as one line of JSON, newline included."""
    own, origin, cause, moved, seconds = event.id, event.origin, event.cause, event.bytes, event.duration
    line = (
        f'{{"time":"{timestamp(event.time)}","id":{_plain(own) if own.isascii() and len(own) == _ID else quoted(own)}'
        f',"kind":"{event.kind._value_}"'
        f"{_judgement(event.verdict, event.outcome, event.reason, event.rules, event.revision, event.mode)}"
        f"{_last_origin.text if origin is _last_origin.origin else _last_origin.encoded(origin)}"
    )
    # What most events have: from where to where, how much and how long.
    if cause is not None:
        line += f',"cause":{_plain(cause) if cause.isascii() and len(cause) == _ID else quoted(cause)}'
    line += _place(event.destination, event.protocol)
    if moved is not None:
        line += f',"bytes":{{"up":{moved.up},"down":{moved.down}}}'
    if seconds is not None:
        line += f',"duration":{duration(seconds)}'
    line += f"{_details(event)}}}\n"
    if "\x7f" in line:  # DEL is the one control character that JSON may hold as it is
        line = line.replace("\x7f", "\\u007f")
    return line.encode("ascii")


@lru_cache(maxsize=1024)
def _place(destination: "Destination | None", protocol: "Protocol | None") -> str:
    """Return where to, and what is spoken there: clients come back to the same few places."""
    line = ""
    if destination is not None:
        line = f',"destination":{_destination(destination)}'
    if protocol is not None:
        line += f',"protocol":"{protocol._value_}"'
    return line


def _details(event: Event) -> str:
    """Return what only events of certain kinds have."""
    tls, http, dns, process = event.tls, event.http, event.dns, event.process
    line = "" if tls is None else f',"tls":{_tls(tls)}'
    if http is not None:
        line += f',"http":{_http(http)}'
    if dns is not None:
        line += f',"dns":{_dns(dns)}'
    if process is not None:
        line += f',"process":{_process(process)}'
    return line if event[_RARE:] == _UNSAID else line + _rest(event)


def _rest(event: Event) -> str:
    """Return what hardly any attempt has."""
    line = ""
    if event.argv:
        line = f',"argv":{quoted_list(event.argv)}'
    if event.call:
        line += f',"call":{quoted(event.call)}'
    if event.ending is not None:
        line += f',"ending":{_ending(event.ending)}'
    if event.sources or event.problems:
        line += _rule_files(event)
    if event.fault is not None:
        line += f',"fault":{_fault(event.fault)}'
    if event.detail:
        line += f',"detail":{quoted(event.detail)}'
    if event.by:
        line += f',"by":{quoted(event.by)}'
    if event.paths:
        line += f',"paths":{quoted_list(event.paths)}'
    if event.git is not None:
        line += f',"git":{_git(event.git)}'
    return line + _of_a_start(event) + _of_people(event) + _of_itself(event)


def _of_a_start(event: Event) -> str:
    line = "" if event.started_by is None else f',"started_by":{_started_by(event.started_by)}'
    return f'{line},"workspace":{quoted(event.workspace)}' if event.workspace else line


def _of_people(event: Event) -> str:
    """Return what people were asked, and what they should look at."""
    line = "" if event.approval is None else f',"approval":{_approval(event.approval)}'
    return line if event.unusual is None else f'{line},"unusual":{_unusual(event.unusual)}'


def _of_itself(event: Event) -> str:
    """Return what a program, or the journal, says of itself."""
    line = "" if event.agent is None else f',"agent":{_agent(event.agent)}'
    return line if event.journal is None else f'{line},"journal":{_mark(event.journal)}'


def _rule_files(event: "Event") -> str:
    line = f',"previous":{quoted(event.previous)}' if event.previous else ""
    if event.sources:
        line += f',"sources":{quoted_list(event.sources)}'
    if event.problems:
        line += f',"problems":{quoted_list(event.problems)}'
    return line


def _origin(origin: "Origin") -> str:
    pieces = []
    task = joined(
        ("id", quoted(origin.task) if origin.task else None),
        ("name", quoted(origin.name) if origin.name else None),
        ("labels", quoted_members(origin.labels) if origin.labels else None),
    )
    if task != "{}":
        pieces.append(f',"task":{task}')
    if origin.sandbox:
        pieces.append(f',"sandbox":{quoted(origin.sandbox)}')
    if origin.host:
        pieces.append(f',"host":{quoted(origin.host)}')
    return "".join(pieces)


def _destination(destination: "Destination") -> str:
    line = ""
    if destination.name is not None:
        line = f',"name":{quoted(destination.name)}'
    if destination.address is not None:
        line += f',"address":{quoted(destination.address)}'
    if destination.port is not None:
        line += f',"port":{destination.port:d}'
    if destination.via is not None:
        line += f',"via":{quoted(destination.via)}'
    return f"{{{line[1:]}}}"


@lru_cache(maxsize=64)
def _tls(tls: "Tls") -> str:
    line = ""
    if tls.sni is not None:
        line = f',"sni":{quoted(tls.sni)}'
    if tls.alpn:
        line += f',"alpn":{quoted_list(tls.alpn)}'
    if tls.version is not None:
        line += f',"version":{quoted(tls.version)}'
    if tls.ech:
        line += ',"ech":true'
    if tls.ja4 is not None:
        line += f',"ja4":{quoted(tls.ja4)}'
    return f"{{{line[1:]}}}"


def _http(http: "Http") -> str:
    line = ""
    if http.method is not None:
        line = f',"method":{quoted(http.method)}'
    if http.host is not None:
        line += f',"host":{quoted(http.host)}'
    if http.path is not None:
        line += f',"path":{quoted(http.path)}'
    if http.status is not None:
        line += f',"status":{http.status:d}'
    if http.body is not None:
        line += ',"body":true' if http.body else ',"body":false'
    if http.websocket:
        line += ',"websocket":true'
    if http.query:
        line += f',"query":{http.query:d}'
    if http.pattern:
        line += ',"pattern":true'
    return f"{{{line[1:]}}}"


def _dns(dns: "Dns") -> str:
    answers = f',"answers":{quoted_list(dns.answers)}' if dns.answers else ""
    return f'{{"question":{quoted(dns.question)},"type":{quoted(dns.type)}{answers}}}'


@lru_cache(maxsize=64)
def _process(process: "Process") -> str:
    return joined(
        ("pid", number_or_none(process.pid)),
        ("exe", quoted(process.exe)),
        ("argv", quoted_list(process.argv) if process.argv else None),
        ("uid", number_or_none(process.uid)),
        ("ancestors", quoted_list(process.ancestors) if process.ancestors else None),
        ("ancestor_pids", f"[{','.join(map(str, process.ancestor_pids))}]" if process.ancestor_pids else None),
        ("sandbox_uid", number_or_none(process.sandbox_uid)),
    )


def _started_by(who: "StartedBy") -> str:
    return joined(("uid", number_or_none(who.uid)), ("name", quoted(who.name) if who.name else None))


def _git(git: "Git") -> str:
    refs = f',"refs":{quoted_list(git.refs)}' if git.refs else ""
    return f'{{"service":{quoted(git.service)},"repository":{quoted(git.repository)}{refs}}}'


def _ending(ending: "Ending") -> str:
    return joined(("status", number_or_none(ending.status)), ("signal", number_or_none(ending.signal)))


def _fault(fault: "Fault") -> str:
    return f'{{"where":"{fault.where.value}","detail":{quoted(fault.detail)}}}'


def _agent(agent: "Agent") -> str:
    return joined(
        ("source", quoted(agent.source)),
        ("name", quoted(agent.name) if agent.name else None),
        ("service", quoted(agent.service) if agent.service else None),
        ("conversation", quoted(agent.conversation) if agent.conversation else None),
        ("call", quoted(agent.call) if agent.call else None),
        ("tool", quoted(agent.tool) if agent.tool else None),
        ("at", number_or_none(agent.at) if agent.at else None),
        ("attributes", quoted_members(agent.attributes) if agent.attributes else None),
    )


def _mark(mark: "Mark") -> str:
    return joined(
        ("segment", quoted(mark.segment)),
        ("lines", number_or_none(mark.lines)),
        ("head", quoted(mark.head) if mark.head else None),
        ("closed", "true" if mark.closed else None),
        ("format", number_or_none(mark.format)),
        ("writer", number_or_none(mark.writer)),
        ("after", quoted(mark.after) if mark.after else None),
        ("follows", quoted(mark.follows) if mark.follows else None),
        ("key", quoted(mark.key) if mark.key else None),
    )


def _approval(approval: "Approval") -> str:
    return joined(
        ("id", quoted(approval.id) if approval.id else None),
        ("about", quoted(approval.about) if approval.about else None),
        ("by", quoted_list(approval.by) if approval.by else None),
        ("answer", f'"{approval.answer.value}"' if approval.answer is not None else None),
        ("final", "true" if approval.final else None),
        ("why", quoted(approval.why) if approval.why else None),
        ("grants", quoted_list(approval.grants) if approval.grants else None),
        ("width", quoted(approval.width) if approval.width else None),
        ("uses", number_or_none(approval.uses)),
        ("bytes", number_or_none(approval.bytes)),
        ("until", number_or_none(approval.until)),
        ("agent", "true" if approval.agent else None),
        ("joined", "true" if approval.joined else None),
    )


def _unusual(unusual: "Unusual") -> str:
    return joined(
        ("what", quoted(unusual.what)),
        ("got", number_or_none(unusual.got)),
        ("usual", number_or_none(unusual.usual)),
        ("runs", number_or_none(unusual.runs)),
    )
