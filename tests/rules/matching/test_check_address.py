"""Policy.check_address: which addresses of a name the gate may connect to (invariants 3 and 9)."""

import pytest

from rules.attempt import Attempt, Protocol, Request
from rules.loading.cases import parse_attempt
from rules.values.addresses import parse_host
from rules.verdicts import Reason
from tests.rules.rule_texts import policy

X = parse_host("x.example")
PLAIN = "- {id: a, to: x.example, action: allow}\n"
INTERNAL = "- {id: i, to: x.example, resolves_to: [10.20.0.0/16], action: allow}\n"
PUBLIC_ONLY, NOT_LISTED, RULE, ASK = (
    Reason.NON_PUBLIC_ADDRESS,
    Reason.ADDRESS_NOT_LISTED,
    Reason.RULE,
    Reason.APPROVAL_UNAVAILABLE,
)

REBINDING = [
    "127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "0.0.0.0", "192.168.1.1",
    "100.64.0.1", "100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255", "fe80::1", "fd00::1", "2002:a00:1::", "2001:0:1::", "::10.0.0.1", "ff02::1",
]  # fmt: skip


@pytest.mark.parametrize("address", REBINDING)
def test_allowed_name_at_a_private_address_is_not_dialled(address):
    attempt, dialled = Attempt(Protocol.TLS, X, 443), parse_host(f"[{address}]" if ":" in address else address)
    for rules in (PLAIN, "- {id: a, to: '*', action: allow}", "- {id: a, to: '*', default: true, action: flag}"):
        assert policy(rules).check_address(attempt, dialled) is PUBLIC_ONLY
    for asked in (attempt, attempt._replace(request=Request("GET", "/"))):
        audited = policy("version: 1\nsettings: {mode: audit}")
        assert audited.decide(asked).passes
        assert audited.check_address(asked, dialled) is PUBLIC_ONLY


