"""Rules about requests that nobody sends: a method that is mistyped, a secret that goes to other hosts.

A deny of `PSOT` holds nothing back, and nothing else would say so.
"""

from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from rules.attempt import REGISTERED_METHODS, Protocol
from rules.lint.codes import IDLE_CREDENTIAL, UNKNOWN_METHOD
from rules.lint.unsent import written
from rules.ports import covers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rules.lint.finding import Finding, Reporter
    from rules.matching.policy import Policy
    from rules.names import HostName
    from rules.rule import Rule

_MOST_NAMED: Final = 3


def find(policy: "Policy", own: "list[Rule]", reporter: "Reporter") -> "Iterator[Finding]":
    """Tell what no request has."""
    for rule in own:
        asked = (rule.http, *(exemption.http for exemption in rule.excepts))
        for method in sorted(
            {m for http in asked if http is not None for m in http.methods or ()} - REGISTERED_METHODS
        ):
            near = get_close_matches(method, REGISTERED_METHODS, 1)
            meant = f"; did you mean `{near[0]}`?" if near else ""
            at = "http" if rule.http is not None and method in (rule.http.methods or ()) else "except"
            message = f"`{rule.id}` is about `{method}`, which is no method that is registered{meant}"
            yield reporter.about(UNKNOWN_METHOD, rule, message, at=at)
        hosts = [place for secret in policy.secrets if secret.id == rule.credential for place in secret.hosts]
        if hosts and not rule.feeds and not any(_is_about(rule, *place) for place in hosts):
            message = f"`{rule.id}` is about requests with `{rule.credential}`, which goes to {_listed(hosts)} alone"
            yield reporter.about(IDLE_CREDENTIAL, rule, message, at="credential")


def _is_about(rule: "Rule", host: "HostName", port: int) -> bool:
    return covers(rule.ports, port, Protocol.TLS) and any(name.matches(host) for name in rule.names)


def _listed(hosts: "list[tuple[HostName, int]]") -> str:
    more = f" and {len(hosts) - _MOST_NAMED} more" if len(hosts) > _MOST_NAMED else ""
    return ", ".join(f"`{written(*place)}`" for place in hosts[:_MOST_NAMED]) + more
