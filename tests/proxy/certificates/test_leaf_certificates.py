"""What a worker asks the certificate signer for, what that signs and what it doesn't, and what becomes of who waits for it."""

import asyncio
import contextlib
import socket
import ssl
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from proxy.certificates import authority, leaf_certificates
from proxy.certificates.leaf_certificates import LeafCertificates, NoLeafError, SignerLink
from proxy.certificates.signer import (
    LONGEST_REQUEST,
    MalformedPacketError,
    Request,
    Signer,
    encode_answer,
    encode_request,
    read_answer,
    read_request,
)
from tests.proxy.inspection.inspection_lab import make_site
from tests.support.waiting import wait_until

POINT = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
ASKED = encode_request(Request(7, POINT, "good.example"))
HEAD = ASKED[: -len("good.example")]


@pytest.fixture(scope="module")
def ca():
    return authority.create()


HOSTS = [
    "good.example",
    "localhost",
    "xn--bcher-kva.example",
    "_x.good.example",
    "192.0.2.1",
    "2001:db8::1",
    "a." * 126 + "b",
]


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host[:20])
def test_certificate_is_for_the_requested_host(ca, host):
    number, der = read_answer(Signer(ca).answer(encode_request(Request(9, POINT, host))))
    certificate = x509.load_der_x509_certificate(der)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert (number, [str(name.value) for name in names]) == (9, [host])
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.certificate_pem))


ODD = [
    "", "*.example", "*", "Good.example", "good.example.", ".good.example", "a..b", "good.example\0.evil.example", "good example",
    "good.example,evil.example", "bücher.example", "xn--zz.example", "127.1", "0x7f.0.0.1", "[2001:db8::1]", "2001:DB8::1",
    "::ffff:192.0.2.1", "fe80::1%eth0", "192.0.2.1/24", "user@good.example", "good.example:443", "a" * 64 + ".example",
    "a." * 127 + "b", "good.example\n", "-a.example",
]  # fmt: skip


@pytest.mark.parametrize("host", ODD, ids=ascii)
def test_unnormalised_host_is_not_signed(ca, host):
    signer = Signer(ca)
    with pytest.raises(MalformedPacketError):
        signer.answer(HEAD + host.encode())
    assert signer.signed == 0


PACKETS = {
    "nothing": b"",
    "a number": ASKED[:4],
    "no host": HEAD,
    "no point": ASKED[:4] + b"\x04" + bytes(64) + b"good.example",
    "compressed": ASKED[:4] + b"\x02" + POINT[1:33] + bytes(32) + b"good.example",
    "not on the curve": ASKED[:4] + POINT[:-1] + bytes([POINT[-1] ^ 1]) + b"good.example",
    "another curve's": ASKED[:4] + b"\x04" + bytes(31) + b"\x01" + bytes(31) + b"\x01" + b"good.example",
    "too long": HEAD + b"a." * 200 + b"example",
    "a certificate": b"-----BEGIN CERTIFICATE REQUEST-----" * 3,
    "not ascii": HEAD + b"\xff\xfe",
}


@pytest.mark.parametrize("name", PACKETS)
def test_malformed_request_is_not_answered(ca, name):
    with pytest.raises(MalformedPacketError):
        Signer(ca).answer(PACKETS[name])


def test_truncated_request_is_never_misread(ca):
    for size in range(len(ASKED)):
        try:
            found = read_request(ASKED[:size])
        except MalformedPacketError:
            continue
        assert "good.example".startswith(found.host)


def test_certificates_of_a_worker_are_rate_limited(ca):
    now = [0.0]
    signer = Signer(ca, names=3, a_second=0.5, clock=lambda: now[0])
    asked = [encode_request(Request(number, POINT, f"n{number}.example")) for number in range(5)]
    assert [bool(read_answer(signer.answer(one))[1]) for one in asked] == [True, True, True, False, False]
    assert read_answer(signer.answer(asked[4])) == (4, b"")
    now[0] = 2.0
    assert [bool(read_answer(signer.answer(one))[1]) for one in asked[:2]] == [True, False]
    assert (signer.signed, signer.refused) == (4, 4)


