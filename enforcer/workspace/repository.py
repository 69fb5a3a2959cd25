"""Git repository of a workspace, linked worktree or submodule: where it lies, its configuration, index, submodules.

- `.git` may be a file or a link that says where the repository is. The common directory has the configuration and the
  hooks, for a linked worktree as well (gitrepository-layout(5)).
- Git goes into submodules by itself, as for `git status`, and a task can make any directory one by a link in the index
  (gitformat-index(5), mode 160000), without a `.gitmodules`.

- The repository of a linked worktree or a submodule lies elsewhere. A task is shown it only if the repository names the
  workspace in turn: in a worktree's `gitdir` file, or as a submodule's `core.worktree`. No task can write those, but
  any task can write a `.git` file.

An earlier task may have written what lies in a workspace. `RepositoryReader` follows that no further than into the
workspace and opens only regular files (`safe_path`): a look at `/net/HOST` has autofs(8) ask for that host, past every
rule, and one at a FUSE mount may never end.
"""

import errno
import os
import shlex
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from enforcer.sandbox.system_paths import contains, refuse_write
from enforcer.system.errors import UsageError
from enforcer.workspace.safe_path import TOP, Entry, EntryType, Tree, acting_as, open_regular, read, read_beneath

OF_REPOSITORY: Final = ("HEAD", "objects", "refs")  # what Git takes a directory for a repository by
_ESCAPES: Final = {"n": "\n", "t": "\t", "b": "\b"}
_LARGEST_INDEXES: Final = 256 << 20  # bytes of all indexes that are read
_DEEPEST: Final = 10  # submodules of submodules
_MOST_SUBMODULES: Final = 1000
_HEAD: Final = struct.Struct(">4sII")
_FIXED: Final = 40  # bytes before the hash
_LONGEST: Final = 4096  # bytes of a path: there is none that is longer (PATH_MAX), and each is made of the one before
_KIND, _LINK, _TREE = 0xF000, 0xE000, 0x4000  # of a mode
_AS_GIT_WRITES: Final = (b"\0\0\xe0\0", b"\0\0\x40\0")
_EXTENDED, _LENGTH = 0x4000, 0xFFF  # of flags
_NOTHING: Final = MappingProxyType[str, tuple[Entry, str]]({})

# What of the common directory is of the main worktree alone, or of all: a task in another has no business there
_OF_OTHERS: Final = ("HEAD", "index", "info", "modules", "config.worktree", "rebase-merge", "rebase-apply", "sequencer")


class HiddenRepositoryError(Exception):
    """The repository, or one of its submodules, can't be read."""


class Setting(NamedTuple):
    """One variable: section and name in lower case, without a subsection."""

    name: str
    value: str


def parse_settings(text: str) -> Iterator[Setting]:
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


def is_sha256(configuration: str) -> bool:
    """Whether a configuration says that the names of objects are SHA-256, not SHA-1."""
    return any(
        each.name == "extensions.objectformat" and each.value == "sha256" for each in parse_settings(configuration)
    )


def parse_gitdir(dot: str, text: str) -> str:
    """Return where the text of a `.git` file says that its repository is; empty: nowhere."""
    said = text.removeprefix("gitdir:").strip() if text.startswith("gitdir:") else ""
    return os.path.join(os.path.dirname(dot), said) if said else ""


class Repository(NamedTuple):
    """Where a repository lies, as whole paths."""

    directory: str  # that `.git` is, or leads to
    common: str  # that its worktrees share; empty: it may not be looked at


