"""Reads one rule file: head, includes, settings, rules and tests, as typed values with their places.

In an `include`, `only` and an id in `except` select rules. A name in `except` is excluded from every selected rule.
`credential` is added to every selected rule that is not a deny. An entry that matches nothing is an error: a mistyped
`except` must not allow what it should block.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.attempt import INSPECTABLE
from rules.loading.document import Listing, Mapping, Node, Scalar
from rules.loading.fields import (
    PATH,
    SLUG,
    TEXT,
    Key,
    Read,
    Reader,
    Schema,
    Section,
    choice,
    make_slug,
    one,
    one_or_more,
    parse_duration,
    parse_slug,
    part,
    ref,
    text,
)
from rules.problems import Problem, did_you_mean, quote
from rules.rule import Exemption, Rule
from rules.settings import Settings, Upstream, UpstreamExceptions
from rules.values.addresses import BLOCKS, Network, Opening, parse_address, parse_network
from rules.values.globs import may_overlap
from rules.values.names import HostName, InvalidNameError
from rules.values.patterns import NamePattern
from rules.verdicts import DnsMode, LayerKind, Mode, OnBlock, OnJournalFailure, TlsMode, Verdict

if TYPE_CHECKING:
    from rules.loading.cases import RuleTest
    from rules.loading.sandbox_schema import ParsedSandbox
    from rules.sandbox import Command
    from rules.secrets import Secret


_SUFFIXES: Final = (".yaml", ".yml")


class Word(NamedTuple):
    """An id or a name of `only` or `except`, and where it stands."""

    text: str
    line: int
    column: int


@dataclass(slots=True, eq=False)
class Selection:
    """Selection of one include. It records which of its entries matched something."""

    file: str  # that has the include
    only: tuple[Word, ...] = ()
    without: tuple[Word, ...] = ()
    names: tuple[tuple[NamePattern, Word], ...] = ()
    credential: Word | None = None  # the id of a secret
    _met: set[str] = field(default_factory=set)
    _problems: list[str] = field(default_factory=list)  # about `credential`

    @property
    def same(self) -> tuple[frozenset[str], ...]:
        """Return its contents, in any order."""
        matched = (self.only, self.without, (self.credential,) if self.credential else ())
        return (
            *(frozenset(word.text for word in words) for words in matched),
            frozenset(p.text for p, _ in self.names),
        )

    def keep(self, rule: Rule, ident: str) -> Rule | None:
        """Return the selected part of a rule with the id `ident`, or None."""
        self._met.add(ident)
        if (self.only and ident not in _texts(self.only)) or ident in _texts(self.without):
            return None
        touched = tuple(
            pattern for pattern, _ in self.names if any(may_overlap(pattern.parts, name.parts) for name in rule.names)
        )
        self._met.update(pattern.text for pattern in touched)
        if touched:
            rule = rule._replace(excepts=(*rule.excepts, Exemption(touched)))
        return self._with_credential(rule)

    def _with_credential(self, rule: Rule) -> Rule:
        """Add `credential` to a rule that is not a deny. A deny with it would block less."""
        if self.credential is None or rule.action is Verdict.DENY:
            return rule
        unread = any(entry.protocol not in INSPECTABLE for entry in rule.ports or ())
        if rule.tls is TlsMode.SPLICE or unread:
            self._problems.append(
                f"`{rule.id}` allows traffic that the gate does not read, so no `credential` can be required there: "
                "leave the rule out with `except`"
            )
        elif rule.credential not in {None, self.credential.text}:
            self._problems.append(
                f"`{rule.id}` has the `credential` `{rule.credential}` already: leave the rule out with `except`"
            )
        return rule._replace(credential=self.credential.text)

    def keeps(self, case: "RuleTest") -> bool:
        """Whether a test of the included file still applies: its rule is unchanged."""
        if case.rule is None or self.credential is not None:
            return False
        ident = case.rule.rpartition(":")[2]
        if (self.only and ident not in _texts(self.only)) or ident in _texts(self.without):
            return False
        try:
            host = HostName.parse(case.question.host)
        except InvalidNameError:
            return True
        return not any(pattern.matches(host) for pattern, _ in self.names)

    def unused(self) -> list[Problem]:
        """List what is wrong with this include; call it after all rules went through `keep`."""
        matched: list[tuple[Word, str]] = []
        for word in (*self.only, *self.without):
            if word.text not in self._met:
                hint = did_you_mean(word.text, self._met)
                matched.append((word, f"no rule of this include has the id {quote(word.text)}{hint}"))
        for pattern, word in self.names:
            if pattern.text not in self._met:
                matched.append((word, f"no rule that this include keeps covers {quote(word.text)}"))
        if self.credential is not None:
            matched += [(self.credential, message) for message in self._problems]
        return [Problem(self.file, word.line, word.column, message) for word, message in matched]


class Include(NamedTuple):
    """Another rule file or a preset, as written: one of `file` and `preset` is empty."""

    file: str
    preset: str
    node: Node
    selection: Selection | None = None


def apply_selections(rule: Rule, ident: str, selections: "Iterable[Selection]") -> Rule | None:
    """Apply the selections of all includes around a rule; each records its matches. None: not selected."""
    selected: Rule | None = rule
    for selection in selections:
        selected_by = selection.keep(selected or rule, ident)
        selected = selected_by if selected is not None else None
    return selected


def _words_key(says: str, what: str, schema: Schema) -> Key:
    """Make a key of ids or names with their places."""

    def read(reader: Reader, node: Node, of: str) -> tuple[Word, ...]:
        found: list[Word] = []
        for item in reader.items(node, of):
            if isinstance(item, Mapping):
                reader.complain(item, f"`{of}` of an `include` is a list of {what}")
            elif (text := reader.text(item, of)) is not None:
                found.append(Word(text, item.line, item.column))
        return tuple(found)

    return Key(says, read, one_or_more(schema))


def _read_credential(reader: Reader, node: Node, key: str) -> Word | None:
    ident = reader.parse(node, key, parse_slug)
    return None if ident is None else Word(ident, node.line, node.column)


INCLUDE: Final = Section("include", "an `include`", {
    "file": text("A rule file, relative to this one."),
    "preset": one("The name of a preset: see `exeat presets list`.", parse_slug),
    "only": _words_key("The ids of the rules that are kept.", "ids", SLUG),
    "except": _words_key("Ids of rules that are left out, or names that no rule of it covers.", "ids and names", TEXT),
    "credential": Key("The secret that every rule of the include requires, except its denies.", _read_credential, SLUG),
})  # fmt: skip


def read_include(reader: Reader, item: Node) -> Include | None:
    """Read one entry of `include`; None if it is wrong (the problem has been reported)."""
    before = len(reader.problems)
    if isinstance(item, Scalar):
        key = "file" if item.text.endswith(_SUFFIXES) else "preset"
        reader.complain(item, f"an `include` names the kind: write {quote(f'{{{key}: {item.text}}}')}")
        return None
    fields = INCLUDE.fields(reader, item)
    if fields is None:
        return None
    if ("file" in fields) is ("preset" in fields):
        if len(reader.problems) == before:
            both = "file" in fields
            what = "has both `file` and `preset`: write two entries" if both else "needs `file` or `preset`"
            reader.complain(item, f"an `include` {what}")
        return None
    values = INCLUDE.values(reader, fields)
    selection = None
    if not fields.keys().isdisjoint(("only", "except", "credential")):
        selection = _selection(reader, values.get("only", ()), values.get("except", ()), values.get("credential"))
    if len(reader.problems) > before:
        return None
    return Include(values.get("file", ""), values.get("preset", ""), item, selection)


def _selection(
    reader: Reader, only: tuple[Word, ...], excepted: tuple[Word, ...], credential: Word | None
) -> Selection:
    without: list[Word] = []
    names: list[tuple[NamePattern, Word]] = []
    for word in excepted:
        if "." not in word.text and "*" not in word.text:
            without.append(word)  # no id has a dot, and no public name is without
            continue
        try:
            names.append((NamePattern.parse(word.text), word))
        except InvalidNameError as error:
            reader.problems.append(Problem(reader.file, word.line, word.column, str(error)))
    for word in without:
        if word.text in _texts(only):
            message = f"{quote(word.text)} is in `only` and in `except`"
            reader.problems.append(Problem(reader.file, word.line, word.column, message))
    return Selection(reader.file, only, tuple(without), tuple(names), credential)


def _texts(words: Iterable[Word]) -> set[str]:
    return {word.text for word in words}


_SMALLEST_POOL: Final = 24  # prefix length: a lookup must not wait until addresses of other names are free


class RuleFile(NamedTuple):
    """A rule file without its rules: reading those needs the settings of the including file."""

    name: str
    includes: tuple[Include, ...] = ()
    settings: Settings | None = None
    settings_node: Node | None = None
    rules: tuple[Node, ...] = ()
    tests: "tuple[RuleTest, ...]" = ()
    layer: LayerKind | None = None
    settings_nodes: "dict[str, Node]" = {}  # noqa: RUF012 - never written to; nodes of the settings by key
    secrets: "tuple[tuple[Secret, Node], ...]" = ()  # with where each stands
    sandbox: "ParsedSandbox | None" = None
    sandbox_node: Node | None = None
    commands: "tuple[tuple[Command, Node], ...]" = ()  # with where each stands
    roots: bool = False  # a file of root's, even if other files include it


class FileReader(Reader):
    """Reads a rule file. `name`: what the file goes by."""

    __slots__ = ("name",)

    def read(self, root: Node | None, stem: str) -> RuleFile | None:
        """Read the document; `stem` is the file's name, which it goes by if it has no other."""
        if root is None or (isinstance(root, Scalar) and not root.text):
            self.problems.append(Problem(self.file, 1, 1, "the file is empty: a rule file begins with `version: 1`"))
            return None
        fields = FILE.fields(self, root)
        if fields is None:
            return None
        if self.lacking(root, FILE.of, ("version",), FILE.keys):
            self.complain(root, "a rule file needs `version: 1`")
        name = self.parse(fields["name"], "name", parse_slug) if "name" in fields else None
        self.name = name or make_slug(stem)
        values = FILE.values(self, {key: value for key, value in fields.items() if key not in {"version", "name"}})
        if "version" in fields and self.text(fields["version"], "version") not in {"1", None}:
            self.complain(fields["version"], "this version of exeat reads `version: 1` and no other")
        return RuleFile(
            self.name,
            settings_node=fields.get("settings"),
            settings_nodes=_known(fields.get("settings")),
            sandbox_node=fields.get("sandbox"),
            **values,
        )


