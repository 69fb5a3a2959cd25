"""Attempts as people write them, and the tests that rule files carry.

An attempt is `METHOD URL`, `tcp HOST:PORT`, `udp HOST:PORT`, or `HOST:PORT`: what the rules say is spoken there.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.addresses import parse_host
from rules.attempt import Attempt, Protocol, Request
from rules.decision import Decision
from rules.names import InvalidName
from rules.problems import did_you_mean, quoted
from rules.verdicts import Reason, Verdict

if TYPE_CHECKING:
    from rules.addresses import Address
    from rules.names import HostName
    from rules.policy import Policy

_SCHEMES: Final = {"https": (Protocol.TLS, 443), "http": (Protocol.HTTP, 80)}
_BY_PORT: Final = {443: Protocol.TLS, 80: Protocol.HTTP}
_LATER: Final = ("git", "dns")


class Question(NamedTuple):
    """An attempt that somebody asks about. `protocol` None: whatever the rules say is spoken there."""

    text: str
    host: str
    port: int
    protocol: Protocol | None
    request: Request | None = None

    def attempt(self, policy: "Policy") -> Attempt:
        """Make it an attempt under a policy. Raises InvalidName."""
        target = parse_host(self.host)
        return Attempt(self.protocol or _spoken(policy, target, self.port), target, self.port, self.request)

    def decide(self, policy: "Policy") -> Decision:
        """Decide it as the gate would: a name that is none is refused before any rule is asked."""
        try:
            return policy.decide(self.attempt(policy))
        except InvalidName:
            return Decision(reason=Reason.INVALID_NAME, revision=policy.revision)


class Case(NamedTuple):
    """A test of a rule file, and where it stands."""

    question: Question
    expect: Verdict
    rule: str | None
    file: str
    line: int
    column: int


class Result(NamedTuple):
    """What came of a test. `failure` is empty if it passed."""

    case: Case
    decision: Decision
    failure: str


def parse_attempt(text: str) -> Question:
    """Read an attempt. Raises ValueError with what it may look like."""
    word, _, rest = text.partition(" ")
    if not rest:
        host, port = _host_and_port(word, None)
        return Question(text, host, port, None)
    if word in {"tcp", "udp", "tls", "http"}:
        host, port = _host_and_port(rest, None)
        return Question(text, host, port, Protocol(word))
    if word in _LATER:
        raise ValueError(f"`{word}` attempts are not supported by this version")
    return _url(text, word, rest)


def run(policy: "Policy", cases: Iterable[Case]) -> list[Result]:
    """Try every test against the policy."""
    results: list[Result] = []
    for case in cases:
        decision = case.question.decide(policy)
        results.append(Result(case, decision, _failure(policy, case, decision)))
    return results


def said(decision: Decision) -> Verdict:
    """Give the verdict that the rules gave: `ask`, though nobody can be asked in this version and it is denied."""
    return Verdict.ASK if decision.reason is Reason.APPROVAL_UNAVAILABLE else decision.verdict


def _failure(policy: "Policy", case: Case, decision: Decision) -> str:
    verdict = said(decision)
    named = f" by {', '.join(f'`{rule}`' for rule in decision.rules)}" if decision.rules else ""
    got = f"{verdict} ({decision.reason}){named}"
    asked = quoted(case.question.text)
    if verdict is not case.expect:
        return f"{asked} should be {case.expect} and is {got}"
    if case.rule is None or any(case.rule in {rule, rule.partition(":")[2]} for rule in decision.rules):
        return ""
    known = {name for rule in policy.rule_ids for name in (rule, rule.partition(":")[2])}
    if case.rule not in known:
        return f"there is no rule {quoted(case.rule)}{did_you_mean(case.rule, known)}"
    return f"{asked} should be decided by `{case.rule}` and is {got}"


def _spoken(policy: "Policy", target: "HostName | Address", port: int) -> Protocol:
    known = policy.protocols(target, port)
    usual = _BY_PORT.get(port, Protocol.TCP)
    order = (usual, Protocol.TLS, Protocol.HTTP, Protocol.TCP)
    return next((protocol for protocol in order if protocol in known), usual)


def _url(text: str, method: str, url: str) -> Question:
    scheme, colon, rest = url.partition("://")
    if not colon or scheme.lower() not in _SCHEMES:
        raise ValueError(
            f"{quoted(text)} is no attempt; one looks like `GET https://host/path`, `tcp host:port` or `host:port`"
        )
    protocol, usual = _SCHEMES[scheme.lower()]
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    authority, path = rest[:end], rest[end:].partition("#")[0]
    if "@" in authority:
        raise ValueError(f"{quoted(text)} has credentials in its URL: leave them out")
    host, port = _host_and_port(authority, usual)
    return Question(text, host, port, protocol, Request(method, path if path.startswith("/") else "/" + path))


def _host_and_port(text: str, usual: int | None) -> tuple[str, int]:
    """Split `host:port` where the host may be `[v6]`; a bare IPv6 address is never split."""
    host, colon, digits = text.rpartition(":")
    if text.endswith("]") or not colon:
        host, digits = text, ""
    if ":" in host and not host.startswith("["):
        raise ValueError(f"{quoted(text)}: put an IPv6 address in brackets, as in `[2001:db8::1]:443`")
    if not digits and usual is not None:
        return host, usual
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 0 < int(digits) < 65536):
        raise ValueError(f"{quoted(text)} needs a port between 1 and 65535, as in `host:443`")
    return host, int(digits)
