"""Store of a task's changes until a user accepts or discards them: one directory for each task id.

meta.json       the task, and its workspace
lock            held by the writer: first the run itself
layers          directories of the overlay
base.jsonl      the workspace at the start (`Snapshot`); exists once it is complete
base            copies of changed files as they were at the start; `copies.jsonl` lists them
record.jsonl    the changes; exists once the task has ended and they are gathered (`overlay_changes`)
settled.jsonl   which changes were accepted or discarded
intents.jsonl   operations in progress in the workspace, for recovery after a crash
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from enforcer.system import state
from enforcer.system.errors import ExeatError, HostError
from enforcer.workspace.safe_path import MODE, Entry, EntryType
from proxy.wire import strict_json

if TYPE_CHECKING:
    from proxy.approvals.approval_request import Rule

ACCEPTED, DISCARDED = "accepted", "discarded"
_TRIES, _PAUSE = 100, 0.01  # seconds


class ChangeKind(StrEnum):
    """Kind of a change."""

    LEFT_OUT = "left out"  # a device, a socket or a FIFO: shown, and never carried over
    ADDED = "added"
    CHANGED = "changed"
    MODE = "mode"
    DELETED = "deleted"


class Change(NamedTuple):
    """Change to one path. A rename is one deleted and one added path."""

    path: str  # relative to the workspace; bytes that are not UTF-8 as PEP 383 has them
    known: bool  # whether `base` is what stood there when the task started
    base: Entry | None
    theirs: Entry | None  # what the task left; None: nothing
    digest: str = ""  # SHA-256 of the base's content in hex, where it was read
    copy: str = ""  # the name of a copy of the base's content, where there is one

    @property
    def kind(self) -> ChangeKind:
        """Kind of this change."""
        if self.theirs is None:
            return ChangeKind.DELETED
        if self.theirs.what not in _CARRIED:
            return ChangeKind.LEFT_OUT
        if self.base is None:
            return ChangeKind.ADDED
        is_mode = self.base.what is self.theirs.what is EntryType.DIRECTORY
        return ChangeKind.MODE if is_mode else ChangeKind.CHANGED

    @property
    def leads_out(self) -> bool:
        """Whether it is a symbolic link that may lead out of the workspace: an absolute path, or too many `..`."""
        if self.theirs is None or self.theirs.what is not EntryType.LINK:
            return False
        target = self.theirs.target
        if target.startswith("/"):
            return True
        # Whatever other links are on the way: a `..` behind the first name may start from anywhere.
        parts = target.split("/")
        ups = next((number for number, part in enumerate(parts) if part not in ("..", ".", "")), len(parts))
        above = sum(part == ".." for part in parts[:ups])
        return ".." in parts[ups:] or above > self.path.count("/")


_CARRIED = frozenset({EntryType.FILE, EntryType.LINK, EntryType.DIRECTORY})


def mode(entry: Entry) -> int:
    """Return the permission bits of a mode that changes carry."""
    return entry.mode & MODE if entry.what is not EntryType.LINK else MODE


def describe(changes: Iterable[Change]) -> str:
    """Return a count of changes of each kind, in words."""
    counts = Counter(change.kind for change in changes)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing"


class BusyError(ExeatError):
    """The task still runs, or another process is accepting or discarding its changes."""

    status = 1


@dataclass(frozen=True, slots=True)
class Meta:
    """Task that made the changes, and its workspace (`meta.json`)."""

    id: str
    name: str
    labels: Mapping[str, str]
    sandbox: str
    workspace: str  # a real path, and which directory it was
    device: int
    inode: int
    uid: int  # the workspace's owner
    gid: int
    began: int  # ns since 1970
    start: int  # ctime, in ns, of a file that was made before the task ran
    protected: tuple[str, ...]  # every glob that was in force
    journal: str  # the directory that the run wrote its journal to
    approval: tuple[Mapping[str, Any], ...] = ()  # whose approval merging what is protected takes, as JSON
    revision: str = ""  # of the policy that said so
    started_by: int = -1  # uid
    rule_files: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()  # of the workspace that have another name than `.git`

    @classmethod
    def read(cls, fields: object) -> Self:
        """Read it from JSON. Raises ValueError, also for an unknown field: it may be a condition."""
        if isinstance(fields, dict) and (unknown := fields.keys() - cls.__dataclass_fields__.keys()):
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        return msgspec.convert(fields, cls)

    def asks(self) -> "tuple[Rule, ...]":
        """Return the approvals that merging a protected path requires. Raises HostError."""
        if not self.approval:
            return ()
        from proxy.approvals.approval_request import Rule

        try:
            return tuple(map(Rule.read, self.approval))
        except ValueError as error:
            raise HostError(f"cannot read which approval the changes of `{self.id}` require: {error}") from error


def directory() -> Path:
    """Return the directory with the changes of every task."""
    return state.state_directory() / "changes"


class StoredChanges:
    """Stored changes of one task."""

    def __init__(self, place: Path, meta: Meta) -> None:
        """Take a directory from `create` or `find`."""
        self.place = place
        self.meta = meta
        self._lock = -1

    @classmethod
    def create(cls, meta: Meta) -> Self:
        """Make the directory for a task that is about to start, and lock it; fills in `start`. Raises HostError."""
        try:
            place = state.make_private(directory()) / meta.id
            stored = cls(place, meta)
            stored._make()
            for name in ("layers", "layers/upper", "layers/work", "base"):
                (place / name).mkdir(mode=0o700)
            start = os.stat(place / "lock").st_ctime_ns  # the clock that the kernel sets ctimes by
            stored.meta = Meta(**{**asdict(meta), "start": start})
            unfinished = place / "meta.unfinished"
            unfinished.write_text(json.dumps(asdict(stored.meta)), "ascii")
            unfinished.rename(place / "meta.json")
        except OSError as error:
            raise HostError(f"cannot make a directory for the task's changes: {error.strerror or error}") from error
        return stored

    def _make(self) -> None:
        """Make the directory, and lock it; tries again if a concurrent sweep removed it. Raises OSError."""
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError, BusyError):
                self.place.mkdir(mode=0o700, exist_ok=True)
                self.lock()
                if os.stat(self.place / "lock").st_ino == os.fstat(self._lock).st_ino:
                    return
            self.unlock()
            time.sleep(_PAUSE)
        raise OSError(errno.EAGAIN, "another process removes it")

    @property
    def upper(self) -> Path:
        """The overlay's upper layer."""
        return self.place / "layers" / "upper"

    @property
    def is_gathered(self) -> bool:
        """Whether the task has ended and its changes have been gathered."""
        return (self.place / "record.jsonl").exists()

    def lock(self) -> None:
        """Lock the store for this process. Raises BusyError."""
        descriptor = os.open(self.place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BusyError(
                f"the task `{self.meta.id}` still runs, or another process uses its changes; try again later"
            ) from None
        self._lock = descriptor

    def unlock(self) -> None:
        """Release the lock. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def is_busy(self) -> bool:
        """Whether another process has locked the store."""
        try:
            self.lock()
        except BusyError:
            return True
        self.unlock()
        return False

    def record(self, changes: Iterable[Change]) -> None:
        """Store gathered changes. Raises OSError."""
        unfinished = self.place / "record.unfinished"
        with open(unfinished, "w", encoding="ascii") as file:
            file.writelines(json.dumps(change) + "\n" for change in changes)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(self.place / "record.jsonl")

    def changes(self) -> list[Change]:
        """Return every change, in the order of their paths. Raises OSError or ValueError."""
        with open(self.place / "record.jsonl", encoding="ascii") as file:
            return [msgspec.convert(strict_json.loads(line), Change) for line in file]

    def settled(self) -> dict[str, str]:
        """Return `accepted` or `discarded` by path."""
        return {str(path): str(how) for path, how in self.lines("settled.jsonl")}

    def settle(self, paths: Iterable[str], how: str) -> None:
        """Store that these paths were accepted or discarded. Raises OSError."""
        with open(self.place / "settled.jsonl", "a", encoding="ascii") as file:
            file.writelines(json.dumps([path, how]) + "\n" for path in paths)
            file.flush()
            os.fsync(file.fileno())

    def open_intents(self) -> int:
        """Open the file of intent records for appending. Raises OSError."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.place / "intents.jsonl", flags, 0o600)

    def intents(self) -> list[list[object]]:
        """Return the intent records of an interrupted merge."""
        return self.lines("intents.jsonl")

    def clear_intents(self) -> None:
        """Remove the intent records."""
        (self.place / "intents.jsonl").unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the store. Raises OSError."""
        # First what makes it a task's changes: half of them are none
        (self.place / "meta.json").unlink(missing_ok=True)
        _clear(self.place)
        self.unlock()

    def lines(self, name: str) -> list[list[object]]:
        """Read an append-only file, without an unfinished last line."""
        try:
            text = (self.place / name).read_text("ascii")
        except FileNotFoundError:
            return []
        return [strict_json.loads(line) for line in text.split("\n")[:-1]]


def find() -> list[StoredChanges]:
    """Return the stored changes of every task, oldest first, and remove leftovers. Raises HostError."""
    found = []
    for place in directory().iterdir() if directory().is_dir() else ():
        try:
            found.append(StoredChanges(place, Meta.read(strict_json.loads((place / "meta.json").read_text("ascii")))))
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                _sweep(place)
        except (OSError, ValueError) as error:
            raise HostError(f"cannot read `{place}`: {error}") from error
    return sorted(found, key=lambda stored: stored.meta.began)


def _sweep(place: Path) -> None:
    """Remove directories whose creation or removal was interrupted: nobody has them locked. Raises OSError."""
    try:
        lock = os.open(place / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        place.rmdir()  # the lock is there before everything else, and goes last
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (place / "meta.json").exists():
            _clear(place)
    finally:
        os.close(lock)


def _clear(place: Path) -> None:
    """Remove a directory here, its lock file last. Raises OSError."""
    for entry in list(os.scandir(place)):
        if entry.is_dir(follow_symlinks=False):
            remove(Path(entry.path))
        elif entry.name != "lock":
            os.unlink(entry.path)
    (place / "lock").unlink(missing_ok=True)
    place.rmdir()


def remove(place: Path) -> None:
    """Remove a directory tree of any depth and with any modes. Raises OSError.

    A task can nest directories deeper than the longest path, so inner directories are moved up first.
    """
    place.chmod(0o700)
    number = 0
    pending = [place]
    while pending:
        at = pending[-1]
        inner = False
        with os.scandir(at) as entries:
            for entry in list(entries):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                os.chmod(entry.path, 0o700)
                try:
                    os.rmdir(entry.path)
                except OSError as error:
                    if error.errno != errno.ENOTEMPTY:
                        raise
                    target = Path(entry.path)
                    if at != place:
                        while (target := place / f"removed-{number}").exists():
                            number += 1
                        os.rename(entry.path, target)
                    pending.append(target)
                    inner = True
        if not inner:
            os.rmdir(at)
            pending.pop()