def _entries(reader: Reader, node: Node, of: str) -> tuple[Node, ...]:
    if not isinstance(node, Listing):
        reader.complain(node, f"`{of}` must be a list, each entry after a `-`")
        return ()
    return tuple(node.items)


def _each[T](read: Callable[[FileReader, Node], T | None]) -> Read:
    """Return a reader for a list of entries with their places; wrong entries are left out."""

    def entries(reader: FileReader, node: Node, of: str) -> tuple[tuple[T, Node], ...]:
        found = [(read(reader, item), item) for item in _entries(reader, node, of)]
        return tuple((each, item) for each, item in found if each is not None)

    return entries


def _secret(reader: FileReader, node: Node) -> "Secret | None":
    from rules.loading.secret_schema import read_secret  # few files have any

    return read_secret(reader, node)


def _command(reader: FileReader, node: Node) -> "Command | None":
    from rules.loading.sandbox_schema import read_command  # few files have any

    return read_command(reader, node)


def _sandbox(reader: FileReader, node: Node, _: str) -> "ParsedSandbox | None":
    from rules.loading.sandbox_schema import read_sandbox  # not every file has one

    return read_sandbox(reader, node)


def _includes(reader: FileReader, node: Node, of: str) -> tuple[Include, ...]:
    found = [read_include(reader, item) for item in _entries(reader, node, of)]
    return tuple(include for include in found if include is not None)


