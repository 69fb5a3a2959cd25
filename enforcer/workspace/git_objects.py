"""Git in a scratch repository, which reads what a task left: its new objects before those that the workspace has.

The task's own repository is never Git's repository: nothing of its configuration, hooks, attributes or references is in
force here, and nothing is fetched. A loose object or a pack counts only where its content has the hash that it is
called by; else one name could mean two contents. Git runs as the workspace's owner, within bounds of time, memory and
output.

Sources: gitrepository-layout(5), git-verify-pack(1), git(1) "ENVIRONMENT VARIABLES"; for what Git prints of trees and
indexes, all asked for with `-z`: git-diff-tree(1) "RAW OUTPUT FORMAT", git-ls-tree(1), git-ls-files(1).
"""

import contextlib
import hashlib
import os
import re
import resource
import select
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from enforcer.workspace import safe_path
from enforcer.workspace.change_store import ChangeKind
from enforcer.workspace.safe_path import acting_as

_HASH: Final = "[0-9a-f]{40}(?:[0-9a-f]{24})?"
LOOSE: Final = re.compile(r"([0-9a-f]{2})/([0-9a-f]{38}(?:[0-9a-f]{24})?)")
PACKED: Final = re.compile(rf"pack/(pack-{_HASH})\.(pack|idx)")
# What Git leaves beside its objects and reads nothing out of that the objects don't say
HARMLESS: Final = re.compile(rf"info/packs|(?:[0-9a-f]{{2}}/|pack/)?tmp_[\w.-]*|pack/pack-{_HASH}\.(?:rev|keep)")
_MOST_BYTES: Final = 1 << 30  # of all new objects, packed; and of one, unpacked
_MOST_OUTPUT: Final = 128 << 20  # bytes
_SECONDS: Final = 120  # for all repositories of a task
_MEMORY: Final = 16 << 30  # bytes of addresses, in which packs are mapped
_CHUNK: Final = 1 << 16
_RLIMITS: Final = {resource.RLIMIT_AS: _MEMORY, resource.RLIMIT_CPU: _SECONDS, resource.RLIMIT_CORE: 0}
_OPTIONS: Final = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "core.commitGraph=false", "core.multiPackIndex=false",
    "core.attributesFile=/dev/null", "core.bigFileThreshold=16m", "protocol.allow=never", "pack.threads=1",
)  # fmt: skip
_ENVIRONMENT: Final = {
    "PATH": os.defpath,
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
}
GITLINK: Final = 0o160000
LINK: Final = 0o120000
_DEEPEST: Final = 100  # directories of an index
_WRITE: Final = "write-tree", "--missing-ok"


class UnreadableError(Exception):
    """Git data can't be inspected; the text says why."""


