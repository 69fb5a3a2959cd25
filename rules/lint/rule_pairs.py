"""Lint of pairs of rules: one that covers, splices or disables another."""

from collections.abc import Iterator
from datetime import date
from itertools import islice
from typing import Final, NamedTuple

from rules.attempt import Protocol, Request
from rules.lint import findings
from rules.lint.coverage import (
    WORD,
    DecisionProbe,
    Target,
    TargetIndex,
    makes_idle,
    sample_name,
    sample_path,
    takes_precedence,
)
from rules.lint.findings import Finding, Reporter
from rules.matching.policy import Policy
from rules.ports import UNSEEN, Ports, never_leaves
from rules.problems import join_first
from rules.rule import Rule
from rules.values.names import HostName, InvalidNameError
from rules.values.patterns import NamePattern
from rules.verdicts import TlsMode, Verdict

_MOST_NAMED: Final = 3
_MOST_TRIED: Final = 8  # names and repositories of one rule

# What writes to a repository and is no push: host, method, path. From the REST documentation of GitHub (its cloud and
# its Enterprise Server), GitLab, Gitea with its forks, and Bitbucket Cloud.
_WRITES: Final = (
    ("api.{host}", "PUT", "/repos/{repo}/contents/{word}"),
    ("api.{host}", "POST", "/repos/{repo}/git/refs"),
    ("api.{host}", "PATCH", "/repos/{repo}/git/refs/heads/{word}"),
    ("api.{host}", "PUT", "/repos/{repo}/pulls/1/merge"),
    ("api.{host}", "POST", "/graphql"),
    ("api.{host}", "POST", "/2.0/repositories/{repo}/src"),
    ("{host}", "PUT", "/api/v3/repos/{repo}/contents/{word}"),
    ("{host}", "POST", "/api/graphql"),
    ("{host}", "POST", "/api/v4/projects/1/repository/commits"),
    ("{host}", "PUT", "/api/v4/projects/1/merge_requests/1/merge"),
    ("{host}", "POST", "/api/v1/repos/{repo}/contents/{word}"),
)
_LFS: Final = (("{host}", "POST", "/{repo}.git/info/lfs/objects/batch"),)  # the LFS batch API


class _Way(NamedTuple):
    """A way around a rule as an attempt's text, and the rules that allow it; no rules: audit mode allows it."""

    attempt: str
    by: tuple[str, ...]


def find_ways_around(policy: Policy, reporter: Reporter, today: date) -> Iterator[Finding]:
    """Report ways around rules that ask or deny."""
    ask = DecisionProbe(policy, today)
    found = [(findings.AROUND_RAW, rule, "id", ways) for rule, ways in _raw_ways(policy, ask).items()]
    for rule in policy.rules:
        if rule.git is not None and rule.git.push and not rule.allows:
            found.append((findings.AROUND_API, rule, "git", list(_git_ways(ask, rule, _WRITES))))
            found.append((findings.AROUND_LFS, rule, "git", list(_git_ways(ask, rule, _LFS))))
    for check, rule, at, ways in found:
        changeable = [way for way in ways if not all(map(reporter.is_shipped, (rule.id, *way.by)))]
        if changeable:
            others = dict.fromkeys(ident for way in changeable for ident in way.by)
            message = f"`{rule.id}` ({rule.action}) does not cover {_describe_ways(changeable)}"
            yield reporter.about(check, rule, message, *others, at=at)


def _describe_ways(ways: list[_Way]) -> str:
    """List the ways around, grouped by the rules that allow them."""
    attempts: dict[tuple[str, ...], dict[str, None]] = {}
    for way in ways:
        attempts.setdefault(way.by, {})[way.attempt] = None
    parts: list[str] = []
    for by, tried in islice(attempts.items(), _MOST_NAMED):
        named = join_first([f"`{attempt}`" for attempt in tried], _MOST_NAMED)
        rules = " and ".join(f"`{ident}`" for ident in by[:_MOST_NAMED]) or "audit mode"
        parts.append(f"{named}, which {rules} allows")
    return "; ".join(parts) + (
        f"; and what {len(attempts) - _MOST_NAMED} others allow" if len(attempts) > _MOST_NAMED else ""
    )


