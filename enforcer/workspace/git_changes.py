"""Finds protected files that the Git data among a task's changes brings: in commits, an index, a submodule.

A commit can contain a file that is not in the workspace, and the next push publishes it. So this module lists what a
merged reference, reflog or index makes reachable, and compares it, tree by tree, with the protected files:

    each commit that no reference of the workspace reaches     with each of its parents
    a reference that is moved                                  what it names with what it named
    an index                                                   with the workspace's index

Data that can't be inspected counts as protected: a name without an object, an object that doesn't match its name, a
file that Git trusts instead of its objects, and data beyond the limits.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.workspace.change_store import Change
from enforcer.workspace.git_objects import (
    HARMLESS,
    LOOSE,
    PACKED,
    Difference,
    Index,
    ScratchRepository,
    UnreadableError,
    Version,
    compare_indexes,
    deadline,
    has_foreign_trees,
    index,
    parse_differences,
    parse_listing,
)
from enforcer.workspace.protected_changes import Globs
from enforcer.workspace.repository import is_sha256
from enforcer.workspace.safe_path import TEXT_AT_MOST, Entry, EntryType, until_nul

if TYPE_CHECKING:
    from enforcer.workspace.merge_decision import MergeInputs

type _Read = Callable[[str], bytes]
type _IsProtected = Callable[[Change], bool]

_NAME: Final = re.compile(rb"(?<![0-9a-f])[0-9a-f]{40}(?:[0-9a-f]{24})?(?![0-9a-f])")
_WORKTREE: Final = r"(?:worktrees/[^/]+/)?"
_REFERENCE: Final = re.compile(rf"{_WORKTREE}(?:HEAD|refs/.+)")
_FOLLOWS_NONE: Final = re.compile(rf"{_WORKTREE}refs/(?!remotes/[^/]+/HEAD$).+")  # as Git makes them
_NAMES_OBJECTS: Final = re.compile(rf"{_WORKTREE}(?:[A-Z_]*HEAD|(?:refs|logs)/.+|packed-refs)")
_MAY_NAME_OBJECTS: Final = re.compile(rf"{_NAMES_OBJECTS.pattern}|{_WORKTREE}[A-Z_]+")
_INDEX: Final = re.compile(rf"{_WORKTREE}index")
_OF_BARE: Final = re.compile(r"(?:objects|modules|worktrees)/.+")
_LARGEST: Final = 64 << 20  # bytes of a file with names, and of an index
_MOST_COMMITS: Final = 20_000
_MOST_LOOKS: Final = 200  # sets of names that are looked at one by one
_MOST_FILES: Final = 1000  # versions of protected files that one change brings
_MOST_SHOWN: Final = 100  # of them, whose contents are read
_NOTHING: Final[Mapping[str, bytes | None]] = MappingProxyType({})
_DOT_GIT: Final = Globs([".git"])


class Found(NamedTuple):
    """Result of the inspection of one change to Git data."""

    files: tuple[Difference, ...] = ()  # protected ones that it brings; paths are relative to the workspace
    why: str = ""  # it is protected itself; empty: it is not
    contents: Mapping[str, bytes | None] = _NOTHING  # of those files, by their names; None: too large to show


def inspect(inputs: "MergeInputs", changes: Collection[Change], is_protected: _IsProtected) -> dict[str, Found]:
    """Inspect changes to Git data; return the results by path."""
    by_path = {change.path: change for change in changes}
    repositories: dict[str, dict[str, Change]] = {}
    for path, change in by_path.items():
        place = _repository(path, inputs.stored.meta.repositories)
        if place is not None and path != place:
            place = _find_submodule(inputs, by_path, place, path)
            repositories.setdefault(place, {})[path.removeprefix(f"{place}/") if place else path] = change
    found: dict[str, Found] = {}
    ends = deadline()  # a task can make any number of repositories
    for place, inside in repositories.items():
        try:
            found.update(_Repository(inputs, place, inside, is_protected).inspect(ends))
        except (UnreadableError, OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else str(error)
            why = f"Exeat can't read what it contains: {said}"
            found.update((each.path, Found(why=why)) for each in inside.values() if not _is_directory(each))
    return found


def _repository(path: str, places: Collection[str]) -> str | None:
    """Return the repository that a path lies in; empty: the workspace is one."""
    for place in places:
        if place != "." and path.startswith(f"{place}/"):
            return place
    parts = path.split("/")
    for depth, part in enumerate(parts, 1):
        if _is_dot_git(part):
            return "/".join(parts[:depth])
    of_bare = any(each.fullmatch(path) for each in (_MAY_NAME_OBJECTS, _INDEX, _OF_BARE))
    return "" if "." in places and of_bare else None


@cache
def _is_dot_git(name: str) -> bool:
    return name == ".git" or _DOT_GIT.match(name)


def _find_submodule(inputs: "MergeInputs", changes: Collection[str], place: str, path: str) -> str:
    """Return the repository of the submodule that a path in `modules` lies in; else the one that it was found in."""
    parts = path.removeprefix(f"{place}/").split("/") if place else path.split("/")
    at = place
    while parts[0] == "modules":
        names = ("/".join(parts[:end]) for end in range(2, len(parts)))
        inner = next((name for name in names if _exists(inputs, changes, _join(at, f"{name}/HEAD"))), None)
        if inner is None:
            break
        at, parts = _join(at, inner), parts[inner.count("/") + 1 :]
    return at


def _exists(inputs: "MergeInputs", changes: Collection[str], path: str) -> bool:
    try:
        with inputs.acting():
            return path in changes or inputs.workspace.stat(path) is not None
    except OSError:
        return False


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


class _Repository:
    """One repository, as the workspace has it and as the task left it."""

    def __init__(self, inputs: "MergeInputs", place: str, changes: Mapping[str, Change], covers: _IsProtected) -> None:
        self._inputs = inputs
        self._place = place
        self._changes = changes  # by their paths in it
        self._covers = covers
        above, _, module = place.partition("/modules/")
        self._prefix = f"{module.replace('/modules/', '/')}/" if module else above.rpartition("/")[0]
        self._prefix = f"{self._prefix.rstrip('/')}/" if self._prefix else ""
        self._files = {name: change for name, change in changes.items() if not _is_directory(change)}
        self._scratch: ScratchRepository
        self._results: dict[frozenset[str], tuple[Difference, ...]] = {}
        self._old_references: dict[str, str] = {}  # what the workspace's references name
        self._reachable: frozenset[str] = frozenset()  # the commits behind those

    def inspect(self, ends: float) -> dict[str, Found]:
        """Inspect the repository until the deadline `ends`. Raises UnreadableError, OSError, ValueError."""
        found = {
            change.path: Found(why=why) for name, change in self._files.items() if (why := self._explain_unusual(name))
        }
        meta = self._inputs.stored.meta
        with ScratchRepository.opened((meta.uid, meta.gid), ends) as self._scratch:
            self._prepare_scratch()
            if odd := [*self._find_invalid_objects()]:
                found.update((self._files[name].path, Found(why="it does not match its object name")) for name in odd)
                found.update(self._hold_deletions("objects/", Found(why="its replacement is protected")))
            for name, files, why in (*self._inspect_references(), *self._inspect_indexes()):
                if not files and not why:
                    continue
                one = Found(files, why, self._contents(files))
                found.setdefault(self._files[name].path, one)
                if name == "packed-refs":
                    found.update(self._hold_deletions("refs/", one))
        return found

    def _hold_deletions(self, beginning: str, found: Found) -> dict[str, Found]:
        """Hold the deletion of packed files until the pack is accepted."""
        gone = (change for name, change in self._files.items() if change.theirs is None and name.startswith(beginning))
        return {change.path: found for change in gone}

    def _explain_unusual(self, name: str) -> str:
        """Say why Git would not create such a file there, or would trust it instead of its objects; empty: neither."""
        theirs = self._files[name].theirs
        if theirs is None:
            return ""
        if theirs.what is EntryType.LINK:
            return "it is a symbolic link inside a repository"
        inner = name.removeprefix("objects/")
        if inner == name or any(each.fullmatch(inner) for each in (LOOSE, PACKED, HARMLESS)):
            return ""
        return "Git trusts it instead of its objects; discard it, and Git creates it again"

    def _read_before(self, name: str) -> bytes:
        """Read a file as the workspace has it; empty where there is none. Raises UnreadableError, OSError."""
        path = _join(self._place, name)
        with self._inputs.acting():
            entry = self._inputs.workspace.stat(path)
            if entry is None or entry.what is EntryType.DIRECTORY:
                return b""
            file = self._inputs.workspace.file(path)
        return _read_whole(file)

    def _read_after(self, name: str) -> bytes:
        """Read a file as it is once all is merged. Raises UnreadableError, OSError."""
        change = self._files.get(name)
        if change is None:
            return self._read_before(name)
        is_file = change.theirs is not None and change.theirs.what is EntryType.FILE
        return _read_whole(self._inputs.open_new(change)) if is_file else b""

    def _prepare_scratch(self) -> None:
        """Set up the scratch repository, without the objects of the task."""
        sha256 = is_sha256(until_nul(self._read_before("config") or self._read_after("config")))
        objects = _join(self._place, "objects")
        whole = f"{self._inputs.stored.meta.workspace.rstrip('/')}/{objects}"
        there = whole if _exists(self._inputs, (), objects) else ""
        self._scratch.initialise(there, sha256=sha256, shallow=self._read_before("shallow"))
        self._old_references = self._resolve_references(self._list_references(), self._read_before)
        self._reachable = frozenset(self._peel(self._old_references.values()).values())

    def _list_references(self) -> Iterator[str]:
        """Yield the paths of the workspace's references."""
        yield "HEAD"
        pending = ["refs", "worktrees"]
        while pending:
            at = pending.pop()
            try:
                with self._inputs.acting():
                    entries = list(self._inputs.workspace.entries(_join(self._place, at)))
            except OSError:
                continue  # what can't be listed reaches nothing
            pending += [f"{at}/{name}" for name, entry in entries if entry.what is EntryType.DIRECTORY]
            files = (f"{at}/{name}" for name, entry in entries if entry.what is EntryType.FILE)
            yield from (path for path in files if _REFERENCE.fullmatch(path))

    def _resolve_references(self, paths: Iterable[str], read: _Read) -> dict[str, str]:
        """Return the objects that references name: packed ones, and files before those."""
        lines = (line.split() for line in read("packed-refs").splitlines() if not line.startswith((b"#", b"^")))
        found: dict[str, str] = {}
        for fields in lines:
            if len(fields) != 2:
                continue
            packed = fields[1].decode("utf-8", "replace")
            if packed in found:  # which of the two Git takes is chance
                raise UnreadableError("packed-refs lists a reference twice")
            found[packed] = fields[0].decode().lower()
        for path in paths:
            said = read(path)
            if not said.startswith(b"ref:") and (names := _object_names(said)):
                found[path] = names[0].decode()
        return found

    def _find_invalid_objects(self) -> Iterator[str]:
        """Add the task's objects to the scratch repository; yield the paths of invalid ones."""
        packs: dict[str, dict[str, int]] = {}
        for name, change in self._files.items():
            inner = name.removeprefix("objects/")
            if inner == name or change.theirs is None or change.theirs.what is not EntryType.FILE:
                continue
            if LOOSE.fullmatch(inner) and not self._scratch.add_loose(inner, self._inputs.open_new(change)):
                yield name
            if match := PACKED.fullmatch(inner):
                packs.setdefault(match[1], {})[match[2]] = self._inputs.open_new(change)
        for pack, files in packs.items():
            if not self._scratch.add_pack(pack, files):
                yield from (f"objects/pack/{pack}.{end}" for end in files)

    def _inspect_references(self) -> Iterator[tuple[str, tuple[Difference, ...], str]]:
        """Yield each change that names objects, the protected files that it brings, and why it is protected itself."""
        anew: dict[str, set[str]] = {}
        for name in self._files:
            if _MAY_NAME_OBJECTS.fullmatch(name):
                found = {*_object_names(self._read_after(name))} - {*_object_names(self._read_before(name))}
                anew[name] = {each.decode() for each in found if each.strip(b"0")}
        peeled = self._peel(each for every in anew.values() for each in every)
        moved = self._find_moved_references()
        for name, every in anew.items():
            missing = sorted(every - {*peeled})
            if missing and _NAMES_OBJECTS.fullmatch(name):
                yield name, (), f"it names {missing[0]}, and there is no such object"
            elif _FOLLOWS_NONE.fullmatch(name) and self._read_after(name).startswith(b"ref:"):
                yield name, (), "it is a symbolic reference to another one, and takes over its commits"
            elif name == "packed-refs" and b"refs/replace/" in self._read_after(name):
                yield name, (), "it makes Git replace objects (refs/replace)"
            else:
                yield (
                    name,
                    self._find_protected({peeled[each] for each in every & {*peeled}} | moved.get(name, set())),
                    "",
                )

    def _find_moved_references(self) -> dict[str, set[str]]:
        """Return what to compare for each change by which a reference names another object: `new old`."""
        paths = {*self._old_references, *self._files}
        now = self._resolve_references((path for path in paths if _REFERENCE.fullmatch(path)), self._read_after)
        pairs = {name: (now[name], was) for name, was in self._old_references.items() if now.get(name, was) != was}
        peeled = self._peel(each for pair in pairs.values() for each in pair)
        found: dict[str, set[str]] = {}
        for name, (new, was) in pairs.items():
            if new in peeled and was in peeled:
                by = name if name in self._files else "packed-refs"
                found.setdefault(by, set()).add(f"{peeled[new]} {peeled[was]}")
        return found

    def _peel(self, names: Iterable[str]) -> dict[str, str]:
        """Return what is behind each name of an object: of a tag what it is for, at last, else the object itself."""
        ask = "cat-file", "--batch-check=%(objectname)"
        answers = self._scratch.git(*ask, lines=sorted({*names})).decode().splitlines()
        there = [line for line in answers if " " not in line]
        last = self._scratch.git(*ask, lines=(f"{each}^{{}}" for each in there)).decode().splitlines()
        return {name: name if " " in each else each for name, each in zip(there, last, strict=True)}

    def _find_protected(self, wanted: Collection[str]) -> tuple[Difference, ...]:
        """Return the protected files in what these commits, trees and moves make reachable."""
        new = frozenset(wanted) - self._reachable
        if new and new not in self._results:
            if len(self._results) == _MOST_LOOKS:
                raise UnreadableError("it has too many references to inspect")
            self._results[new] = tuple(self._filter_protected(self._compare(new)))
        return self._results[new] if new else ()

    def _compare(self, new: Collection[str]) -> Iterator[Difference]:
        git = self._scratch.git
        moves = [each for each in new if " " in each]
        tips = [each for each in new if " " not in each]
        kinds = dict(zip(tips, self._object_types(tips), strict=True))
        old = sorted(self._reachable)
        ends = (f"^{each}" for each, kind in zip(old, self._object_types(old), strict=True) if kind == "commit")
        heads = [each for each in tips if kinds[each] == "commit"]
        most = f"--max-count={_MOST_COMMITS + 1}"
        commits = git("rev-list", most, "--stdin", lines=(*heads, *ends)).decode().split() if heads else []
        if len(commits) > _MOST_COMMITS:
            raise UnreadableError(f"it brings more than {_MOST_COMMITS} commits")
        words = "diff-tree", "--stdin", "-r", "-m", "--root", "--raw", "-z", "--no-renames", "--no-abbrev"
        yield from parse_differences(git(*words, "--no-ext-diff", "--no-textconv", lines=(*commits, *moves)))
        for each in tips:
            if kinds[each] == "tree":
                yield from parse_listing(git("ls-tree", "-r", "-z", "--full-tree", each), f"tree {each}")

    def _object_types(self, names: Iterable[str]) -> list[str]:
        return self._scratch.git("cat-file", "--batch-check=%(objecttype)", lines=names).decode().splitlines()

    def _filter_protected(self, every: Iterable[Difference]) -> Iterator[Difference]:
        """Yield the protected files, each once."""
        there: set[tuple[str, Version, Version]] = set()
        for each in every:
            key = each.path, each.was, each.now
            if key in there or not self._is_protected(each):
                continue
            there.add(key)
            if len(there) > _MOST_FILES:
                raise UnreadableError(f"it brings more than {_MOST_FILES} versions of protected files")
            yield each._replace(path=f"{self._prefix}{each.path}")

    def _is_protected(self, each: Difference) -> bool:
        if each.was.is_gitlink or each.now.is_gitlink:
            return True  # whose files nobody has looked at
        was, now = self._entry(each.was), self._entry(each.now)
        paths = {each.path, f"{self._prefix}{each.path}"}
        return any(self._covers(Change(path, True, was, now)) for path in paths)

    def _entry(self, version: Version) -> Entry | None:
        if not version.mode:
            return None
        if not version.is_link:
            return Entry(EntryType.FILE, version.mode & 0o777, 0)
        target = self._content(version.name)
        return Entry(
            EntryType.LINK, 0o777, 0, target="/" if target is None else target.decode("utf-8", "surrogateescape")
        )

    def _content(self, name: str) -> bytes | None:
        """Return a blob, if there is one and it can be shown."""
        size = self._scratch.git("cat-file", "--batch-check=%(objectsize)", lines=[name]).strip()
        is_small = size.isdigit() and int(size) <= TEXT_AT_MOST
        return self._scratch.git("cat-file", "blob", name) if is_small else None

    def _contents(self, files: Iterable[Difference]) -> dict[str, bytes | None]:
        versions = {version for each in [*files][:_MOST_SHOWN] for version in (each.was, each.now)}
        return {each.name: self._content(each.name) for each in versions if each.mode and not each.is_gitlink}

    def _inspect_indexes(self) -> Iterator[tuple[str, tuple[Difference, ...], str]]:
        """Yield each index that is changed, the protected files that it brings, and what it hides anew."""
        for name in self._files:
            if not _INDEX.fullmatch(name):
                continue
            before, (after, is_odd) = self._index(name, self._read_before)[0], self._index(name, self._read_after)
            hidden = sorted(after.hidden - before.hidden)
            more = f" and {len(hidden) - 1} more" if len(hidden) > 1 else ""
            why = (
                f"it makes Git ignore changes of {hidden[0]}{more} (skip-worktree, assume-unchanged)" if hidden else ""
            )
            if is_odd:
                why = "its cached trees differ from its files: discard it, and `git reset` creates it again"
            yield name, tuple(self._filter_protected(compare_indexes(before, after))), why

    def _index(self, name: str, read: _Read) -> tuple[Index, bool]:
        """Read an index, and whether it remembers other trees than its files'."""
        said = read(name)
        if not said:
            return index(b""), False
        above = name.removesuffix("index")
        shared = [
            each for each in self._split_index_files(above) if (content := read(each)) and self._add(each, content)
        ]
        self._scratch.add_file("index", said)
        try:
            listed = index(self._scratch.git("ls-files", "--stage", "-v", "-z"))
            return listed, read == self._read_after and has_foreign_trees(self._scratch, listed)
        finally:
            for each in ("index", *(each.rpartition("/")[2] for each in shared)):
                self._scratch.remove_file(each)

    def _add(self, name: str, said: bytes) -> bool:
        self._scratch.add_file(name.rpartition("/")[2], said)
        return True

    def _split_index_files(self, above: str) -> set[str]:
        """Return the paths of the files that an index may be split into."""
        found = {name for name in self._files if name.startswith(f"{above}sharedindex.")}
        try:
            with self._inputs.acting():
                entries = list(self._inputs.workspace.entries(_join(self._place, above.rstrip("/")) or "."))
        except OSError:
            return found
        return found | {f"{above}{name}" for name, _ in entries if name.startswith("sharedindex.")}


def _object_names(said: bytes) -> list[bytes]:
    """Return the names of objects in a text. Git reads them in capitals, too."""
    return _NAME.findall(said.lower())


def _is_directory(change: Change) -> bool:
    entry = change.theirs or change.base
    return entry is not None and entry.what is EntryType.DIRECTORY


def _read_whole(file: int) -> bytes:
    with open(file, "rb") as opened:
        found = opened.read(_LARGEST + 1)
    if len(found) > _LARGEST:
        raise UnreadableError("a file is too large to inspect")
    return found