class ScratchRepository:
    """A bare repository of ours in a temporary directory, which `opened` removes."""

    def __init__(self, place: Path, owner: tuple[int, int], ends: float) -> None:
        """Take an empty directory, the user and group that Git runs as, and a `deadline`."""
        self._place = place
        self._owner = owner
        self._ends = ends
        self._left = _MOST_BYTES

    @classmethod
    @contextlib.contextmanager
    def opened(cls, owner: tuple[int, int], ends: float) -> Iterator["ScratchRepository"]:
        """Make one, that nothing is asked of after a `deadline`. Raises OSError."""
        with acting_as(*owner):  # and all that is written there is, as it could put links in its own directory
            place = tempfile.mkdtemp(prefix="exeat-git-")
        try:
            yield cls(Path(place), owner, ends)
        finally:
            with acting_as(*owner):
                shutil.rmtree(place, ignore_errors=True)

    def begin(self, objects: str, *, sha256: bool, shallow: bytes) -> None:
        """Lay it out over a directory of objects; empty: there is none. Raises UnreadableError, OSError."""
        if "\n" in objects:
            raise UnreadableError("the path of the repository has a line feed in it")
        extension = "[extensions]\nobjectFormat = sha256\n" if sha256 else ""
        version = 1 if sha256 else 0
        said = f"[core]\nrepositoryFormatVersion = {version}\nbare = true\n{extension}"
        with acting_as(*self._owner):
            for name in ("objects/info", "objects/pack", "refs"):
                (self._place / name).mkdir(parents=True)
            (self._place / "HEAD").write_text("ref: refs/heads/none\n")
            (self._place / "config").write_text(said)
            if objects:
                (self._place / "objects/info/alternates").write_bytes(os.fsencode(objects) + b"\n")
            if shallow:
                (self._place / "shallow").write_bytes(shallow)

    def add_loose(self, name: str, file: int) -> bool:
        """Take a loose object, by its path in `objects`, if it is what it is called. Closes the file.

        Raises UnreadableError.
        """
        with open(file, "rb", buffering=0) as source:
            self._spend(os.fstat(file).st_size)
            if not has_hash(source.fileno(), name.replace("/", ""), self._ends):
                return False
            os.lseek(file, 0, os.SEEK_SET)
            self._copy(source.fileno(), f"objects/{name}")
        return True

    def add_pack(self, name: str, files: Mapping[str, int]) -> bool:
        """Take a pack and its index, by their endings, if each object in it is what it is called; closes them.

        Raises UnreadableError.
        """
        for end, file in files.items():
            with open(file, "rb", buffering=0):
                self._spend(os.fstat(file).st_size)
                self._copy(file, f"objects/pack/{name}.{end}")
        try:
            if len(files) == 2:
                self.git("verify-pack", f"objects/pack/{name}.idx")
                return True
        except UnreadableError:
            if self._ends < time.monotonic():
                raise
        for end in files:
            self.remove_file(f"objects/pack/{name}.{end}")
        return False

    def add_file(self, name: str, said: bytes) -> None:
        """Take an index, or what belongs to one."""
        with acting_as(*self._owner):
            (self._place / name).write_bytes(said)

    def remove_file(self, name: str) -> None:
        """Forget a file again."""
        with acting_as(*self._owner):
            (self._place / name).unlink(missing_ok=True)

    def git(self, *words: str, lines: Iterable[str] = (), end: bytes = b"\n") -> bytes:
        """Run Git, with `lines` on its standard input; return its output. Raises UnreadableError."""
        options = [word for option in _OPTIONS for word in ("-c", option)]
        drops = {}  # without a change of user, Popen uses vfork(2): ten times faster from a process of 300 MB
        if os.geteuid() == 0 and self._owner != (0, 0):
            drops = {"user": self._owner[0], "group": self._owner[1], "extra_groups": ()}
        with tempfile.TemporaryFile() as asked:
            asked.writelines(os.fsencode(line) + end for line in lines)
            asked.seek(0)
            try:
                process = subprocess.Popen(
                    ["git", *options, *words],
                    stdin=asked,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    cwd=self._place,
                    env={**_ENVIRONMENT, "GIT_DIR": str(self._place)},
                    **drops,  # type: ignore[call-overload]
                )
            except OSError as error:
                raise UnreadableError(f"git can't be run on this host: {error.strerror}") from error
        try:
            for kind, most in _RLIMITS.items():
                with contextlib.suppress(OSError, ValueError):  # it has ended, or has less already
                    resource.prlimit(process.pid, kind, (most, most))
            out = self._output(process.stdout.fileno())
            process.wait()  # it has closed its output, and may use no more time than its limit
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
        if process.returncode:
            raise UnreadableError(f"`git {words[0]}` can't read it")
        return out

    def _output(self, pipe: int) -> bytes:
        out = bytearray()
        while select.select([pipe], [], [], max(self._ends - time.monotonic(), 0))[0]:
            chunk = os.read(pipe, _CHUNK)
            if not chunk:
                return bytes(out)
            out += chunk
            if len(out) > _MOST_OUTPUT:
                break
        raise UnreadableError("it is too large to inspect")

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise UnreadableError("its new objects are too large to inspect")

    def _copy(self, source: int, name: str) -> None:
        with acting_as(*self._owner):
            to = self._place / name
            to.parent.mkdir(exist_ok=True)
            with open(to, "xb", buffering=0) as file:
                safe_path.copy_sparse(source, file.fileno())


def deadline() -> float:
    """Return when looking has to end that begins now, by the monotonic clock."""
    return time.monotonic() + _SECONDS


def has_hash(file: int, name: str, ends: float) -> bool:
    """Whether an open file is a loose object of this name: zlib, whose content has that hash.

    What takes no room can be long unpacked, a thousand times. Raises UnreadableError at the `deadline`.
    """
    found = hashlib.sha256() if len(name) == 64 else hashlib.sha1(usedforsecurity=False)
    unpacking, size = zlib.decompressobj(), 0
    try:
        while not unpacking.eof:
            if time.monotonic() > ends:
                raise UnreadableError("inspecting its objects takes too long")
            packed = unpacking.unconsumed_tail or os.read(file, _CHUNK)
            plain = unpacking.decompress(packed, _CHUNK)
            if not packed and not plain:
                return False
            size += len(plain)
            if size > _MOST_BYTES:
                return False
            found.update(plain)
    except zlib.error:
        return False
    return found.hexdigest() == name


