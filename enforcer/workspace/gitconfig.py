"""What of a workspace Git is told to run, or to be configured by, besides what it looks for there by itself.

git-config(1): `core.hooksPath`, files that are included, and commands, which Git runs without being asked to (filters,
`core.fsmonitor`, `diff.*.textconv`). The configuration is read as it is when a task starts. What lies in the workspace
an earlier task may have written, with all of its repository: what that says is followed no further than into the
workspace, over no link that leads out, and only regular files are opened.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from enforcer.workspace.beneath import Tree

LARGEST: Final = 1 << 20  # bytes of a file that is read
_MOST: Final = 100  # files
_INCLUDED: Final = frozenset({"include.path", "includeif.path"})
_HOOKS: Final = "core.hookspath"
_COMMANDS: Final = frozenset({
    "alternaterefscommand", "askpass", "clean", "cmd", "command", "difffilter", "driver", "editor", "external",
    "fsmonitor", "gitproxy", "helper", "pager", "process", "program", "receivepack", "smudge", "sshcommand", "textconv",
    "uploadpack",
})  # fmt: skip
_ESCAPES: Final = {"n": "\n", "t": "\t", "b": "\b"}


class Setting(NamedTuple):
    """One variable: section and name in lower case, without a subsection."""

    name: str
    value: str


def named(tree: "Tree", workspace: str, configuration: str, root: str) -> tuple[str, ...]:
    """Return the paths in a workspace that the configuration of its repository and of its user names.

    `root`: the top of the worktree that it is, or is a part of.
    """
    found: dict[str, None] = {}

    def read_one(at: str) -> str:
        own = beneath(workspace, at)
        return read(at) if own is None else read_beneath(tree, own)

    def may_include(at: str, path: str) -> bool:
        return beneath(workspace, at) is None or beneath(workspace, path) is not None

    of_repository = (configuration, f"{os.path.dirname(configuration)}/config.worktree")
    for at, setting in _said((*_of_user(), *of_repository), read_one, may_include):
        section, _, name = setting.name.partition(".")
        paths: list[str] = []
        if setting.name in _INCLUDED:
            paths = [_whole(setting.value, os.path.dirname(at))]
        elif setting.name == _HOOKS:
            paths = [_whole(setting.value, root)]
        elif name in _COMMANDS and section != "alias":
            paths = [_whole(word, root) for word in _words(setting.value)]
        for path in paths:
            for each in inside(tree, workspace, path) if may_include(at, path) else ():
                is_meant = name not in _COMMANDS or setting.name in _INCLUDED or _is_file(tree, each)
                found.update({each: None} if is_meant and each != "." else {})
    return tuple(found)


def obeyed_of_user() -> frozenset[str]:
    """Return the whole real paths of what the user's configuration has Git read or run in every repository."""
    found: set[str] = set()
    for at, setting in _said(_of_user(), read, lambda _at, _path: True):
        _, _, name = setting.name.partition(".")
        if setting.name in _INCLUDED:
            found.add(_whole(setting.value, os.path.dirname(at)))
        elif setting.name == _HOOKS or name in _COMMANDS:
            words = [setting.value] if setting.name == _HOOKS else _words(setting.value)
            found.update(path for path in map(os.path.expanduser, words) if os.path.isabs(path))
    return frozenset(map(os.path.realpath, found))


def _of_user() -> list[str]:
    return ["/etc/gitconfig", *map(os.path.expanduser, ("~/.gitconfig", "~/.config/git/config"))]


def _said(
    files: Iterable[str], read_one: Callable[[str], str], may_include: Callable[[str, str], bool]
) -> Iterator[tuple[str, Setting]]:
    """Yield what configurations and those that they include say, each with the path that it stands at."""
    pending = [*files]
    seen = {*pending}
    while pending:
        at = pending.pop()
        for setting in settings(read_one(at)):
            yield at, setting
            path = _whole(setting.value, os.path.dirname(at)) if setting.name in _INCLUDED else at
            if path not in seen and len(seen) < _MOST:
                seen.add(path)
                pending += [path] if may_include(at, path) else []