class RepositoryReader:
    """Reads repositories of the host, or of a workspace before or after a task. Paths are whole ones."""

    def __init__(
        self,
        tree: Tree | None = None,
        workspace: str = "",
        known: Mapping[str, tuple[Entry, str]] | None = _NOTHING,
    ) -> None:
        """`known`: which `.git` in the workspace were links and files before the task, and where they led.

        None: no task runs yet. But an earlier one may have made a repository in it, with all that this says.
        """
        self._tree = tree
        self._workspace = workspace
        self._known = known

    def repository(self, dot: str) -> Repository | None:
        """Return the repository that a `.git` is, or leads to; None: there is none, or it is hidden."""
        try:
            directory = self.directory(dot)
        except HiddenRepositoryError:
            return None
        return Repository(directory, self.common(directory)) if directory else None

    def directory(self, dot: str) -> str:
        """Return the directory that a `.git` is, or leads to; empty: to none. Raises Hidden for one that is changed."""
        inside = self._inside(dot)
        if inside is None:
            return dot if os.path.isdir(dot) else parse_gitdir(dot, read(dot))
        tree, path = inside
        try:
            entry, known = tree.stat(path), (self._known or _NOTHING).get(path)
        except OSError as error:
            if error.errno == errno.ELOOP:
                return ""  # Git goes over no link
            raise HiddenRepositoryError from error
        if entry is None or entry.what is EntryType.DIRECTORY:
            return "" if entry is None else dot
        if self._known is None:
            target = entry.target if entry.what is EntryType.LINK else parse_gitdir(dot, read_beneath(tree, path))
            led = os.path.normpath(os.path.join(os.path.dirname(dot), target)) if target else ""
            # Only the workspace's own `.git` may lead elsewhere
            return led if path == ".git" or self.is_inside(led) else ""
        if known is None:
            return ""  # nothing goes there once it is put aside
        if not known[0].is_same_file(entry):
            raise HiddenRepositoryError
        return known[1]

    def common(self, directory: str) -> str:
        """Return the directory that has the configuration of a repository; empty: it may not be looked at."""
        said = self._text(f"{directory}/commondir", directory).rstrip("\n")
        if not said:
            return directory
        led = os.path.join(directory, said)
        if not self.is_inside(directory):
            return os.path.realpath(led)
        led = os.path.normpath(led)
        return led if self.is_inside(led) else ""

    def is_inside(self, path: str) -> bool:
        """Whether a path is said to lie in the workspace."""
        return self._inside(path) is not None

    def submodules(self, root: str, repository: str) -> list[str]:
        """Return the paths of all submodules of a repository, relative to the top of its worktree. Raises Hidden."""
        found: list[str] = []
        pending = [("", repository, 0)]
        seen = set[str]()
        while pending:
            above, directory, depth = pending.pop()
            for path in self._links(directory):
                inner = os.path.join(above, path)
                if os.path.isabs(path) or ".." in path.split("/") or inner in seen:
                    continue  # Git takes none that lead out
                seen.add(inner)
                if len(seen) > _MOST_SUBMODULES or depth == _DEEPEST:
                    raise HiddenRepositoryError
                found.append(inner)
                dot = f"{root}/{inner}/.git"
                if led := self.directory(dot):
                    pending.append((inner, led, depth + 1))
        return found

    def _links(self, directory: str) -> Iterator[str]:
        left = _LARGEST_INDEXES
        for name in ("index", *self._names(directory, "sharedindex.")):
            try:
                with open(self._file(f"{directory}/{name}"), "rb") as file:
                    data = file.read(left + 1)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise HiddenRepositoryError from error
            left -= len(data)
            if left < 0:
                raise HiddenRepositoryError
            if self._known is None and not any(mode in data for mode in _AS_GIT_WRITES):
                continue  # no task writes yet: an index of very many files needs no second look
            try:
                yield from _entries(data, self._hash_size(directory))
            except (struct.error, IndexError, ValueError) as error:
                raise HiddenRepositoryError from error

    def _hash_size(self, directory: str) -> int:
        common = self.common(directory)
        return 32 if common and is_sha256(self._text(f"{common}/config", directory)) else 20

    def _names(self, directory: str, beginning: str) -> list[str]:
        """Return the names in a directory that begin so; none where it can't be listed, or isn't there."""
        inside = self._inside(directory)
        try:
            place = (
                os.open(directory, os.O_RDONLY | os.O_DIRECTORY) if inside is None else inside[0].directory(inside[1])
            )
        except OSError:
            return []
        try:
            return [name for name in os.listdir(place) if name.startswith(beginning)]
        except OSError:
            return []
        finally:
            os.close(place)

    def _file(self, path: str) -> int:
        """Open a regular file to read it. Raises OSError."""
        inside = self._inside(path)
        if inside is None:
            return open_regular(os.open(path, os.O_PATH | os.O_CLOEXEC), path)
        return inside[0].file(inside[1])

    def _text(self, path: str, by: str) -> str:
        """Read a small file that the directory `by` names; empty where it is none, or `by` may not name it."""
        if not self.is_inside(by):
            return read(path)
        inside = self._inside(os.path.normpath(path))
        return "" if inside is None else read_beneath(*inside)

    def _inside(self, path: str) -> tuple[Tree, str] | None:
        """Return the workspace and a path relative to it, if that is said to lie in there."""
        if self._tree is None:
            return None
        above = self._workspace.rstrip("/")
        return (self._tree, path[len(above) + 1 :] or TOP) if path == above or path.startswith(f"{above}/") else None


def _entries(data: bytes, size: int) -> Iterator[str]:
    """Yield the paths of links. Raises Hidden for a directory that isn't written out."""
    mark, version, count = _HEAD.unpack_from(data)
    if mark != b"DIRC" or version not in {2, 3, 4}:
        raise ValueError
    if version == 4 and b"IEOT" in data:
        raise HiddenRepositoryError  # names don't all go on from the one before
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
            raise HiddenRepositoryError
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