def test_each_sandbox_has_its_own_allowance(ca):
    """Nine sandboxes that take all they may leave the tenth its own: no allowance of another's is ever met."""
    now = [0.0]
    signer = Signer(ca, names=3, a_second=0.5, clock=lambda: now[0])
    names = (encode_request(Request(number, POINT, f"n{number}.example")) for number in range(1000))

    def takes(count):
        return [bool(read_answer(signer.answer(next(names)))[1]) for _ in range(count)]

    for sandboxes in range(1, 11):
        signer.serves(sandboxes)
        assert takes(3) == [True] * 3
    now[0] = 2.0
    assert takes(10) == [True] * 10, "one each in this time"
    signer.serves(0)
    assert takes(4) == [True, True, True, False], "what is left when they are gone is one sandbox's at most"


def test_short_sandboxes_do_not_raise_the_allowance(ca):
    signer = Signer(ca, names=3, a_second=0.0)
    for _ in range(100):
        signer.serves(1)
        signer.serves(0)
    asked = [encode_request(Request(number, POINT, f"n{number}.example")) for number in range(5)]
    assert [bool(read_answer(signer.answer(one))[1]) for one in asked] == [True, True, True, False, False]


# the worker's side


class Pair:
    """A worker's leaves, and the certificate signer's end of its pair."""

    def __init__(self, ca):
        ours, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link, self.signer, self.told = SignerLink(ours), Signer(ca), []
        self.leaves = LeafCertificates(self.link)
        self.end.setblocking(False)

    def ask(self, *hosts):
        for host in hosts:
            self.leaves.ask(host, lambda problem, host=host: self.told.append((host, problem)))

    def serve(self):
        """Answer what was asked; returns for which hosts."""
        found = []
        while True:
            try:
                packet = self.end.recv(LONGEST_REQUEST + 1)
            except BlockingIOError:
                return found
            found.append(read_request(packet).host)
            self.end.send(self.signer.answer(packet))

    async def heard(self, count):
        """Wait until so many have been told."""
        async with asyncio.timeout(30):
            while len(self.told) < count:  # noqa: ASYNC110  it is told by what it knows nothing of
                await asyncio.sleep(0.001)
        return self.told

    def close(self):
        self.leaves.close()
        self.link.close()
        self.end.close()


def within_a_loop(test):
    def run(ca):
        async def body():
            pair = Pair(ca)
            try:
                await test(pair)
            finally:
                pair.close()

        asyncio.run(body())

    run.__name__ = test.__name__
    return run


@within_a_loop
async def test_one_answer_serves_every_waiter_of_a_host(pair):
    pair.ask("good.example", "good.example", "192.0.2.1")
    assert (pair.told, pair.leaves.is_fresh("good.example")) == ([], False)
    assert pair.serve() == ["good.example", "192.0.2.1"]
    assert sorted(await pair.heard(3)) == [("192.0.2.1", ""), ("good.example", ""), ("good.example", "")]
    one, other = (pair.leaves.usable(host) for host in ("good.example", "192.0.2.1"))
    assert one.certificate.public_key() == one.key.public_key() == other.key.public_key()
    assert pair.leaves.is_fresh("good.example")
    assert one.stale < one.ends


GONE = "the certificate signer is gone: no certificate for a new name"


@within_a_loop
async def test_lost_signer_leaves_cached_leaves_usable(pair):
    pair.ask("kept.example")
    pair.serve()
    await pair.heard(1)
    pair.ask("waiting.example")
    pair.end.close()
    assert (await pair.heard(2))[1] == ("waiting.example", GONE)
    pair.ask("new.example")
    assert pair.told[2] == ("new.example", GONE)  # at once
    assert pair.leaves.usable("kept.example").certificate
    with pytest.raises(NoLeafError):
        pair.leaves.usable("new.example")
    # one that is old, and not over yet, is better than none
    kept = pair.leaves._leaves["kept.example"]
    pair.leaves._leaves["kept.example"] = kept._replace(stale=kept.stale - timedelta(days=9))
    assert not pair.leaves.is_fresh("kept.example")
    pair.ask("kept.example")
    assert pair.told[3] == ("kept.example", "")
    pair.leaves._leaves["kept.example"] = kept._replace(ends=kept.stale - timedelta(days=9))
    pair.ask("kept.example")
    assert pair.told[4] == ("kept.example", GONE)
    with pytest.raises(NoLeafError):
        pair.leaves.usable("kept.example")


