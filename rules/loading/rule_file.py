"""A whole rule file: its head, what it includes, its settings, rules and tests, as typed values with their places."""

from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rules.addresses import BLOCKS, Opening, parse_network
from rules.loading.document import Listing, Mapping, Node, Scalar
from rules.loading.fields import Reader, day, duration, header_name, label, slug, slugged
from rules.loading.includes import Include, read_include
from rules.loading.keys import FILE_KEYS, SETTINGS_KEYS, TEST_KEYS
from rules.loading.settings import read_upstream_except
from rules.problems import Problem, quoted
from rules.settings import Settings, Upstream
from rules.verdicts import DnsMode, LayerKind, Mode, OnBlock, OnJournalFailure, TlsMode, Verdict

if TYPE_CHECKING:
    from enum import StrEnum

    from rules.loading.cases import Case, Question
    from rules.loading.sandbox_schema import BoxRead
    from rules.sandbox import Command
    from rules.secrets import Secret


_SMALLEST_POOL: Final = 24  # prefix length: a name that is asked for must not wait for the addresses of others


class RuleFile(NamedTuple):
    """One file, read but for its rules: those need to know the settings of the file that included this one."""

    name: str
    includes: tuple[Include, ...] = ()
    settings: Settings | None = None
    settings_node: Node | None = None
    rules: tuple[Node, ...] = ()
    tests: "tuple[Case, ...]" = ()
    layer: LayerKind | None = None
    settings_nodes: "dict[str, Node]" = {}  # noqa: RUF012 - nobody writes to it; what the settings say, by key
    secrets: "tuple[tuple[Secret, Node], ...]" = ()  # with where each stands
    sandbox: "BoxRead | None" = None
    sandbox_node: Node | None = None
    commands: "tuple[tuple[Command, Node], ...]" = ()  # with where each stands
    roots: bool = False  # a file of root's own, whatever else names it


