"""Secrets that go nowhere: no rule lets out to their hosts and ports, or not over TLS, where alone they are sent."""

from typing import TYPE_CHECKING, Final

from rules.attempt import INSPECTABLE, Attempt, Protocol
from rules.lint.codes import IN_THE_CLEAR, SENT_NOWHERE
from rules.matching.reference import covers_target
from rules.ports import covers
from rules.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rules.lint.finding import Finding, Reporter
    from rules.matching.policy import Policy
    from rules.names import HostName
    from rules.rule import Rule

_HTTPS: Final = 443


def find(policy: "Policy", reporter: "Reporter") -> "Iterator[Finding]":
    """Tell each place of a secret that it is never sent to; not of files without rules, which others have."""
    if not policy.rules:
        return
    asking = [rule for rule in policy.rules if rule.action is Verdict.ASK]
    for secret in policy.secrets:
        for host, port in secret.hosts:
            spoken = policy.protocols(host, port) - {Protocol.UDP}
            # On a port with `/tcp` and more a client's first words are waited for, so that TLS is seen.
            if Protocol.TLS in spoken or len(spoken) > 1 or any(_asks(rule, host, port) for rule in asking):
                continue
            place = written(host, port)
            if not spoken:
                message = f"`{secret.id}` goes to `{place}`, and no rule lets anything out there"
                yield reporter.about_secret(SENT_NOWHERE, secret.id, message, place)
                continue
            as_what = "HTTP in the clear" if spoken <= INSPECTABLE else "bytes that nobody reads"
            message = f"`{secret.id}` goes to `{place}`, and rules let {as_what} out there: it is sent over TLS alone"
            yield reporter.about_secret(IN_THE_CLEAR, secret.id, message, place)


def written(host: "HostName", port: int) -> str:
    """Write a place as a secret's `hosts` do."""
    return str(host) if port == _HTTPS else f"{host}:{port}"


def _asks(rule: "Rule", host: "HostName", port: int) -> bool:
    return covers(rule.ports, port, Protocol.TLS) and covers_target(rule, Attempt(Protocol.TLS, host, port))
