"""Readers of a rule file's values and sections: each gives the value, or records the problem and gives None.

All problems of a file are reported at once, so `Reader` never raises; a caller that gets None goes on with the next
key. The parsers of scalars raise ValueError. A section is a mapping in a file, described by a table of keys: what each
is for, how its value is read, and its JSON schema. Reading a file, `exeat schema` and hints all use these tables.
"""

import binascii
import re
from collections.abc import Callable, Iterable
from datetime import date
from enum import StrEnum
from typing import Any, Final, NamedTuple

from rules.loading.document import Listing, Mapping, Node, Scalar, parse
from rules.problems import Problem, RuleFileError, did_you_mean, quote
from rules.values.patterns import Pattern

_SIZES: Final = {"B": 1} | {
    unit + ending: 1 << 10 * power for power, unit in enumerate("KMGT", 1) for ending in ("", "B", "iB")
}
_MOST: Final = 10**9
_LABEL: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./")
_LONGEST_WORD: Final = 253
_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
_END: Final = b"-----END CERTIFICATE-----"
_SEQUENCE: Final = b"\x30"  # what every certificate is (RFC 5280 section 4.1), in DER
_LARGEST_CA: Final = 1 << 20  # bytes
_HEADER_TOKEN: Final = frozenset(
    "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
)  # RFC 9110 section 5.6.2, lower case
# Headers that say where a request goes and how it is framed; the gate reads and writes them itself.
_FRAMING: Final = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "keep-alive"}
)
RECORD_TYPES: Final = (
    "TXT", "MX", "SRV", "NS", "SOA", "PTR", "CNAME", "CAA", "NAPTR", "TLSA", "SSHFP", "DS", "DNSKEY", "LOC", "URI",
)  # fmt: skip
_NEVER_LISTED: Final = {
    "A": "addresses are answered wherever a rule allows the name",
    "AAAA": "addresses are answered wherever a rule allows the name",
    "HTTPS": "it is never answered: it would hide which name a client wants",
    "SVCB": "it is never answered: it would hide which name a client wants",
    "ANY": "it is never answered: list the types",
    "AXFR": "it is never answered",
    "NULL": "it is never answered",
}


def parser_of_shape(shape: str, otherwise: str) -> "Callable[[str], str]":
    """Return a parser for text that matches a regular expression; other text raises ValueError with `otherwise`."""
    whole = re.compile(shape)

    def parse(text: str) -> str:
        if not whole.fullmatch(text):
            raise ValueError(f"{quote(text)} {otherwise}")
        return text

    return parse


parse_variable_name: Final = parser_of_shape(r"[A-Za-z_][A-Za-z0-9_]{0,127}", "is not the name of a variable")


def parse_size(text: str) -> int:
    """Read `500B`, `2KB`, `10MB`, `2GB` (or `2G`, `2GiB`) into bytes; 1 KB is 1024 of them."""
    unit = text.lstrip("0123456789")
    number = text.removesuffix(unit)
    if unit not in _SIZES or not (number.isascii() and number.isdigit()) or len(number) > 9 or not int(number):
        raise ValueError(f"{quote(text)} is not a size; write a number and a unit: `500B`, `2KB`, `10MB`, `2GB`")
    return int(number) * _SIZES[unit]


def parse_count(text: str) -> int:
    """Read a number of things, at least one."""
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(_MOST)) or not 0 < int(text) <= _MOST:
        raise ValueError(f"{quote(text)} is not a number between 1 and {_MOST}")
    if text != str(int(text)):
        raise ValueError(f"{quote(text)}: write `{int(text)}`")
    return int(text)


def parse_day(text: str) -> date:
    """Read `2027-01-31`."""
    parts = text.split("-")
    if [len(part) for part in parts] == [4, 2, 2] and all(part.isascii() and part.isdigit() for part in parts):
        try:
            return date(*map(int, parts))
        except ValueError:
            raise ValueError(f"{quote(text)} is not a day of the calendar") from None
    raise ValueError(f"{quote(text)} is not a day; write it like `2027-01-31` (UTC)")


def parse_pattern(text: str) -> Pattern:
    """Read a task's name, or a value, with `*` for any characters."""
    if len(text) > _LONGEST_WORD or not text.isprintable():
        raise ValueError(f"{quote(text)} is longer than {_LONGEST_WORD} characters, or has some that don't show")
    return Pattern.parse(text)


def parse_label(text: str) -> str:
    """Read the name of a label."""
    if not _LABEL.issuperset(text) or len(text) > _LONGEST_WORD:
        raise ValueError(f"{quote(text)} is not the name of a label: use letters, digits, `-`, `_`, `.` and `/`")
    return text


