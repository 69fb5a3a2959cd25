"""One rule of a rule file: from a mapping of words to a `Rule`, or to every problem it has.

Nothing is passed over in silence. `http` and `git` are read by `rules.loading.conditions`; `for`, `limits` and
`approval` by `rules.loading.conditions`; what makes no sense together is told by `rules.loading.rule_checks`.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from rules.addresses import Network, parse_network
from rules.attempt import Protocol
from rules.feeds import Feed
from rules.loading.conditions import read_approval, read_for, read_git, read_http, read_limits
from rules.loading.document import Mapping, Node
from rules.loading.fields import Reader, day, duration, record_type, slug
from rules.loading.keys import EXCEPT_KEYS, RULE_KEYS
from rules.loading.rule_checks import RuleChecks, parse_target
from rules.patterns import NamePattern
from rules.ports import Ports
from rules.problems import Problem, quoted
from rules.rule import Exemption, Rule
from rules.verdicts import Log, Mode, Scan, TlsMode, Trust, Verdict

_FEW: Final = frozenset(
    {"for", "git", "credential", "when", "until", "limits", "approval", "ca", "dns_types", "trust", "scan", "log"}
)
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

    __slots__ = ("directory", "feed", "name", "tls", "warnings")

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
        super().__init__(file, problems)
        self.warnings = warnings
        self.name = name
        self.tls = tls
        self.feed = feed
        self.directory = directory

    def rule(self, node: Node) -> Rule | None:
        """Read one rule; None if anything about it is wrong, which has been told then."""
        before = len(self.problems)
        fields = self.mapping(node, "a rule", RULE_KEYS)
        if fields is None:
            return None
        for key in self.lacking(node, "a rule", ("id", "to", "action"), RULE_KEYS):
            self.complain(node, f"a rule needs `{key}`")
        ident = self.parsed(fields["id"], "id", slug) if "id" in fields else None
        targets = self._targets(fields["to"], "to") if "to" in fields else _Targets()
        action = self.choice(fields["action"], "action", Verdict) if "action" in fields else None
        lets_out = action is not None and action.lets_out
        ports = tuple(self.each(fields["ports"], "ports", Ports.parse)) if "ports" in fields else None
        listed = fields.get("resolves_to")
        tls = self.choice(fields["tls"], "tls", TlsMode) if "tls" in fields else None
        timeout = fields.get("idle_timeout")
        rule = Rule(
            id=f"{self.name}:{ident}",
            action=action or Verdict.DENY,
            names=targets.names,
            networks=targets.networks,
            feeds=targets.feeds,
            ports=_DEFAULT_PORTS if ports is None and lets_out else ports,
            resolves_to=None if listed is None else tuple(self.each(listed, "resolves_to", parse_network)),
            http=read_http(self, fields["http"], lets_out=lets_out) if "http" in fields else None,
            default=bool(self.boolean(fields["default"], "default")) if "default" in fields else False,
            excepts=tuple(self._exemptions(fields["except"], action)) if "except" in fields else (),
            tls=tls or self.tls,
            mode=self.choice(fields["mode"], "mode", Mode) if "mode" in fields else None,
            idle_timeout=None if timeout is None else self.parsed(timeout, "idle_timeout", duration),
            why=self.text(fields["why"], "why") or "" if "why" in fields else "",
            **(self._rest(fields, lets_out=lets_out) if not _FEW.isdisjoint(fields) else {}),
        )
        checks = RuleChecks(self, self.warnings)
        if rule.lets_out:
            checks.reach(rule, fields, targets.places)
        if len(self.problems) == before:
            checks.together(rule, fields)
        return rule if len(self.problems) == before else None

    def _rest(self, fields: dict[str, Node], *, lets_out: bool) -> dict[str, Any]:
        """Read the keys that few rules have."""
        readers: dict[str, tuple[str, Callable[[Node], Any]]] = {
            "for": ("selector", partial(read_for, self)),
            "git": ("git", partial(read_git, self, lets_out=lets_out)),
            "credential": ("credential", lambda node: self.parsed(node, "credential", slug)),
            "when": ("when_tainted", self._when),
            "until": ("until", lambda node: self.parsed(node, "until", day)),
            "limits": ("limits", partial(read_limits, self)),
            "approval": ("approval", partial(read_approval, self)),
            "ca": ("ca", self._path),
            "dns_types": ("dns_types", lambda node: frozenset(self.each(node, "dns_types", record_type))),
            "trust": ("trust", lambda node: self.choice(node, "trust", Trust)),
            "scan": ("scan", lambda node: self.choice(node, "scan", Scan)),
            "log": ("log", lambda node: self.choice(node, "log", Log)),
        }
        return {readers[key][0]: readers[key][1](fields[key]) for key in fields if key in readers}

    def _path(self, node: Node) -> str | None:
        text = self.text(node, "ca")
        return None if text is None else os.path.join(self.directory, text)

    def _when(self, node: Node) -> bool:
        text = self.text(node, "when")
        if text is not None and text != "tainted":
            self.complain(node, f"{quoted(text)} is no value of `when`, which is `tainted`")
        return True

    def _targets(self, node: Node, of: str) -> _Targets:
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
        fields = self.mapping(node, "a list", ("list",))
        feed = self.parsed(fields["list"], "list", self.feed) if fields else None
        if feed is not None:
            if feed.bad:
                self.warnings.append(Problem(self.file, node.line, node.column, feed.problem()))
            yield feed

    def _exemptions(self, node: Node, action: Verdict | None) -> Iterator[Exemption]:
        helps = action is not None and not action.lets_out  # what is exempt from being held back may go out
        for item in self.items(node, "except"):
            if not isinstance(item, Mapping):
                targets = self._targets(item, "except")
                self._refuse_lists(targets, item)
                yield Exemption(targets.names, targets.networks)
                continue
            fields = self.mapping(item, "an `except`", EXCEPT_KEYS)
            if fields is None:
                continue
            if not item.pairs:
                self.complain(item, "this `except` says nothing: it needs `to`, `ports`, `http` or another of its keys")
            targets = self._targets(fields["to"], "to") if "to" in fields else _Targets()
            self._refuse_lists(targets, item)
            listed = fields.get("resolves_to")
            yield Exemption(
                targets.names,
                targets.networks,
                tuple(self.each(fields["ports"], "ports", Ports.parse)) if "ports" in fields else None,
                read_http(self, fields["http"], lets_out=helps) if "http" in fields else None,
                None if listed is None else tuple(self.each(listed, "resolves_to", parse_network)),
                read_for(self, fields["for"]) if "for" in fields else None,
                read_git(self, fields["git"], lets_out=helps) if "git" in fields else None,
                self.parsed(fields["credential"], "credential", slug) if "credential" in fields else None,
                self._when(fields["when"]) if "when" in fields else False,
            )

    def _refuse_lists(self, targets: _Targets, node: Node) -> None:
        if targets.feeds:
            self.complain(node, "a list belongs to the `to` of a rule: write the names here")