CHECKED = [
    (PLAIN, "tls x.example:443", "1.1.1.1", None),
    (PLAIN, "tls x.example:443", "2606:4700::1", None),
    (PLAIN, "tls x.example:443", "::ffff:1.1.1.1", None),
    (PLAIN, "tls y.example:443", "1.1.1.1", Reason.NO_RULE),
    (PLAIN, "tls x.example:444", "1.1.1.1", Reason.NO_RULE),
    (PLAIN, "udp x.example:443", "1.1.1.1", Reason.QUIC),
    (INTERNAL, "tls x.example:443", "10.20.1.1", None),
    (INTERNAL, "tls x.example:443", "10.21.1.1", NOT_LISTED),
    (INTERNAL, "tls x.example:443", "1.1.1.1", NOT_LISTED),  # listed addresses are all there are
    (PLAIN + INTERNAL, "tls x.example:443", "10.20.1.1", None),
    (PLAIN + INTERNAL, "tls x.example:443", "1.1.1.1", None),
    (PLAIN + INTERNAL, "tls x.example:443", "10.21.1.1", NOT_LISTED),
    ("- {id: a, to: x.example, resolves_to: [0.0.0.0/0], action: allow}", "tls x.example:443", "10.0.0.1", NOT_LISTED),
    ("- {id: a, to: x.example, resolves_to: [0.0.0.0/0], action: allow}", "tls x.example:443", "1.1.1.1", None),
    ("- {id: a, to: x.example, resolves_to: [169.254.169.254], action: allow}", "tls x.example:443", "169.254.169.254", None),
    ("- {id: a, to: host.exeat.internal, ports: [443], action: allow}", "tls host.exeat.internal:443", "127.0.0.1", None),
    # what is exempt of addresses
    ("- {id: a, to: x.example, except: [{resolves_to: 1.1.0.0/16}], action: allow}", "tls x.example:443", "8.8.8.8", None),
    ("- {id: a, to: x.example, except: [{resolves_to: 1.1.0.0/16}], action: allow}", "tls x.example:443", "1.1.2.3", NOT_LISTED),
    ("- {id: a, to: x.example, except: [{resolves_to: 1.1.0.0/16}], action: allow}", "GET https://x.example/", "1.1.2.3", NOT_LISTED),
    (PLAIN + "- {id: d, to: '*', except: [{resolves_to: 1.1.0.0/16}], action: deny}", "tls x.example:443", "1.1.2.3", None),
    (PLAIN + "- {id: d, to: '*', except: [{resolves_to: 1.1.0.0/16}], action: deny}", "tls x.example:443", "8.8.8.8", RULE),
    (PLAIN + "- {id: d, to: '*', except: [{resolves_to: 1.1.0.0/16, for: {tasks: web}}], action: deny}", "tls x.example:443", "1.1.2.3", RULE),
    (PLAIN + "- {id: q, to: '*', resolves_to: 1.0.0.0/8, except: [{resolves_to: 1.1.0.0/16}], action: ask}", "tls x.example:443", "1.1.2.3", None),
    (PLAIN + "- {id: q, to: '*', resolves_to: 1.0.0.0/8, except: [{resolves_to: 1.1.0.0/16}], action: ask}", "tls x.example:443", "1.2.2.3", ASK),
    # address rules that hold back reach whatever is dialled
    (PLAIN + "- {id: d, to: 1.1.0.0/16, action: deny}", "tls x.example:443", "1.1.2.3", RULE),
    (PLAIN + "- {id: d, to: 1.1.0.0/16, action: deny}", "tls x.example:443", "1.2.2.3", None),
    (PLAIN + "- {id: q, to: 1.1.0.0/16, action: ask}", "tls x.example:443", "1.1.2.3", ASK),
    (PLAIN + "- {id: d, to: 1.1.0.0/16, ports: 22/tcp, action: deny}", "tls x.example:443", "1.1.2.3", None),
    (PLAIN + "- {id: d, to: 1.1.0.0/16, except: [1.1.2.0/24], action: deny}", "tls x.example:443", "1.1.2.3", None),
    (INTERNAL + "- {id: d, to: 10.0.0.0/8, action: deny}", "tls x.example:443", "10.20.1.1", RULE),
    (INTERNAL + "- {id: d, to: 10.0.0.0/8, default: true, action: deny}", "tls x.example:443", "10.20.1.1", None),
    ("- {id: a, to: '*', default: true, action: allow}\n- {id: d, to: 1.0.0.0/8, default: true, action: deny}", "tls x.example:443", "1.1.1.1", Reason.DEFAULT_RULE),
    # an address rule that lets out is not about names
    (PLAIN + "- {id: r, to: 10.0.0.0/8, action: allow}", "tls x.example:443", "10.0.0.1", PUBLIC_ONLY),
    # a rule about names and addresses exempts the name, wherever it resolves to
    (INTERNAL + "- {id: d, to: ['*', 10.0.0.0/8], except: [x.example], action: deny}", "tls x.example:443", "10.20.1.1", None),
    (INTERNAL + "- {id: d, to: [y.example, 10.0.0.0/8], action: deny}", "tls x.example:443", "10.20.1.1", RULE),
    (INTERNAL + "- {id: d, to: ['*', 10.0.0.0/8], resolves_to: [1.0.0.0/8], action: deny}", "tls x.example:443", "10.20.1.1", RULE),
    # rules that hold back certain addresses only
    (PLAIN + "- {id: d, to: '*', resolves_to: [1.1.0.0/16], action: deny}", "tls x.example:443", "1.1.2.3", RULE),
    (PLAIN + "- {id: d, to: '*', resolves_to: [1.1.0.0/16], action: deny}", "tls x.example:443", "1.2.2.3", None),
    (PLAIN + "- {id: d, to: '*', resolves_to: [1.1.0.0/16], default: true, action: deny}", "tls x.example:443", "1.1.2.3", None),
    # raw tcp
    ("- {id: t, to: x.example, ports: 22/tcp, action: allow}\n- {id: d, to: 1.1.0.0/16, http: {methods: [PUT]}, action: deny}", "tcp x.example:22", "1.1.2.3", RULE),
    # an address target is dialled as it is, or not at all
    ("- {id: r, to: 1.1.0.0/16, action: allow}", "tls 1.1.2.3:443", "1.1.2.3", None),
    ("- {id: r, to: 1.1.0.0/16, action: allow}", "tls 1.1.2.3:443", "1.1.2.4", NOT_LISTED),
    ("- {id: r, to: 1.1.0.0/16, action: allow}", "tls 1.2.2.3:443", "1.2.2.3", NOT_LISTED),
    ("- {id: r, to: '*', action: allow}", "tls 1.1.2.3:443", "1.1.2.3", NOT_LISTED),
    ("- {id: r, to: 10.0.0.0/8, action: allow}", "tls 10.1.1.1:443", "10.1.1.1", None),
    ("- {id: r, to: 0.0.0.0/0, action: allow}", "tls 10.1.1.1:443", "10.1.1.1", NOT_LISTED),
    ("- {id: r, to: 1.1.0.0/16, action: allow}\n- {id: d, to: 1.1.2.3, action: deny}", "tls 1.1.2.3:443", "1.1.2.3", RULE),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "attempt", "address", "reason"), CHECKED)
