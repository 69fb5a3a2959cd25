"""What rules give up that don't look into connections, and those that say so without effect."""

from itertools import islice
from typing import TYPE_CHECKING, Final

from rules.attempt import Protocol
from rules.lint.codes import NEVER_SPLICED, RAW, SPLICED, UNREADABLE
from rules.lint.standing import Asker, name_of
from rules.lint.targets import Targets
from rules.ports import UNSEEN
from rules.verdicts import TlsMode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from rules.lint.finding import Finding, Reporter
    from rules.matching.policy import Policy
    from rules.rule import Rule

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
_MOST_TRIED: Final = 16  # names of one rule
_MOST_ASKED: Final = 256  # rules on one name


def find(policy: "Policy", own: "list[Rule]", reporter: "Reporter", today: "date") -> "Iterator[Finding]":
    """Tell of rules that pass on unread what they let out."""
    ask, targets = Asker(policy, today), None
    for rule in own:
        if not rule.lets_out:
            continue
        ports = rule.ports or ()
        raw = [entry for entry in ports if entry.protocol in UNSEEN]
        if raw:
            listed = ", ".join(map(str, raw))
            yield reporter.about(RAW, rule, f"`{rule.id}` lets any bytes out on {listed}", at="ports")
        if rule.tls is not TlsMode.SPLICE and (unreadable := _unreadable(rule)):
            yield reporter.about(UNREADABLE, rule, unreadable, at="ports")
        spliced = [entry for entry in ports if entry.protocol is Protocol.TLS]
        if rule.tls is not TlsMode.SPLICE or not spliced:
            continue
        targets = targets or Targets(policy.rules)
        in_vain = _never_spliced(ask, targets, rule, spliced[0].low, reporter)
        yield in_vain or reporter.about(SPLICED, rule, _given_up(rule, ", ".join(map(str, spliced))), at="tls")


def _unreadable(rule: "Rule") -> str:
    """Say which ports are had read that can't be; of a range nobody knows whether they are meant."""
    read = (Protocol.TLS, Protocol.HTTP)
    listed = [entry for entry in rule.ports or () if entry.protocol in read and entry.low == entry.high]
    known = [(entry, _NO_HTTP[entry.low]) for entry in listed if entry.low in _NO_HTTP]
    if not known:
        return ""
    ports = ", ".join(f"{entry} ({said.rstrip('+')})" for entry, said in known)
    first = any(said.endswith("+") for _, said in known)
    waits = ": its client waits for a server that speaks first, and is cut off after 10 seconds" if first else ""
    return f"`{rule.id}` has {ports} read as HTTP, which is all that can be{waits}"


def _given_up(rule: "Rule", ports: str) -> str:
    return (
        f"`{rule.id}` passes on unread what goes to {ports}: methods, paths, uploads and credentials are not seen, "
        "and on a shared CDN the request inside can be for another host"
    )


def _never_spliced(ask: Asker, targets: Targets, rule: "Rule", port: int, reporter: "Reporter") -> "Finding | None":
    for pattern in rule.names[:_MOST_TRIED]:
        name = name_of(pattern)
        if name is None:
            continue
        decision = ask.connection(rule, name, port, Protocol.TLS)
        if not decision.passes or not decision.inspect:
            continue
        others = (other for other, _ in islice(targets.over_name(pattern, rule), _MOST_ASKED))
        by = next((other for other in others if other is not rule and _has_it_read(other, port)), None)
        named = "another rule" if by is None else f"`{by.id}`"
        message = (
            f"`{rule.id}` says splice, and {named} has requests to `{pattern.text}` read, so its clients see the CA"
        )
        return reporter.about(NEVER_SPLICED, rule, message, *(() if by is None else (by.id,)), at="tls")
    return None


def _has_it_read(rule: "Rule", port: int) -> bool:
    if rule.ports is not None and not any(entry.covers(port, Protocol.TLS) for entry in rule.ports):
        return False
    return rule.looks_at_requests or (rule.lets_out and not rule.splices(port))
