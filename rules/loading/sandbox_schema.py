"""The box of a task, as it is written: `sandbox`. What it becomes on a host is the enforcer's business."""

import re
from collections.abc import Callable
from collections.abc import Mapping as Maps
from typing import Any, Final, NamedTuple

from rules.limits import Covers
from rules.loading.conditions import read_approval
from rules.loading.document import Listing, Mapping, Node
from rules.loading.fields import Reader, count, duration, size, slug
from rules.loading.keys import ENVIRONMENT_KEYS, MERGE_KEYS, RESOURCE_KEYS, SANDBOX_KEYS
from rules.problems import quoted
from rules.sandbox import Box, BoxUser, MergeTerms, WorkspaceMode, device

_ANYWHERE: Final = "**/"
_LONGEST_PATH: Final = 4096  # PATH_MAX of limits.h
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")  # RFC 1123 section 2.1, one label
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_KEEP: Final = re.compile(r"[A-Za-z_*][A-Za-z0-9_*]{0,127}")
_CORES: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,2})?")
_MOST_CORES: Final = 4096
_LEAST_MEMORY: Final = 16 << 20  # bytes: with less no program of ours or of theirs starts
_LEAST_FILES: Final = 16
_CACHES_IN: Final = ("~", "/var/cache", "/var/lib")  # a sandbox has these for itself


class BoxRead(NamedTuple):
    """What a file says of the box, and where each field of it stands."""

    box: Box
    nodes: Maps[str, Node]


def read_sandbox(reader: Reader, node: Node, name: str) -> BoxRead | None:
    """Read `sandbox` of the file that is called `name`; None if anything is wrong, which has been told then."""
    before = len(reader.problems)
    fields = reader.mapping(node, "`sandbox`", SANDBOX_KEYS)
    if fields is None:
        return None
    nodes: dict[str, Node] = {}
    found: dict[str, Any] = {}
    readers: dict[str, Callable[[Node], Any]] = {
        "read": lambda value: _list(reader, value, "read", path),
        "write": lambda value: _list(reader, value, "write", path),
        "hide": lambda value: _list(reader, value, "hide", hidden),
        "workspace": lambda value: reader.choice(value, "workspace", WorkspaceMode),
        "protected": lambda value: _list(reader, value, "protected", protected),
        "approval": lambda value: _approval(reader, value, name),
        "caches": lambda value: _caches(reader, value),
        "devices": lambda value: _list(reader, value, "devices", device),
        "user": lambda value: reader.choice(value, "user", BoxUser),
        "hostname": lambda value: reader.parsed(value, "hostname", hostname),
        "timeout": lambda value: reader.parsed(value, "timeout", duration),
    }
    for key, value in fields.items():
        if key == "environment":
            _environment(reader, value, found, nodes)
        elif key == "limits":
            _limits(reader, value, found, nodes)
        else:
            found[key], nodes[key] = readers[key](value), value
    return BoxRead(Box(**found), nodes) if len(reader.problems) == before else None


def _list(reader: Reader, node: Node, of: str, parse: Callable[[str], str]) -> tuple[str, ...]:
    """Read paths or globs. An empty list is nothing, which a layer may say: nothing more than the defaults."""
    if isinstance(node, Listing) and not node.items:
        return ()
    return tuple(sorted(set(reader.each(node, of, parse))))


def _approval(reader: Reader, node: Node, name: str) -> tuple[MergeTerms, ...]:
    """Read whose approval merges want. What was approved is merged once, so `covers` and `for` are no keys of it."""
    terms = read_approval(reader, node, MERGE_KEYS)
    if terms is None:
        return ()
    return (MergeTerms(f"{name}:sandbox.approval", terms._replace(covers=Covers.ATTEMPT, lasts=0.0)),)


def _caches(reader: Reader, node: Node) -> tuple[tuple[str, str], ...]:
    if not isinstance(node, Mapping):
        reader.complain(node, "`caches` is a mapping of names to places in the sandbox, as in `{pip: ~/.cache/pip}`")
        return ()
    found: dict[str, str] = {}
    for key, value in node.pairs.values():
        name, place = reader.parsed(key, "caches", slug), reader.parsed(value, key.text, cache_place)
        if name is None or place is None:
            continue
        for other, taken in found.items():
            if _within(place, taken) or _within(taken, place):
                reader.complain(value, f"`{place}` and `{taken}`, of `{other}`, lie in each other")
        found[name] = place
    return tuple(sorted(found.items()))


def _environment(reader: Reader, node: Node, found: dict[str, Any], nodes: dict[str, Node]) -> None:
    fields = reader.mapping(node, "`environment`", ENVIRONMENT_KEYS)
    for key, value in (fields or {}).items():
        name = "variables" if key == "set" else key
        found[name], nodes[name] = _set(reader, value) if key == "set" else _list(reader, value, key, kept), value