def parse_header_name(text: str) -> str:
    """Read the name of a header field, in any case."""
    name = text.lower()
    if not _HEADER_TOKEN.issuperset(name) or len(name) > _LONGEST_WORD:
        raise ValueError(f"{quote(text)} is not the name of a header")
    if name in _FRAMING:
        raise ValueError(
            f"{quote(text)} is set by the gate: use `to` for the host, `body` and `websocket` for the rest"
        )
    return name


def parse_record_type(text: str) -> str:
    """Read a type of DNS records."""
    if text in _NEVER_LISTED:
        raise ValueError(f"{quote(text)} can't be listed: {_NEVER_LISTED[text]}")
    if text not in RECORD_TYPES:
        raise ValueError(f"{quote(text)} is not a record type that can be listed{did_you_mean(text, RECORD_TYPES)}")
    return text


def parse_certificates(data: bytes) -> bytes:
    """Check the size and form of a certificate file (RFC 7468); the TLS library parses it later."""
    found = data.split(_BEGIN)[1:]
    if not found or len(data) > _LARGEST_CA:
        raise ValueError("it has no certificates in PEM form")
    if b"PRIVATE KEY-----" in data:
        raise ValueError("it contains a private key: remove the key from the file")
    for number, text in enumerate(found, 1):
        inside, end, _ = text.partition(_END)
        try:
            value = binascii.a2b_base64(b"".join(inside.split()), strict_mode=True) if end else b""
        except binascii.Error:
            value = b""
        if not value.startswith(_SEQUENCE):
            raise ValueError(f"certificate {number} in it is broken")
    return data


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_DURATION = 7 * 86400  # seconds
_LONGEST_TEXT = 4096
_SLUG = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_LONGEST_SLUG = 63


class Reader:
    """Reads the nodes of a file and collects problems."""

    __slots__ = ("file", "problems", "warnings")

    def __init__(self, file: str, problems: list[Problem], warnings: list[Problem] | None = None) -> None:
        self.file = file
        self.problems = problems
        self.warnings = [] if warnings is None else warnings

    def complain(self, node: Node, message: str) -> None:
        """Record a problem with its place."""
        self.problems.append(Problem(self.file, node.line, node.column, message))

    def warn(self, node: Node, message: str, code: str = "") -> None:
        """Record a warning: the file is valid, but may mean something else. `code` is a finding of `rules.lint`."""
        self.warnings.append(Problem(self.file, node.line, node.column, message, code))

    def mapping(
        self, node: Node, of: str, known: Iterable[str], inside: Callable[[], dict[str, str]] = dict
    ) -> dict[str, Node] | None:
        """Read a mapping of known keys; `of` names the section, `inside` gives other sections' keys for hints."""
        if not isinstance(node, Mapping):
            self.complain(node, f"{of} must be a mapping of {', '.join(f'`{key}`' for key in known)}")
            return None
        found: dict[str, Node] = {}
        for word, (key, value) in node.pairs.items():
            if word in known:
                found[word] = value
            else:
                self.complain(key, f"{quote(word)} is not a key of {of}{_hint(of, word, known, inside)}")
        return found

    def versioned(self, root: Node, of: str, known: Iterable[str]) -> dict[str, Node] | None:
        """Read the top mapping of a file, which has `version`."""
        fields = self.mapping(root, of, known)
        if fields is not None and ("version" not in fields or self.text(fields["version"], "version") != "1"):
            self.complain(fields.get("version", root), "this version of exeat reads `version: 1` and no other")
        return fields

    def lacking(
        self,
        node: Node,
        of: str,
        needed: Iterable[str],
        known: Iterable[str],
        inside: Callable[[], dict[str, str]] = dict,
    ) -> list[str]:
        """List required keys that are missing, except mistyped ones."""
        pairs = node.pairs if isinstance(node, Mapping) else {}
        missing = [key for key in needed if key not in pairs]
        if not missing:
            return []
        hints = [_hint(of, word, known, inside) for word in pairs if word not in known]
        return [key for key in missing if not any(f"did you mean `{key}`" in hint for hint in hints)]

    def items(self, node: Node, of: str) -> list[Node]:
        """Read a list, or one value as a list of one. An empty list is a problem: it never means everything."""
        if not isinstance(node, Listing):
            return [node]
        if not node.items:
            self.complain(node, f"`{of}` is empty: leave it out, or list what it covers")
        return node.items

    def text(self, node: Node, of: str) -> str | None:
        """Read text that is not empty."""
        if not isinstance(node, Scalar):
            self.complain(
                node, f"`{of}` must be one word or text, not a {'list' if isinstance(node, Listing) else 'mapping'}"
            )
        elif not node.text or (node.plain and node.text.lower() in {"~", "null"}):
            self.complain(
                node, f"`{of}` has no value" + (f"; put {node.text} in quotes if it is one" if node.text else "")
            )
        elif len(node.text) > _LONGEST_TEXT:
            self.complain(node, f"`{of}` is longer than {_LONGEST_TEXT} characters")
        else:
            return node.text
        return None

    def parse[T](self, node: Node, of: str, parse: Callable[[str], T]) -> T | None:
        """Parse a text; a ValueError of the parser becomes a problem."""
        text = self.text(node, of)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            self.complain(node, f"{error}" if "`" in str(error) else f"{quote(text)}: {error}")
            return None

    def each[T](self, node: Node, of: str, parse: Callable[[str], T]) -> list[T]:
        """Parse a list of texts; entries with problems are recorded and left out."""
        values = [self.parse(item, of, parse) for item in self.items(node, of)]
        return [value for value in values if value is not None]

    def choice[E: StrEnum](self, node: Node, of: str, kind: type[E]) -> E | None:
        """Read one value of a closed list."""
        text = self.text(node, of)
        if text is None:
            return None
        try:
            return kind(text)
        except ValueError:
            words = [member.value for member in kind]
            known = f"which is one of {', '.join(words)}{did_you_mean(text, words)}"
            self.complain(node, f"{quote(text)} is not a value of `{of}`, {known}")
            return None

    def boolean(self, node: Node, of: str) -> bool | None:
        """Read `true` or `false`; what YAML 1.1 takes for them besides (`yes`, `off`) is a problem."""
        text = self.text(node, of)
        if text in {"true", "false"}:
            return text == "true"
        if text is not None:
            self.complain(node, f"{quote(text)} is not a value of `{of}`: write `true` or `false`")
        return None


