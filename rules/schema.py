"""A whole rule file: its head, what it includes, its settings, rules and tests, as typed values with their places."""

from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rules.addresses import Opening, parse_network
from rules.document import Listing, Mapping, Node, Scalar
from rules.fields import Reader, duration, slug, slugged
from rules.problems import Problem
from rules.settings import Settings
from rules.special import BLOCKS
from rules.verdicts import DnsMode, Mode, OnBlock, TlsMode, Verdict

FILE_KEYS: Final = ("version", "name", "include", "settings", "rules", "tests")
LATER_FILE_KEYS: Final = ("layer", "secrets", "sandbox", "commands")
INCLUDE_KEYS: Final = ("file",)
LATER_INCLUDE_KEYS: Final = ("preset", "only", "except")
SETTINGS_KEYS: Final = ("mode", "tls", "dns", "dns_pool", "on_block", "idle_timeout")
LATER_SETTINGS_KEYS: Final = ("upstream", "upstream_ca", "on_journal_failure")
TEST_KEYS: Final = ("attempt", "expect", "rule")
LATER_TEST_KEYS: Final = ("task", "labels", "at")

if TYPE_CHECKING:
    from enum import StrEnum

    from rules.cases import Case

_SMALLEST_POOL: Final = 24  # prefix length: a name that is asked for must not wait for the addresses of others


class Include(NamedTuple):
    """Another rule file, as written."""

    file: str
    node: Node


class RuleFile(NamedTuple):
    """One file, read but for its rules: those need to know the settings of the file that included this one."""

    name: str
    includes: tuple[Include, ...] = ()
    settings: Settings | None = None
    settings_node: Node | None = None
    rules: tuple[Node, ...] = ()
    tests: "tuple[Case, ...]" = ()


class FileReader(Reader):
    """Reads a rule file."""

    def read(self, root: Node | None, stem: str) -> RuleFile | None:
        """Read the document; `stem` is the file's name, which it goes by if it has no other."""
        if root is None or (isinstance(root, Scalar) and not root.text):
            self.problems.append(Problem(self.file, 1, 1, "the file is empty: a rule file begins with `version: 1`"))
            return None
        fields = self.mapping(root, "a rule file", FILE_KEYS, LATER_FILE_KEYS)
        if fields is None:
            return None
        if "version" not in fields:
            self.complain(root, "a rule file needs `version: 1`")
        elif self.text(fields["version"], "version") not in {"1", None}:
            self.complain(fields["version"], "this version of exeat reads `version: 1` and no other")
        name = self.parsed(fields["name"], "name", slug) if "name" in fields else None
        return RuleFile(
            name or slugged(stem),
            tuple(self._includes(fields.get("include"))),
            self._settings(fields["settings"]) if "settings" in fields else None,
            fields.get("settings"),
            tuple(self._entries(fields.get("rules"), "rules")),
            tuple(self._tests(fields["tests"])) if "tests" in fields else (),
        )

    def _entries(self, node: Node | None, of: str) -> list[Node]:
        if node is None:
            return []
        if not isinstance(node, Listing):
            self.complain(node, f"`{of}` must be a list, each entry after a `-`")
            return []
        return node.items

    def _includes(self, node: Node | None) -> Iterator[Include]:
        for item in self._entries(node, "include"):
            fields = self.mapping(item, "an `include`", INCLUDE_KEYS, LATER_INCLUDE_KEYS)
            file = self.text(fields["file"], "file") if fields and "file" in fields else None
            if file is not None:
                yield Include(file, item)
            elif isinstance(item, Mapping) and not item.pairs:
                self.complain(item, "an `include` needs `file`")

    def _settings(self, node: Node) -> Settings | None:
        fields = self.mapping(node, "`settings`", SETTINGS_KEYS, LATER_SETTINGS_KEYS)
        if fields is None:
            return None
        found: dict[str, Any] = {}
        kinds: dict[str, type[StrEnum]] = {"mode": Mode, "tls": TlsMode, "dns": DnsMode, "on_block": OnBlock}
        for key, value in fields.items():
            if key in kinds:
                found[key] = self.choice(value, key, kinds[key])
            elif key == "dns_pool":
                found[key] = self.parsed(value, key, _pool)
            else:
                found[key] = self.parsed(value, key, duration)
        return Settings(**{key: value for key, value in found.items() if value is not None})

    def _tests(self, node: Node) -> "Iterator[Case]":
        from rules.cases import Case, parse_attempt  # few files have tests, and starting a task is to be quick

        for item in self._entries(node, "tests"):
            fields = self.mapping(item, "a test", TEST_KEYS, LATER_TEST_KEYS)
            if fields is None:
                continue
            for key in ("attempt", "expect"):
                if key not in fields:
                    self.complain(item, f"a test needs `{key}`")
            attempt = self.parsed(fields["attempt"], "attempt", parse_attempt) if "attempt" in fields else None
            expect = self.choice(fields["expect"], "expect", Verdict) if "expect" in fields else None
            rule = self.text(fields["rule"], "rule") if "rule" in fields else None
            if attempt is not None and expect is not None:
                yield Case(attempt, expect, rule, self.file, item.line, item.column)


def _pool(text: str) -> IPv4Network:
    """Read where synthetic addresses come from: IPv4, big enough, and no address that the kernel treats specially."""
    network = parse_network(text)
    if not isinstance(network, IPv4Network) or network.prefixlen > _SMALLEST_POOL:
        raise ValueError(f"`{text}` must be an IPv4 network of at least a /{_SMALLEST_POOL}")
    for block in BLOCKS:
        special = block.opening is not Opening.WITHIN or block.name == "loopback"
        if special and network.version == block.network.version and network.overlaps(block.network):
            raise ValueError(
                f"`{text}` overlaps `{block.network}` ({block.name}), where no name can be given an address"
            )
    return network
