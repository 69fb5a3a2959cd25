# ruff: noqa: PT017, RUF001 - what an error says is what is tested; look-alikes are what names are about
"""What is fuzzed, and what must hold whatever comes: a value or the one documented error, and the same value again.

A target takes bytes. It returns when all is well and raises when something is not.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from rules.attempt import Attempt, Protocol, Request
from rules.editing.insertion import AttemptToAllow, EditError, add_rule
from rules.explain.explanation import consider_rules, explain, weigh_considered
from rules.loading.cases import parse_attempt
from rules.loading.document import parse
from rules.loading.identities import parse_identities
from rules.loading.load import load, read
from rules.matching.policy import Policy
from rules.matching.requests import match_header, match_parameter
from rules.problems import Problem, RuleFileError
from rules.rule import Presence, RefPattern, RepoPattern
from rules.values.addresses import network_opens, normalize, parse_address, parse_host, parse_network, why_not_public
from rules.values.names import HostName, InvalidNameError
from rules.values.paths import PathPattern, readings
from rules.values.patterns import NamePattern, Pattern

EXAMPLE = """\
version: 1
name: t
rules:
  - {id: a, to: ["**.x.example", 10.0.0.0/8, 1.1.1.1], ports: [443, 80], http: {methods: [GET], paths: [/a/**], query: {k: "1"}}, action: allow}
  - {id: raw, to: raw.x.example, ports: [22/tcp, 8000-8100/tls], action: allow}
  - {id: g, to: git.example, git: {repos: "acme/*", fetch: true, push: "refs/heads/**"}, for: {tasks: "web-*"}, action: flag}
  - {id: q, to: "*", until: 2027-01-31, default: true, approval: {by: dba}, action: ask}
  - {id: d, to: "*.bad.example", except: [{to: ok.bad.example, http: {headers: {x-a: present}}}], action: deny}
tests:
  - {attempt: "GET https://a.x.example/a/b?k=1", expect: allow, at: 2027-01-01, labels: {team: data}}
"""

_WANTED = (Presence.PRESENT, Presence.ABSENT, (Pattern.parse("a*"),), (Pattern.parse("1"),))
_policies: list[Policy] = []


def policy() -> Policy:
    """Give a policy that has something of everything."""
    if not _policies:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "t.yaml")
            path.write_text(EXAMPLE.partition("tests:")[0])
            _policies.append(load([path]))
    return _policies[0]


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def fuzz_yaml(data: bytes) -> None:
    """Any bytes are a tree or a problem with a place in them."""
    problems: list[Problem] = []
    root = parse(data, "t", problems)
    lines = data.count(b"\n") + data.count(b"\r") + data.count(b"\xc2\x85") + data.count(b"\xe2\x80") + 2
    for problem in problems:
        assert 1 <= problem.line <= lines, problem
        assert problem.column >= 1, problem
        assert problem.message.isprintable(), problem
    assert root is None or problems or root.line >= 1


def fuzz_file(data: bytes) -> None:
    """Any file loads, or tells every problem; what loads decides, and is the same the next time."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "t.yaml")
        path.write_bytes(data)
        try:
            found = load([path])
        except RuleFileError as error:
            assert error.problems
            for problem in error.problems:
                assert str(problem).isprintable(), problem
            return
        assert load([path]).revision == found.revision
        for rule in found.rules[:3]:
            for name in rule.names[:3]:
                host = name.text.replace("*", "x")
                found.decide(Attempt(Protocol.TLS, HostName.parse(host), 443, Request("GET", "/a")))


ASKING = """\
version: 1
name: t
rules:
  - id: q  # asks
    to: '*'
    except: [y.example]
    action: ask
    why: |
      because

  - {id: g, to: y.example, action: allow, }
"""


def fuzz_edited(data: bytes) -> None:
    """`add_rule` inserts a rule into any file or raises EditError; the text that was there stays as it is."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "t.yaml")
        path.write_bytes(data)
        try:
            asked = AttemptToAllow(Protocol.TLS, "x.example", 443, "POST", "/a", body=True)
            edited = add_rule(lambda instead: read([path], [], instead=instead), path, ["t:q"], asked, "ada: \u00e9")
        except EditError as cannot:
            assert str(cannot).isprintable(), cannot
            return
        left = iter(edited.data.decode())
        assert all(character in left for character in data.decode()), "something that was there is gone"
        path.write_bytes(edited.data)
        assert all(load([path]).decide(attempt).may_send_now for attempt in asked.attempts())


def fuzz_identities(data: bytes) -> None:
    try:
        found = parse_identities(data, "t")
    except RuleFileError as error:
        assert error.problems
        return
    assert found.refuse("nobody at all", "", {})


def fuzz_name(data: bytes) -> None:
    """A name is itself once it is normal; a pattern without a wildcard covers that name and no other spelling's."""
    text = text_of(data)
    try:
        name = HostName.parse(text)
    except InvalidNameError as error:
        assert str(error).isprintable(), error
    else:
        assert HostName.parse(name) == name
        assert parse_address(name) is None, "a name that is an address"
        assert name == name.lower()
        assert name.isascii()
        assert NamePattern.parse(name).matches(name)
        assert NamePattern.parse("**." + name).matches(name)
        assert not NamePattern.parse("*." + name).matches(name)
    try:
        pattern = NamePattern.parse(text)
    except InvalidNameError:
        return
    assert NamePattern.parse(pattern.text) == pattern


def fuzz_address(data: bytes) -> None:
    """An address is itself once it is normal, and never a name; what is not public is opened by nothing wide."""
    text = text_of(data)
    address = parse_address(text)
    if address is not None:
        assert normalize(address) == address
        assert parse_address(str(address)) == address
        wide = parse_network("0.0.0.0/0" if address.version == 4 else "::/0")
        assert why_not_public(address) is None or not network_opens(wide, address)
    try:
        network = parse_network(text)
    except ValueError as error:
        assert error.args
    else:
        assert parse_network(str(network)) == network
    try:
        host = parse_host(text)
    except InvalidNameError:
        return
    assert isinstance(host, HostName) == (
        parse_address(text.removesuffix(".") if ":" not in text else text.strip("[]")) is None
    )


def fuzz_path(data: bytes) -> None:
    """No reading has what servers differ about; a pattern of a path covers that path."""
    text = text_of(data)
    for reading in readings(text):
        assert ".." not in reading, reading
        assert not any("\\" in segment or "\x00" in segment for segment in reading), reading
        assert not any(ord(character) < 32 for segment in reading for character in segment), reading
    for parser in (PathPattern, RefPattern, RepoPattern):
        try:
            pattern = parser.parse(text)
        except ValueError as error:
            assert error.args
        else:
            assert parser.parse(pattern.text).parts == pattern.parts


def fuzz_query(data: bytes) -> None:
    """Whatever is said of a parameter is said again, and nobody knows what is present and absent for certain."""
    text = text_of(data)
    found = [match_parameter(text, "a", wanted) for wanted in _WANTED]
    assert found == [match_parameter(text, "a", wanted) for wanted in _WANTED]
    assert [found[0].value, found[1].value] in (["yes", "no"], ["no", "yes"], ["perhaps", "perhaps"])
    for wanted in _WANTED:
        match_header((("x-a", text), ("x-a", "1")), "x-a", wanted)


def fuzz_attempt(data: bytes) -> None:
    """Any words are an attempt or told; what is decided is what `explain` finds by reading the rules one by one."""
    text = text_of(data)
    try:
        question = parse_attempt(text)
    except ValueError as error:
        assert str(error).isprintable(), error
        return
    explanation = explain(policy(), question)
    for line in explanation.lines():
        assert line.isprintable(), line
    attempt = explanation.attempt
    if attempt is None or attempt.request is None or question.record is not None:
        return
    decision = policy().decide(attempt)
    finding = weigh_considered(consider_rules(policy(), attempt), attempt, policy().leniency(attempt.target))
    if readings(attempt.request.path) and decision.reason != "non_public_address":
        assert decision.passes == finding.allows, (decision, finding)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "yaml": fuzz_yaml,
    "file": fuzz_file,
    "edited": fuzz_edited,
    "identities": fuzz_identities,
    "name": fuzz_name,
    "address": fuzz_address,
    "path": fuzz_path,
    "query": fuzz_query,
    "attempt": fuzz_attempt,
}

SEEDS: dict[str, list[bytes]] = {
    "yaml": [EXAMPLE.encode(), b"a: [b, {c: 'd'}]\n", b"- |\n  x\n- >-\n y\n", b"&a *a !!str <<: ?"],
    "file": [EXAMPLE.encode(), b"version: 1\nlayer: ceiling\nsettings: {mode: audit, tls: splice}\nrules: []\n"],
    "edited": [ASKING.encode(), ASKING.replace("\n", "\r\n").encode(), b"version: 1\nname: t\nrules: [{id: q, to: '*', except: {to: z.example, ports: 1/tcp}, action: ask}]"],
    "identities": [b"version: 1\nidentities:\n  - {users: [a], groups: b, tasks: 'x-*', labels: {t: [d]}, required: t}\n"],
    "name": [b"a.example", b"*.b.example", b"**.c", b"xn--bcher-kva.example", "bücher.example".encode(), "ａ．example。".encode(), b"_dmarc.x", b"a-.b"],
    "address": [b"1.2.3.4", b"0x7f.1", b"0177.0.0.01", b"2130706433", b"::ffff:127.0.0.1", b"[::1]", b"fe80::1%eth0", b"10.0.0.0/8", b"2001:db8::/32", b"64:ff9b::1.2.3.4"],
    "path": [b"/a/b", b"/a%2fb/%2e%2e/c", b"/a//b;x=1/./c?d=/e", b"/**/x*", b"/%25%32%66", b"/\xef\xbc\xa1dmin./%20;x", b"/a.::$DATA/%e2%80%a5/\xe2\x84\x85", b"/%252F%2525 .", b"refs/heads/**", b"acme/*.git", b"*"],
    "query": [b"a=1&b=2", b"a=%31;A=2&a[]=3", b"%61=%2531", b"a", b"&&=&a=+"],
    "attempt": [b"GET https://a.x.example/a/b?k=1", b"tcp [::1]:22", b"git push https://git.example/acme/web refs/heads/x delete", b"git fetch https://git.example/acme/web", b"dns TXT a.x.example", b"a.x.example:443", b"PUT http://10.0.0.1:80/%2e", b"GET wss://x.bad.example/"],
}  # fmt: skip