class Version(NamedTuple):
    """A file as a tree or an index has it: its mode, and the name of its content. Mode 0: it isn't there."""

    mode: int = 0
    name: str = ""

    @property
    def is_gitlink(self) -> bool:
        """Whether it is a commit of a submodule."""
        return self.mode == GITLINK

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return self.mode == LINK


NOTHING: Final = Version()


class Difference(NamedTuple):
    """One file that two trees have otherwise."""

    path: str
    where: str  # `commit 0123…`, `the index`
    was: Version
    now: Version

    @property
    def kind(self) -> ChangeKind:
        """What kind of change it is."""
        if not self.was.mode:
            return ChangeKind.ADDED
        return ChangeKind.CHANGED if self.now.mode else ChangeKind.DELETED


class Index(NamedTuple):
    """What an index has: files by path and stage, and the paths of which `git status` says nothing."""

    files: dict[tuple[str, str], Version]
    hidden: frozenset[str]  # skip-worktree, assume-unchanged


def parse_differences(out: bytes) -> Iterator[Difference]:
    """Read the output of `git diff-tree --stdin -r --raw -z`. Raises ValueError."""
    where = ""
    fields = iter(out.split(b"\0")[:-1])
    for field in fields:
        if not field.startswith(b":"):
            where = f"commit {field.split()[0].decode('ascii')}"
            continue
        was_mode, mode, was, now, _ = field[1:].decode("ascii").split(" ")
        yield Difference(os.fsdecode(next(fields)), where, _version(was_mode, was), _version(mode, now))


def parse_listing(out: bytes, where: str) -> Iterator[Difference]:
    """Read the output of `git ls-tree -r -z`, as if there were nothing before. Raises ValueError."""
    for line in out.split(b"\0")[:-1]:
        said, _, path = line.partition(b"\t")
        mode, _, name = said.decode("ascii").split(" ")
        yield Difference(os.fsdecode(path), where, NOTHING, _version(mode, name))


def index(out: bytes) -> Index:
    """Read the output of `git ls-files --stage -v -z`. Raises ValueError."""
    files: dict[tuple[str, str], Version] = {}
    hidden: set[str] = set()
    for line in out.split(b"\0")[:-1]:
        said, _, path = line.partition(b"\t")
        tag, mode, name, stage = said.decode("ascii").split(" ")
        files[os.fsdecode(path), stage] = _version(mode, name)
        if tag.islower() or tag == "S":
            hidden.add(os.fsdecode(path))
    return Index(files, frozenset(hidden))


def compare_indexes(before: Index, after: Index) -> Iterator[Difference]:
    """Yield how two indexes differ."""
    for path, stage in sorted({*before.files, *after.files}):
        was, now = (each.files.get((path, stage), NOTHING) for each in (before, after))
        if was != now:
            yield Difference(path, "the index", was, now)


def _version(mode: str, name: str) -> Version:
    number = int(mode, 8)
    return Version(number, name) if number else NOTHING


def are_others(scratch: "ScratchRepository", listed: "Index") -> bool:
    """Whether the index that lies in a scratch repository, as it was listed, remembers other trees than its files'.

    It has the names of trees that were written before (gitformat-index(5) "Cache tree"), at each directory where
    nothing was changed since, and `git commit` takes them without looking. A task may name another tree there, which
    the next commit alone has. Git reads it here too: each directory's tree is forgotten in turn, from the top, and
    what Git writes then has to stay the same. Changes the index. Raises UnreadableError.
    """
    if not listed.files:
        return False
    nobody = "0" * len(next(iter(listed.files.values())).name)
    _remove(scratch, nobody, {path for path, stage in listed.files if stage != "0"})  # of those Git writes no tree
    levels: list[set[str]] = [{""}]
    for directory in {os.path.dirname(path) for path, _ in listed.files}:
        parts = directory.split("/")
        for depth in range(1, len(parts) + 1) if directory else ():
            if depth > _DEEPEST:
                raise UnreadableError("an index has too many directories in each other")
            if depth == len(levels):
                levels.append(set())
            levels[depth].add("/".join(parts[:depth]) + "/")
    no_file = f"exeat-{os.urandom(8).hex()}"
    written = {scratch.git(*_WRITE)}
    for directories in levels:
        _remove(scratch, nobody, {f"{directory}{no_file}" for directory in directories})
        written.add(scratch.git(*_WRITE))
    return len(written) > 1


def _remove(scratch: "ScratchRepository", nobody: str, paths: set[str]) -> None:
    """Have Git forget files, which may not be there, and the trees of all directories that they would be in."""
    if paths:
        scratch.git("update-index", "-z", "--index-info", lines=(f"0 {nobody}\t{path}" for path in paths), end=b"\0")
