"""Places of a host by their paths: which are the system's, which are homes, and what lies in what."""

import os
from bisect import bisect_left
from collections.abc import Iterable

from enforcer.errors import UsageError

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store", "/gnu/store")
_SHARED = ("/tmp", "/var/tmp", "/dev/shm")
# A workspace that is one of these, or holds one, would make the system or every credential of a user writable.
_NEVER_WORKSPACE = (*SYSTEM, "/", "/boot", "/dev", "/home", "/proc", "/root", "/run", "/srv", "/sys", "/var", *_SHARED)
_TRUSTED = (*(place for place in SYSTEM if place != "/opt"), "/boot", "/dev", "/proc", "/run", "/sys")
_TREES = tuple(f"{place}/" for place in (*SYSTEM, "/dev", "/proc", "/run", "/sys"))  # in which no home lies
_NOBODYS = frozenset({"/", "/nonexistent", "/tmp", "/var", "/var/empty"})  # homes of accounts that have none


def contains(outer: str, inner: str) -> bool:
    """Whether `inner` is `outer` or lies below it."""
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def outermost(paths: Iterable[str]) -> list[str]:
    """Return those that lie in no other of them, sorted."""
    found: list[str] = []
    for path in sorted(paths, key=lambda path: f"{path.rstrip('/')}/"):  # what lies in one comes right behind it
        if not found or not contains(found[-1], path):
            found.append(path)
    return sorted(found)


class Shown:
    """Places that a task is shown, asked about many paths: each answer is a look-up, whatever their number."""

    def __init__(self, places: Iterable[str]) -> None:
        """Take places without symbolic links."""
        self._below = {f"{place.rstrip('/')}/": place for place in places}
        self._all = tuple(self._below)
        self._sorted = sorted(self._all)

    def hold(self, path: str) -> bool:
        """Whether one of them `contains` this."""
        return f"{path}/".startswith(self._all)

    def one_in(self, path: str) -> str | None:
        """Return one that this `contains`; None: none of them lies in it."""
        below = f"{path.rstrip('/')}/"
        at = bisect_left(self._sorted, below)
        there = at < len(self._sorted) and self._sorted[at].startswith(below)
        return self._below[self._sorted[at]] if there else None


def real(paths: Iterable[str]) -> list[str]:
    """Return where absolute paths really lie, as os.path.realpath has it; what several lie in is looked at once."""
    found = {"": ""}
    return [_real(path, found) or "/" if _is_plain(path) else os.path.realpath(path) for path in paths]


def _is_plain(path: str) -> bool:
    whole = f"{path}/"
    return path.startswith("/") and "//" not in whole and "/./" not in whole and "/../" not in whole


def _real(path: str, found: dict[str, str]) -> str:
    at = found.get(path)
    if at is None:
        above, _, name = path.rpartition("/")
        at = f"{_real(above, found)}/{name}"
        if os.path.islink(at):
            at = os.path.realpath(at).rstrip("/")
        found[path] = at
    return at


def shown_in(path: str, shown: Iterable[str]) -> str | None:
    """Return in which of some places a path lies, by its name or by where it leads; None: in none."""
    leads = os.path.realpath(path)
    return next((place for place in shown if contains(place, path) or contains(place, leads)), None)


def homes() -> frozenset[str]:
    """Every home of this host, as it really lies: of whoever runs this and of every account (passwd(5))."""
    found = {os.environ.get("HOME", ""), os.path.expanduser("~")}
    try:
        with open("/etc/passwd", encoding="utf-8", errors="surrogateescape") as file:
            found.update(fields[5] for line in file if len(fields := line.split(":")) > 5)
    except OSError:
        pass
    there = {*real(home for home in found if os.path.isabs(home))}
    return frozenset(home for home in there - _NOBODYS if not f"{home}/".startswith(_TREES))


def refuse_workspace(workspace: str, home: str, others: Iterable[str] | None = None) -> None:
    """Raise UsageError for a directory that can't be given to a task; `others` are the `homes`, if they are known."""
    for place in (*_NEVER_WORKSPACE, home, *sorted(homes() if others is None else others)):
        if contains(workspace, place):
            because = _why_never(workspace, place, home)
            raise UsageError(
                f"the directory `{workspace}` cannot be a task's to write: {because}; "
                "run from a project's own directory, or name one with --workspace"
            )


def _why_never(workspace: str, place: str, home: str) -> str:
    if workspace == home:
        return "it is your home, with your keys and your programs' configuration"
    if workspace in _SHARED:
        return "every program of this machine keeps files there"
    return f"it is or holds `{place}`"


def refuse_write(path: str, home: str, others: Iterable[str] | None = None) -> None:
    """Raise UsageError for a file or directory that can't be given to a task beside its workspace."""
    refuse_workspace(path, home, others)
    for place in _TRUSTED:
        if contains(place, path):
            raise UsageError(f"write: `{path}` lies in `{place}`, where other programs of this host take it for theirs")
