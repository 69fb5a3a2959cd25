"""Sections of the rule language as tables of keys. Reading a file, `exeat schema` and hints all go by these tables.

A section is a mapping of a file. A key says what it is for, how its value is read, and what editors take for a value.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, NamedTuple

from rules.loading.document import Mapping, Node
from rules.loading.fields import Reader, count, day, duration, size, slug

type Schema = dict[str, Any]  # JSON Schema, draft-07
type Read = Callable[[Any, Node, str], Any]  # of a reader, the value's node and the key: the value, or None


class Key(NamedTuple):
    """A key. `field`: what its value is called where it is kept; empty: as the key. `part`: what its mapping is."""

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
        """Read which keys there are; None if it is no mapping. What is wrong with them has been told then."""
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
        """Read the values of keys, by their fields; without those that are wrong, which has been told then."""
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
        """Say of the keys of this section's own parts where they belong, for hints."""
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
    slug: SLUG,
    duration: DURATION,
    size: SIZE,
    count: COUNT,
    day: {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
}


def one(says: str, parse: Callable[[str], Any], schema: Schema | None = None, field: str = "") -> Key:
    """Make a key of one word, which `parse` reads."""
    return Key(says, lambda reader, node, key: reader.parsed(node, key, parse), schema or _OF_WORDS[parse], field)


def text(says: str, schema: Schema = TEXT) -> Key:
    """Make a key of text that is taken as it is."""
    return Key(says, lambda reader, node, key: reader.text(node, key), schema)


def many(says: str, parse: Callable[[str], Any], schema: Schema, into: Callable[[list[Any]], Any] = tuple) -> Key:
    """Make a key of words, one or more of them, of which `into` makes the value."""
    return Key(says, lambda reader, node, key: into(reader.each(node, key, parse)), one_or_more(schema))


def choice(says: str, kind: type[StrEnum]) -> Key:
    """Make a key of one word of a closed list."""
    return Key(says, lambda reader, node, key: reader.choice(node, key, kind), one_of(kind))


def flag(says: str, field: str = "") -> Key:
    """Make a key of `true` or `false`."""
    return Key(says, lambda reader, node, key: reader.boolean(node, key), {"type": "boolean"}, field)


def unread(_reader: Any, _node: Node, _key: str) -> None:
    """Read nothing yet: what has the section reads it, once it knows the rest."""


def part(says: str, section: Section, read: Read, field: str = "") -> Key:
    """Make a key of a section."""
    return Key(says, read, ref(section.name), field, section)


def one_or_more(schema: Schema) -> Schema:
    """Allow one value where a list is meant."""
    return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}


def one_of(kind: type[StrEnum]) -> Schema:
    """Allow the words of a closed list."""
    return {"enum": [member.value for member in kind]}


def ref(name: str) -> Schema:
    """Name a section of the schema."""
    return {"$ref": f"#/definitions/{name}"}


def mapping_of(values: Schema, *, least: int = 0) -> Schema:
    """Allow a mapping of any keys to values of one kind."""
    return {"type": "object", **({"minProperties": least} if least else {}), "additionalProperties": values}
