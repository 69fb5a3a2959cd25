"""Findings of `exeat check`: the codes, their messages and places."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Final, NamedTuple

from rules.loading.document import Listing, Mapping, Node, Scalar
from rules.loading.load import Loaded
from rules.problems import Problem
from rules.rule import Rule


class Severity(StrEnum):
    """Severity of a finding. Errors and warnings make `exeat check` exit with 1; notes are for information."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class LintCheck(NamedTuple):
    """Kind of finding: its code, its name, what it means in general, and the remedy."""

    code: str
    name: str
    severity: Severity
    meaning: str
    remedy: str


BROKEN: Final = LintCheck("EX001", "broken", Severity.ERROR, "the file can't be read as a rule file",
    "correct the file: no task starts until it can be read")  # fmt: skip
FAILED_TEST: Final = LintCheck("EX002", "failed-test", Severity.ERROR, "a test that the file carries fails",
    "correct the rule or the test")  # fmt: skip
READING: Final = LintCheck("EX003", "reading", Severity.WARNING,
    "the file can be read, but a part of it probably means something else",
    "correct it")  # fmt: skip
ONLY_UDP: Final = LintCheck("EX010", "only-udp", Severity.WARNING,
    "the rule lists only UDP that no rule can allow: DNS, QUIC",
    "remove it, or list the ports that you mean")  # fmt: skip
REDUNDANT: Final = LintCheck("EX011", "redundant", Severity.WARNING,
    "a wider rule with the same action covers everything that the rule covers",
    "remove the rule, or narrow the wider one")  # fmt: skip
SHADOWED: Final = LintCheck("EX012", "shadowed", Severity.WARNING,
    "a rule that takes precedence covers everything that the rule covers: the rule never decides",
    "remove the rule, or give the other one an `except`")  # fmt: skip
PART_IDLE: Final = LintCheck("EX013", "part-idle", Severity.WARNING,
    "one of the rule's targets never decides, or another target covers it",
    "remove it from `to`, or give the other rule an `except`")  # fmt: skip
IDLE_EXCEPT: Final = LintCheck("EX014", "idle-except", Severity.WARNING,
    "an `except` exempts nothing: the rule does not cover it",
    "correct the entry, or remove it")  # fmt: skip
IDLE_CREDENTIAL: Final = LintCheck("EX015", "idle-credential", Severity.WARNING,
    "the rule requires a secret that the gate never sends to the rule's hosts",
    "add the rule's hosts to the secret's `hosts`, or name another secret")  # fmt: skip
UNKNOWN_METHOD: Final = LintCheck("EX016", "unknown-method", Severity.WARNING,
    "a rule lists a method that is not registered with IANA",
    "correct the method; `--ignore` the finding if the service defines its own")  # fmt: skip
IN_THE_CLEAR: Final = LintCheck("EX017", "secret-in-the-clear", Severity.WARNING,
    "rules allow a secret's host and port, but not over TLS",
    "list the port with `/tls` if the server speaks TLS, or remove it from the secret's `hosts`")  # fmt: skip
SENT_NOWHERE: Final = LintCheck("EX018", "secret-sent-nowhere", Severity.WARNING,
    "no rule allows a secret's host and port",
    "add a rule, correct the host or port, or remove it from the secret's `hosts`")  # fmt: skip
NEVER_TAINTED: Final = LintCheck("EX019", "never-tainted", Severity.WARNING,
    "a rule is for tainted tasks, and nothing that the rules allow taints a task",
    "set `trust: untrusted` on rules whose hosts anyone can write to")  # fmt: skip
EVERY_NAME: Final = LintCheck("EX020", "every-name", Severity.WARNING, "a rule allows every name",
    "list the hosts, or use `action: ask`, or `default: true` with `action: flag`")  # fmt: skip
STRANGERS: Final = LintCheck("EX021", "strangers", Severity.WARNING,
    "a wildcard covers names that anyone can register",
    "list the hosts that are yours")  # fmt: skip
