from ipaddress import ip_address

import pytest
from gate_harness import client_hello, extension, hello_message, made_hello, policy_of, records, server_name
from hypothesis import example, given
from hypothesis import strategies as st

from proxy import recall as recalls
from proxy.deciding import Patience, Wanted, judge, patience
from proxy.greetings import LONGEST_KNOWN, MOST_ALIKE, MOST_KNOWN, Greetings
from proxy.hello import ClientHello, NotTls, parse_hello
from proxy.recall import Recall
from proxy.tenant import Task, Tenant
from rules.names import HostName
from rules.verdicts import Reason

REAL = client_hello()
RULES = ("id: good, to: good.example, ports: [443], tls: splice, action: allow",)
GOOD = Wanted(ip_address("198.18.0.1"), 443, (HostName("good.example"),))


def known(*hellos):
    greetings = Greetings()
    for hello in hellos:
        greetings.read(hello)
    return greetings


def test_the_same_program_is_known_by_sight():
    greetings = known(REAL)
    first = greetings.read(REAL)
    again = client_hello()
    assert again != REAL  # its random, session id and key are
    assert greetings.read(again) is first
    assert first == parse_hello(again)


def test_another_name_or_offer_is_another_hello():
    greetings = known(REAL)
    for other in (client_hello("evil.example"), client_hello("good.example", ("h2",)), client_hello(None)):
        assert greetings.read(other) == parse_hello(other) != parse_hello(REAL)


@given(st.integers(0, len(REAL) - 1), st.integers(0, 255))
@example(43, 31)
@example(4, 0)
def test_no_byte_makes_it_say_anything_but_the_reader(at, byte):
    damaged = bytearray(REAL)
    damaged[at] = byte
    assert known(REAL).read(bytes(damaged)) == parse_hello(bytes(damaged))


@given(st.integers(0, len(REAL) + 5))
def test_nor_does_what_is_missing_or_follows(size):
    data = (REAL + b"early")[:size]
    assert known(REAL).read(data) == parse_hello(data)


FRESH = [extension(51, b"a key of some size"), extension(35, b"a ticket"), extension(41, b"another")]


@given(
    st.permutations([server_name(b"good.example"), extension(0x1A1A), *FRESH]),
    st.integers(0, 300),
    st.binary(max_size=8),
)
def test_wherever_the_fresh_parts_stand(extensions, at, junk):
    made = made_hello(*extensions)
    other = made[:at] + junk + made[at + len(junk) :]
    assert known(made).read(other) == parse_hello(other)


def test_fresh_parts_may_differ_and_their_lengths_may_not():
    before, after = extension(16, b"\0\3\2h2"), server_name(b"good.example")
    greetings = known(made_hello(before, extension(51, b"aaaa"), after))
    first = greetings.read(made_hello(before, extension(51, b"aaaa"), after))
    assert greetings.read(made_hello(before, extension(51, b"bbbb"), after)) is first
    hidden = made_hello(before, extension(51, b"aaaa")[:-4] + server_name(b"evil.example"), after)
    assert greetings.read(hidden) == parse_hello(hidden)
    session = made_hello(before, extension(51, b"aaaa"), after, session=b"x" * 32)
    assert greetings.read(session) is first


def test_a_hello_without_extensions_is_known_too():
    plain = records(hello_message(None))
    greetings = known(plain)
    assert greetings.read(plain) is greetings.read(plain)
    assert greetings.read(plain[:-1] + b"\1") == parse_hello(plain[:-1] + b"\1")


def test_only_whole_hellos_in_one_record_are_remembered():
    message = hello_message([server_name(b"good.example")])
    for data in (records(message, 50), REAL[:100], b"\x16\x03\x01\x00\x05hello", b""):
        greetings = known(data)
        assert not any(greetings._known.values())
    assert known(REAL + b"more").read(REAL).sni == "good.example"


def test_what_is_remembered_is_bounded():
    greetings = Greetings()
    for number in range(MOST_KNOWN + 50):
        hello = made_hello(server_name(b"good.example"), extension(21, bytes(number)))
        assert greetings.read(hello) == parse_hello(hello)
    assert sum(map(len, greetings._known.values())) == MOST_KNOWN
    greetings = Greetings()
    for number in range(20):
        greetings.read(made_hello(server_name(f"n{number:02}.example".encode())))
    assert sum(map(len, greetings._known.values())) == MOST_ALIKE
    greetings = known(made_hello(extension(21, bytes(LONGEST_KNOWN))))
    assert not any(greetings._known.values())