@within_a_loop
async def test_new_signer_replaces_a_lost_one(pair):
    pair.ask("lost.example")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pair.link.renew(ours)
    assert pair.told == [("lost.example", GONE)]
    pair.end.close()
    pair.end = theirs
    pair.end.setblocking(False)
    pair.ask("new.example")
    assert pair.serve() == ["new.example"]
    assert (await pair.heard(2))[1] == ("new.example", "")


ANSWERS = [
    ("refused", encode_answer, "the certificate signer signs no more for this worker just now"),
    (
        "no certificate",
        lambda number: encode_answer(number, b"\x30\x00"),
        "the certificate signer's answer is no certificate",
    ),
    ("too short", lambda _number: b"x", GONE),
    ("too long", lambda number: encode_answer(number, bytes(9000)), GONE),
]


@pytest.mark.parametrize(("made", "problem"), [each[1:] for each in ANSWERS], ids=[each[0] for each in ANSWERS])
def test_invalid_certificate_is_refused(ca, made, problem):
    @within_a_loop
    async def body(pair):
        pair.ask("good.example")
        number = read_request(pair.end.recv(LONGEST_REQUEST)).number
        pair.end.send(made(number))
        [(_, said)] = await pair.heard(1)
        assert said.startswith(problem)
        with pytest.raises(NoLeafError):
            pair.leaves.usable("good.example")

    body(ca)


def test_wait_for_a_certificate_is_bounded(ca, monkeypatch):
    monkeypatch.setattr(leaf_certificates, "PATIENCE", 0.01)

    @within_a_loop
    async def body(pair):
        pair.ask("good.example")
        assert await pair.heard(1) == [("good.example", "the certificate signer doesn't answer")]
        pair.serve()  # too late
        pair.ask("other.example")
        await pair.heard(2)
        with pytest.raises(NoLeafError):
            pair.leaves.usable("good.example")

    body(ca)


def test_caches_and_queues_are_bounded(ca, monkeypatch):
    monkeypatch.setattr(leaf_certificates, "LEAVES", 10)
    monkeypatch.setattr(leaf_certificates, "_UNDER_WAY", 4)
    monkeypatch.setattr(leaf_certificates, "MOST_WAITING", 20)

    @within_a_loop
    async def body(pair):
        pair.ask(*(f"n{number}.example" for number in range(25)))
        assert pair.told == [(f"n{number}.example", "too many certificates are waited for") for number in range(20, 25)]
        assert pair.serve() == [f"n{number}.example" for number in range(4)]
        while len(pair.told) < 25:
            pair.serve()
            await asyncio.sleep(0)
        assert len(pair.leaves._leaves) == 10
        assert (pair.leaves._pending, pair.link._sent, dict(pair.link._queues)) == ({}, {}, {})

    body(ca)


# what sandboxes of one worker see of each other: nothing (invariant 11)


@within_a_loop
async def test_leaf_of_another_sandbox_is_invisible(pair):
    """Its serial number and its age would say when a neighbour was there."""
    other = LeafCertificates(pair.link)
    pair.ask("good.example")
    pair.serve()
    await pair.heard(1)
    assert not other.is_fresh("good.example")
    with pytest.raises(NoLeafError):
        other.usable("good.example")
    other.ask("good.example", lambda problem: pair.told.append(("other", problem)))
    assert pair.serve() == ["good.example"]
    assert (await pair.heard(2))[1] == ("other", "")
    one, two = (leaves.usable("good.example") for leaves in (pair.leaves, other))
    assert one.certificate.serial_number != two.certificate.serial_number
    assert one.certificate.public_key() != two.certificate.public_key() == two.key.public_key()


def test_full_cache_of_a_sandbox_evicts_no_others_leaf(ca, monkeypatch):
    monkeypatch.setattr(leaf_certificates, "LEAVES", 3)

    @within_a_loop
    async def body(pair):
        other = LeafCertificates(pair.link)
        other.ask("kept.example", lambda problem: pair.told.append(("other", problem)))
        pair.ask(*(f"n{number}.example" for number in range(6)))
        pair.serve()
        await pair.heard(7)
        assert (other.is_fresh("kept.example"), len(pair.leaves._leaves)) == (True, 3)

    body(ca)


