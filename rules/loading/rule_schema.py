"""Reads one rule of a rule file: from a YAML mapping to a `Rule`, or to all of its problems.

Nothing is passed over in silence. `for`, `http`, `git`, `limits` and `approval` are read by `rules.loading.conditions`;
what makes no sense together is told by `rules.loading.rule_checks`.
"""

import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from rules.addresses import Network, parse_network
from rules.attempt import Protocol
from rules.feeds import Feed
from rules.loading.conditions import (
    APPROVAL,
    FOR,
    GIT,
    HTTP,
    LIMITS,
    read_approval,
    read_for,
    read_git,
    read_http,
    read_limits,
)
from rules.loading.document import Mapping, Node
from rules.loading.fields import RECORD_TYPES, Reader, day, duration, record_type, slug
from rules.loading.rule_checks import check_reach, check_together, parse_target
from rules.loading.sections import (
    TEXT,
    WORD,
    Key,
    Section,
    choice,
    flag,
    many,
    one,
    one_or_more,
    part,
    ref,
    text,
    unread,
)
from rules.patterns import NamePattern
from rules.ports import Ports
from rules.problems import Problem, quoted
from rules.rule import Exemption, Rule
from rules.verdicts import Log, Mode, Scan, TlsMode, Trust, Verdict

_DEFAULT_PORTS: Final = (Ports(443, 443, Protocol.TLS),)


class _Targets(NamedTuple):
    """What a `to` or an `except` is about, and where it is written."""

    names: tuple[NamePattern, ...] = ()
    networks: tuple[Network, ...] = ()
    feeds: tuple[Feed, ...] = ()
    places: tuple[tuple[NamePattern | Network, Node], ...] = ()


class RuleReader(Reader):
    """Reads rules of one file, whose `name` they are cited with. `tls` is what an allow means that doesn't say.

    `feed` reads a list by its path, or raises ValueError; `directory` is where the file's own paths begin.
    """

    __slots__ = ("directory", "feed", "lets_out", "name", "tls")

    def __init__(  # noqa: PLR0917
        self,
        file: str,
        problems: list[Problem],
        warnings: list[Problem],
        name: str,
        tls: TlsMode,
        feed: Callable[[str], Feed],
        directory: str = "",
    ) -> None:
        super().__init__(file, problems, warnings)
        self.name = name
        self.tls = tls
        self.feed = feed
        self.directory = directory
        self.lets_out = False  # whether what is being read lets out, or exempts from being held back

    def rule(self, node: Node) -> Rule | None:
        """Read one rule; None if anything about it is wrong, which has been told then."""
        before = len(self.problems)
        fields = RULE.fields(self, node)
        if fields is None:
            return None
        action = self.choice(fields["action"], "action", Verdict) if "action" in fields else None
        self.lets_out = action is not None and action.lets_out
        said = RULE.values(self, {key: value for key, value in fields.items() if key not in {"action", "except"}})
        if "except" in fields:
            self.lets_out = action is not None and not self.lets_out  # what is exempt from being held back may go out
            said["excepts"] = tuple(self._exemptions(fields["except"]))
        targets: _Targets = said.pop("to", _Targets())
        said["id"] = f"{self.name}:{said.get('id')}"
        said.setdefault("tls", self.tls)
        if action is not None and action.lets_out:
            said.setdefault("ports", _DEFAULT_PORTS)
        rule = Rule(
            action=action or Verdict.DENY, names=targets.names, networks=targets.networks, feeds=targets.feeds, **said
        )
        if rule.lets_out:
            check_reach(self, rule, fields, targets.places)
        if len(self.problems) == before:
            check_together(self, rule, fields)
        return rule if len(self.problems) == before else None

    def when(self, node: Node, key: str) -> bool:
        """Read `when`."""
        text = self.text(node, key)
        if text is not None and text != "tainted":
            self.complain(node, f"{quoted(text)} is no value of `when`, which is `tainted`")
        return True

    def path(self, node: Node, key: str) -> str | None:
        """Read a path that begins where the file lies."""
        text = self.text(node, key)
        return None if text is None else os.path.join(self.directory, text)

    def targets(self, node: Node, of: str) -> _Targets:
        """Read names, patterns, addresses and CIDRs."""
        places: list[tuple[NamePattern | Network, Node]] = []
        feeds: list[Feed] = []
        for item in self.items(node, of):
            if isinstance(item, Mapping) and "list" in item.pairs:
                feeds += self._feed(item)
                continue
            if isinstance(item, Mapping):
                self.complain(item, f"`{of}` takes names and addresses, and lists of names as `{{list: FILE}}`")
                continue
            found = self.parsed(item, of, parse_target)
            if found is not None:
                places.append((found, item))
        names = tuple(target for target, _ in places if isinstance(target, NamePattern))
        networks = tuple(target for target, _ in places if not isinstance(target, NamePattern))
        return _Targets(names, networks, tuple(feeds), tuple(places))

    def _feed(self, node: Mapping) -> Iterator[Feed]:
        feed = (LIST.read(self, node) or {}).get("list")
        if feed is not None:
            if feed.bad:
                self.warn(node, feed.problem())
            yield feed

    def _exemptions(self, node: Node) -> Iterator[Exemption]:
        for item in self.items(node, "except"):
            if isinstance(item, Mapping):
                said = EXCEPT.read(self, item) or {}
                targets: _Targets = said.pop("to", _Targets())
            else:
                said, targets = {}, self.targets(item, "except")
            if targets.feeds:
                self.complain(item, "a list belongs to the `to` of a rule: write the names here")
            yield Exemption(targets.names, targets.networks, **said)


