"""Lint of each rule by itself: addresses, exemptions, answers and requests that can never match."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from difflib import get_close_matches
from typing import Final

from rules.attempt import INSPECTABLE, REGISTERED_METHODS, Attempt, Protocol
from rules.lint import LintContext, findings
from rules.lint.findings import Finding, Reporter
from rules.matching.policy import Policy
from rules.matching.reference import covers_target
from rules.matching.requests import trust_of
from rules.ports import ports_cover
from rules.problems import join_first
from rules.rule import Rule
from rules.sandbox import WorkspaceMode
from rules.values.addresses import BLOCKS, Network, find_block, is_within
from rules.values.globs import may_overlap
from rules.values.names import HostName, is_exeat_name
from rules.values.patterns import NamePattern
from rules.verdicts import Mode, Trust, Verdict

_WIDEST: Final = {4: 12, 6: 24}  # shortest prefix that is taken for one owner's
_MOST_PORTS: Final = 1024


def check_width(own: list[Rule], reporter: Reporter) -> Iterator[Finding]:
    """Report rules that allow too many names, addresses or ports."""
    for rule in own:
        if not rule.allows:
            continue
        if any(name.below == "" for name in rule.names) and not (rule.default and rule.action is Verdict.FLAG):
            message = f"`{rule.id}` allows every name, also those of attackers"
            yield reporter.about(findings.EVERY_NAME, rule, message, at="to", entry="*")
        for network in rule.networks:
            if _is_wide(network):
                message = f"`{rule.id}` allows `{network}`: the task can connect to addresses that no name rule allows"
                yield reporter.about(findings.WIDE_NETWORK, rule, message, at="to", entry=str(network))
        for entry in rule.ports or ():
            if entry.high - entry.low >= _MOST_PORTS:
                message = f"`{rule.id}` allows {entry.high - entry.low + 1} ports with `{entry}`"
                yield reporter.about(findings.WIDE_PORTS, rule, message, at="ports", entry=str(entry))


def _is_wide(network: Network) -> bool:
    if network.prefixlen >= _WIDEST[network.version]:
        return False
    return not any(is_within(network, block.network) for block in BLOCKS)


_MOST_COMPARED: Final = 100_000  # pairs in one rule; longer rules are not checked


def check_exceptions(own: list[Rule], reporter: Reporter) -> Iterator[Finding]:
    """Report names and networks under `except` that the rule does not cover.

    Only of names where the rule is about names alone, and of networks where it is about networks alone: a name that
    is exempted from a rule about networks has addresses, and the other way round.
    """
    for rule in own:
        targets = len(rule.names) + len(rule.networks)
        excepted = sum(len(exemption.names) + len(exemption.networks) for exemption in rule.excepts)
        if targets * excepted > _MOST_COMPARED:
            continue
        for exemption in rule.excepts:
            idle: list[NamePattern | Network] = []
            if not rule.networks:
                idle += [name for name in exemption.names if not _covers_some_of(rule, name)]
            elif not rule.names:
                idle += [network for network in exemption.networks if not any(map(network.overlaps, rule.networks))]
            for target in idle:
                text = str(getattr(target, "text", target))
                message = f"`{text}` under `except` exempts nothing: `{rule.id}` ({rule.action}) does not cover it"
                yield reporter.about(findings.IDLE_EXCEPT, rule, message, at="except", entry=text)


def _covers_some_of(rule: Rule, name: NamePattern) -> bool:
    if any(may_overlap(name.parts, own.parts) for own in rule.names):
        return True
    # Which of a list's names lie under a wildcard isn't looked for
    return any(name.below is not None or feed.covers(HostName.parse(name.text)) for feed in rule.feeds)


# Names that no public server has: RFC 6762 appendix G, RFC 8375, and `internal` by ICANN's resolution of 2024-07-29
_INSIDE: Final = ("internal", "intranet", "private", "corp", "home", "lan", "local", "home.arpa")


def check_taint_and_asks(policy: Policy, own: list[Rule], reporter: Reporter) -> Iterator[Finding]:
    """Report `when: tainted` without anything that taints, and asks whose approval would allow nothing."""
    if not _taints(policy):
        for rule in own:
            if rule.depends_on_taint:
                message = f"`{rule.id}` ({rule.action}) has `when: tainted`, and all hosts that rules allow are trusted"
                yield reporter.about(
                    findings.NEVER_TAINTED, rule, message, at="when" if rule.when_tainted else "except"
                )
    opening: dict[str, list[Rule]] = defaultdict(list)  # by name: rules that allow addresses inside the network
    for rule in policy.rules:
        if rule.allows and _is_inside(rule):
            for name in rule.names:
                opening[name.text].append(rule)
    for rule in own:
        if rule.action is Verdict.ASK and rule.resolves_to is None:
            for text in _inside(rule, opening):
                message = (
                    f"`{rule.id}` asks about `{text}`, and without `resolves_to` approvals open only public addresses"
                )
                yield reporter.about(findings.UNASKED, rule, message, at="to")
                break


def _inside(rule: Rule, opening: Mapping[str, list[Rule]]) -> Iterator[str]:
    """List names of an ask that other rules, or the names themselves, say are inside, and that no rule opens there."""
    for pattern in rule.names:
        if is_exeat_name(pattern.text):
            continue
        beside = opening.get(pattern.text, [])
        opened = any(not each.has_request_conditions for each in beside)
        if not opened and (beside or any(pattern.text.endswith(f".{zone}") for zone in _INSIDE)):
            yield pattern.text


def _is_inside(rule: Rule) -> bool:
    """Whether the addresses that a rule's names may have include some that are not public."""
    return any(find_block(network.network_address) is not None for network in rule.resolves_to or ())


