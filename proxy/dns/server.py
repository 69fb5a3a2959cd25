"""DNS server of a sandbox: answers the queries of its task. A query doesn't leave this process, with two exceptions.

It gets queries over UDP from `udp_listener`, and over TCP from `proxy.gate.dns_stream`.

A name that some connection could be allowed to gets an address that stands for it here. The name is looked up only
for a connection that is made, so no query carries data out. With `dns: real` an allowed name is looked up and answered
with its true addresses. A record of a type that its rules list in `dns_types` is looked up and answered as it is. Every
query gives one event, except for `localhost` and `exeat.internal`, which go nowhere.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.dns.names import TTL
from proxy.dns.wire import (
    BLOCKED,
    IN,
    MalformedQueryError,
    Query,
    Rcode,
    Type,
    build_answer,
    build_records,
    parse_query,
)
from proxy.telemetry.events import Dns, Kind
from proxy.telemetry.journal.writer import JournalWriteError
from rules.attempt import Protocol
from rules.decision import deny
from rules.values.names import INFO_API, HostName, InvalidNameError
from rules.verdicts import DnsMode, OnBlock, Outcome, Reason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from proxy.dns.lookup import Lookup, LookupResult
    from proxy.dns.names import NameTable
    from proxy.dns.records import RecordLookup, Records
    from proxy.sandbox.recorder import Recorder
    from proxy.sandbox.sandbox_state import SandboxState
    from rules.decision import Decision
    from rules.values.addresses import Address

_LOCALHOST: Final[dict[int, tuple[bytes, ...]]] = {
    Type.A: (b"\x7f\0\0\1",),
    Type.AAAA: (b"\0" * 15 + b"\1",),
}  # RFC 6761 section 6.3
_FAMILY: Final[dict[int, int]] = {Type.A: 4, Type.AAAA: 6}
# Types that modern clients query beside A; an empty answer is normal, and no denial.
_EXPECTED_TYPES: Final = frozenset({Type.A, Type.AAAA, Type.HTTPS, Type.SVCB})
_ERROR: Final = (BLOCKED, "blocked by the sandbox's rules")
_PORT: Final = 53
_REVERSE_ZONES: Final = (".in-addr.arpa", ".ip6.arpa")


class _Answer(NamedTuple):
    """Answer to a query: `addresses` of the requested type; empty: no data."""

    decision: "Decision"
    rcode: Rcode = Rcode.NOERROR
    addresses: "tuple[Address, ...]" = ()
    needs_lookup: bool = False  # look up the addresses before answering
    needs_records: bool = False  # look up records of another type before answering
    records: "Records | None" = None


class DnsServer:
    """Answers the queries of one sandbox. For one thread."""

    __slots__ = ("_lookup", "_names", "_recorder", "_records", "_sandbox", "record_tasks")

    def __init__(self, sandbox: "SandboxState", recorder: "Recorder", names: "NameTable", lookup: "Lookup") -> None:
        self._sandbox = sandbox
        self._recorder = recorder
        self._names = names
        self._lookup = lookup
        self._records: RecordLookup | None = None
        self.record_tasks: set[asyncio.Task[None]] = set()  # running lookups of records

    def ask(
        self, data: bytes, server_address: "Address | None", protocol: "Protocol", reply: "Callable[[bytes], None]"
    ) -> bool:
        """Answer one message that was sent to `server_address`; `reply` is called at once, later, or never.

        Returns whether the message was a query.
        """
        try:
            query = parse_query(data)
        except MalformedQueryError as malformed:
            if malformed.reply:
                reply(malformed.reply)
            return False
        if query.edns_version:
            reply(build_answer(query, Rcode.BADVERS))
            return False
        try:
            name = HostName.parse(query.name)
        except InvalidNameError:
            name = None
        if name is not None and (reserved_answer := self._answer_reserved(query, name)):
            reply(reserved_answer)
            return True
        answer = self._decide(query, name)
        if name is not None and answer.needs_records:
            self._record_lookup().ask(
                name,
                query.type_text,
                lambda found: self._send(query, _with_records(answer, found), server_address, protocol, reply),
            )
        elif name is None or not answer.needs_lookup:
            self._send(query, answer, server_address, protocol, reply)
        elif (found := self._lookup.known(name)) is not None:
            self._send(query, self._answer_real(query, name, answer, found), server_address, protocol, reply)
        else:

            def needs_lookup(found: "LookupResult") -> None:
                self._send(query, self._answer_real(query, name, answer, found), server_address, protocol, reply)

            self._lookup.ask(name, needs_lookup)
        return True

    def _answer_reserved(self, query: Query, name: HostName) -> bytes:
        """Answer a query for `localhost` or a name of Exeat's own zone; empty: it is neither."""
        if name == "localhost" or name.endswith(".localhost"):
            return build_answer(query, Rcode.NOERROR, _LOCALHOST.get(query.type, ()), ttl=TTL)
        if name != INFO_API:
            return b""
        address = self._names.address_for(INFO_API, denied=False) if query.type == Type.A else None
        if query.type == Type.A and address is None:
            return build_answer(query, Rcode.SERVFAIL)
        return build_answer(query, Rcode.NOERROR, [address.packed] if address is not None else [], ttl=TTL)

    def _decide(self, query: Query, name: HostName | None) -> _Answer:
        policy = self._sandbox.policy
        if name is None:
            return _Answer(deny(policy, Reason.INVALID_NAME), Rcode.NXDOMAIN)
        if query.dns_class != IN or name.endswith(_REVERSE_ZONES):
            rcode = Rcode.REFUSED if query.dns_class != IN else Rcode.NXDOMAIN
            return _Answer(deny(policy, Reason.DNS_TYPE), rcode)
        decision = policy.decide_name(name, self._sandbox.caller)
        if not decision.passes:
            if decision.reason is Reason.NO_RULE:
                decision = deny(policy, Reason.DNS_DENIED, decision)
            return self._answer_denied(query, name, decision)
        return self._answer_allowed(query, name, decision)

    def _answer_allowed(self, query: Query, name: HostName, decision: "Decision") -> _Answer:
        """Answer a query for a name that a rule allows some connection to."""
        policy = self._sandbox.policy
        if query.type not in _FAMILY and query.type_text in policy.dns_types(name, self._sandbox.caller):
            return self._record_read(name, decision, _Answer(decision, needs_records=True))
        if query.type not in _EXPECTED_TYPES:
            return _Answer(deny(policy, Reason.DNS_TYPE, decision))
        # A name that needs an approval is not looked up before it is approved
        if query.type in _FAMILY and policy.settings.dns is DnsMode.REAL and decision.may_send_now:
            return self._record_read(name, decision, _Answer(decision, needs_lookup=True))
        return self._answer_synthetic(query, name, decision)

    def _record_read(self, name: HostName, decision: "Decision", answer: _Answer) -> _Answer:
        """Record the read first: the name's owner chooses the 128 bits of an address that the task then receives."""
        if self._sandbox.record_read(decision, name, _PORT, ""):
            return answer
        return _Answer(deny(self._sandbox.policy, Reason.APPROVAL_UNAVAILABLE, decision), Rcode.SERVFAIL)

    def _record_lookup(self) -> "RecordLookup":
        if self._records is None:
            from proxy.dns.records import RecordLookup

            self._records = RecordLookup(self._lookup.servers, self._lookup.has_room, self.record_tasks)
        return self._records

    def _answer_denied(self, query: Query, name: HostName, decision: "Decision") -> _Answer:
        """Answer a query for a denied name with a synthetic address, so that the connection gets a block page.

        A sandbox with a foreign resolver gets NXDOMAIN: it may have a search list, which an address would end.
        """
        if self._sandbox.is_foreign or self._sandbox.policy.settings.on_block is OnBlock.DNS_REFUSED:
            return _Answer(decision, Rcode.NXDOMAIN)
        if query.type != Type.A:
            return _Answer(decision)
        address = self._names.address_for(name, denied=True)
        return _Answer(decision, Rcode.NXDOMAIN) if address is None else _Answer(decision, addresses=(address,))

    def _answer_synthetic(self, query: Query, name: HostName, decision: "Decision") -> _Answer:
        """Answer with the synthetic address of the name: IPv4 only, one for each name."""
        if query.type != Type.A:
            return _Answer(decision)
        address = self._names.address_for(name, denied=False)
        if address is None:
            return _Answer(deny(self._sandbox.policy, Reason.LIMIT_EXCEEDED, decision), Rcode.SERVFAIL)
        return _Answer(decision, addresses=(address,))

    def _answer_real(self, query: Query, name: HostName, answer: _Answer, found: "LookupResult") -> _Answer:
        """Answer with the real addresses, except those that the sandbox would treat as its own.

        If none remain, answer with a synthetic address, so that the connection gets a block page.
        """
        usable = [a for a in found.addresses if not (a.is_loopback or a in self._sandbox.own_addresses)]
        if not usable:
            return self._answer_synthetic(query, name, answer.decision)
        answered_addresses = tuple(address for address in usable if address.version == _FAMILY.get(query.type))
        self._names.remember(name, answered_addresses)
        return _Answer(answer.decision, addresses=answered_addresses)

    def _send(
        self,
        query: Query,
        answer: _Answer,
        server_address: "Address | None",
        protocol: "Protocol",
        reply: "Callable[[bytes], None]",
    ) -> None:
        """Record the decision, then answer; if recording fails, answer SERVFAIL."""
        decision, found = answer.decision, answer.records
        texts = found.texts if found else tuple(map(str, answer.addresses))
        try:
            self._recorder.decided(
                Kind.DNS_DECIDED,
                decision,
                name=query.name,
                address=server_address,
                port=_PORT,
                protocol=protocol,
                dns=Dns(query.name, query.type_text, texts),
            )
        except JournalWriteError:
            reply(build_answer(query, Rcode.SERVFAIL))
            return
        if found is not None and found.data:
            reply(build_records(query, found.data, ttl=int(found.seconds), over_tcp=protocol is Protocol.TCP))
            return
        records = [address.packed for address in answer.addresses]
        blocked = decision.outcome is Outcome.BLOCKED
        reply(build_answer(query, answer.rcode, records, ttl=TTL, error=_ERROR if blocked else None))


def _with_records(answer: _Answer, found: "Records") -> _Answer:
    """Answer with the records found; if no name server answers, that is an error, not a denial."""
    if found.problem:
        failed = answer.decision._replace(outcome=Outcome.FAILED, reason=Reason.UNRESOLVED)
        return _Answer(failed, Rcode.SERVFAIL, records=found)
    return _Answer(answer.decision, Rcode.NOERROR if found.exists else Rcode.NXDOMAIN, records=found)
