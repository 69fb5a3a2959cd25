"""Scan of a workspace's Git repositories: where they are, and which files Git executes or reads settings from.

- Where: `.git` may be a file or a link that says where the repository is, and a workspace may be a bare repository
  itself (gitrepository-layout(5)). The common directory has the configuration and the hooks, for a worktree as well.
- What its configuration names (git-config(1)): `core.hooksPath`, files that are included, and commands, which Git runs
  without being asked to (filters, `core.fsmonitor`, `diff.*.textconv`).
- Submodules: Git goes into each by itself, as for `git status`, and a task can make any directory one by a link in the
  index (gitformat-index(5), mode 160000), without a `.gitmodules`. What the index may hide, as it is sparse or makes no
  sense, counts as if it were any directory.

All of it is read at a start, as the workspace's owner. An earlier task may have written what lies in the workspace:
that is followed no further than into the workspace, and only regular files are opened (`safe_path`).
"""

import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from enforcer.workspace.safe_path import TOP, Entry, Hidden, Sight, Tree, What, joined, read, read_beneath

_MOST_FILES: Final = 100  # files
_INCLUDED: Final = frozenset({"include.path", "includeif.path"})
_HOOKS: Final = "core.hookspath"
_COMMANDS: Final = frozenset({
    "alternaterefscommand", "askpass", "clean", "cmd", "command", "difffilter", "driver", "editor", "external",
    "fsmonitor", "gitproxy", "helper", "pager", "process", "program", "receivepack", "smudge", "sshcommand", "textconv",
    "uploadpack",
})  # fmt: skip
_ESCAPES: Final = {"n": "\n", "t": "\t", "b": "\b"}
# Of a directory that is no repository, so much is looked through for those in it: some 40 ms at most.
_MOST_DIRECTORIES: Final = 400
_MOST_NAMES: Final = 8000
_PACKAGES: Final = frozenset({"node_modules", "site-packages", "__pycache__"})
_OF_REPOSITORY: Final = ("HEAD", "objects", "refs")  # what Git takes a directory for a repository by
_LARGEST_INDEXES: Final = 256 << 20  # bytes of all indexes that are read
_DEEPEST: Final = 10  # submodules of submodules
_MOST_SUBMODULES: Final = 1000
_HEAD: Final = struct.Struct(">4sII")
_FIXED: Final = 40  # bytes before the hash
_LONGEST: Final = 4096  # bytes of a path: there is none that is longer (PATH_MAX), and each is made of the one before
_KIND, _LINK, _TREE = 0xF000, 0xE000, 0x4000  # of a mode
_AS_GIT_WRITES: Final = (b"\0\0\xe0\0", b"\0\0\x40\0")
_EXTENDED, _LENGTH = 0x4000, 0xFFF  # of flags
# `.git` may lie deeper, for a submodule or a project in a project; in a submodule or a worktree it is a file.
# `commondir` says which directory Git takes its configuration and hooks from (gitrepository-layout(5)); `remotes` and
# `branches` what it pushes to: a repository in the workspace has hooks of its own, which a push to it runs. Sapling and
# Arcanist keep their configuration in there, too.
GIT: Final = (
    "config", "config.worktree", "hooks", "info/attributes", "commondir", "remotes", "branches",
    "objects/info/alternates", "objects/info/http-alternates", "modules/**/objects/info/alternates",
    "modules/**/objects/info/http-alternates",
    "worktrees/*/commondir", "worktrees/*/config.worktree", "modules/**/config", "modules/**/config.worktree",
    "modules/**/hooks", "modules/**/info/attributes", "modules/**/commondir", "modules/*/remotes",
    "modules/*/branches", "sl/config", "arc/config",
)  # fmt: skip


class Setting(NamedTuple):
    """One variable: section and name in lower case, without a subsection."""

    name: str
    value: str


def named(tree: Tree, workspace: str, configuration: str, root: str) -> tuple[str, ...]:
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
            if path not in seen and len(seen) < _MOST_FILES:
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


def inside(tree: Tree, workspace: str, path: str) -> tuple[str, ...]:
    """Return a whole path relative to a workspace, if it lies in there: by its name, and where that leads to."""
    name = beneath(workspace, path)
    leads = beneath(workspace, os.path.realpath(path)) if name is None else tree.leads(name)
    return tuple(dict.fromkeys(each for each in (name, leads) if each is not None))


