# ruff: noqa: PT017 - what an error says is what is tested
"""What is fuzzed of the gate's door: first words, lookups, refs, the kernel's log, certificates asked for, and journals."""

import gzip
import ssl
from itertools import pairwise

from proxy.certificates import signer
from proxy.dns.wire import MalformedQueryError, Query, Rcode, build_answer, parse_query
from proxy.gate.client_hello import MOST_BYTES, ClientHello, NeedMore, recognise
from proxy.request.git_push import Push, UnclearError
from proxy.telemetry.encoding import MalformedEventError, decode, encode
from proxy.telemetry.events import Destination, Event, Http, Kind, Origin
from proxy.wire.netlink import MalformedMessageError
from proxy.wire.refusal_log import parse_refusal
from rules.attempt import Protocol
from rules.values.addresses import parse_host
from rules.verdicts import Mode, Outcome, Reason, Verdict
from tests.fuzz.leaving import pieces
from tests.support.git_pushes import feed

_LONGEST_UDP = 512


def client_hello(name: str) -> bytes:
    """Give what OpenSSL says first."""
    context, out = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.MemoryBIO()
    context.set_alpn_protocols(["h2", "http/1.1"])
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise AssertionError


def fuzz_words(data: bytes) -> None:
    """What first words are never changes when more comes, and what is waited for is always more than there is."""
    data = data[:MOST_BYTES]
    for whole_head in (False, True):
        sizes = sorted({*range(1, len(data), 97), len(data)})
        for before, after in pairwise(recognise(data[:size], whole_head=whole_head) for size in sizes):
            assert isinstance(before, NeedMore) or after == before
            assert not isinstance(after, ClientHello) or after.sni is None or after.sni.isascii()
    more = recognise(data, whole_head=True)
    assert not isinstance(more, NeedMore) or more.bytes > len(data)


def fuzz_query(data: bytes) -> None:
    """Any datagram is a query, or is answered by an error or nothing; an answer is no longer than it may be."""
    try:
        query = parse_query(data)
    except MalformedQueryError as error:
        assert len(error.reply) in {0, 12}
        return
    assert isinstance(query, Query)
    assert query.name.isascii()
    assert query.name.isprintable()
    for rcode, records in ((Rcode.NOERROR, [b"\x01\x02\x03\x04"] * 60), (Rcode.NXDOMAIN, [])):
        answer = build_answer(query, rcode, records, most=max(_LONGEST_UDP, len(data) + 120))
        assert answer[:2] == data[:2]
        assert len(answer) <= max(_LONGEST_UDP, len(data) + 120)


def fuzz_push(data: bytes) -> None:
    """A list of refs is read alike whole and in pieces, and every ref in it is one that git takes."""
    for packed in (False, True):
        seen = []
        for chunks in ([data], list(pieces(data))):
            push = Push(gzip=packed)
            try:
                for chunk in chunks:
                    if feed(push, chunk):
                        break
                push.end()
            except UnclearError as problem:
                assert str(problem).isprintable()
                seen.append(None)
                continue
            seen.append([command.ref for command in push.commands])
            assert all(ref.isprintable() or not ref.isascii() for ref in seen[-1])
            assert not any(" " in ref or ".." in ref or "\0" in ref for ref in seen[-1])
        # What is packed may be broken behind the list, which is only noticed where that comes with it
        assert seen[0] == seen[1] or (packed and None in seen)


def fuzz_packet(data: bytes) -> None:
    """Any datagram of the kernel's log is packets, or none."""
    try:
        packets = parse_refusal(data)
    except MalformedMessageError:
        return
    assert all(packet.port is None or 0 <= packet.port < 1 << 16 for packet in packets)


def fuzz_line(data: bytes) -> None:
    """A line of a journal is an event, which is told in the same words again, or is malformed."""
    try:
        event = decode(data)
    except MalformedEventError as error:
        assert str(error).isprintable()
        return
    line = encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert encode(decode(line)) == line


def fuzz_certificate(data: bytes) -> None:
    """What a worker says to the certificate signer is one host in its one spelling, and the very packet, or nothing."""
    try:
        wanted = signer.read_request(data)
    except signer.MalformedPacketError:
        return
    assert signer.encode_request(wanted) == data
    assert str(parse_host(wanted.host)) == wanted.host
    assert "*" not in wanted.host


TARGETS = {
    "words": fuzz_words, "query of DNS": fuzz_query, "push": fuzz_push, "packet": fuzz_packet, "line": fuzz_line,
    "certificate": fuzz_certificate,
}  # fmt: skip

_REF = b"0" * 40 + b" " + b"1" * 40 + b" refs/heads/main\0 report-status\n"
_ORIGIN = Origin.of("t-1", "web", {"team": "data"}, "s", "host")
_TOLD = Event(
    time=1_795_000_000_123_456_789, id="0190", kind=Kind.REQUEST_DECIDED, **_ORIGIN._asdict(), verdict=Verdict.ALLOW,
    outcome=Outcome.PASSED, reason=Reason.RULE, rules=("web:a",), revision="00", mode=Mode.ENFORCE,
    destination=Destination("x.example", "1.1.1.1", 443), protocol=Protocol.TLS, http=Http("GET", "x.example", "/a"),
)  # fmt: skip

SEEDS: dict[str, list[bytes]] = {
    "words": [client_hello("a.example"), b"GET /a HTTP/1.1\r\nHost: a.example\r\nA: b\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-x\r\n"],
    "query of DNS": [b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x07example\x00\x00\x01\x00\x01\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00", b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\xc0\x0c\x00\x10\x00\x01"],
    "push": [b"%04x" % (len(_REF) + 4) + _REF + b"0000PACK", b"0000", gzip.compress(b"%04x" % (len(_REF) + 4) + _REF + b"0000", mtime=0)],
    "packet": [bytes.fromhex("5c000000000400000000000000000000020000000c000a0075647000000000003400090045000030000040004011000001010101080808080bb8003500100000") + bytes(32)],
    "certificate": [signer.encode_request(signer.Request(7, bytes(65), host)) for host in ("a.example", "192.0.2.1", "2001:db8::1", "xn--bcher-kva.example")],
    "line": [encode(_TOLD), encode(_TOLD).replace(b"rule", b"\\u0000")],
}  # fmt: skip
