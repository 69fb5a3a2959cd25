"""Reads the `sandbox` and `commands` sections of a rule file.

What they become on a host is the enforcer's business.
"""

import re
from collections.abc import Callable, Iterator
from collections.abc import Mapping as Maps
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rules.decision import GrantScope
from rules.loading.conditions import APPROVAL, FOR, read_approval, read_for
from rules.loading.document import Listing, Mapping, Node
from rules.loading.fields import (
    COUNT,
    SIZE,
    TEXT,
    WORD,
    Key,
    Reader,
    Schema,
    Section,
    choice,
    mapping_of,
    one,
    parse_count,
    parse_duration,
    parse_size,
    parse_slug,
    parse_variable_name,
    parser_of_shape,
    part,
    text,
    unread,
)
from rules.problems import quote
from rules.sandbox import Command, MergeTerms, SandboxSettings, SandboxUser, WorkspaceMode, parse_device
from rules.verdicts import Verdict

if TYPE_CHECKING:
    from rules.loading.rule_file import FileReader

_ANYWHERE: Final = "**/"
_LONGEST_PATH: Final = 4096  # PATH_MAX of limits.h
_KEEP: Final = re.compile(r"[A-Za-z_*][A-Za-z0-9_*]{0,127}")
_CORES: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,2})?")
_MOST_CORES: Final = 4096
_LEAST_MEMORY: Final = 16 << 20  # bytes: with less no program of ours or of theirs starts
_LEAST_FILES: Final = 16
_CACHES_IN: Final = ("~", "/var/cache", "/var/lib")  # a sandbox has these for itself


class ParsedSandbox(NamedTuple):
    """The `sandbox` of a file, with the place of each field."""

    box: SandboxSettings
    nodes: Maps[str, Node]


def _paths(says: str, parse: Callable[[str], str], schema: Schema) -> Key:
    """Make a key of paths, globs or names. An empty list in a layer allows no more than the default."""

    def read(reader: Reader, node: Node, of: str) -> tuple[str, ...]:
        if isinstance(node, Listing) and not node.items:
            return ()
        return tuple(sorted(set(reader.each(node, of, parse))))

    return Key(says, read, {"anyOf": [schema, {"type": "array", "items": schema}]})


def _approval(reader: "FileReader", node: Node, of: str) -> tuple[MergeTerms, ...]:
    """Read the approval of merges. An approval is good for one merge, so `covers` and `for` are not keys of it."""
    terms = read_approval(reader, node, of, MERGE)
    if terms is None:
        return ()
    return (MergeTerms(f"{reader.name}:sandbox.{of}", terms._replace(covers=GrantScope.ATTEMPT, lasts=0.0)),)


