"""Reads the `include` key of a rule file: which file or preset, and which of its rules it keeps or changes.

`only` and an id in `except` choose rules. A name in `except` is taken out of every rule that is kept. `credential` is
added to every kept rule that is not a deny. An entry that matches nothing is an error: a mistyped `except` must not
allow what it should block.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from rules.attempt import INSPECTABLE
from rules.globs import overlap
from rules.loading.document import Mapping, Node, Scalar
from rules.loading.fields import Reader, slug
from rules.loading.sections import SLUG, TEXT, Key, Schema, Section, one, one_or_more, text
from rules.names import HostName, InvalidName
from rules.patterns import NamePattern
from rules.problems import Problem, did_you_mean, quoted
from rules.rule import Exemption, Rule
from rules.verdicts import TlsMode, Verdict

if TYPE_CHECKING:
    from rules.loading.cases import Case

_SUFFIXES: Final = (".yaml", ".yml")


class Word(NamedTuple):
    """An id or a name of `only` or `except`, and where it stands."""

    text: str
    line: int
    column: int


@dataclass(slots=True, eq=False)
class Selection:
    """What one include keeps. It takes note of which of its words met something."""

    file: str  # that has the include
    only: tuple[Word, ...] = ()
    without: tuple[Word, ...] = ()
    names: tuple[tuple[NamePattern, Word], ...] = ()
    credential: Word | None = None  # the id of a secret
    _met: set[str] = field(default_factory=set)
    _problems: list[str] = field(default_factory=list)  # about `credential`

    @property
    def same(self) -> tuple[frozenset[str], ...]:
        """What it says, whatever the order."""
        told = (self.only, self.without, (self.credential,) if self.credential else ())
        return (*(frozenset(word.text for word in words) for words in told), frozenset(p.text for p, _ in self.names))

    def keep(self, rule: Rule, ident: str) -> Rule | None:
        """Give what is left of a rule that its file knows as `ident`, or None."""
        self._met.add(ident)
        if (self.only and ident not in _texts(self.only)) or ident in _texts(self.without):
            return None
        touched = tuple(
            pattern for pattern, _ in self.names if any(overlap(pattern.parts, name.parts) for name in rule.names)
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

    def keeps(self, case: "Case") -> bool:
        """Whether a test of the included file still applies: its rule is kept as it was written."""
        if case.rule is None or self.credential is not None:
            return False
        ident = case.rule.rpartition(":")[2]
        if (self.only and ident not in _texts(self.only)) or ident in _texts(self.without):
            return False
        try:
            host = HostName.parse(case.question.host)
        except InvalidName:
            return True
        return not any(pattern.matches(host) for pattern, _ in self.names)

    def unused(self) -> list[Problem]:
        """List what is wrong with this include; call it after all rules went through `keep`."""
        told: list[tuple[Word, str]] = []
        for word in (*self.only, *self.without):
            if word.text not in self._met:
                hint = did_you_mean(word.text, self._met)
                told.append((word, f"no rule of this include has the id {quoted(word.text)}{hint}"))
        for pattern, word in self.names:
            if pattern.text not in self._met:
                told.append((word, f"no rule that this include keeps covers {quoted(word.text)}"))
        if self.credential is not None:
            told += [(self.credential, message) for message in self._problems]
        return [Problem(self.file, word.line, word.column, message) for word, message in told]


class Include(NamedTuple):
    """Another rule file or a preset, as written: one of `file` and `preset` is empty."""

    file: str
    preset: str
    node: Node
    selection: Selection | None = None


def kept_of(rule: Rule, ident: str, selections: "Iterable[Selection]") -> Rule | None:
    """Give what is left of a rule when each include on the way to it has had its say; every one takes note."""
    kept: Rule | None = rule
    for selection in selections:
        left = selection.keep(kept or rule, ident)
        kept = left if kept is not None else None
    return kept


def _words(says: str, what: str, schema: Schema) -> Key:
    """Make a key of ids or names with where they stand."""

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
    ident = reader.parsed(node, key, slug)
    return None if ident is None else Word(ident, node.line, node.column)


INCLUDE: Final = Section("include", "an `include`", {
    "file": text("A rule file, relative to this one."),
    "preset": one("The name of a preset: see `exeat presets list`.", slug),
    "only": _words("The ids of the rules that are kept.", "ids", SLUG),
    "except": _words("Ids of rules that are left out, or names that no rule of it covers.", "ids and names", TEXT),
    "credential": Key("The secret that every rule of the include requires, except its denies.", _read_credential, SLUG),
})  # fmt: skip


def read_include(reader: Reader, item: Node) -> Include | None:
    """Read one entry of `include`; None if it is wrong, which has been told then."""
    before = len(reader.problems)
    if isinstance(item, Scalar):
        key = "file" if item.text.endswith(_SUFFIXES) else "preset"
        reader.complain(item, f"an `include` says what it names: write {quoted(f'{{{key}: {item.text}}}')}")
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
    said = INCLUDE.values(reader, fields)
    selection = None
    if not fields.keys().isdisjoint(("only", "except", "credential")):
        selection = _selection(reader, said.get("only", ()), said.get("except", ()), said.get("credential"))
    if len(reader.problems) > before:
        return None
    return Include(said.get("file", ""), said.get("preset", ""), item, selection)


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
        except InvalidName as error:
            reader.problems.append(Problem(reader.file, word.line, word.column, str(error)))
    for word in without:
        if word.text in _texts(only):
            message = f"{quoted(word.text)} is in `only` and in `except`"
            reader.problems.append(Problem(reader.file, word.line, word.column, message))
    return Selection(reader.file, only, tuple(without), tuple(names), credential)


def _texts(words: Iterable[Word]) -> set[str]:
    return {word.text for word in words}