def _tests(reader: FileReader, node: Node, of: str) -> "tuple[RuleTest, ...]":
    entries = _entries(reader, node, of)
    if not entries:
        return ()
    from rules.loading.cases import read_case  # few files have tests, and starting a task is to be quick

    return tuple(case for item in entries if (case := read_case(reader, item)) is not None)


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{quote(text)} must be a whole path, as in `/etc/corp/ca.pem`")
    return text


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


def _read_exceptions(reader: Reader, node: Node, key: str) -> UpstreamExceptions:
    """Read `upstream_except`; `reader` collects what is wrong."""
    found = reader.each(node, key, _target)
    names = {target.text: target for target in found if isinstance(target, NamePattern)}
    networks = {str(target): target for target in found if not isinstance(target, NamePattern)}
    return UpstreamExceptions(
        tuple(names[text] for text in sorted(names)), tuple(networks[text] for text in sorted(networks))
    )


def _target(text: str) -> NamePattern | Network:
    if "/" in text or ":" in text or parse_address(text) is not None:
        return parse_network(text)
    if text in {"*", "**"}:
        raise ValueError(f"`{text}` would send nothing through the proxy: remove `upstream` instead")
    return NamePattern.parse(text)


_TARGETS: Final = one_or_more(TEXT)
_UPSTREAM: Final = {"type": "string", "pattern": "^(http|socks5h?)://[^/@]+:[0-9]+/?$"}
SETTINGS: Final = Section("settings", "`settings`", {
    "mode": choice("`audit` allows what no rule decides, and records it.", Mode),
    "tls": choice("The `tls` of rules that allow or flag and have none.", TlsMode),
    "dns": choice("The answers to lookups: synthetic addresses that stand for names, or the real ones.", DnsMode),
    "dns_pool": one("Where synthetic addresses come from: an IPv4 network, at least a /24.", _pool, TEXT),
    "on_block": choice("How the gate tells the task about a block.", OnBlock),
    "on_journal_failure": choice("What to do when the journal can't be written, as on a full disk.", OnJournalFailure),
    "idle_timeout": one("How long a connection may be silent, up to 7d.", parse_duration),
    "upstream": one("The company's proxy.", Upstream.parse, _UPSTREAM),
    "upstream_auth": one("A file with the credentials for the proxy: `user:password`.", _absolute, PATH),
    "upstream_except": Key("Names and networks to connect to directly, without the proxy.", _read_exceptions, _TARGETS),
    "upstream_ca": one("A file of certificates that are trusted beside the host's own store.", _absolute, PATH),
})  # fmt: skip


