"""What is to become of each attempt of the demo's task, and why: whether that is so decides how `make demo` ends."""

from collections.abc import Mapping
from typing import NamedTuple


class Expected(NamedTuple):
    """Whether the client is to have what it wanted, and what is to be decided, by which rules, after which answers."""

    works: bool
    outcome: str
    reason: str
    rules: tuple[str, ...] = ()
    people: str = "-"


def _passed(*rules: str, reason: str = "rule", people: str = "-") -> Expected:
    return Expected(True, "passed", reason, tuple(f"demo:{rule}" for rule in rules), people)


def _blocked(reason: str, *rules: str, people: str = "-", works: bool = False) -> Expected:
    return Expected(works, "blocked", reason, tuple(f"demo:{rule}" for rule in rules), people)


GRANTED = "approval_granted"
BY_THE_SANDBOX = Expected(False, "-", "-")  # by no gate: nothing is decided
EXPECTED: Mapping[str, Expected] = {
    "curl GET an allowed path": _passed("read-the-api"),
    "curl POST to the same path": _blocked("no_rule"),
    "curl a path nobody allowed": _blocked("no_rule"),
    "Python urllib GET an allowed path": _passed("read-the-api"),
    "git clone an allowed repository": _passed("clone"),
    "git clone another repository": _blocked("no_rule"),
    "git push to a feature branch": _passed("feature-branches"),
    "git push to main (held, one approves)": _passed(
        "feature-branches", "main-is-asked-about", reason=GRANTED, people="owner: approved"
    ),
    "a migration (held, two approve)": _passed("migrations-need-two", reason=GRANTED, people="ada, bo: approved"),
    "another migration (held, one rejects)": _blocked("approval_denied", "migrations-need-two", people="ada: rejected"),
    "curl a spliced host": _passed("packages"),
    "curl a flagged host": _passed("watched"),
    "curl a paste site": _blocked("rule", "paste-sites"),
    "curl a name no rule knows": _blocked("no_rule"),
    "curl an address literal": _blocked("no_rule"),
    "an allowed name at an address of one's own": _passed("read-the-api"),  # and it reaches the true host
    "fronting: allowed SNI, another Host": _blocked("name_mismatch"),
    "an allowed name on a private address": _blocked("non_public_address", "moved-inside"),
    # It is answered, with an address whose only use is to be refused with an explanation.
    "DNS carrying data out": _blocked("dns_denied", works=True),
    "UDP to anywhere": _blocked("udp"),
    "QUIC": _blocked("quic"),
    "a raw socket": BY_THE_SANDBOX,
}


def astray(what: str, found: Expected) -> str:
    """Say what was to become of an attempt where something else did; empty where it is as it should be."""
    expected = EXPECTED.get(what)
    if expected is None:
        return "an attempt that nothing is expected of"
    differ = [
        f"{name} {getattr(expected, name)}"
        for name in Expected._fields
        if getattr(expected, name) != getattr(found, name)
    ]
    return ", ".join(differ)


def untried(tried: list[str]) -> list[str]:
    """List what was to be tried and wasn't, and what was tried more than once."""
    return [what for what in EXPECTED if tried.count(what) != 1]
