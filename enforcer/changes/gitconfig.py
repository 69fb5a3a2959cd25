"""What of a workspace Git is told to run, or to be configured by, besides what it looks for there by itself.

git-config(1): `core.hooksPath`, files that are included, and commands, which Git runs without being asked to (filters,
`core.fsmonitor`, `diff.*.textconv`). The configuration is read as it is when a task starts; no task could write it.
"""

import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

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


def named(workspace: str, configuration: str, root: str) -> tuple[str, ...]:
    """Return the paths in a workspace that the configuration of its repository and of its user names.

    `root`: the top of the worktree that it is, or is a part of.
    """
    found: dict[str, None] = {}
    pending = ["/etc/gitconfig", *map(os.path.expanduser, ("~/.gitconfig", "~/.config/git/config"))]
    pending += [configuration, f"{os.path.dirname(configuration)}/config.worktree"]
    seen = {*pending}
    while pending:
        at = pending.pop()
        for setting in settings(read(at)):
            section, _, name = setting.name.partition(".")
            if setting.name in _INCLUDED:
                included = _whole(setting.value, os.path.dirname(at))
                if included not in seen and len(seen) < _MOST:
                    seen.add(included)
                    pending.append(included)
                found.update(dict.fromkeys(_in(workspace, included)))
            elif setting.name == _HOOKS:
                found.update(dict.fromkeys(_in(workspace, _whole(setting.value, root))))
            elif name in _COMMANDS and section != "alias":
                for word in _words(setting.value):
                    path = _whole(word, root)
                    found.update(dict.fromkeys(_in(workspace, path) if os.path.isfile(path) else ()))
    return tuple(found)


def settings(text: str) -> Iterator[Setting]:
    """Yield what a configuration says; what can't be read is passed over."""
    section = ""
    lines = iter(text.splitlines())
    for each in lines:
        line = each.strip()
        if line.startswith("["):
            end = _end_of_section(line)
            section, line = line[1:end].split('"')[0].strip().split(".")[0].lower(), line[end + 1 :].strip()
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            yield Setting(f"{section}.{name.strip().lower()}", _value(value, lines))


def inside(workspace: str, path: str) -> tuple[str, ...]:
    """Return a whole path relative to a workspace, if it lies in there: by its name, and where that leads to."""
    found = (os.path.relpath(each, workspace) for each in (path, os.path.realpath(path)))
    return tuple(dict.fromkeys(each for each in found if each != ".." and not each.startswith("../")))


def read(path: str) -> str:
    """Read a small file up to a NUL, which no path has in it; empty where it is none."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            content = file.read(LARGEST) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
            return until_nul(content)
    except OSError:
        return ""


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


def _in(workspace: str, path: str) -> tuple[str, ...]:
    return tuple(each for each in inside(workspace, path) if each != ".")
