import contextlib

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dns.wire import BLOCKED, MOST_BYTES, MalformedQueryError, Query, Rcode, Type, build_answer, parse_query
from rules.values.names import HostName, InvalidNameError


def question(name="good.example", kind="A", *, edns=True, **how):
    return dns.message.make_query(name, kind, use_edns=0 if edns else None, **how).to_wire()


def read(answer):
    return dns.message.from_wire(answer)


@pytest.mark.parametrize("kind", [*Type.__members__, "TYPE4711"])
@pytest.mark.parametrize("edns", [True, False])
def test_query_of_dnspython_is_parsed(kind, edns):
    query = parse_query(question("Good.Example.", kind, edns=edns))
    assert (query.name, query.type_text, query.dns_class, query.edns) == ("Good.Example", kind, 1, edns)


def test_answer_repeats_the_question_as_sent():
    wire = question("gOOd.eXample")
    answer = read(build_answer(parse_query(wire), Rcode.NOERROR, [b"\xc6\x12\0\1"], ttl=60))
    assert read(wire).is_response(answer)
    assert b"\x04gOOd\x07eXample" in answer.to_wire()
    assert [(r.name.to_text(), r.ttl, r[0].to_text()) for r in answer.answer] == [("gOOd.eXample.", 60, "198.18.0.1")]
    assert not answer.authority
    assert answer.flags & dns.flags.RA
    assert answer.flags & dns.flags.RD
    assert not answer.flags & (dns.flags.TC | dns.flags.AA | dns.flags.AD)
    assert answer.edns == 0


def test_answer_copies_the_querys_flags():
    wire = bytearray(question())
    wire[2:4] = b"\x00\x10"
    answer = read(build_answer(parse_query(bytes(wire)), Rcode.NOERROR))
    assert answer.flags & dns.flags.CD
    assert not answer.flags & dns.flags.RD


@pytest.mark.parametrize("rcode", [Rcode.NOERROR, Rcode.NXDOMAIN])
def test_negative_answer_has_a_soa(rcode):
    answer = read(build_answer(parse_query(question()), rcode, error=(BLOCKED, "blocked")))
    (soa,) = answer.authority
    assert soa.rdtype == dns.rdatatype.SOA
    assert dns.name.from_text("good.example.").is_subdomain(soa.name)
    assert (soa.ttl, soa[0].minimum) == (30, 30)
    assert answer.rcode() == rcode
    assert [(o.code, o.text) for o in answer.options if isinstance(o, dns.edns.EDEOption)] == [(15, "blocked")]


@pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED])
def test_failed_answer_has_no_soa(rcode):
    answer = read(build_answer(parse_query(question()), rcode))
    assert (answer.rcode(), answer.authority, answer.answer) == (rcode, [], [])


def test_answer_has_edns_only_if_the_query_has():
    answer = read(build_answer(parse_query(question(edns=False)), Rcode.NXDOMAIN, error=(BLOCKED, "blocked")))
    assert answer.edns == -1


def test_dnssec_flag_is_echoed_and_later_edns_is_badvers():
    query = parse_query(question(want_dnssec=True))
    assert read(build_answer(query, Rcode.NOERROR)).ednsflags & dns.flags.DO
    wire = dns.message.make_query("good.example", "A", use_edns=1).to_wire()
    query = parse_query(wire)
    assert query.edns_version == 1
    answer = read(build_answer(query, Rcode.BADVERS))
    assert (answer.rcode(), answer.edns) == (dns.rcode.BADVERS, 0)


@pytest.mark.parametrize("name", ["good.example", ".".join(["a" * 63] * 3 + ["b" * 61])])
@pytest.mark.parametrize("size", [4, 16])
def test_answer_fits_every_transport(name, size):
    kind = "A" if size == 4 else "AAAA"
    wire = build_answer(
        parse_query(question(name, kind)), Rcode.NOERROR, [bytes(size)] * 50, error=(BLOCKED, "x" * 999)
    )
    assert len(wire) <= MOST_BYTES
    answer = read(wire)
    assert answer.answer
    assert not answer.flags & dns.flags.TC


def made(name=b"\x04good\x07example\0", tail=b"\0\1\0\1", counts=(1, 0, 0, 0), flags=0x0100, more=b""):
    head = b"\x12\x34" + flags.to_bytes(2) + b"".join(count.to_bytes(2) for count in counts)
    return head + name + tail + more


