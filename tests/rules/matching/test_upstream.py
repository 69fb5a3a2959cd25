"""Upstream proxy: which attempts go through it, which go directly, and that no address replaces it."""

import pytest

from rules.attempt import Attempt, Protocol, Request
from rules.explain.explanation import explain
from rules.loading.cases import parse_attempt
from rules.problems import RuleFileError
from rules.settings import ProxyDestination, Scheme, Upstream
from rules.values.addresses import parse_host
from rules.verdicts import Reason
from tests.rules.rule_texts import policy

PROXY = "http://proxy.corp.example:3128"

RULES = """
version: 1
name: t
settings: {upstream: 'http://proxy.corp.example:3128', upstream_except: ["**.direct.example", 9.9.9.0/24]}
rules:
  - {id: all, to: "*", ports: [443/tls, 80/http, 22/tcp], action: allow}
  - {id: literal, to: [9.9.9.9, 8.8.8.8, 10.1.0.0/16], ports: [443/tls, 22/tcp], action: allow}
  - {id: inside, to: "*.inside.example", resolves_to: [10.0.0.0/8], action: allow}
  - {id: kept, to: "*.kept.example", resolves_to: [8.8.4.0/24], action: deny}
  - {id: minus, to: "*.minus.example", action: deny, except: [{resolves_to: [8.8.4.0/24]}]}
  - {id: other, to: "*.other.example", for: {tasks: [other]}, resolves_to: [10.0.0.0/8], action: allow}
  - {id: paths, to: paths.example, resolves_to: [10.0.0.0/8], http: {methods: [GET], paths: [/in]}, action: allow}
"""

WAYS = [
    ("any name", "www.example", 443, Protocol.TLS, PROXY),
    ("a name in the clear", "www.example", 80, Protocol.HTTP, PROXY),
    ("bytes that the gate does not read", "www.example", 22, Protocol.TCP, PROXY),
    ("an excepted name", "direct.example", 443, Protocol.TLS, None),
    ("a name below an excepted one", "a.b.direct.example", 443, Protocol.TLS, None),
    ("a name that only looks like it", "indirect.example", 443, Protocol.TLS, PROXY),
    ("a public address", "8.8.8.8", 443, Protocol.TLS, PROXY),
    ("an excepted address", "9.9.9.9", 443, Protocol.TLS, None),
    ("an address that is not public", "10.1.2.3", 443, Protocol.TLS, None),
    ("a name whose rule lists addresses", "x.inside.example", 443, Protocol.TLS, None),
    ("a name that is kept from certain addresses", "x.kept.example", 443, Protocol.TLS, None),
    ("a name that certain addresses are exempted of", "x.minus.example", 443, Protocol.TLS, None),
    ("a name whose rule with addresses is another task's", "x.other.example", 443, Protocol.TLS, PROXY),
    ("a name of which some requests have addresses", "paths.example", 443, Protocol.TLS, None),
]  # fmt: skip


@pytest.mark.parametrize(("target", "port", "protocol", "way"), [w[1:] for w in WAYS], ids=[w[0] for w in WAYS])
def test_connections_use_the_upstream_proxy(target, port, protocol, way):
    upstream = policy(RULES).upstream_for(Attempt(protocol, parse_host(target), port))
    assert (upstream and str(upstream)) == way


def test_request_uses_the_proxy_of_its_connection():
    rules, name = policy(RULES), parse_host("paths.example")
    for request in (None, Request("GET", "/in"), Request("GET", "/else")):
        assert rules.upstream_for(Attempt(Protocol.TLS, name, 443, request)) is None


def test_each_task_uses_the_proxy_of_its_rules():
    attempt = Attempt(Protocol.TLS, parse_host("x.other.example"), 443, None, "other")
    assert policy(RULES).upstream_for(attempt) is None


NAME = parse_host("www.example")
INSIDE = parse_host("x.inside.example")
HERE = Upstream.parse(PROXY)
DIALLED = [
    ("the proxy, asked for the name", NAME, ProxyDestination(HERE, NAME), None),
    ("the proxy, asked for another name", NAME, ProxyDestination(HERE, INSIDE), Reason.ADDRESS_NOT_LISTED),
    ("another proxy", NAME, ProxyDestination(Upstream.parse("http://other.example:3128"), NAME), Reason.ADDRESS_NOT_LISTED),
    ("the proxy spoken to otherwise", NAME, ProxyDestination(HERE._replace(scheme=Scheme.SOCKS5), NAME), Reason.ADDRESS_NOT_LISTED),
    ("the name's own address", NAME, parse_host("1.1.1.1"), Reason.ADDRESS_NOT_LISTED),
    ("the proxy, for what is dialled directly", INSIDE, ProxyDestination(HERE, INSIDE), Reason.ADDRESS_NOT_LISTED),
    ("a listed address", INSIDE, parse_host("10.1.2.3"), None),
]  # fmt: skip


@pytest.mark.parametrize(("target", "hop", "reason"), [d[1:] for d in DIALLED], ids=[d[0] for d in DIALLED])
def test_only_the_proxy_may_be_dialled(target, hop, reason):
    assert policy(RULES).check_address(Attempt(Protocol.TLS, target, 443), hop) is reason


IN_CLEAR = [  # by absolute-form, and no connection of its own
    (Protocol.HTTP, HERE, None),
    (Protocol.TLS, HERE, Reason.ADDRESS_NOT_LISTED),
    (Protocol.TCP, HERE, Reason.ADDRESS_NOT_LISTED),
    (Protocol.HTTP, Upstream.parse("http://other.example:3128"), Reason.ADDRESS_NOT_LISTED),
]