WIDE_NETWORK: Final = LintCheck("EX022", "wide-network", Severity.WARNING,
    "a rule allows more addresses than one owner has",
    "list the networks that you mean")  # fmt: skip
WIDE_PORTS: Final = LintCheck("EX023", "wide-ports", Severity.WARNING, "a rule allows more ports than one service has",
    "list the ports that you mean")  # fmt: skip
PUBLIC_PART: Final = LintCheck("EX024", "public-part", Severity.WARNING,
    "a network contains addresses that are not public, and the rule does not open them",
    "narrow the network to the addresses that you mean")  # fmt: skip
SPLICED: Final = LintCheck("EX030", "spliced", Severity.NOTE, "the gate does not read what the rule allows",
    "remove `tls: splice`, unless the client pins certificates, the transfers are large, "
    "or everything on the host has one owner")  # fmt: skip
RAW: Final = LintCheck("EX031", "raw", Severity.NOTE,
    "the rule allows any bytes: the gate sees no request, name or secret in them",
    "write `/tls` or `/http` in place of `/tcp` where the server speaks it")  # fmt: skip
NEVER_SPLICED: Final = LintCheck("EX032", "never-spliced", Severity.WARNING,
    "the rule has `tls: splice`, and another rule needs the requests inspected",
    "remove `tls: splice`, or keep the other rule off these hosts with an `except`")  # fmt: skip
UNREADABLE: Final = LintCheck("EX033", "unreadable", Severity.WARNING,
    "a rule has a port inspected that usually carries something other than HTTP",
    "set `tls: splice`, or list the port with `/tcp`: the gate can inspect only HTTP")  # fmt: skip
AROUND_RAW: Final = LintCheck("EX040", "around-raw", Severity.WARNING,
    "what a rule blocks or holds can leave unread on another port of the same host",
    "block that port as well, or narrow the rule that allows it")  # fmt: skip
AROUND_API: Final = LintCheck("EX041", "around-api", Severity.WARNING,
    "a git rule blocks or holds pushes, and the forge's API can write the same",
    "allow only GET and HEAD to the API, or block its writes to these repositories")  # fmt: skip
AROUND_LFS: Final = LintCheck("EX042", "around-lfs", Severity.WARNING,
    "a git rule blocks or holds pushes, and large files (LFS) can be uploaded",
    "block POST and PUT to `/**/info/lfs/**`")  # fmt: skip
EXPIRED: Final = LintCheck("EX050", "expired", Severity.WARNING,
    "the rule's `until` has passed: it allows nothing any more",
    "remove the rule, or set a later date")  # fmt: skip
EXPIRES_SOON: Final = LintCheck("EX051", "expires-soon", Severity.NOTE, "the rule's `until` passes within thirty days",
    "set a later date in time, or remove the rule")  # fmt: skip
NO_WHY: Final = LintCheck("EX060", "no-why", Severity.NOTE, "rules have no `why`",
    "add `why`: block pages and reviews show it")  # fmt: skip
AUDITED: Final = LintCheck("EX061", "audited", Severity.WARNING,
    "audit mode allows what no rule decides, and only records it",
    "set `mode: enforce` once `exeat replay` shows nothing that would be blocked")  # fmt: skip
UNCLAIMED: Final = LintCheck("EX062", "unclaimed", Severity.WARNING,
    "a rule restricts certain tasks, and nothing controls which tasks those are",
    "list them in /etc/exeat/identities.yaml, or restrict every task")  # fmt: skip
UNASKED: Final = LintCheck("EX063", "unasked", Severity.WARNING,
    "an approval would not open the address of a name that the rule asks about",
    "list the name's non-public addresses in `resolves_to`")  # fmt: skip
UNREVIEWED: Final = LintCheck("EX064", "unreviewed", Severity.WARNING,
    "a `sandbox` has an `approval`, and its changes are not reviewed",
    "set `workspace: review` in the same `sandbox`")  # fmt: skip
OBEYED: Final = LintCheck("EX065", "obeyed", Severity.WARNING,
    "the host runs or reads as configuration what `write` lets the task change",
    "list another path, or review what the task changed before anything runs it")  # fmt: skip