def _taints(policy: Policy) -> bool:
    if policy.settings.mode is Mode.AUDIT or any(rule.mode is Mode.AUDIT for rule in policy.rules):
        return True  # traffic that no rule allows is untrusted
    return any(trust_of(rule) is Trust.UNTRUSTED for rule in policy.rules if rule.action is not Verdict.DENY)


_HTTPS: Final = 443


def check_secrets(policy: Policy, reporter: Reporter) -> Iterator[Finding]:
    """Report hosts of a secret to which it can't be sent. Files without rules are skipped."""
    if not policy.rules:
        return
    asking = [rule for rule in policy.rules if rule.action is Verdict.ASK]
    for secret in policy.secrets:
        for host, port in secret.hosts:
            spoken = policy.protocols(host, port) - {Protocol.UDP}
            # On a port with `/tcp` and more the gate waits for the client's first bytes, to recognise TLS.
            if Protocol.TLS in spoken or len(spoken) > 1 or any(_asks(rule, host, port) for rule in asking):
                continue
            place = write_place(host, port)
            if not spoken:
                message = f"`{secret.id}` is sent to `{place}`, and no rule allows that"
                yield reporter.about_secret(findings.SENT_NOWHERE, secret.id, message, place)
                continue
            as_what = "HTTP in the clear" if spoken <= INSPECTABLE else "bytes that the gate does not read"
            message = f"`{secret.id}` is sent to `{place}` over TLS only, and the rules allow {as_what} there"
            yield reporter.about_secret(findings.IN_THE_CLEAR, secret.id, message, place)


def write_place(host: HostName, port: int) -> str:
    """Write a place as a secret's `hosts` do."""
    return str(host) if port == _HTTPS else f"{host}:{port}"


def _asks(rule: Rule, host: HostName, port: int) -> bool:
    return ports_cover(rule.ports, port, Protocol.TLS) and covers_target(rule, Attempt(Protocol.TLS, host, port))


_MOST_NAMED: Final = 3


