"""Hypothesis strategies for rules, and for attempts that are close to them."""

from datetime import date
from functools import partial

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from rules.attempt import Attempt, GitRequest, GitService, Protocol, RefChange, Request
from rules.decision import Limits
from rules.matching.revision import digest_of
from rules.ports import Ports
from rules.rule import Exemption, GitRule, Http, Presence, RefPattern, RepoPattern, Rule
from rules.settings import Settings
from rules.values.addresses import parse_address, parse_network
from rules.values.names import HostName
from rules.values.paths import PathPattern
from rules.values.patterns import NamePattern, Pattern, TaskSelector
from rules.verdicts import Mode, Scan, TlsMode, Verdict

NAMES = [HostName(n) for n in ("a.example", "b.example", "x.a.example", "r1.x.a.example", "other.test")]
PATTERNS = [
    "a.example",
    "*.a.example",
    "**.a.example",
    "*",
    "x.*.example",
    "r*.x.a.example",
    "*.*.example",
    "other.test",
]
ADDRESSES = [parse_address(a) for a in ("1.1.1.1", "1.1.2.2", "10.0.0.1", "10.1.0.1", "127.0.0.1", "169.254.169.254", "2606:4700::1", "fd00::1")]  # fmt: skip
NETWORKS = ["1.1.1.1", "1.1.0.0/16", "0.0.0.0/0", "10.0.0.0/8", "10.0.0.1", "169.254.169.254", "127.0.0.0/8", "::/0", "fd00::/8"]  # fmt: skip
PATHS = [
    "/",
    "/a",
    "/a/b",
    "/a/b/c",
    "/b",
    "/a//b",
    "/a%3Fx/b",
    "/a%2fb",
    "/a/./b",
    "/a;x/b",
    "/%61",
    "/b/../a",
    "/@s%2fn?x=1",
    "/A",
    "/A%2FB",
]
PATH_PATTERNS = ["/", "/a", "/a/**", "/**", "/*", "/*/b", "/**/b", "/a*", "/a/*/**", "/a%2f*", "/A/**", "/A*"]
METHODS = ["GET", "POST", "DELETE"]
PORTS = [
    Ports(443, 443, Protocol.TLS),
    Ports(80, 80, Protocol.HTTP),
    Ports(443, 443, Protocol.TCP),
    Ports(400, 500, Protocol.TLS),
    Ports(22, 22, Protocol.TCP),
    Ports(1, 65535, Protocol.TCP),
    Ports(80, 443, Protocol.HTTP),
]


def some(values, **limits):
    return st.lists(st.sampled_from(values), unique=True, **limits).map(tuple)


TASKS = ["", "web", "migrate-1"]
LABELS = [{}, {"team": "data"}, {"team": "web", "env": "dev"}]
DAYS = [date(2027, 1, day) for day in (1, 2, 3, 4)]
REPOS = ["acme/web", "acme/*", "**", "Acme/Web"]
REFS = ["refs/heads/main", "refs/heads/*", "refs/**", "refs/tags/*"]
QUERIES = ["", "a=1", "a=2&a=1", "A=1", "b=x;a=1", "a%3D=1", "a=%31"]
HEADERS = [
    (),
    (("host", "x"),),
    (("x-team", "web"),),
    (("x-team", "Web"), ("x-team", "data")),
    (("x-team", "web, data"),),
]

wanted = st.sampled_from([*Presence, (Pattern.parse("1"),), (Pattern.parse("w*"), Pattern.parse("data"))])
simple_https = st.builds(
    partial(Http),
    st.none() | some(METHODS, min_size=1, max_size=2).map(frozenset),
    st.none() | some([PathPattern.parse(p) for p in PATH_PATTERNS], min_size=1, max_size=2),
    body=st.sampled_from([None, None, True, False]),
    websocket=st.sampled_from([None, None, True, False]),
)
https = simple_https | st.builds(
    partial(Http),
    st.none() | some(METHODS, min_size=1, max_size=2).map(frozenset),
    st.none()
    | some(
        [PathPattern.parse(p) for p in [*PATH_PATTERNS, "/acme/web/git-receive-pack", "/acme/**"]],
        min_size=1,
        max_size=2,
    ),
    st.just(()) | st.tuples(st.tuples(st.just("a"), wanted)),
    st.just(()) | st.tuples(st.tuples(st.just("x-team"), wanted)),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, None, 20, 40]),
    st.sampled_from([None, True, False]),
)
gits = st.builds(
    GitRule,
    some([RepoPattern.parse(r) for r in REPOS], min_size=1, max_size=2),
    st.booleans(),
    st.none() | some([RefPattern.parse(r) for r in REFS], min_size=1, max_size=2),
    some(list(RefChange), min_size=1).map(frozenset),
)
selectors = st.builds(
    TaskSelector,
    some([Pattern.parse("web"), Pattern.parse("migrate-*")], max_size=1),
    st.just(()) | st.just((("team", (Pattern.parse("data"),)),)),
)
targets = st.tuples(
    some([NamePattern.parse(p) for p in PATTERNS], max_size=2), some([parse_network(n) for n in NETWORKS], max_size=1)
)
seldom = st.integers(0, 5).map(lambda n: n == 0)


# Made once: hypothesis looks through a strategy that it has not seen before it draws from it.
networks_listed = some([parse_network(n) for n in NETWORKS], min_size=1, max_size=1)
networks_or_none = st.none() | networks_listed
some_ports = some(PORTS, min_size=1, max_size=2)
ports_or_none = st.none() | some_ports
http_or_none = {True: st.none() | simple_https, False: st.none() | https}
verdicts, tls_modes, yes_or_no = st.sampled_from(Verdict), st.sampled_from(TlsMode), st.booleans()
idle_timeouts = st.sampled_from([None, 5.0])
untils = st.sampled_from([None, None, *DAYS])
scans = st.sampled_from([None, None, None, *Scan])