def read_whole[T](data: bytes, file: str, read: Callable[[Node, list[Problem]], T | None]) -> T:
    """Read the text of a whole file, of which `read` takes the top. Raises RuleFileError with every problem."""
    problems: list[Problem] = []
    root = parse(data, file, problems)
    found = None if root is None else read(root, problems)
    if problems or found is None:
        raise RuleFileError(problems or [Problem(file, 1, 1, "the file is empty: it begins with `version: 1`")])
    return found


def _hint(of: str, word: str, known: Iterable[str], inside: Callable[[], dict[str, str]]) -> str:
    from rules.loading.key_hints import misplaced_key, similar_key  # only when something is wrong anyway

    return misplaced_key(of, word, inside()) or did_you_mean(word, known) or similar_key(of, word, inside())


def parse_duration(text: str) -> float:
    """Read `90s`, `10m`, `2h`, `1d` into seconds."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not (number.isascii() and number.isdigit()) or len(number) > 6:
        raise ValueError(f"{quote(text)}: a duration is a number and a unit: `90s`, `10m`, `2h`, `1d`")
    seconds = int(number) * _UNITS[unit]
    if not 0 < seconds <= _LONGEST_DURATION:
        raise ValueError(f"`{text}` is not between 1s and 7d")
    return float(seconds)


def parse_slug(text: str) -> str:
    """Read a name that rules and files are cited by."""
    if not _SLUG.issuperset(text) or text[0] == "-" or len(text) > _LONGEST_SLUG:
        raise ValueError(
            f"{quote(text)} must be at most {_LONGEST_SLUG} lower-case letters, digits and hyphens: `{make_slug(text)}`"
        )
    return text


def make_slug(text: str) -> str:
    """Convert any text to a slug."""
    mapped = "".join(character if character in _SLUG else "-" for character in text.lower()[:_LONGEST_SLUG])
    return mapped.strip("-") or "rules"


type Schema = dict[str, Any]  # JSON Schema, draft-07
type Read = Callable[[Any, Node, str], Any]  # of a reader, the value's node and the key: the value, or None


class Key(NamedTuple):
    """A key. `field`: the attribute that takes its value; empty: named as the key. `part`: section of its mapping."""

    says: str
    read: Read
    schema: Schema
    field: str = ""
    part: "Section | None" = None


class Section(NamedTuple):
    """A mapping. `name`: in the schema; `of`: in messages. `empty` and `single` say what is wrong with too few keys.

    `empty`: without any; `single`: with any number but one.
    """

    name: str
    of: str
    keys: dict[str, Key]
    needed: tuple[str, ...] = ()
    empty: str = ""
    single: str = ""

    def fields(self, reader: Reader, node: Node) -> dict[str, Node] | None:
        """Read the keys of a mapping; None if it is not one. Problems are recorded."""
        found = reader.mapping(node, self.of, self.keys, self._inside)
        if found is None:
            return None
        for key in reader.lacking(node, self.of, self.needed, self.keys, self._inside):
            reader.complain(node, f"{self.of} needs `{key}`")
        if self.empty and isinstance(node, Mapping) and not node.pairs:
            reader.complain(node, self.empty)
        if self.single and isinstance(node, Mapping) and len(node.pairs) != 1:
            reader.complain(node, self.single)
        return found

    def values(self, reader: Reader, fields: dict[str, Node]) -> dict[str, Any]:
        """Read the values of keys, by field name. Values with problems are recorded and left out."""
        found: dict[str, Any] = {}
        for word, node in fields.items():
            key = self.keys[word]
            value = key.read(reader, node, word)
            if value is not None:
                found[key.field or word] = value
        return found

    def read(self, reader: Reader, node: Node) -> dict[str, Any] | None:
        """Read all of a mapping; None if it is none."""
        fields = self.fields(reader, node)
        return None if fields is None else self.values(reader, fields)

    def _inside(self) -> dict[str, str]:
        """Map the keys of this section's parts to their places, for hints."""
        return {
            word: f"`{word}` under `{name}`" for name, key in self.keys.items() if key.part for word in key.part.keys
        }