def _raw_ways(policy: Policy, ask: DecisionProbe) -> dict[Rule, list[_Way]]:
    """Pair rules that look at requests, ask or scan for secrets with rules that allow uninspected bytes.

    Both are about the same name; the uninspected bytes go to another port.
    """
    unread = [rule for rule in policy.rules if rule.allows and _unread(rule)]
    holding = [rule for rule in policy.rules if _is_about_what_is_seen(rule)]
    found: dict[Rule, list[_Way]] = {}
    if unread and holding:
        for blocking, rule, name in (*_pairs(holding, unread), *((h, r, n) for r, h, n in _pairs(unread, holding))):
            found.setdefault(blocking, []).extend(_ways(ask, rule, name))
    return {blocking: ways for blocking, ways in found.items() if ways}


def _pairs(wide: list[Rule], narrow: list[Rule]) -> Iterator[tuple[Rule, Rule, NamePattern]]:
    """Pair rules about a name, or names, of another rule with that rule and those names."""
    over = TargetIndex(wide)
    for rule in narrow:
        for name in rule.names[:_MOST_TRIED]:
            for other in dict.fromkeys(candidate for candidate, _ in over.over_name(name, rule)):
                yield other, rule, name


def _unread(rule: Rule) -> list[Ports]:
    ports = rule.ports or ()
    return [
        entry
        for entry in ports
        if entry.protocol in UNSEEN or (entry.protocol is Protocol.TLS and rule.splices(entry.low))
    ]


def _is_about_what_is_seen(rule: Rule) -> bool:
    if rule.scan is not None and rule.scan.blocks:
        return bool(rule.names)
    if rule.allows or rule.default or not rule.names:
        return False
    return rule.looks_at_requests or rule.action is Verdict.ASK


def _ways(ask: DecisionProbe, rule: Rule, pattern: NamePattern) -> Iterator[_Way]:
    """Decide an attempt to check that a rule really allows uninspected bytes."""
    name = sample_name(pattern)
    for entry in _unread(rule) if name is not None else ():
        assert name is not None
        decision = ask.decide(rule, name, entry.low, entry.protocol)
        if decision.passes and not decision.inspect and rule.id in decision.rules:
            yield _Way(f"{entry.protocol} {pattern.text}:{entry.low}", (rule.id,))


def _git_ways(ask: DecisionProbe, rule: Rule, requests: tuple[tuple[str, str, str], ...]) -> Iterator[_Way]:
    assert rule.git is not None
    for pattern in rule.names[:_MOST_TRIED]:
        host = sample_name(pattern)
        for repos in rule.git.repos[:_MOST_TRIED] if host is not None else ():
            filling = {"host": host, "repo": sample_path(repos.parts), "word": WORD}
            for where, method, path in requests:
                try:
                    name = HostName(where.format(**filling))
                except InvalidNameError:
                    continue
                request = Request(method, path.format(**filling), body=True)
                decision = ask.decide(rule, name, 443, Protocol.TLS, request)
                if decision.passes:
                    shown = f"{method} https://{name}{request.path}".replace(WORD, "*")
                    yield _Way(shown, decision.rules)


# What is spoken on ports where it isn't HTTP (IANA's service names); `+`: its server speaks first
_NO_HTTP: Final = {
    21: "FTP+", 22: "SSH+", 23: "telnet+", 25: "SMTP+", 110: "POP3+", 119: "NNTP+", 143: "IMAP+", 389: "LDAP",
    445: "SMB", 465: "SMTP+", 563: "NNTP+", 587: "SMTP+", 636: "LDAP", 853: "DNS", 873: "rsync+", 989: "FTP",
    990: "FTP+", 992: "telnet+", 993: "IMAP+", 994: "IRC", 995: "POP3+", 1433: "SQL Server", 1521: "Oracle",
    1883: "MQTT", 3269: "LDAP", 3306: "MySQL+", 3389: "RDP", 4222: "NATS+", 5061: "SIP", 5222: "XMPP", 5223: "XMPP",
    5432: "PostgreSQL", 5671: "AMQP", 5672: "AMQP", 5900: "VNC+", 6379: "Redis", 6380: "Redis", 6514: "syslog",
    6667: "IRC", 6697: "IRC", 8883: "MQTT", 9042: "Cassandra", 9092: "Kafka", 9093: "Kafka", 9418: "git",
    11211: "memcached", 27017: "MongoDB",
}  # fmt: skip
_MOST_NAMES: Final = 16  # names of one rule
_MOST_ASKED: Final = 256  # rules on one name