def _is_file(tree: Tree, path: str) -> bool:
    try:
        entry = tree.look(path)
    except OSError:
        return False
    return entry is not None and entry.what == "file"


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


def other_names(tree: Tree, workspace: str) -> tuple[str, ...]:
    """Return the paths, in a workspace, of its repository where that has another name than `.git`."""
    found = (inside(tree, workspace, directory) for directory in _directories(tree, workspace))
    return tuple(dict.fromkeys(path for each in found for path in each if path != ".git"))


def protected_globs(tree: Tree, workspace: str) -> tuple[str, ...]:
    """Return what is protected in a workspace besides what is in every one."""
    found = [glob for place in other_names(tree, workspace) for glob in of_git(place)]
    root, directories = around(tree, workspace)
    place = directories[-1] if directories else f"{workspace}/.git"  # the user's own configuration counts without one
    found += named(tree, workspace, f"{place}/config", root or workspace)
    return tuple(found)


def submodules(workspace: str, root: str, directory: str, sight: Sight) -> list[str]:
    """Return the paths of all submodules, as the index has them; a bare repository has none. Raises Hidden.

    `root`, `directory`: of the repository that it is in, as of the start. `sight`: of the workspace, then or now.
    """
    found: list[str] = []
    if led := sight.directory(f"{workspace}/.git"):
        found += submodules_of(workspace, led, sight)
    if root == workspace or not directory or directory == f"{workspace}/{TOP}":
        return found
    whole = (
        f"{root.rstrip('/')}/{each}" for each in submodules_of(root, directory, sight)
    )  # nothing on the way is looked at
    return [*found, *(os.path.relpath(each, workspace) for each in whole if each.startswith(f"{workspace}/"))]


def below(entries: Callable[[str], Iterable[tuple[str, Entry]]]) -> tuple[list[str], bool]:
    """Return the `.git` of each repository below the top, and each bare repository there, the nearest first.

    And whether all was looked through: of very many directories only the nearest are, those in repositories last.
    """
    found: list[str] = []
    pending, inside_one, left = deque([TOP]), deque[str](), _MOST_NAMES
    for _ in range(_MOST_DIRECTORIES):
        if not pending and not inside_one:
            return found, True
        queue = pending or inside_one
        at = queue.popleft()
        listed = dict(islice(entries(at), left + 1))
        left -= len(listed)
        if left < 0:
            return found, False
        if at != TOP and listed.keys() >= {*_OF_REPOSITORY}:
            found.append(at)
            continue
        if at != TOP and ".git" in listed:
            found.append(joined(at, ".git"))
            queue = inside_one
        directories = sorted(name for name, entry in listed.items() if entry.what is What.DIRECTORY)
        queue += (joined(at, name) for name in directories if name != ".git" and name not in _PACKAGES)
    return found, not pending and not inside_one


def led_to(tree: Tree, workspace: str, dot: str, sight: Sight) -> tuple[str, ...]:
    """Return what is protected of the repository that a `.git` is, or leads to."""
    led = sight.directory(f"{workspace}/{dot}")
    return tuple(glob for place in (inside(tree, workspace, led) if led else ()) for glob in of_git(place))


def around(tree: Tree, workspace: str) -> tuple[str, list[str]]:
    """Return the top of the worktree that a workspace is, or is a part of, and its repository's directories."""
    if found := [*_directories(tree, workspace)]:
        return workspace, found
    root = os.path.dirname(workspace)
    while not os.path.lexists(f"{root}/.git"):
        if root == os.path.dirname(root):
            return "", []
        root = os.path.dirname(root)
    return root, [*_told(f"{root}/.git", as_of_now(tree, workspace))]


def as_of_now(tree: Tree, workspace: str) -> Sight:
    """Return how a workspace is looked at before a task starts."""
    return Sight(tree, workspace, None)


def _directories(tree: Tree, workspace: str) -> Iterator[str]:
    """Yield the whole path of the repository, and of its common directory where that is another."""
    try:
        dot = tree.look(".git")
        if dot is None:
            if all(tree.look(name) is not None for name in _OF_REPOSITORY):
                yield f"{workspace}/{TOP}"
            return
    except OSError:
        return  # nobody reaches it
    yield from _told(f"{workspace}/.git", as_of_now(tree, workspace))


