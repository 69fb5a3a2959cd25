"""Places of a host by their paths: which are the system's, which are homes, and what lies in what."""

import os
from collections.abc import Iterable

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store", "/gnu/store")
_NOBODYS = frozenset({"/", "/nonexistent", "/tmp", "/var", "/var/empty"})  # homes of accounts that have none


def contains(outer: str, inner: str) -> bool:
    """Whether `inner` is `outer` or lies below it."""
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def shown_in(path: str, shown: Iterable[str]) -> str | None:
    """Return in which of some places a path lies, by its name or by where it leads; None: in none."""
    real = os.path.realpath(path)
    return next((place for place in shown if contains(place, path) or contains(place, real)), None)


def homes() -> frozenset[str]:
    """Every home of this host, as it really lies: of whoever runs this and of every account (passwd(5))."""
    found = {os.environ.get("HOME", ""), os.path.expanduser("~")}
    try:
        with open("/etc/passwd", encoding="utf-8", errors="surrogateescape") as file:
            found.update(fields[5] for line in file if len(fields := line.split(":")) > 5)
    except OSError:
        pass
    real = {os.path.realpath(home) for home in found if os.path.isabs(home)}
    nobodys = (*SYSTEM, "/dev", "/proc", "/run", "/sys")
    return frozenset(home for home in real - _NOBODYS if not any(contains(place, home) for place in nobodys))