def check_splicing(policy: Policy, own: list[Rule], reporter: Reporter, today: date) -> Iterator[Finding]:
    """Report rules that allow connections without inspection."""
    ask, targets = DecisionProbe(policy, today), None
    for rule in own:
        if not rule.allows:
            continue
        ports = rule.ports or ()
        raw = [entry for entry in ports if entry.protocol in UNSEEN]
        if raw:
            shown = ", ".join(map(str, raw))
            yield reporter.about(findings.RAW, rule, f"`{rule.id}` allows any bytes on {shown}", at="ports")
        if rule.tls is not TlsMode.SPLICE and (unreadable := _unreadable(rule)):
            yield reporter.about(findings.UNREADABLE, rule, unreadable, at="ports")
        spliced = [entry for entry in ports if entry.protocol is Protocol.TLS]
        if rule.tls is not TlsMode.SPLICE or not spliced:
            continue
        targets = targets or TargetIndex(policy.rules)
        in_vain = _never_spliced(ask, targets, rule, spliced[0].low, reporter)
        yield in_vain or reporter.about(
            findings.SPLICED, rule, _describe_splice(rule, ", ".join(map(str, spliced))), at="tls"
        )


def _unreadable(rule: Rule) -> str:
    """Describe single ports that are inspected but usually carry another protocol; ranges may be meant."""
    read = (Protocol.TLS, Protocol.HTTP)
    entries = [entry for entry in rule.ports or () if entry.protocol in read and entry.low == entry.high]
    known = [(entry, _NO_HTTP[entry.low]) for entry in entries if entry.low in _NO_HTTP]
    if not known:
        return ""
    ports = ", ".join(f"{entry} ({service.rstrip('+')})" for entry, service in known)
    first = any(service.endswith("+") for _, service in known)
    waits = ": the client waits for the server to speak first, and the gate ends that after 10 seconds" if first else ""
    return f"`{rule.id}` has {ports} inspected as HTTP, the only protocol that the gate can inspect{waits}"


def _describe_splice(rule: Rule, ports: str) -> str:
    return (
        f"`{rule.id}` does not inspect {ports}: methods, paths, uploads and credentials are not seen, "
        "and on a shared CDN the request can be for another host"
    )


def _never_spliced(
    ask: DecisionProbe, targets: TargetIndex, rule: Rule, port: int, reporter: Reporter
) -> Finding | None:
    for pattern in rule.names[:_MOST_NAMES]:
        name = sample_name(pattern)
        if name is None:
            continue
        decision = ask.decide(rule, name, port, Protocol.TLS)
        if not decision.passes or not decision.inspect:
            continue
        others = (other for other, _ in islice(targets.over_name(pattern, rule), _MOST_ASKED))
        by = next((other for other in others if other is not rule and _needs_inspection(other, port)), None)
        named = "another rule" if by is None else f"`{by.id}`"
        message = (
            f"`{rule.id}` has `tls: splice`, and {named} needs requests to `{pattern.text}` inspected: "
            "clients see the CA of the gate"
        )
        return reporter.about(findings.NEVER_SPLICED, rule, message, *(() if by is None else (by.id,)), at="tls")
    return None


def _needs_inspection(rule: Rule, port: int) -> bool:
    if rule.ports is not None and not any(entry.covers(port, Protocol.TLS) for entry in rule.ports):
        return False
    return rule.looks_at_requests or (rule.allows and not rule.splices(port))


type _Voting = dict[str, frozenset[int]]

_NO_LAYERS: Final = frozenset[int]()
_MOST_ENTRIES: Final = 20  # of one rule's targets that are listed individually