@pytest.mark.parametrize(("protocol", "upstream", "reason"), IN_CLEAR)
def test_request_rules_apply_through_a_proxy(protocol, upstream, reason):
    attempt = Attempt(protocol, NAME, 443)
    assert policy(RULES).check_address(attempt, ProxyDestination(upstream, NAME, relayed=True)) is reason
    by_socks = policy(RULES.replace(PROXY, "socks5://proxy.corp.example:1080"))
    hop = ProxyDestination(Upstream.parse("socks5://proxy.corp.example:1080"), NAME, relayed=True)
    assert by_socks.check_address(attempt, hop) is Reason.ADDRESS_NOT_LISTED


def test_without_a_proxy_none_is_dialled():
    rules = policy("version: 1\nrules:\n  - {id: a, to: '*', action: allow}\n")
    assert (
        rules.check_address(Attempt(Protocol.TLS, NAME, 443), ProxyDestination(HERE, NAME)) is Reason.ADDRESS_NOT_LISTED
    )
    assert rules.check_address(Attempt(Protocol.TLS, NAME, 443), parse_host("1.1.1.1")) is None


EXPLAINED = [
    ("https://www.example/", f"it goes through the proxy {PROXY}", PROXY),
    ("tls direct.example:443", "it connects directly, without the proxy", None),
    ("tls 10.1.2.3:443", "it connects directly, without the proxy", None),
    ("udp www.example:53", None, None),
    ("dns A www.example", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("attempt", "line", "via"), EXPLAINED)
def test_explanation_names_the_proxy(attempt, line, via):
    attempt = attempt.removeprefix("tls ")
    text = f"GET {attempt}" if "://" in attempt else attempt
    explanation = explain(policy(RULES), parse_attempt(text))
    assert [said for said in explanation.lines() if "proxy" in said] == ([line] if line else [])
    assert explanation.value()["via"] == via


def test_bypassed_hosts_are_spelled_as_in_the_file():
    assert str(policy(RULES).settings.upstream_except) == "**.direct.example, 9.9.9.0/24"


SPELLINGS = [
    ("http://Proxy.Corp.Example.:3128/", "http://proxy.corp.example:3128"),
    ("socks5://10.0.0.1:1080", "socks5://10.0.0.1:1080"),
    ("socks5h://proxy:1080", "socks5://proxy:1080"),
    ("http://[fd00::1]:3128", "http://[fd00::1]:3128"),
]


@pytest.mark.parametrize(("text", "normal"), SPELLINGS)
def test_proxy_urls_are_parsed(text, normal):
    assert str(Upstream.parse(text)) == normal


def test_password_in_a_proxy_url_is_not_printed():
    with pytest.raises(ValueError, match="upstream_auth") as error:
        Upstream.parse("http://me:geheim@proxy:3128")
    assert "geheim" not in str(error.value)


LAYERS = [
    ("the same twice", "", "", None),
    ("another exception", "", ", upstream_except: [x.example]", "sets another `upstream`"),
    ("another file for the password", ", upstream_auth: /a", ", upstream_auth: /b", "sets another `upstream`"),
]


@pytest.mark.parametrize(("first", "second", "says"), [x[1:] for x in LAYERS], ids=[x[0] for x in LAYERS])
def test_one_layer_sets_the_whole_proxy(first, second, says, tmp_path):
    from rules.loading.load import load

    for name, more in (("one", first), ("two", second)):
        (tmp_path / f"{name}.yaml").write_text(
            f"version: 1\nname: {name}\nlayer: mandatory\nsettings: {{upstream: 'http://proxy:1'{more}}}\n"
            f"rules:\n  - {{id: a, to: x.example, action: deny}}\n"
        )
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    if says is None:
        assert str(load(files).settings.upstream) == "http://proxy:1"
        return
    for order in (files, files[::-1]):
        with pytest.raises(RuleFileError, match=says):
            load(order)


def test_proxy_changes_the_revision():
    text = "version: 1\nsettings: {{upstream: 'http://proxy:{port}', upstream_except: [{past}]}}\nrules: []\n"
    written = [(1, "a.example, b.example"), (1, "b.example, a.example"), (2, "a.example, b.example"), (1, "a.example")]
    revisions = [policy(text.format(port=port, past=past)).revision for port, past in written]
    assert revisions[0] == revisions[1]
    assert len(set(revisions)) == 3


ROOT = """
version: 1
name: root
layer: mandatory
settings: {upstream: 'http://proxy:3128', upstream_except: [past.example]}
rules:
  - {id: a, to: layered.example, resolves_to: [8.8.8.0/24], action: allow}
"""
OWN = """
version: 1
name: own
rules:
  - {id: b, to: "*", resolves_to: [8.8.8.0/24, 10.0.0.0/8], action: allow}
"""
LAYERED = [
    ("a public address that a layer's rule lists", "layered.example", "8.8.8.8", None),
    ("one that another file's rule lists", "own.example", "8.8.8.8", Reason.ADDRESS_NOT_LISTED),
    ("one that is not public, and another file's rule lists", "own.example", "10.1.2.3", None),
    ("a public one of a name that the layer excepts", "past.example", "8.8.8.8", None),
]


@pytest.mark.parametrize(("name", "address", "reason"), [x[1:] for x in LAYERED], ids=[x[0] for x in LAYERED])
def test_no_other_file_bypasses_the_proxy_of_a_layer(name, address, reason, tmp_path):
    from rules.loading.load import load

    for file, text in (("root.yaml", ROOT), ("own.yaml", OWN)):
        (tmp_path / file).write_text(text)
    rules = load([tmp_path / "root.yaml", tmp_path / "own.yaml"])
    assert rules.check_address(Attempt(Protocol.TLS, parse_host(name), 443), parse_host(address)) is reason