class FileReader(Reader):
    """Reads a rule file."""

    def read(self, root: Node | None, stem: str) -> RuleFile | None:
        """Read the document; `stem` is the file's name, which it goes by if it has no other."""
        if root is None or (isinstance(root, Scalar) and not root.text):
            self.problems.append(Problem(self.file, 1, 1, "the file is empty: a rule file begins with `version: 1`"))
            return None
        fields = self.mapping(root, "a rule file", FILE_KEYS)
        if fields is None:
            return None
        if self.lacking(root, "a rule file", ("version",), FILE_KEYS):
            self.complain(root, "a rule file needs `version: 1`")
        if "version" in fields and self.text(fields["version"], "version") not in {"1", None}:
            self.complain(fields["version"], "this version of exeat reads `version: 1` and no other")
        name = self.parsed(fields["name"], "name", slug) if "name" in fields else None
        settings = fields.get("settings")
        return RuleFile(
            name or slugged(stem),
            tuple(self._includes(fields.get("include"))),
            None if settings is None else self._settings(settings),
            settings,
            tuple(self._entries(fields.get("rules"), "rules")),
            tuple(self._tests(fields["tests"])) if "tests" in fields else (),
            self.choice(fields["layer"], "layer", LayerKind) if "layer" in fields else None,
            _known(settings),
            tuple(self._secrets(fields.get("secrets"))),
            self._sandbox(fields["sandbox"], name or slugged(stem)) if "sandbox" in fields else None,
            fields.get("sandbox"),
            tuple(self._commands(fields.get("commands"), name or slugged(stem))),
        )

    def _entries(self, node: Node | None, of: str) -> list[Node]:
        if node is None:
            return []
        if not isinstance(node, Listing):
            self.complain(node, f"`{of}` must be a list, each entry after a `-`")
            return []
        return node.items

    def _secrets(self, node: Node | None) -> "Iterator[tuple[Secret, Node]]":
        entries = self._entries(node, "secrets")
        if not entries:
            return
        from rules.loading.secret_schema import read_secret  # few files have any

        for item in entries:
            secret = read_secret(self, item)
            if secret is not None:
                yield secret, item

    def _sandbox(self, node: Node, name: str) -> "BoxRead | None":
        from rules.loading.sandbox_schema import read_sandbox  # not every file has one

        return read_sandbox(self, node, name)

    def _commands(self, node: Node | None, name: str) -> "Iterator[tuple[Command, Node]]":
        entries = self._entries(node, "commands")
        if not entries:
            return
        from rules.loading.conditions import read_command  # few files have any

        for item in entries:
            command = read_command(self, item, name)
            if command is not None:
                yield command, item

    def _includes(self, node: Node | None) -> Iterator[Include]:
        for item in self._entries(node, "include"):
            include = read_include(self, item)
            if include is not None:
                yield include

    def _settings(self, node: Node) -> Settings | None:
        fields = self.mapping(node, "`settings`", SETTINGS_KEYS)
        if fields is None:
            return None
        found: dict[str, Any] = {}
        kinds: dict[str, type[StrEnum]] = {
            "mode": Mode, "tls": TlsMode, "dns": DnsMode, "on_block": OnBlock, "on_journal_failure": OnJournalFailure,
        }  # fmt: skip
        for key, value in fields.items():
            if key in kinds:
                found[key] = self.choice(value, key, kinds[key])
            elif key == "dns_pool":
                found[key] = self.parsed(value, key, _pool)
            elif key == "upstream":
                found[key] = self.parsed(value, key, Upstream.parse)
            elif key == "upstream_except":
                found[key] = read_upstream_except(self, value)
            elif key in {"upstream_ca", "upstream_auth"}:
                found[key] = self.parsed(value, key, _absolute)
            else:
                found[key] = self.parsed(value, key, duration)
        for key in ("upstream_auth", "upstream_except"):
            if key in fields and "upstream" not in fields:
                self.complain(fields[key], f"`{key}` is about a proxy: say which with `upstream`")
        return Settings(**{key: value for key, value in found.items() if value is not None})

    def _tests(self, node: Node) -> "Iterator[Case]":
        from rules.loading.cases import Case, parse_attempt  # few files have tests, and starting a task is to be quick

        for item in self._entries(node, "tests"):
            fields = self.mapping(item, "a test", TEST_KEYS)
            if fields is None:
                continue
            for key in self.lacking(item, "a test", ("attempt", "expect"), TEST_KEYS):
                self.complain(item, f"a test needs `{key}`")
            attempt = self.parsed(fields["attempt"], "attempt", parse_attempt) if "attempt" in fields else None
            expect = self.choice(fields["expect"], "expect", Verdict) if "expect" in fields else None
            rule = self.text(fields["rule"], "rule") if "rule" in fields else None
            if attempt is not None and expect is not None:
                attempt = self._circumstances(attempt, fields)
                yield Case(attempt, expect, rule, self.file, item.line, item.column)

    def _circumstances(self, asked: "Question", fields: dict[str, Node]) -> "Question":
        """Read who makes a test's attempt, when, and what the request carries."""
        if "task" in fields:
            asked = asked._replace(task=self.text(fields["task"], "task") or "")
        if "labels" in fields:
            asked = asked._replace(labels=dict(self._words(fields["labels"], "labels", label)))
        if "at" in fields:
            asked = asked._replace(at=self.parsed(fields["at"], "at", day))
        if "tainted" in fields:
            asked = asked._replace(tainted=bool(self.boolean(fields["tainted"], "tainted")))
        request = asked.request
        for key in ("headers", "body", "credential"):
            if key in fields and request is None:
                self.complain(fields[key], f"`{key}` belongs to a request, and this attempt is none")
        if request is not None and "headers" in fields:
            more = self._words(fields["headers"], "headers", header_name)
            request = request._replace(headers=(*request.headers, *more))
        if request is not None and "body" in fields:
            request = request._replace(body=bool(self.boolean(fields["body"], "body")))
        if request is not None and "credential" in fields:
            request = request._replace(credential=self.parsed(fields["credential"], "credential", slug))
        return asked._replace(request=request)

    def _words(self, node: Node, of: str, parse: Callable[[str], str]) -> tuple[tuple[str, str], ...]:
        if not isinstance(node, Mapping):
            self.complain(node, f"`{of}` is a mapping of names to values")
            return ()
        pairs = [(self.parsed(key, of, parse), self.text(value, key.text)) for key, value in node.pairs.values()]
        return tuple((name, value) for name, value in pairs if name is not None and value is not None)


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{quoted(text)} must be a whole path, as in `/etc/corp/ca.pem`")
    return text


def _known(settings: Node | None) -> dict[str, Node]:
    pairs = settings.pairs if isinstance(settings, Mapping) else {}
    return {key: value for key, (_, value) in pairs.items() if key in SETTINGS_KEYS}


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
