"""Reads attempts as people write them, and the tests in rule files.

An attempt is `METHOD URL` (`URL` is a GET), `git push URL REF`, `git fetch URL`, `dns TYPE NAME`, `tcp HOST:PORT`,
`udp HOST:PORT`, or `HOST:PORT`: what the rules say is spoken there; or `run PROGRAM ARGUMENT…`.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.attempt import METHODS, UNKNOWN_CALLER, Attempt, Caller, GitRequest, GitService, Protocol, RefChange, Request
from rules.decision import Decision
from rules.loading.document import Mapping, Node
from rules.loading.fields import (
    TEXT,
    WORD,
    Key,
    Reader,
    Section,
    choice,
    flag,
    mapping_of,
    one,
    parse_day,
    parse_header_name,
    parse_label,
    parse_slug,
    text,
)
from rules.matching.commands import ProgramRun, decide_run
from rules.ports import WELL_KNOWN
from rules.problems import did_you_mean, quote
from rules.values.addresses import Address, parse_host
from rules.values.names import HostName, InvalidNameError
from rules.verdicts import Reason, Verdict

if TYPE_CHECKING:
    from rules.matching.policy import Policy

_SCHEMES: Final = {
    "https": (Protocol.TLS, 443),
    "http": (Protocol.HTTP, 80),
    "wss": (Protocol.TLS, 443),
    "ws": (Protocol.HTTP, 80),
}
_METHOD: Final = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")  # RFC 9110
_LOOKS: Final = (
    "one looks like `GET https://host/path`, `git push URL REF`, `git fetch URL`, `dns TYPE NAME`, "
    "`run PROGRAM WORDS`, `host:port`, or `tcp host:port` with `tcp`, `udp`, `tls` or `http`"
)
_WITH_BODIES: Final = frozenset({"POST", "PUT", "PATCH"})


class AttemptText(NamedTuple):
    """Attempt as a person writes it. `protocol` None: the one that the rules list for the port.

    `record`: not a connection but a lookup of that type; `run`: neither, but a program.
    """

    text: str
    host: str
    port: int
    protocol: Protocol | None
    request: Request | None = None
    record: str | None = None
    run: ProgramRun | None = None
    caller: Caller = UNKNOWN_CALLER

    def attempt(self, policy: "Policy") -> Attempt:
        """Return the attempt under a policy. Raises InvalidNameError."""
        target = parse_host(self.host)
        protocol = self.protocol or _spoken(policy, target, self.port)
        return Attempt(protocol, target, self.port, self.request, *self.caller)

    def decide(self, policy: "Policy") -> Decision:
        """Decide the attempt as the gate would: invalid names and methods are denied before any rule is evaluated."""
        if self.run is not None:
            return decide_run(policy, self.run, self.caller.task, self.caller.labels)
        try:
            if self.record is not None:
                return policy.decide_record(HostName.parse(self.host), self.record, self.caller)
            attempt = self.attempt(policy)
        except InvalidNameError:
            return Decision(reason=Reason.INVALID_NAME, revision=policy.revision)
        if self.request is not None and self.request.method.upper() == "CONNECT":
            return Decision(reason=Reason.PROTOCOL_MISMATCH, revision=policy.revision)
        if self.corrected_method:
            return Decision(reason=Reason.AMBIGUOUS_REQUEST, revision=policy.revision)
        return policy.decide(attempt)

    @property
    def corrected_method(self) -> str:
        """The correct spelling of the method; empty if it is correct."""
        method = "" if self.request is None else self.request.method
        return method.upper() if method not in METHODS and method.upper() in METHODS - {"CONNECT"} else ""


class RuleTest(NamedTuple):
    """A test of a rule file, and where it stands."""

    question: AttemptText
    expect: Verdict
    rule: str | None
    file: str
    line: int
    column: int


class RuleTestResult(NamedTuple):
    """What came of a test. `failure` is empty if it passed."""

    case: RuleTest
    decision: Decision
    failure: str


def parse_attempt(text: str) -> AttemptText:
    """Read an attempt; a URL alone is a GET of it. Raises ValueError with what it may look like."""
    word, _, rest = text.partition(" ")
    if not rest and "://" in word:
        return parse_attempt(f"GET {word}")
    if not rest:
        if not word or "/" in word:
            instead = f"; did you mean {quote('https://' + word)}?" if word else f"; {_LOOKS}"
            raise ValueError(f"{quote(text)} is not an attempt{instead}")
        host, port = _host_and_port(word, None)
        return AttemptText(text, host, port, None)
    if word in {"tcp", "udp", "tls", "http"}:
        host, port = _host_and_port(rest, None)
        return AttemptText(text, host, port, Protocol(word))
    if "://" in word:
        raise ValueError(f"{quote(text)}: a space in a URL is written `%20`, and the method stands before it")
    if not _METHOD.issuperset(word):
        raise ValueError(f"{quote(word)} is not a method, and not one of tcp, udp, tls, http, git, dns and run")
    if word in _OTHERS:
        return _OTHERS[word](text, rest)
    return _url(text, word, rest)


def run(policy: "Policy", cases: Iterable[RuleTest]) -> list[RuleTestResult]:
    """Try every test against the policy."""
    results: list[RuleTestResult] = []
    for case in cases:
        decision = case.question.decide(policy)
        results.append(RuleTestResult(case, decision, _failure(policy, case, decision)))
    return results


def verdict_of(decision: Decision) -> Verdict:
    """Return the verdict of the rules: `ask` also where the outcome is a denial that waits for an approval."""
    return Verdict.ASK if decision.reason is Reason.APPROVAL_UNAVAILABLE else decision.verdict


def _failure(policy: "Policy", case: RuleTest, decision: Decision) -> str:
    verdict = verdict_of(decision)
    named = f" by {', '.join(f'`{rule}`' for rule in decision.rules)}" if decision.rules else ""
    got = f"{verdict} ({decision.reason}){named}"
    attempt_text = quote(case.question.text)
    if verdict is not case.expect:
        return f"{attempt_text} should be {case.expect} and is {got}"
    if case.rule is None or any(case.rule in {rule, rule.partition(":")[2]} for rule in decision.rules):
        return ""
    ids = policy.rule_ids if case.question.run is None else tuple(command.cite for command in policy.commands)
    known = {name for rule in ids for name in (rule, rule.partition(":")[2])}
    if case.rule not in known:
        return f"there is no rule {quote(case.rule)}{did_you_mean(case.rule, known)}"
    return f"{attempt_text} should be decided by `{case.rule}` and is {got}"


def _spoken(policy: "Policy", target: HostName | Address, port: int) -> Protocol:
    known = policy.protocols(target, port)
    usual = WELL_KNOWN.get(port, Protocol.TCP)
    order = (usual, Protocol.TLS, Protocol.HTTP, Protocol.TCP, Protocol.UDP)
    return next((protocol for protocol in order if protocol in known), usual)


def _url(text: str, method: str, url: str) -> AttemptText:
    scheme, colon, rest = url.partition("://")
    if not colon or scheme.lower() not in _SCHEMES:
        raise ValueError(f"{quote(text)} is not an attempt; {_LOOKS}")
    protocol, usual = _SCHEMES[scheme.lower()]
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    authority, path = rest[:end], rest[end:].partition("#")[0]
    if "@" in authority:
        raise ValueError(f"{quote(text)} has credentials in its URL: leave them out")
    host, port = _host_and_port(authority, usual)
    request = Request(
        method,
        path if path.startswith("/") else "/" + path,
        (("host", authority.lower()),),
        body=method.upper() in _WITH_BODIES,
        websocket=scheme.lower() in {"ws", "wss"},
    )
    return AttemptText(text, host, port, protocol, request)


def _lookup(text: str, rest: str) -> AttemptText:
    record, _, name = rest.partition(" ")
    if not name or " " in name or not (record.isascii() and record.isalnum()):
        raise ValueError(f"{quote(text)} is not a lookup; one looks like `dns TXT example.com`")
    return AttemptText(text, name, 443, Protocol.TLS, record=record.upper())


def _git(text: str, rest: str) -> AttemptText:
    """Read `push URL REF`, with an optional change after it (default `update`), or `fetch URL`."""
    words = rest.split(" ")
    changes = {change.value: change for change in RefChange}
    if len(words) == 2 and words[0] == "fetch":
        git, end = GitRequest(GitService.FETCH, ""), "/git-upload-pack"
    elif words[0] == "push" and (len(words) == 3 or (len(words) == 4 and words[3] in changes)):
        change = changes[words[3]] if len(words) == 4 else RefChange.UPDATE
        git, end = GitRequest(GitService.PUSH, "", words[2], change), "/git-receive-pack"
    else:
        example = (
            "`git push https://host/repository refs/heads/main`, with `create` or `delete` behind it if it does that"
        )
        raise ValueError(
            f"{quote(text)} is not a git attempt; one looks like `git fetch https://host/repository` or {example}"
        )
    if "://" not in words[1]:
        raise ValueError(f"{quote(text)} needs a URL, as in `https://host/repository`; over SSH it is `tcp host:22`")
    ref = "".join(words[2:3])
    if words[2:3] and not ref.startswith("refs/"):
        instead = f"; did you mean {quote(f'refs/heads/{ref}')}?" if ref else ""
        raise ValueError(f"{quote(text)} needs a whole ref behind the URL{instead}")
    attempt_text = _url(text, "POST", words[1])
    assert attempt_text.request is not None
    bare = attempt_text.request.path.partition("?")[0].rstrip("/")
    if not bare:
        raise ValueError(f"{quote(text)} names no repository")
    request = Request(
        "POST",
        bare + end,
        attempt_text.request.headers,
        body=True,
        git=git._replace(repo=bare[1:].removesuffix(".git")),
    )
    return attempt_text._replace(request=request)


def _run(text: str, rest: str) -> AttemptText:
    return AttemptText(text, "", 0, None, run=ProgramRun.parse(rest))


_OTHERS: Final = {"dns": _lookup, "git": _git, "run": _run}


def _host_and_port(text: str, usual: int | None) -> tuple[str, int]:
    """Split `host:port` where the host may be `[v6]`; a bare IPv6 address is never split."""
    host, colon, digits = text.rpartition(":")
    if text.endswith("]") or not colon:
        host, digits = text, ""
    if ":" in host and not host.startswith("["):
        raise ValueError(f"{quote(text)}: put an IPv6 address in brackets, as in `[2001:db8::1]:443`")
    if not digits and usual is not None:
        return host, usual
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 0 < int(digits) < 65536):
        raise ValueError(f"{quote(text)} needs a port between 1 and 65535, as in `host:443`")
    return host, int(digits)


def _pairs(says: str, parse: Callable[[str], str]) -> Key:
    """Make a key that maps names to values."""

    def read(reader: Reader, node: Node, of: str) -> tuple[tuple[str, str], ...]:
        if not isinstance(node, Mapping):
            reader.complain(node, f"`{of}` is a mapping of names to values")
            return ()
        pairs = [(reader.parse(key, of, parse), reader.text(value, key.text)) for key, value in node.pairs.values()]
        return tuple((name, value) for name, value in pairs if name is not None and value is not None)

    return Key(says, read, mapping_of(WORD))


_OF_REQUESTS: Final = ("headers", "body", "credential")
TEST: Final = Section("test", "a test", {
    "attempt": one("`METHOD URL`, `tcp HOST:PORT`, `git push URL REF`, `git fetch URL`, `dns TYPE NAME`.",
        parse_attempt, TEXT),
    "expect": choice("The expected verdict.", Verdict),
    "rule": text("The id of a rule that must be among the deciding ones."),
    "task": text("The name of the task.", WORD),
    "labels": _pairs("The labels of the task.", parse_label),
    "at": one("The day of the attempt.", parse_day),
    "headers": _pairs("Header fields of the request.", parse_header_name),
    "body": flag("Whether the request has a body."),
    "credential": one("The secret whose placeholder is the request's one credential.", parse_slug),
    "tainted": flag("Whether the task has read untrusted content."),
}, needed=("attempt", "expect"))  # fmt: skip


def read_case(reader: Reader, node: Node) -> RuleTest | None:
    """Read an entry of `tests`; None if it has a problem, which the reader has recorded."""
    fields = TEST.fields(reader, node)
    if fields is None:
        return None
    values = TEST.values(reader, fields)
    attempt_text: AttemptText | None = values.pop("attempt", None)
    expect, rule = values.pop("expect", None), values.pop("rule", None)
    if attempt_text is None or expect is None:
        return None
    of_request = {key: values.pop(key) for key in _OF_REQUESTS if key in values}
    request = attempt_text.request
    if request is None:
        for key in (key for key in _OF_REQUESTS if key in fields):
            reader.complain(fields[key], f"`{key}` is for requests, and this attempt is not one")
    else:
        of_request["headers"] = (*request.headers, *of_request.get("headers", ()))
        request = request._replace(**of_request)
    caller = Caller(**{**values, "labels": dict(values.get("labels", ()))})
    return RuleTest(
        attempt_text._replace(request=request, caller=caller), expect, rule, reader.file, node.line, node.column
    )