class LinkedRepository(NamedTuple):
    """The parts of a repository elsewhere that a task is shown, as real paths."""

    shown: tuple[str, ...] = ()
    written: tuple[str, ...] = ()


NO_REPOSITORY: Final = LinkedRepository()


def find_linked_repository(workspace: str, lets: Callable[[str, str], bool]) -> LinkedRepository:
    """Return what of the repository that a workspace's `.git` names a task needs.

    `lets`: whether layers let a path be shown (`read`), or written (`write`).
    """
    dot = f"{workspace}/.git"
    try:
        if not stat.S_ISREG(os.lstat(dot).st_mode):
            return NO_REPOSITORY
        owner = os.stat(workspace)
        with acting_as(owner.st_uid, owner.st_gid):
            found = _find_common_directory(workspace, dot)
            if found is None or os.stat(found).st_uid != owner.st_uid or not os.access(found, os.R_OK | os.X_OK):
                return NO_REPOSITORY
        refuse_write(found, "/nonexistent", ())
    except (OSError, UsageError):
        return NO_REPOSITORY
    if not lets("read", found):
        return NO_REPOSITORY
    return LinkedRepository((found,), (found,) if lets("write", found) else ())


def list_other_worktrees(workspace: str, common: str) -> tuple[str, ...]:
    """Return what in a common directory isn't this worktree's, relative to it; nothing where it isn't its common one.

    Raises OSError.
    """
    dot = f"{workspace}/.git"
    if not os.path.isfile(dot):
        return ()
    owner = os.stat(workspace)
    with acting_as(owner.st_uid, owner.st_gid):
        own = os.path.realpath(parse_gitdir(dot, read(dot)))
    if os.path.dirname(own) != f"{common}/worktrees":
        return ()
    others = (name for name in sorted(os.listdir(f"{common}/worktrees")) if name != os.path.basename(own))
    return (*_OF_OTHERS, *(f"worktrees/{name}" for name in others))


def explain_hidden(workspace: str, shown: Iterable[str]) -> str:
    """Say that the repository of a workspace isn't shown to a task, and what helps; empty: it is, or there is none."""
    found = _find_repository(workspace)
    if found is None or any(contains(place, found.directory) for place in shown):
        return ""
    directory = shlex.quote(found.common)
    return (
        "`.git` leads to a repository elsewhere that the task isn't shown: "
        f"`--read {directory}` shows it, and `--write {directory}` lets the task commit"
    )


def explain_read_only(workspace: str, shown: Iterable[str], written: Iterable[str]) -> str:
    """Say that a reviewed task can't commit, as its repository is outside of the workspace; empty: it can."""
    found = _find_repository(workspace)
    if found is None or any(contains(place, found.directory) for place in (workspace, *written)):
        return ""
    if not any(contains(place, found.directory) for place in shown):
        return ""  # that is said otherwise (`explain_hidden`)
    return (
        f"the task can't commit: a review shows the repository of this workspace, `{found.directory}`, read-only. "
        "Review the main worktree, or let the task commit with `--direct`"
    )


def _find_repository(workspace: str) -> Repository | None:
    """Return the repository that a workspace's `.git` names, as a file or a link.

    An earlier task may have written it: a directory that is no repository is not named to the reader.
    """
    dot = f"{workspace}/.git"
    try:
        if stat.S_ISDIR(os.lstat(dot).st_mode):
            return None
        owner = os.stat(workspace)
        with acting_as(owner.st_uid, owner.st_gid):
            led = os.path.realpath(dot) if os.path.islink(dot) else parse_gitdir(dot, read(dot))
            directory = os.path.normpath(led)
            if not led or not os.path.isfile(f"{directory}/HEAD"):
                return None
            common = RepositoryReader().common(directory)
            return Repository(directory, common if os.path.isfile(f"{common}/HEAD") else directory)
    except OSError:
        return None


def _find_common_directory(workspace: str, dot: str) -> str | None:
    """Return the repository's common directory; None where there is none that names this workspace."""
    led = parse_gitdir(dot, read(dot))
    if not led:
        return None
    directory = os.path.realpath(led)
    common = RepositoryReader().common(directory)
    if contains(workspace, directory) or contains(workspace, common) or contains(common, workspace):
        return None
    if common == directory:
        tops = [each.value for each in parse_settings(read(f"{directory}/config")) if each.name == "core.worktree"]
        is_its = bool(tops) and os.path.realpath(os.path.join(directory, tops[-1])) == workspace
        return directory if is_its else None
    back = read(f"{directory}/gitdir").strip()
    is_its = os.path.realpath(os.path.join(directory, back)) == dot and contains(f"{common}/worktrees", directory)
    return common if back and is_its else None