def check_credentials(policy: Policy, own: list[Rule], reporter: Reporter) -> Iterator[Finding]:
    """Report methods that are not registered, and credentials that no request to the rule's hosts can carry."""
    for rule in own:
        conditions = (rule.http, *(exemption.http for exemption in rule.excepts))
        for method in sorted(
            {m for http in conditions if http is not None for m in http.methods or ()} - REGISTERED_METHODS
        ):
            near = get_close_matches(method, REGISTERED_METHODS, 1)
            meant = f"; did you mean `{near[0]}`?" if near else ""
            at = "http" if rule.http is not None and method in (rule.http.methods or ()) else "except"
            message = f"`{rule.id}` lists the method `{method}`, which is not registered{meant}"
            yield reporter.about(findings.UNKNOWN_METHOD, rule, message, at=at)
        hosts = [place for secret in policy.secrets if secret.id == rule.credential for place in secret.hosts]
        if hosts and not rule.feeds and not any(_is_about(rule, *place) for place in hosts):
            places = join_first([f"`{write_place(*place)}`" for place in hosts], _MOST_NAMED)
            message = f"`{rule.id}` requires `{rule.credential}`, which is sent to {places} only"
            yield reporter.about(findings.IDLE_CREDENTIAL, rule, message, at="credential")


def _is_about(rule: Rule, host: HostName, port: int) -> bool:
    return ports_cover(rule.ports, port, Protocol.TLS) and any(name.matches(host) for name in rule.names)


SOON: Final = timedelta(days=30)


def check_upkeep(policy: Policy, own: list[Rule], reporter: Reporter, context: LintContext) -> Iterator[Finding]:
    """Report missing `why`, expired rules, audit mode and other things to maintain."""
    yield from _lifetimes(own, reporter, context.today)
    if policy.settings.mode is Mode.AUDIT:
        yield reporter.about_settings(findings.AUDITED, "mode", "audit mode is on: what no rule decides is allowed")
    if policy.box.approval and policy.box.workspace is not WorkspaceMode.REVIEW:
        message = "`approval` needs reviewed changes, and no file has `workspace: review`"
        yield from reporter.about_boxes(findings.UNREVIEWED, "approval", message)
    for path in filter(context.is_obeyed, policy.box.write):
        message = f"`{path}` under `write`: this host runs it or reads it as configuration"
        yield from reporter.about_boxes(findings.OBEYED, "write", message, entry=path)
    silent: dict[str, list[Rule]] = {}
    for rule in own:
        if not rule.why:
            silent.setdefault(rule.id.partition(":")[0], []).append(rule)
        if rule.mode is Mode.AUDIT and not rule.allows:
            yield reporter.about(
                findings.AUDITED, rule, f"`{rule.id}` has `mode: audit`: what it would block is allowed", at="mode"
            )
        if rule.selector is not None and not rule.allows and not context.identities:
            message = (
                f"`{rule.id}` ({rule.action}) is for {rule.selector}, and a user can start the task under another one"
            )
            yield reporter.about(findings.UNCLAIMED, rule, message, at="for")
    for rules in silent.values():
        rules.sort(key=reporter.number)
        named = join_first([f"`{rule.id}`" for rule in rules], _MOST_NAMED)
        verb = "has" if len(rules) == 1 else "have"
        yield reporter.about(findings.NO_WHY, rules[0], f"{named} {verb} no `why`")


def _lifetimes(own: list[Rule], reporter: Reporter, today: date) -> Iterator[Finding]:
    """Report rules that have ended or will soon; `until` is the last day (UTC) on which they count."""
    for rule in own:
        if rule.until is None:
            continue
        days_left = rule.until - today
        if days_left < timedelta(0):
            became = "no longer matches" if rule.allows else "now denies"
            yield reporter.about(findings.EXPIRED, rule, f"`{rule.id}` ended on {rule.until} and {became}", at="until")
        elif days_left <= SOON:
            days = {0: "today", 1: "tomorrow"}.get(days_left.days, f"in {days_left.days} days")
            yield reporter.about(findings.EXPIRES_SOON, rule, f"`{rule.id}` ends {days}, on {rule.until}", at="until")