def _caches(reader: Reader, node: Node, _: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(node, Mapping):
        reader.complain(node, "`caches` is a mapping of names to places in the sandbox, as in `{pip: ~/.cache/pip}`")
        return ()
    found: dict[str, str] = {}
    for key, value in node.pairs.values():
        name, place = reader.parse(key, "caches", parse_slug), reader.parse(value, key.text, parse_cache_path)
        if name is None or place is None:
            continue
        for other, taken in found.items():
            if _within(place, taken) or _within(taken, place):
                reader.complain(value, f"`{place}` and `{taken}`, of `{other}`, overlap: choose separate paths")
        found[name] = place
    return tuple(sorted(found.items()))


def _set(reader: Reader, node: Node, _: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(node, Mapping):
        reader.complain(node, "`set` is a mapping of variables to values, as in `{PYTHONUNBUFFERED: '1'}`")
        return ()
    found: dict[str, str] = {}
    for key, value in node.pairs.values():
        name, text = reader.parse(key, "set", parse_variable_name), reader.text(value, key.text)
        if name is not None and text is not None:
            found[name] = text
            if "\0" in text:
                reader.complain(value, f"the value of `{name}` has a NUL in it")
    return tuple(sorted(found.items()))


def parse_path(text: str) -> str:
    """Read a whole path, or one below `~`, in its one spelling: no `.`, `..`, `//` and no `/` at the end."""
    if "*" in text:
        raise ValueError(f"{quote(text)} is a pattern: name a directory or file; only `hide` takes `**/GLOB`")
    if text[:1] not in {"/", "~"} or (text[0] == "~" and text[1:2] not in {"", "/"}):
        raise ValueError(f"{quote(text)} must be a whole path, as in `/srv/data`, or one in your home: `~/data`")
    return _check_path(text)


def parse_hidden(text: str) -> str:
    """Read a path, or `**/` and globs of names."""
    if not text.startswith(_ANYWHERE):
        if "*" in text:
            raise ValueError(f"{quote(text)}: a pattern begins with `**/`, as in `**/.env` or `**/secrets/*.json`")
        return parse_path(text)
    if "**" in text.removeprefix(_ANYWHERE):
        raise ValueError(f"{quote(text)}: `**` stands at the beginning, and nowhere else")
    return _check_path(text)


def parse_protected(text: str) -> str:
    """Read a glob relative to the workspace."""
    if text[:1] in {"/", "~"}:
        raise ValueError(f"{quote(text)} is relative to the workspace: write it without the `{text[0]}`")
    if any("**" in part and part != "**" for part in text.split("/")):
        raise ValueError(f"{quote(text)}: `**` stands for whole directories, as in `**/package-lock.json`")
    return _check_path(text)


def parse_cache_path(text: str) -> str:
    """Read where a cache lies in the sandbox: in what the sandbox has for itself."""
    place = parse_path(text)
    if not any(_within(place, top) and place != top for top in _CACHES_IN):
        raise ValueError(f"{quote(text)}: a cache lies below `~`, the task's home, `/var/cache` or `/var/lib`")
    return place


# RFC 1123 section 2.1, one label
parse_hostname: Final = parser_of_shape(
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", "must be at most 63 letters, digits and hyphens, without a dot"
)


def parse_kept(text: str) -> str:
    """Read the name of a variable of the caller's, with `*` for any characters."""
    if not _KEEP.fullmatch(text):
        raise ValueError(f"{quote(text)} is not the name of a variable, with or without `*`")
    if not text.strip("*"):
        raise ValueError(f"{quote(text)} would keep all variables, also credentials: list those that are needed")
    return text


def parse_memory(text: str) -> int:
    """Read how much memory, in bytes."""
    number = parse_size(text)
    if number < _LEAST_MEMORY:
        raise ValueError(f"{quote(text)} of memory is too little for anything to start: at least 16MB")
    return number


def parse_cores(text: str) -> float:
    """Read how many cores: `2`, `0.5`."""
    if not _CORES.fullmatch(text) or not 0 < float(text) <= _MOST_CORES:
        raise ValueError(f"{quote(text)} is no number of cores; one is written like `2` or `0.5`")
    return float(text)


def parse_open_files(text: str) -> int:
    """Read how many files may be open."""
    number = parse_count(text)
    if number < _LEAST_FILES:
        raise ValueError(f"{quote(text)} open files are too few for anything to start: at least {_LEAST_FILES}")
    return number


def _check_path(text: str) -> str:
    trimmed = text.rstrip("/") or "/"
    if len(text.encode()) > _LONGEST_PATH or not text.isprintable():
        raise ValueError(f"{quote(text)} is longer than {_LONGEST_PATH} bytes, or has characters that don't show")
    if any(part in {".", "..", ""} for part in trimmed.removeprefix("/").split("/")) and trimmed != "/":
        raise ValueError(f"{quote(text)}: spell it without `.`, `..` and `//`")
    return trimmed


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer + "/")


_PLACE: Final[Schema] = {"type": "string", "pattern": "^(/|~$|~/)[^*]*$"}
_GLOB: Final[Schema] = {"type": "string", "pattern": "^[^/~]"}
_HIDDEN: Final[Schema] = {"anyOf": [_PLACE, {"type": "string", "pattern": "^\\*\\*/."}]}
_CACHE: Final[Schema] = {"type": "string", "pattern": "^(~|/var/cache|/var/lib)/."}
_LABEL: Final[Schema] = {"type": "string", "pattern": "^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$"}
MERGE: Final = APPROVAL._replace(
    name="merge_approval",
    of="`approval` of a sandbox",
    keys={key: APPROVAL.keys[key] for key in ("by", "count", "self", "hold", "open")},
)
ENVIRONMENT: Final = Section("environment", "`environment`", {
    "keep": _paths("Variables of the caller that are passed to the task.", parse_kept, TEXT),
    "set": Key("Variables to set, with their values.", _set, mapping_of(WORD), "variables"),
})  # fmt: skip
LIMITS: Final[Maps[str, Callable[[str], Any]]] = {
    "memory": parse_memory,
    "cpu": parse_cores,
    "processes": parse_count,
    "files": parse_open_files,
    "disk": parse_size,
}
RESOURCES: Final = Section("resources", "`limits` of a sandbox", {
    "memory": one("Memory of all its processes together.", parse_memory, SIZE),
    "cpu": one("Cores, as in `2` or `0.5`.", parse_cores, {"type": ["number", "string"]}),
    "processes": one("How many processes and threads.", parse_count),
    "files": one("How many files a process may have open.", parse_open_files, COUNT),
    "disk": one("How much it may write outside its workspace, or change in a reviewed workspace.", parse_size),
}, empty="`limits` is empty: leave it out")  # fmt: skip


SANDBOX: Final = Section("sandbox", "`sandbox`", {
    "read": _paths("Files and directories to show read-only besides those of the system.", parse_path, _PLACE),
    "write": _paths("Files and directories that the task may write besides its workspace.", parse_path, _PLACE),
    "hide": _paths("What to hide besides known credential files: paths, and `**/NAME` for a name in any directory.",
        parse_hidden, _HIDDEN),
    "workspace": choice("`review` stores the task's changes separately until a person accepts them.", WorkspaceMode),
    "protected": _paths("Globs of workspace files whose changes need an approval.", parse_protected, _GLOB),
    "approval": part("Who approves merging protected files; by default the person who accepts the changes.",
        MERGE, _approval),
    "caches": Key("Directories kept between tasks: a name, and the path in the sandbox.", _caches, mapping_of(_CACHE)),
    "devices": _paths(
        "Device nodes that the task may use, by their names below /dev: `kvm`, `gpu`, or one node of a card.",
        parse_device, TEXT),
    "environment": part("Which variables the task has.", ENVIRONMENT, unread),
    "user": choice("The user that the task sees itself as; neither has any privileges.", SandboxUser),
    "hostname": one("The host name that the task sees.", parse_hostname, _LABEL),
    "timeout": one("How long the task may run.", parse_duration),
    "limits": part("Resource limits of the task.", RESOURCES, unread),
})  # fmt: skip


def read_sandbox(reader: "FileReader", node: Node) -> ParsedSandbox | None:
    """Read `sandbox`; None if it has a problem, which is recorded."""
    before = len(reader.problems)
    found: dict[str, Any] = {}
    nodes: dict[str, Node] = {}
    for section, at in _sections(node):
        fields = section.fields(reader, at)
        if fields is not None:
            found |= section.values(reader, fields)
            nodes |= {section.keys[word].field or word: value for word, value in fields.items()}
    for flat in ("environment", "limits"):
        nodes.pop(flat, None)
    return ParsedSandbox(SandboxSettings(**found), nodes) if len(reader.problems) == before else None


def _sections(node: Node) -> Iterator[tuple[Section, Node]]:
    """Yield the section, and its subsections whose keys are fields of `SandboxSettings` too."""
    yield SANDBOX, node
    for word, section in (("environment", ENVIRONMENT), ("limits", RESOURCES)):
        if isinstance(node, Mapping) and word in node.pairs:
            yield section, node.pairs[word][1]


_MOST_WORDS: Final = 64


def _parse_words(text: str) -> tuple[str, ...]:
    """Read a program's name or path and globs of its arguments, with spaces between; no shell reads it."""
    words = tuple(text.split())
    if not words or not text.isprintable():
        raise ValueError(f"{quote(text)} has characters that don't show, or no word at all")
    if len(words) > _MOST_WORDS:
        raise ValueError(f"{quote(text)} has more than {_MOST_WORDS} words")
    program = words[0]
    if "/" in program and not program.startswith("/"):
        raise ValueError(f"{quote(program)} must be a program's name or its whole path, as in `/usr/bin/terraform`")
    return words


COMMAND: Final = Section("command", "a command", {
    "id": one("The id of the command, unique in the file.", parse_slug),
    "run": one("A program's name or path and globs of its arguments, as in `terraform apply*`.", _parse_words, TEXT,
        "words"),
    "action": Key("What to do: `ask` holds for approval, `flag` runs and marks for review.",
        lambda reader, node, key: reader.choice(node, key, Verdict), {"enum": ["deny", "ask", "flag"]}),
    "why": text("A sentence that errors and reviews show."),
    "for": part("For which tasks.", FOR, read_for, "for_"),
    "approval": part("Who approves an `ask`, and what an approval covers.", APPROVAL, read_approval),
}, needed=("id", "run", "action"))  # fmt: skip


def read_command(reader: "FileReader", node: Node) -> Command | None:
    """Read an entry of `commands`; None if it has a problem, which is recorded."""
    before = len(reader.problems)
    fields = COMMAND.fields(reader, node)
    if fields is None:
        return None
    values = COMMAND.values(reader, fields)
    action, approval = values.get("action"), values.get("approval")
    if action is Verdict.ALLOW:
        reader.complain(fields["action"], "write `deny`, `ask` or `flag`: programs that no command matches may start")
    if "approval" in fields and action not in {None, Verdict.ASK}:
        reader.complain(fields["approval"], f"`approval` is for commands with `action: ask`, and this is `{action}`")
    if approval is not None and approval.covers is GrantScope.DESTINATION:
        message = "a command has no destination: its approval `covers` the `attempt`, or the `rule`"
        reader.complain(fields["approval"], message)
    return Command(cite=f"{reader.name}:{values['id']}", **values) if len(reader.problems) == before else None