_PORTS: Final = {
    "anyOf": [
        {"enum": [443, 80]},
        {"type": "string", "pattern": "^(443|80|[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?/(tls|http|tcp|udp))$"},
    ]
}
_CONDITIONS: Final[dict[str, Key]] = {
    "to": Key("Names, patterns, addresses, CIDRs.", RuleReader.targets, one_or_more(WORD)),
    "ports": many("Ports with what is spoken there: `443`, `80`, `5432/tcp`, `8000-8100/tls`.", Ports.parse, _PORTS),
    "resolves_to": many("Addresses and CIDRs that the name may have.", parse_network, WORD),
    "for": part("For which tasks.", FOR, read_for, "selector"),
    "http": part("Which requests.", HTTP, lambda reader, node, _: read_http(reader, node, lets_out=reader.lets_out)),
    "git": part(
        "Which repositories and refs.", GIT, lambda reader, node, _: read_git(reader, node, lets_out=reader.lets_out)
    ),
    "credential": one("The secret whose placeholder is the request's one credential.", slug),
    "when": Key(
        "Only for a task that has read what nobody vouches for.", RuleReader.when, {"enum": ["tainted"]}, "when_tainted"
    ),
}
EXCEPT: Final = Section(
    "except",
    "an `except`",
    _CONDITIONS,
    empty="this `except` says nothing: it needs `to`, `ports`, `http` or another of its keys",
)
LIST: Final = Section("list", "a list", {
    "list": Key("A file of names: a hosts file, or a name a line; they and all names below them.",
        lambda reader, node, key: reader.parsed(node, key, reader.feed), TEXT),
})  # fmt: skip
RULE: Final = Section("rule", "a rule", {
    "id": one("What the rule is cited by.", slug),
    **_CONDITIONS,
    "to": Key("Names, patterns, addresses, CIDRs, lists. `*` is every name, `**.a.example` a name and all below it.",
        RuleReader.targets, one_or_more({"anyOf": [WORD, ref("list")]})),
    "action": choice("What happens: `flag` goes out and is reviewed, `ask` waits for approval.", Verdict),
    "why": text("A sentence that refusals, explanations and reviews show."),
    "default": flag("Counts only where no other rule matches."),
    "except": Key("What the rule doesn't cover.", unread, one_or_more({"anyOf": [WORD, ref("except")]})),
    "mode": choice("Of a default rule, instead of the settings'.", Mode),
    "tls": choice("`splice` passes connections on unread.", TlsMode),
    "ca": Key("A file of certificates, trusted for this destination.", RuleReader.path, TEXT),
    "dns_types": many("Types of records that are answered for the name.",
        record_type, {"enum": [*RECORD_TYPES]}, frozenset),
    "idle_timeout": one("How long a connection may be silent, up to 7d.", duration),
    "until": one("The last day (UTC) on which it lets out or asks.", day),
    "limits": part("How much it lets out.", LIMITS, read_limits),
    "approval": part("Who approves, and what that is good for.",
        APPROVAL, read_approval),
    "trust": choice("Whether what is read there may steer the task.", Trust),
    "scan": choice("What is done where a secret is found in what leaves.", Scan),
    "log": choice("What is told of a request's path.", Log),
}, needed=("id", "to", "action"))  # fmt: skip