def find_idle_rules(policy: Policy, own: list[Rule], reporter: Reporter) -> Iterator[Finding]:
    """Report rules, and single targets of rules, without any effect."""
    targets, voting = TargetIndex(policy.rules), _voting_layers(policy)
    for rule in own:
        if rule.ports is not None and all(never_leaves(e) and e.low == e.high for e in rule.ports):
            yield reporter.about(
                findings.ONLY_UDP, rule, f"`{rule.id}` lists only UDP that no rule can allow", at="ports"
            )
            continue
        covered = _find_idle_targets(targets, rule, reporter, voting)
        if covered and not rule.feeds and len(covered) == len(rule.names) + len(rule.networks):
            yield _report_rule(rule, [by for _, by in covered], reporter)
        else:
            yield from _report_targets(rule, covered, reporter)


def _report_rule(rule: Rule, covering: list[Rule], reporter: Reporter) -> Finding:
    others = list(dict.fromkeys(covering))
    idents = [other.id for other in others[:_MOST_NAMED]]
    named = join_first([f"`{other.id}` ({_kind(other)})" for other in others], _MOST_NAMED)
    if any(takes_precedence(other, rule) for other in others):
        verb = "takes" if len(others) == 1 else "take"
        message = f"`{rule.id}` ({_kind(rule)}) never decides: {named} {verb} precedence"
        return reporter.about(findings.SHADOWED, rule, message, *idents)
    return reporter.about(findings.REDUNDANT, rule, f"`{rule.id}` adds nothing to {named}", *idents)


def _report_targets(rule: Rule, covered: list[tuple[Target, Rule]], reporter: Reporter) -> Iterator[Finding]:
    for target, by in covered[:_MOST_ENTRIES]:
        text = target.text if isinstance(target, tuple) else str(target)
        if by is rule:
            message = f"`{text}` adds nothing to the other targets of `{rule.id}`"
        elif takes_precedence(by, rule):
            message = f"`{text}` never decides in `{rule.id}` ({_kind(rule)}): `{by.id}` ({_kind(by)}) takes precedence"
        else:
            message = f"`{text}` in `{rule.id}` adds nothing to `{by.id}`"
        others = () if by is rule else (by.id,)
        yield reporter.about(findings.PART_IDLE, rule, message, *others, at="to", entry=text)
    if len(covered) > _MOST_ENTRIES:
        message = f"so do {len(covered) - _MOST_ENTRIES} more targets of `{rule.id}`"
        yield reporter.about(findings.PART_IDLE, rule, message, at="to")


def _find_idle_targets(
    targets: TargetIndex, rule: Rule, reporter: Reporter, voting: _Voting
) -> list[tuple[Target, Rule]]:
    """Pair each target of a rule that does nothing with the rule that sees to that."""
    found: list[tuple[Target, Rule]] = []
    seen: set[Target] = set()
    for target in (*rule.names, *rule.networks):
        over = targets.over_name(target, rule) if isinstance(target, tuple) else targets.over_network(target, rule)
        candidates = ((rule, False),) if target in seen else over
        seen.add(target)
        layers_of_rule = voting.get(rule.id, _NO_LAYERS)
        eligible = ((c, same) for c, same in candidates if layers_of_rule <= voting.get(c.id, _NO_LAYERS))
        by = next((c for c, same in eligible if _makes_target_idle(c, rule, target, reporter, same_target=same)), None)
        if by is not None:
            found.append((target, by))
    return found


def _makes_target_idle(wide: Rule, rule: Rule, target: Target, reporter: Reporter, *, same_target: bool) -> bool:
    if wide is rule:
        return not same_target
    if not makes_idle(wide, rule, target):
        return False
    # Of two identical rules the first is used.
    return (
        takes_precedence(wide, rule)
        or not makes_idle(rule, wide, target)
        or not same_target
        or reporter.number(wide) < reporter.number(rule)
    )


def _voting_layers(policy: Policy) -> _Voting:
    """Return each rule's layers: only a rule of the same layers can replace it."""
    found: dict[str, frozenset[int]] = {}
    for number, layer in enumerate(policy.layers):
        for rule in layer.rules:
            found[rule.id] = found.get(rule.id, _NO_LAYERS) | {number}
    return found


def _kind(rule: Rule) -> str:
    return f"{rule.action}, default" if rule.default else rule.action.value