def _set(reader: Reader, node: Node) -> tuple[tuple[str, str], ...]:
    if not isinstance(node, Mapping):
        reader.complain(node, "`set` is a mapping of variables to values, as in `{PYTHONUNBUFFERED: '1'}`")
        return ()
    found: dict[str, str] = {}
    for key, value in node.pairs.values():
        name, text = reader.parsed(key, "set", variable), reader.text(value, key.text)
        if name is not None and text is not None:
            found[name] = text
            if "\0" in text:
                reader.complain(value, f"the value of `{name}` has a NUL in it")
    return tuple(sorted(found.items()))


def _limits(reader: Reader, node: Node, found: dict[str, Any], nodes: dict[str, Node]) -> None:
    fields = reader.mapping(node, "`limits` of a sandbox", RESOURCE_KEYS)
    if fields == {} and isinstance(node, Mapping) and not node.pairs:
        reader.complain(node, "`limits` limits nothing: leave it out")
    for key, value in (fields or {}).items():
        found[key], nodes[key] = reader.parsed(value, key, LIMITS[key]), value


def path(text: str) -> str:
    """Read a whole path, or one below `~`, in its one spelling: no `.`, `..`, `//` and no `/` at the end."""
    if "*" in text:
        raise ValueError(f"{quoted(text)} is a pattern: name a directory or file; only `hide` takes `**/GLOB`")
    if text[:1] not in {"/", "~"} or (text[0] == "~" and text[1:2] not in {"", "/"}):
        raise ValueError(f"{quoted(text)} must be a whole path, as in `/srv/data`, or one in your home: `~/data`")
    return _plain(text)


def hidden(text: str) -> str:
    """Read a path, or `**/` and globs of names."""
    if not text.startswith(_ANYWHERE):
        if "*" in text:
            raise ValueError(f"{quoted(text)}: a pattern begins with `**/`, as in `**/.env` or `**/secrets/*.json`")
        return path(text)
    if "**" in text.removeprefix(_ANYWHERE):
        raise ValueError(f"{quoted(text)}: `**` stands at the beginning, and nowhere else")
    return _plain(text)


def protected(text: str) -> str:
    """Read a glob relative to the workspace."""
    if text[:1] in {"/", "~"}:
        raise ValueError(f"{quoted(text)} is relative to the workspace: write it without the `{text[0]}`")
    if any("**" in part and part != "**" for part in text.split("/")):
        raise ValueError(f"{quoted(text)}: `**` stands for whole directories, as in `**/package-lock.json`")
    return _plain(text)


def cache_place(text: str) -> str:
    """Read where a cache lies in the sandbox: in what the sandbox has for itself."""
    place = path(text)
    if not any(_within(place, top) and place != top for top in _CACHES_IN):
        raise ValueError(f"{quoted(text)}: a cache lies below `~`, the task's home, `/var/cache` or `/var/lib`")
    return place


def hostname(text: str) -> str:
    """Read the name of a host, one label."""
    if not _HOSTNAME.fullmatch(text):
        raise ValueError(f"{quoted(text)} must be at most 63 letters, digits and hyphens, without a dot")
    return text


def variable(text: str) -> str:
    """Read the name of a variable."""
    if not _VARIABLE.fullmatch(text):
        raise ValueError(f"{quoted(text)} is no name of a variable")
    return text


def kept(text: str) -> str:
    """Read the name of a variable of the caller's, with `*` for any characters."""
    if not _KEEP.fullmatch(text):
        raise ValueError(f"{quoted(text)} is no name of a variable, nor one with `*` in it")
    if not text.strip("*"):
        raise ValueError(f"{quoted(text)} would keep every variable, credentials too: name those that are needed")
    return text


def memory(text: str) -> int:
    """Read how much memory, in bytes."""
    number = size(text)
    if number < _LEAST_MEMORY:
        raise ValueError(f"{quoted(text)} of memory is too little for anything to start: at least 16MB")
    return number


def cores(text: str) -> float:
    """Read how many cores: `2`, `0.5`."""
    if not _CORES.fullmatch(text) or not 0 < float(text) <= _MOST_CORES:
        raise ValueError(f"{quoted(text)} is no number of cores; one is written like `2` or `0.5`")
    return float(text)


def open_files(text: str) -> int:
    """Read how many files may be open."""
    number = count(text)
    if number < _LEAST_FILES:
        raise ValueError(f"{quoted(text)} open files are too few for anything to start: at least {_LEAST_FILES}")
    return number


LIMITS: Final[Maps[str, Callable[[str], Any]]] = {
    "memory": memory,
    "cpu": cores,
    "processes": count,
    "files": open_files,
    "disk": size,
}


def _plain(text: str) -> str:
    trimmed = text.rstrip("/") or "/"
    if len(text.encode()) > _LONGEST_PATH or not text.isprintable():
        raise ValueError(f"{quoted(text)} is longer than {_LONGEST_PATH} bytes, or has characters that don't show")
    if any(part in {".", "..", ""} for part in trimmed.removeprefix("/").split("/")) and trimmed != "/":
        raise ValueError(f"{quoted(text)}: spell it without `.`, `..` and `//`")
    return trimmed


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer + "/")