# decisions


@pytest.fixture
def tenant(tmp_path):
    return Tenant("s", Task("t", "task"), policy_of(tmp_path, RULES), frozenset(), 15001)


def test_the_same_question_has_the_same_answer(tenant):
    recall = Recall(tenant, can_inspect=True)
    hello = parse_hello(REAL)
    for _ in range(3):
        assert recall.judge(GOOD, hello) == judge(tenant, GOOD, hello, can_inspect=True)
        assert recall.patience(GOOD) is patience(tenant.policy, GOOD) is Patience.FULL
    assert recall.judge(GOOD, hello) is recall.judge(GOOD, hello)


@pytest.mark.parametrize(
    ("wanted", "change", "reason"),
    [
        (GOOD, {"sni": "evil.example"}, "name_mismatch"),
        (GOOD, {"sni": None}, "sni_missing"),
        (GOOD, {"ech": True}, "ech"),
        (GOOD._replace(port=444), {}, "no_rule"),
        (GOOD._replace(names=(HostName("evil.example"),)), {"sni": "evil.example"}, "no_rule"),
        (GOOD._replace(names=()), {"sni": None}, "non_public_address"),
        (GOOD._replace(names=()), {}, "rule"),
    ],
)
def test_another_question_is_another_question(tenant, wanted, change, reason):
    recall = Recall(tenant, can_inspect=True)
    hello = parse_hello(REAL)
    assert recall.judge(GOOD, hello).decision.passes
    other = hello._replace(**change)
    for _ in range(2):
        made = recall.judge(wanted, other)
        assert made == judge(tenant, wanted, other, can_inspect=True)
        assert made.decision.reason is Reason(reason)
        assert made.hello is other


def test_another_policy_is_asked_anew(tenant, tmp_path):
    recall = Recall(tenant, can_inspect=True)
    hello = parse_hello(REAL)
    assert recall.judge(GOOD, hello).decision.passes
    tenant.policy = policy_of(tmp_path, ("id: other, to: other.example, ports: [22/tcp], action: allow",))
    assert not recall.judge(GOOD, hello).decision.passes
    assert recall.patience(Wanted(GOOD.address, 22, GOOD.names)) is Patience.BRIEF


def test_each_hello_is_told_as_its_own(tenant):
    recall = Recall(tenant, can_inspect=True)
    one, two = parse_hello(REAL), parse_hello(REAL)._replace(version="TLSv1.2")
    assert recall.judge(GOOD, one).hello is one
    assert recall.judge(GOOD, two).hello is two


def test_addresses_are_not_mixed_up(tmp_path):
    rule = ("id: raw, to: 93.184.216.34, ports: [22/tcp], action: allow",)
    tenant = Tenant("s", Task("t", "task"), policy_of(tmp_path, rule), frozenset(), 15001)
    recall = Recall(tenant, can_inspect=True)
    one, two = Wanted(ip_address("93.184.216.34"), 22), Wanted(ip_address("93.184.216.35"), 22)
    assert [recall.patience(wanted) for wanted in (one, two, one)] == [Patience.NONE, Patience.BRIEF, Patience.NONE]


def test_what_is_kept_is_bounded_and_never_what_a_task_wrote_at_length(tenant, monkeypatch):
    monkeypatch.setattr(recalls, "MOST_REMEMBERED", 5)
    recall = Recall(tenant, can_inspect=True)
    hello = parse_hello(REAL)
    for port in range(1, 100):
        recall.judge(GOOD._replace(port=port), hello)
        recall.patience(GOOD._replace(port=port))
        assert len(recall._judged) <= 5
        assert len(recall._patience) <= 5
    recall._judged.clear()
    recall.judge(GOOD, hello._replace(alpn=("x",) * 9))
    recall.judge(GOOD, hello._replace(sni="x" * 9999))
    recall.judge(GOOD._replace(names=()), hello)
    assert not recall._judged


def test_bytes_are_recognised_as_ever(tenant):
    recall = Recall(tenant, can_inspect=True)
    assert isinstance(recall.recognise(REAL, whole_head=False), ClientHello)
    assert recall.recognise(REAL, whole_head=False) is recall.recognise(client_hello(), whole_head=True)
    assert recall.recognise(b"GET / HTTP/1.1\r\n", whole_head=False).host is None
    assert parse_hello(b"x") is NotTls.NOT_TLS