def test_address_check_follows_the_rules(rules, attempt, address, reason):
    asked = policy(rules)
    question = parse_attempt(attempt).attempt(asked)
    dialled = parse_host(f"[{address}]" if ":" in address else address)
    assert asked.check_address(Attempt(question.protocol, question.target, question.port), dialled) is reason


TWO = (
    "- {id: a, to: x.example, http: {paths: /a/**}, resolves_to: [10.20.0.0/16], action: allow}\n"
    "- {id: b, to: x.example, http: {paths: /b/**}, action: allow}\n"
)


@pytest.mark.parametrize(
    ("path", "address", "reason"),
    [
        ("/a/x", "10.20.0.1", None),
        ("/a/x", "1.1.1.1", NOT_LISTED),
        ("/b/x", "1.1.1.1", None),
        ("/b/x", "10.20.0.1", NOT_LISTED),
        (None, "10.20.0.1", NOT_LISTED),  # which rule will let out is not known yet, so both must admit it
        (None, "1.1.1.1", NOT_LISTED),
    ],
)
def test_each_request_has_its_own_addresses(path, address, reason):
    request = None if path is None else Request("GET", path)
    assert policy(TWO).check_address(Attempt(Protocol.TLS, X, 443, request), parse_host(address)) is reason


def test_request_rule_allows_its_addresses_before_a_request():
    asked = policy("- {id: a, to: x.example, http: {methods: [GET]}, resolves_to: [10.20.0.0/16], action: allow}")
    assert asked.check_address(Attempt(Protocol.TLS, X, 443), parse_host("10.20.0.1")) is None
    assert asked.check_address(Attempt(Protocol.TLS, X, 443), parse_host("10.21.0.1")) is NOT_LISTED


def test_request_can_be_denied_at_an_address():
    asked = policy(PLAIN + "- {id: d, to: 1.1.0.0/16, http: {methods: [DELETE]}, action: deny}")

    def check(method):
        return asked.check_address(Attempt(Protocol.TLS, X, 443, Request(method, "/")), parse_host("1.1.2.3"))

    assert check("GET") is None
    assert check("DELETE") is RULE


def test_names_at_one_address_do_not_allow_another_name():
    rules = "".join(f"- {{id: n{i}, to: n{i}.example, action: allow}}\n" for i in range(10))
    asked = policy(rules)
    shared = parse_host("1.1.1.1")
    assert asked.check_address(Attempt(Protocol.TLS, parse_host("n3.example"), 443), shared) is None
    assert asked.check_address(Attempt(Protocol.TLS, parse_host("n10.example"), 443), shared) is Reason.NO_RULE
    assert asked.check_address(Attempt(Protocol.TLS, shared, 443), shared) is NOT_LISTED


def test_address_exception_can_depend_on_the_request():
    asked = policy("- {id: a, to: x.example, except: [{resolves_to: 1.1.0.0/16, http: {methods: PUT}}], action: allow}")

    def checked(method, address):
        return asked.check_address(Attempt(Protocol.TLS, X, 443, Request(method, "/")), parse_host(address))

    assert [checked("GET", "1.1.2.3"), checked("PUT", "8.8.8.8")] == [None, None]
    assert checked("PUT", "1.1.2.3") is NOT_LISTED