@st.composite
def exemptions(draw, *, simple):
    """Make one exemption; most of them are about little."""
    return Exemption(
        *draw(targets),
        draw(ports_or_none),
        draw(http_or_none[simple]),
        draw(networks_listed) if draw(seldom) else None,
        draw(selectors) if draw(seldom) else None,
        draw(gits) if draw(seldom) and not simple else None,
        "key" if draw(seldom) and not simple else None,
        draw(seldom) and not simple,
    )


exempted = {simple: st.lists(exemptions(simple=simple), max_size=1) for simple in (True, False)}


@st.composite
def rules(draw, action=None, number=0, *, simple=False):
    action = action or draw(verdicts)
    names, networks = draw(targets)
    ports = draw(some_ports)
    if not action.allows and draw(yes_or_no):
        ports = None
    http = draw(http_or_none[simple])
    git = draw(gits) if draw(seldom) and not simple else None
    credential = "key" if draw(seldom) and draw(seldom) and not simple else None
    if (http is not None or git is not None or credential is not None) and ports is not None:
        ports = tuple(p for p in ports if p.protocol is not Protocol.TCP) or (PORTS[0],)
    return Rule(
        id=f"t:{number}",
        action=action,
        names=names,
        networks=networks,
        ports=ports,
        resolves_to=draw(networks_or_none) if names else None,
        http=http,
        default=draw(yes_or_no),
        excepts=tuple(draw(exempted[simple])),
        tls=draw(tls_modes),
        idle_timeout=draw(idle_timeouts),
        selector=draw(selectors) if draw(seldom) else None,
        until=draw(untils) if action is not Verdict.DENY else None,
        git=git,
        credential=credential,
        when_tainted=draw(seldom) and action is not Verdict.ALLOW and not simple,
        limits=Limits(requests=number + 1) if draw(seldom) and action is not Verdict.DENY else None,
        scan=draw(scans) if action is not Verdict.DENY else None,
    )


def numbered(pool):
    return [rule._replace(id=f"t:{n}") for n, rule in enumerate(pool)]


pools = st.lists(rules(), max_size=5).map(numbered)
simple_pools = st.lists(rules(simple=True), max_size=5).map(numbered)
# `partial`: of a NamedTuple itself, hypothesis makes up what has a default.
modes = st.builds(partial(Settings), mode=st.sampled_from(Mode), tls=st.sampled_from(TlsMode))
METHODS_SENT = [*METHODS, "get", "PATCH"]


heads, queries, paths = st.sampled_from(HEADERS), st.sampled_from(QUERIES), st.sampled_from(PATHS)
methods_sent = st.sampled_from(METHODS_SENT)
not_git = st.integers(0, 2)
repos_asked = st.sampled_from(["acme/web", "acme/other", "ACME/WEB", "x"])
endings = st.sampled_from(["", ".git"])
refs_pushed = st.sampled_from(["refs/heads/main", "refs/heads/x", "refs/tags/v1", "refs/heads/MAIN", "refs/x//y"])
changes = st.sampled_from(RefChange)


@st.composite
def requests(draw):
    """Make a request; a third of them are git's."""
    headers = draw(heads)
    if draw(not_git):
        query = draw(queries)
        path = draw(paths) + (f"?{query}" if query else "")
        return Request(draw(methods_sent), path, headers, draw(yes_or_no), draw(yes_or_no))
    repo = draw(repos_asked)
    spelled = "/" + repo + draw(endings)
    if draw(yes_or_no):
        return Request("POST", spelled + "/git-upload-pack", headers, body=True, git=GitRequest(GitService.FETCH, repo))
    ref = draw(refs_pushed)
    git = GitRequest(GitService.PUSH, repo, ref, draw(changes))
    if draw(yes_or_no):
        return Request("POST", spelled + "/git-receive-pack", headers, body=True, git=git)
    return Request(
        "GET", spelled + "/info/refs?service=git-receive-pack", headers, git=GitRequest(GitService.PUSH, repo)
    )


hosts = st.sampled_from([*NAMES, *ADDRESSES])
ports = st.sampled_from([22, 80, 443, 444, 9000])
who = (st.sampled_from(TASKS), st.sampled_from(LABELS), st.sampled_from([None, *DAYS]), yes_or_no)
CARRIED = [None, "", "key", "other"]
carrying = st.builds(lambda request, known: request._replace(credential=known), requests(), st.sampled_from(CARRIED))
seen = st.builds(partial(Attempt), st.sampled_from([Protocol.TLS, Protocol.HTTP]), hosts, ports, carrying, *who)
connections = st.builds(
    partial(Attempt), st.sampled_from([Protocol.TLS, Protocol.HTTP, Protocol.TCP]), hosts, ports, st.none(), *who
)
attempts = seen | connections
answered = st.sets(st.integers(0, 5))  # which of a pool's rules are granted, by number


def granting(attempt, pool, numbers):
    """Grant what some rules of a pool ask, and something that none does."""
    asks = [rule for rule in pool if rule.action is Verdict.ASK]
    digests = {digest_of(rule) for number, rule in enumerate(asks) if number in numbers}
    return attempt._replace(granted=frozenset({*digests, "f" * 64}) if numbers else frozenset())


many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