def test_waiting_sandbox_delays_no_other(ca, monkeypatch):
    monkeypatch.setattr(leaf_certificates, "_UNDER_WAY", 2)
    monkeypatch.setattr(leaf_certificates, "MOST_WAITING", 20)

    @within_a_loop
    async def body(pair):
        pair.ask(*(f"n{number}.example" for number in range(21)))
        assert [host for host, _ in pair.told] == ["n20.example"]
        other = LeafCertificates(pair.link)
        other.ask("other.example", lambda problem: pair.told.append(("other", problem)))
        assert pair.serve() == ["n0.example", "n1.example"]
        await pair.heard(3)
        assert pair.serve() == ["n2.example", "other.example"]  # in turn, not behind all of its neighbour's
        other.close()
        pair.leaves.close()
        assert (dict(pair.link._queues), pair.link._sent) == ({}, {})

    body(ca)


# what it is to a connection


def test_name_of_another_sandbox_counts_for_the_allowance(gate, origins, monkeypatch):
    """A name that took nothing would say that a neighbour has visited it."""
    monkeypatch.setattr("proxy.inspection.engine.NEW_NAMES", 1)
    monkeypatch.setattr("proxy.inspection.engine.NEW_NAMES_A_SECOND", 0.0)
    told, neighbour = [], LeafCertificates(gate.link)
    for host in ("good.example", "other.example"):
        gate.loop.run(lambda host=host: neighbour.ask(host, told.append))
    wait_until(lambda: told == ["", ""])
    origin = origins.web("good.example")
    make_site(gate, origin).connect().close()
    with pytest.raises(ConnectionResetError):
        make_site(gate, origin, "other.example").connect()
    assert gate.signer.signed == 3
    assert [end.reason for end in gate.wait_closed(2) if end.reason] == ["limit_exceeded"]


def test_connection_without_a_certificate_ends(gate, origins):
    origin = origins.web("good.example")
    place = make_site(gate, origin)
    with place.connect():
        pass
    gate.stop_signer()
    gate.loop.run(gate.signer_socket.close)
    with place.connect():  # one that has a certificate
        pass
    other = make_site(gate, origin, "other.example")
    with pytest.raises(ConnectionResetError):
        other.connect()
    closed = gate.wait_closed(3)
    assert [end.reason for end in closed if end.reason] == ["gate_error"]
    [error] = gate.events("gate.error")
    assert error["fault"] == {"where": "inspection", "detail": GONE}
    assert error["cause"] == gate.events("connection.closed")[-1]["cause"]


def hello(name):
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def test_waiting_connection_ends_when_denied(gate, origins):
    place = make_site(gate, origins.web("good.example"))
    gate.stop_signer()
    clients = []
    for count in (1, 2):
        clients.append(socket.create_connection(("127.0.0.1", place.gate_port), 30))
        clients[-1].sendall(hello("good.example"))
        wait_until(lambda count=count: len(getattr(gate.inspection._engine, "_awaiting_certificate", ())) == count)
    first = next(iter(gate.inspection._engine._awaiting_certificate.values()))
    gate.rules("[{id: a, to: good.example, action: deny}]")
    denied = gate.sandbox.policy.decide(first.gate_decision.attempt)
    gate.loop.run(lambda: gate.inspection.review(first, denied))
    assert [end.reason for end in gate.wait_closed(1)] == ["rule"]
    gate.loop.run(gate.inspection.close)
    assert [end.reason for end in gate.wait_closed(2)] == ["rule", None]
    for client in clients:
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)


def test_endless_names_affect_only_their_sandbox(gate, origins, monkeypatch):
    monkeypatch.setattr("proxy.inspection.engine.NEW_NAMES", 2)
    monkeypatch.setattr("proxy.inspection.engine.NEW_NAMES_A_SECOND", 0.0)
    origin = origins.web("good.example")
    for number in range(3):
        place = make_site(gate, origin, f"n{number}.example")
        if number < 2:
            place.connect().close()
        else:
            with pytest.raises(ConnectionResetError):
                place.connect()
    assert gate.signer.signed == 2
    assert [end.reason for end in gate.wait_closed(3) if end.reason] == ["limit_exceeded"]