def settings(text: str) -> Iterator[Setting]:
    """Yield what a configuration says; what can't be read is passed over."""
    section = ""
    lines = iter(text.replace("\r\n", "\n").split("\n"))  # Git knows no other end of a line
    for each in lines:
        line = each.strip()
        if line.startswith("["):
            end = _end_of_section(line)
            section, line = line[1:end].split('"')[0].strip().split(".")[0].lower(), line[end + 1 :].strip()
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            yield Setting(f"{section}.{name.strip().lower()}", _value(value, lines))


def beneath(workspace: str, path: str) -> str | None:
    """Return a whole path relative to a workspace, if it is said to lie in there: nothing is looked at."""
    name = os.path.relpath(path, workspace)
    return None if name == ".." or name.startswith("../") else name


def inside(tree: "Tree", workspace: str, path: str) -> tuple[str, ...]:
    """Return a whole path relative to a workspace, if it lies in there: by its name, and where that leads to."""
    name = beneath(workspace, path)
    leads = beneath(workspace, os.path.realpath(path)) if name is None else tree.leads(name)
    return tuple(dict.fromkeys(each for each in (name, leads) if each is not None))


def read(path: str) -> str:
    """Read a small file up to a NUL, which no path has in it; empty where it is none."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return _until(place)
        finally:
            os.close(place)
    except OSError:
        return ""


def read_beneath(tree: "Tree", path: str) -> str:
    """Read so a file of a workspace, reached over no link."""
    try:
        with open(tree.file(path), "rb", buffering=0) as file:
            return until_nul(file.read(LARGEST))
    except OSError:
        return ""


def _until(place: int) -> str:
    """Read what is opened with O_PATH, if it is a regular file: opening another may do something, or wait."""
    if not stat.S_ISREG(os.fstat(place).st_mode):
        return ""
    with open(f"/proc/self/fd/{place}", "rb", buffering=0) as file:
        return until_nul(file.read(LARGEST))


def _is_file(tree: "Tree", path: str) -> bool:
    try:
        entry = tree.look(path)
    except OSError:
        return False
    return entry is not None and entry.what == "file"


def until_nul(content: bytes) -> str:
    """Return what a file says up to a NUL."""
    return os.fsdecode(content.partition(b"\0")[0])


def _end_of_section(line: str) -> int:
    """Return where the `]` is that is in no quotes."""
    is_quoted = False
    at = 0
    while at < len(line):
        if line[at] == "\\":
            at += 1
        elif line[at] == '"':
            is_quoted = not is_quoted
        elif line[at] == "]" and not is_quoted:
            return at
        at += 1
    return len(line)


def _value(text: str, more: Iterator[str]) -> str:
    """Read a value, which goes on in the next line behind a backslash."""
    found: list[str] = []
    kept = at = 0  # `kept`: how much of it isn't white space at its end
    is_quoted = False
    text = text.lstrip()
    while at < len(text):
        letter = text[at]
        at += 1
        if letter == "\\":
            if at == len(text):
                text, at = next(more, ""), 0
                continue
            found.append(_ESCAPES.get(text[at], text[at]))
            at += 1
        elif letter == '"':
            is_quoted = not is_quoted
            continue
        elif letter in "#;" and not is_quoted:
            break
        else:
            found.append(letter)
            if letter.isspace() and not is_quoted:
                continue
        kept = len(found)
    return "".join(found[:kept])


def _words(command: str) -> list[str]:
    """Split a command, roughly; what is quoted may be one word as well."""
    plain = command.removeprefix("!").replace('"', " ").replace("'", " ")
    return [plain.strip(), *plain.split()]


def _whole(path: str, above: str) -> str:
    return os.path.join(above, os.path.expanduser(path))