def _told(dot: str, sight: Sight) -> Iterator[str]:
    try:
        place = sight.directory(dot)
    except Hidden:
        return
    if not place:
        return
    yield place
    common = sight.text(f"{place}/commondir", place).rstrip("\n")
    led = os.path.join(place, common)
    if common:
        led = os.path.normpath(led) if sight.is_inside(place) else os.path.realpath(led)
        if not sight.is_inside(place) or sight.is_inside(led):
            yield led


def submodules_of(workspace: str, repository: str, sight: Sight | None = None) -> list[str]:
    """Return the paths of all submodules, relative to the workspace. Raises Hidden.

    `sight`: as far as one can look where a task may have written; None: it is nobody's but the host's.
    """
    found: list[str] = []
    sight = sight or Sight()
    pending = [("", repository, 0)]
    seen = set[str]()
    while pending:
        above, directory, depth = pending.pop()
        for path in _links(directory, sight):
            inner = os.path.join(above, path)
            if os.path.isabs(path) or ".." in path.split("/") or inner in seen:
                continue  # Git takes none that lead out
            seen.add(inner)
            if len(seen) > _MOST_SUBMODULES or depth == _DEEPEST:
                raise Hidden
            found.append(inner)
            dot = f"{workspace}/{inner}/.git"
            if led := sight.directory(dot):
                pending.append((inner, led, depth + 1))
    return found


def _links(directory: str, sight: Sight) -> Iterator[str]:
    left = _LARGEST_INDEXES
    for name in ("index", *sight.names(directory, "sharedindex.")):
        try:
            with open(sight.file(f"{directory}/{name}"), "rb") as file:
                data = file.read(left + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Hidden from error
        left -= len(data)
        if left < 0:
            raise Hidden
        if sight.is_first and not any(mode in data for mode in _AS_GIT_WRITES):
            continue
        try:
            yield from _entries(data, _hash_size(directory, sight))
        except (struct.error, IndexError, ValueError) as error:
            raise Hidden from error


def _hash_size(directory: str, sight: Sight) -> int:
    said = sight.text(f"{directory}/commondir", directory).rstrip("\n")
    config = sight.text(os.path.join(directory, said, "config"), directory)
    formats = [setting.value for setting in settings(config) if setting.name == "extensions.objectformat"]
    return 32 if "sha256" in formats else 20


def _entries(data: bytes, size: int) -> Iterator[str]:
    """Yield the paths of links. Raises Hidden for a directory that isn't written out."""
    mark, version, count = _HEAD.unpack_from(data)
    if mark != b"DIRC" or version not in {2, 3, 4}:
        raise ValueError
    if version == 4 and b"IEOT" in data:
        raise Hidden  # names don't all go on from the one before
    at, name = _HEAD.size, b""
    for _ in range(count):
        mode = int.from_bytes(data[at + 24 : at + 28]) & _KIND
        flags = int.from_bytes(data[at + _FIXED + size : at + _FIXED + size + 2])
        begin = at + _FIXED + size + (4 if flags & _EXTENDED and version > 2 else 2)
        if version == 4:
            cut, begin = _number(data, begin)
            end = data.index(0, begin)
            if cut > len(name) or end - begin > _LONGEST or len(name) - cut > _LONGEST:
                raise ValueError
            name = name[: len(name) - cut] + data[begin:end]
            at = end + 1
        else:
            end = begin + (flags & _LENGTH) if flags & _LENGTH < _LENGTH else data.index(0, begin)
            name = data[begin:end]
            at += (end - at + 8) & ~7
        if at > len(data):
            raise ValueError
        if mode == _TREE:
            raise Hidden
        if mode == _LINK:
            yield os.fsdecode(name).rstrip("/")


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of variable length, as varint.c has it; return where it ends, too."""
    value = data[at] & 0x7F
    while data[at] & 0x80:
        at += 1
        value = ((value + 1) << 7) | (data[at] & 0x7F)
        if value > 2 * _LONGEST:
            raise ValueError  # before it takes long to count on
    return value, at + 1


def of_git(place: str) -> tuple[str, ...]:
    """Return the globs of what is protected in a repository that lies there."""
    return tuple(os.path.normpath(f"{place}/{name}") for name in GIT)