CHECKS: Final = tuple(value for value in list(globals().values()) if isinstance(value, LintCheck))


class Finding(NamedTuple):
    """A finding, with its place; lines and columns count from 1."""

    check: LintCheck
    file: str
    line: int
    column: int
    message: str
    rules: tuple[str, ...] = ()  # that it is about, the one to change first

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}"
        if self.check.severity is Severity.ERROR:
            return f"{place}: {self.message}"  # the format of every other command
        return (
            f"{place}: {self.check.severity}: {self.check.code} {self.check.name}: {self.message}; {self.check.remedy}"
        )

    def value(self) -> dict[str, Any]:
        """Return the finding as a value for JSON."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "severity": self.check.severity.value,
            "code": self.check.code,
            "name": self.check.name,
            "message": self.message,
            "todo": self.check.remedy,
            "rules": list(self.rules),
        }


def from_problem(problem: Problem, check: LintCheck) -> Finding:
    """Return a finding for a problem of loading."""
    return Finding(check, problem.file, problem.line, problem.column, problem.message)


class Reporter:
    """Makes findings about rules of loaded files, each at the most specific place."""

    def __init__(self, loaded: Loaded) -> None:
        self._places = loaded.places
        self._settings = loaded.settings
        self._secrets = loaded.secrets
        self._boxes = loaded.boxes
        self._numbers = {rule: number for number, rule in enumerate(loaded.places)}

    def number(self, rule: Rule) -> tuple[int, str]:
        """Return the sort key of a rule: its position in the files."""
        return self._numbers.get(rule.id, 0), rule.id

    def is_shipped(self, ident: str) -> bool:
        """Whether a rule belongs to a preset, so that the user can't change it."""
        place = self._places.get(ident)
        return place is not None and place.via is not None

    def about(
        self, check: LintCheck, rule: Rule, message: str, *others: str, at: str = "id", entry: str = ""
    ) -> Finding:
        """Return a finding about a rule, at one of its keys or at an entry of that key's list."""
        place = self._places.get(rule.id)
        rules = (rule.id, *others)
        if place is None:  # made by no file: a program's
            return Finding(check, rule.id.partition(":")[0], 1, 1, message, rules)
        if place.via is not None:
            return Finding(check, place.via.file, place.via.node.line, place.via.node.column, message, rules)
        node = _node(place.node, at, entry)
        return Finding(check, place.file, node.line, node.column, message, rules)

    def about_secret(self, check: LintCheck, ident: str, message: str, entry: str) -> Finding:
        """Return a finding about a secret, at one of its `hosts`."""
        place = self._secrets[ident]
        node = _node(place.node, "hosts", entry)
        return Finding(check, place.file, node.line, node.column, message)

    def about_boxes(self, check: LintCheck, key: str, message: str, entry: str = "") -> Iterator[Finding]:
        """Return a finding about each `sandbox` with a key, at an entry of its list."""
        for place in self._boxes:
            if isinstance(place.node, Mapping) and key in place.node.pairs:
                node = _node(place.node, key, entry.lower().rstrip("."))
                if not entry or not isinstance(node, Listing):
                    yield Finding(check, place.file, node.line, node.column, message)

    def about_settings(self, check: LintCheck, key: str, message: str) -> Finding:
        """Return a finding about the settings."""
        assert self._settings is not None, "no file has settings, so all are the defaults"
        node = _node(self._settings.node, key, "")
        return Finding(check, self._settings.file, node.line, node.column, message)


def _node(node: Node, key: str, entry: str) -> Node:
    """Find where a key of a mapping stands, or an entry of its list; as near as what is written allows."""
    if not isinstance(node, Mapping) or key not in node.pairs:
        return node
    name, value = node.pairs[key]
    if not entry:
        return name if key != "id" else node
    entries = value.items if isinstance(value, Listing) else [value]
    written = [item for item in entries if isinstance(item, Scalar) and item.text.lower().rstrip(".") == entry]
    return written[-1] if written else value  # the last of two that are alike is the one too many