def _settings(reader: FileReader, node: Node, _: str) -> Settings | None:
    fields = SETTINGS.fields(reader, node)
    if fields is None:
        return None
    for key in ("upstream_auth", "upstream_except"):
        if key in fields and "upstream" not in fields:
            reader.complain(fields[key], f"`{key}` needs `upstream`, the proxy that it is for")
    return Settings(**SETTINGS.values(reader, fields))


def _known(settings: Node | None) -> dict[str, Node]:
    pairs = settings.pairs if isinstance(settings, Mapping) else {}
    return {key: value for key, (_, value) in pairs.items() if key in SETTINGS.keys}


def _list_of(name: str) -> Schema:
    return {"type": "array", "items": ref(name)}


FILE: Final = Section("", "a rule file", {
    "version": text("The version of the language.", {"enum": [1, "1"]}),
    "name": one("The name in rule ids (`name:id`). By default the name of the file.", parse_slug),
    "layer": choice(
        "Makes the file a layer. Where it has no rule, a `ceiling` layer denies and a `mandatory` layer abstains.",
        LayerKind),
    "include": Key("Other rule files, and presets.", _includes, _list_of("include"), "includes"),
    "settings": part("Settings for all rules.", SETTINGS, _settings),
    "secrets": Key("Secrets that the gate inserts, and the task never sees.", _each(_secret), _list_of("secret")),
    "sandbox": Key("The sandbox of the task.", _sandbox, ref("sandbox")),
    "commands": Key("Programs to deny, flag, or hold for approval.", _each(_command), _list_of("command")),
    "rules": Key("What may leave. Of the matching rules the strictest wins.", _entries, _list_of("rule")),
    "tests": Key("Attempts with the expected verdict, checked at every load.", _tests, _list_of("test")),
})  # fmt: skip