NOT_ANSWERED = {
    "nothing": b"",
    "half a header": b"\x12\x34\1\0\0\1",
    "an answer": made(flags=0x8180),
    "an answer that is broken too": made(flags=0x8100, tail=b""),
}
REFUSED = {
    "no question": made(b"", b"", (0, 0, 0, 0)),
    "two questions": made(more=b"\1a\0\0\1\0\1", counts=(2, 0, 0, 0)),
    "an answer section": made(counts=(1, 1, 0, 0)),
    "an authority section": made(counts=(1, 0, 1, 0)),
    "a question cut off": made(tail=b"\0\1\0"),
    "a name cut off": made(b"\x04good\x07exam", b""),
    "a name without end": made(b"\x04good\x07example", b""),
    "a pointer": made(b"\xc0\x0c"),
    "a pointer after a label": made(b"\x04good\xc0\x0c"),
    "a reserved kind of label": made(b"\x44good\0"),
    "a name of 256 bytes": made(b"\x3f" + b"a" * 63 + (b"\x3f" + b"a" * 63) * 3 + b"\0"),
    "an additional record that isn't there": made(counts=(1, 0, 1, 1)),
    "an additional record cut off": made(counts=(1, 0, 0, 1), more=b"\0\0\x29\x04\xd0\0\0\0\0\0\x05a"),
    "additional records without number": made(counts=(1, 0, 0, 65535)),
    "two opt records": made(counts=(1, 0, 0, 2), more=b"\0\0\x29\x04\xd0\0\0\0\0\0\0" * 2),
    "an opt record with a name": made(counts=(1, 0, 0, 1), more=b"\1a\0\0\x29\x04\xd0\0\0\0\0\0\0"),
}


@pytest.mark.parametrize("data", NOT_ANSWERED.values(), ids=NOT_ANSWERED.keys())
def test_messages_that_get_no_reply(data):
    with pytest.raises(MalformedQueryError) as caught:
        parse_query(data)
    assert caught.value.reply == b""


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_malformed_queries_get_formerr(data):
    with pytest.raises(MalformedQueryError) as caught:
        parse_query(data)
    reply = read(caught.value.reply)
    assert (reply.id, reply.rcode(), reply.question) == (0x1234, dns.rcode.FORMERR, [])


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 15])
def test_other_opcode_gets_notimp(opcode):
    with pytest.raises(MalformedQueryError) as caught:
        parse_query(made(flags=opcode << 11))
    assert caught.value.reply[3] & 15 == Rcode.NOTIMP


def test_additional_record_other_than_opt_is_skipped():
    tsig = b"\x03key\xc0\x0c" + b"\0\xfa\0\xff\0\0\0\0\0\3abc"
    opt = b"\0\0\x29\x04\xd0\0\0\x80\0\0\0"
    query = parse_query(made(counts=(1, 0, 0, 2), more=tsig + opt))
    assert (query.edns, query.wants_dnssec) == (True, True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"\x0cgood.example\0", "good\\046example"),
        (b"\x04a\0b.\7example\0", "a\\000b\\046.example"),
        (b"\x01*\7example\0", "\\042.example"),
        (b"\x02\xc3\xa9\7example\0", "\\195\\169.example"),
        (b"\x01%\7example\0", "\\037.example"),
        (b"\0", ""),
    ],
)
def test_unusual_characters_of_a_name_are_escaped(name, text):
    query = parse_query(made(name))
    assert query.name == text
    with pytest.raises(InvalidNameError):
        HostName.parse(query.name)


def test_service_name_is_parsed():
    assert HostName.parse(parse_query(question("_https._tcp.Good.example", "SRV")).name) == "_https._tcp.good.example"


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_malformed_query(data):
    for wire in (data, made(more=data, counts=(1, 0, 0, 3)), made(data, b"")):
        try:
            query = parse_query(wire)
        except MalformedQueryError as malformed:
            size = len(malformed.reply)
        else:
            answer = build_answer(query, Rcode.NXDOMAIN, error=(BLOCKED, "x"))
            read(answer)
            size = len(answer)
        assert size <= MOST_BYTES


@given(st.binary(min_size=0, max_size=120), st.integers(0, 60))
def test_damaged_query_raises_only_malformed_query(junk, at):
    wire = question(want_dnssec=True)
    damaged = wire[:at] + junk + wire[at + len(junk) :]
    with contextlib.suppress(MalformedQueryError):
        assert isinstance(parse_query(damaged), Query)