SLUG: Final[Schema] = {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"}
TEXT: Final[Schema] = {"type": "string", "minLength": 1}
WORD: Final[Schema] = {"type": ["string", "number", "boolean"]}  # a reader of YAML may take text for another type
PATH: Final[Schema] = {"type": "string", "pattern": "^/"}
DURATION: Final[Schema] = {"type": "string", "pattern": "^[0-9]{1,6}[smhd]$"}
SIZE: Final[Schema] = {"type": "string", "pattern": "^[0-9]{1,9}(B|[KMGT](i?B)?)$"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 1}
_OF_WORDS: Final[dict[Callable[[str], Any], Schema]] = {
    parse_slug: SLUG,
    parse_duration: DURATION,
    parse_size: SIZE,
    parse_count: COUNT,
    parse_day: {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
}


def one(says: str, parse: Callable[[str], Any], schema: Schema | None = None, field: str = "") -> Key:
    """Make a key of one scalar, which `parse` reads."""
    return Key(says, lambda reader, node, key: reader.parse(node, key, parse), schema or _OF_WORDS[parse], field)


def text(says: str, schema: Schema = TEXT) -> Key:
    """Make a key of unparsed text."""
    return Key(says, lambda reader, node, key: reader.text(node, key), schema)


def many(says: str, parse: Callable[[str], Any], schema: Schema, into: Callable[[list[Any]], Any] = tuple) -> Key:
    """Make a key of one or more scalars, of which `into` makes the value."""
    return Key(says, lambda reader, node, key: into(reader.each(node, key, parse)), one_or_more(schema))


def choice(says: str, kind: type[StrEnum]) -> Key:
    """Make a key of one value of a closed list."""
    return Key(says, lambda reader, node, key: reader.choice(node, key, kind), one_of(kind))


def flag(says: str, field: str = "") -> Key:
    """Make a key of `true` or `false`."""
    return Key(says, lambda reader, node, key: reader.boolean(node, key), {"type": "boolean"}, field)


def unread(_reader: Any, _node: Node, _key: str) -> None:
    """Read nothing: the owner of the section reads the value later."""


def part(says: str, section: Section, read: Read, field: str = "") -> Key:
    """Make a key of a section."""
    return Key(says, read, ref(section.name), field, section)


def one_or_more(schema: Schema) -> Schema:
    """Allow one value where a list is meant."""
    return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}


def one_of(kind: type[StrEnum]) -> Schema:
    """Return the JSON schema of a closed list."""
    return {"enum": [member.value for member in kind]}


def ref(name: str) -> Schema:
    """Return a reference to a section of the schema."""
    return {"$ref": f"#/definitions/{name}"}


def mapping_of(values: Schema, *, least: int = 0) -> Schema:
    """Return the schema of a mapping of any keys to values of one kind."""
    return {"type": "object", **({"minProperties": least} if least else {}), "additionalProperties": values}
