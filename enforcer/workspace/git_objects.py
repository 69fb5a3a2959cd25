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
_MAX_BYTES: Final = 1 << 30  # of all new objects, packed; and of one, unpacked
_MAX_OUTPUT: Final = 128 << 20  # bytes
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
_MAX_DEPTH: Final = 100  # directories of an index
_WRITE_TREE: Final = "write-tree", "--missing-ok"


class UnreadableError(Exception):
    """Git data can't be inspected; the text is the reason."""


class ScratchRepository:
    """A bare repository of ours in a temporary directory, which `opened` removes."""

    def __init__(self, directory: Path, owner: tuple[int, int], deadline_time: float) -> None:
        """Take an empty directory, the user and group that Git runs as, and a `deadline`."""
        self._directory = directory
        self._owner = owner
        self._deadline = deadline_time
        self._bytes_left = _MAX_BYTES

    @classmethod
    @contextlib.contextmanager
    def opened(cls, owner: tuple[int, int], deadline_time: float) -> Iterator["ScratchRepository"]:
        """Make one that runs no command after a `deadline`. Raises OSError."""
        with acting_as(*owner):  # all writes there are by the owner, who could put links into the directory
            directory = tempfile.mkdtemp(prefix="exeat-git-")
        try:
            yield cls(Path(directory), owner, deadline_time)
        finally:
            with acting_as(*owner):
                shutil.rmtree(directory, ignore_errors=True)

    def initialise(self, objects: str, *, sha256: bool, shallow: bytes) -> None:
        """Make the repository over a directory of objects (empty: none). Raises UnreadableError, OSError."""
        if "\n" in objects:
            raise UnreadableError("the path of the repository has a line feed in it")
        extension = "[extensions]\nobjectFormat = sha256\n" if sha256 else ""
        version = 1 if sha256 else 0
        config = f"[core]\nrepositoryFormatVersion = {version}\nbare = true\n{extension}"
        with acting_as(*self._owner):
            for name in ("objects/info", "objects/pack", "refs"):
                (self._directory / name).mkdir(parents=True)
            (self._directory / "HEAD").write_text("ref: refs/heads/none\n")
            (self._directory / "config").write_text(config)
            if objects:
                (self._directory / "objects/info/alternates").write_bytes(os.fsencode(objects) + b"\n")
            if shallow:
                (self._directory / "shallow").write_bytes(shallow)

    def add_loose(self, name: str, file: int) -> bool:
        """Add a loose object, by its path in `objects`, if its name is its hash. Closes the file.

        Raises UnreadableError.
        """
        with open(file, "rb", buffering=0) as source:
            self._count_bytes(os.fstat(file).st_size)
            if not has_hash(source.fileno(), name.replace("/", ""), self._deadline):
                return False
            os.lseek(file, 0, os.SEEK_SET)
            self._copy(source.fileno(), f"objects/{name}")
        return True

    def add_pack(self, name: str, files: Mapping[str, int]) -> bool:
        """Add a pack and its index, by their endings, if the name of each object is its hash. Closes them.

        Raises UnreadableError.
        """
        for ending, file in files.items():
            with open(file, "rb", buffering=0):
                self._count_bytes(os.fstat(file).st_size)
                self._copy(file, f"objects/pack/{name}.{ending}")
        try:
            if len(files) == 2:
                self.git("verify-pack", f"objects/pack/{name}.idx")
                return True
        except UnreadableError:
            if self._deadline < time.monotonic():
                raise
        for ending in files:
            self.remove_file(f"objects/pack/{name}.{ending}")
        return False

    def add_file(self, name: str, content: bytes) -> None:
        """Write an index, or a file that belongs to one."""
        with acting_as(*self._owner):
            (self._directory / name).write_bytes(content)

    def remove_file(self, name: str) -> None:
        """Remove a file."""
        with acting_as(*self._owner):
            (self._directory / name).unlink(missing_ok=True)

    def git(self, *arguments: str, lines: Iterable[str] = (), line_end: bytes = b"\n") -> bytes:
        """Run Git, with `lines` on its standard input; return its output. Raises UnreadableError."""
        options = [word for option in _OPTIONS for word in ("-c", option)]
        drops = {}  # without a change of user, Popen uses vfork(2): ten times faster from a process of 300 MB
        if os.geteuid() == 0 and self._owner != (0, 0):
            drops = {"user": self._owner[0], "group": self._owner[1], "extra_groups": ()}
        with tempfile.TemporaryFile() as stdin:
            stdin.writelines(os.fsencode(line) + line_end for line in lines)
            stdin.seek(0)
            try:
                process = subprocess.Popen(
                    ["git", *options, *arguments],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    cwd=self._directory,
                    env={**_ENVIRONMENT, "GIT_DIR": str(self._directory)},
                    **drops,  # type: ignore[call-overload]
                )
            except OSError as error:
                raise UnreadableError(f"git can't be run on this host: {error.strerror}") from error
        try:
            for kind, limit in _RLIMITS.items():
                with contextlib.suppress(OSError, ValueError):  # it has ended, or has less already
                    resource.prlimit(process.pid, kind, (limit, limit))
            output = self._read_output(process.stdout.fileno())
            process.wait()  # it has closed its output, and may use no more time than its limit
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
        if process.returncode:
            raise UnreadableError(f"`git {arguments[0]}` can't read it")
        return output

    def _read_output(self, pipe: int) -> bytes:
        output = bytearray()
        while select.select([pipe], [], [], max(self._deadline - time.monotonic(), 0))[0]:
            chunk = os.read(pipe, _CHUNK)
            if not chunk:
                return bytes(output)
            output += chunk
            if len(output) > _MAX_OUTPUT:
                break
        raise UnreadableError("it is too large to inspect")

    def _count_bytes(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise UnreadableError("its new objects are too large to inspect")

    def _copy(self, source: int, name: str) -> None:
        with acting_as(*self._owner):
            target = self._directory / name
            target.parent.mkdir(exist_ok=True)
            with open(target, "xb", buffering=0) as file:
                safe_path.copy_sparse(source, file.fileno())


def deadline() -> float:
    """Return the end of an inspection that begins now, by the monotonic clock."""
    return time.monotonic() + _SECONDS


def has_hash(file: int, name: str, deadline_time: float) -> bool:
    """Whether an open file is a loose object of this name: zlib, whose content has that hash.

    A small object can be a thousand times larger when unpacked. Raises UnreadableError at the `deadline`.
    """
    digest = hashlib.sha256() if len(name) == 64 else hashlib.sha1(usedforsecurity=False)
    decompressor, size = zlib.decompressobj(), 0
    try:
        while not decompressor.eof:
            if time.monotonic() > deadline_time:
                raise UnreadableError("inspecting its objects takes too long")
            packed = decompressor.unconsumed_tail or os.read(file, _CHUNK)
            plain = decompressor.decompress(packed, _CHUNK)
            if not packed and not plain:
                return False
            size += len(plain)
            if size > _MAX_BYTES:
                return False
            digest.update(plain)
    except zlib.error:
        return False
    return digest.hexdigest() == name


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
    """A file that differs between two trees."""

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
    """Content of an index: files by path and stage, and the paths that `git status` doesn't show."""

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


def parse_listing(out: bytes, source: str) -> Iterator[Difference]:
    """Read the output of `git ls-tree -r -z`, as if there were nothing before. Raises ValueError."""
    for line in out.split(b"\0")[:-1]:
        fields, _, path = line.partition(b"\t")
        mode, _, name = fields.decode("ascii").split(" ")
        yield Difference(os.fsdecode(path), source, NOTHING, _version(mode, name))


def index(out: bytes) -> Index:
    """Read the output of `git ls-files --stage -v -z`. Raises ValueError."""
    files: dict[tuple[str, str], Version] = {}
    hidden: set[str] = set()
    for line in out.split(b"\0")[:-1]:
        fields, _, path = line.partition(b"\t")
        tag, mode, name, stage = fields.decode("ascii").split(" ")
        files[os.fsdecode(path), stage] = _version(mode, name)
        if tag.islower() or tag == "S":
            hidden.add(os.fsdecode(path))
    return Index(files, frozenset(hidden))


def compare_indexes(before: Index, after: Index) -> Iterator[Difference]:
    """Yield how two indexes differ."""
    for path, stage in sorted({*before.files, *after.files}):
        old_version, new_version = (index_of.files.get((path, stage), NOTHING) for index_of in (before, after))
        if old_version != new_version:
            yield Difference(path, "the index", old_version, new_version)


def _version(mode: str, name: str) -> Version:
    number = int(mode, 8)
    return Version(number, name) if number else NOTHING


def has_foreign_trees(scratch: "ScratchRepository", listed: "Index") -> bool:
    """Whether the cached trees of the index in a scratch repository differ from its files.

    An index has the names of trees for unchanged directories (gitformat-index(5) "Cache tree"), and `git commit` uses
    them unchecked. A task could put another tree there, which only the next commit would show. So this removes the
    cached tree of each directory in turn, from the top, and compares what Git writes: it must stay the same. Changes
    the index. Raises UnreadableError.
    """
    if not listed.files:
        return False
    nobody = "0" * len(next(iter(listed.files.values())).name)
    # Git writes no tree for an index with unmerged files.
    _remove_from_index(scratch, nobody, {path for path, stage in listed.files if stage != "0"})
    levels: list[set[str]] = [{""}]
    for directory in {os.path.dirname(path) for path, _ in listed.files}:
        components = directory.split("/")
        for depth in range(1, len(components) + 1) if directory else ():
            if depth > _MAX_DEPTH:
                raise UnreadableError("an index has too many directories in each other")
            if depth == len(levels):
                levels.append(set())
            levels[depth].add("/".join(components[:depth]) + "/")
    no_file = f"exeat-{os.urandom(8).hex()}"
    tree_names = {scratch.git(*_WRITE_TREE)}
    for directories in levels:
        _remove_from_index(scratch, nobody, {f"{directory}{no_file}" for directory in directories})
        tree_names.add(scratch.git(*_WRITE_TREE))
    return len(tree_names) > 1


def _remove_from_index(scratch: "ScratchRepository", nobody: str, paths: set[str]) -> None:
    """Remove files, which may not exist, from the index, and so the cached trees of their directories."""
    if paths:
        lines = (f"0 {nobody}\t{path}" for path in paths)
        scratch.git("update-index", "-z", "--index-info", lines=lines, line_end=b"\0")
