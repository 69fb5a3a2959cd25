"""Where this process stands in the host's cgroups: version 2, version 1, or some of each (cgroups(7)).

Read anew for each task: another program (systemd, a container's engine) may move us at any time.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from enforcer.limits.files import words

V2 = 2
_ESCAPE = r"\\([0-7]{3})"


class Hierarchy(NamedTuple):
    """A tree of groups. Paths are directories: where it is mounted, and the group that this process is in."""

    version: int
    controllers: frozenset[str]  # of version 2: those that could be had anywhere in it
    top: str
    own: str


def hierarchies() -> list[Hierarchy]:
    """Return those that this process can see itself in: none of a kernel without cgroups."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            groups = file.read()
    except FileNotFoundError:
        return []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [line for line in file if " - cgroup" in line]
    return list(placed(groups, mounts))


def placed(groups: str, mounts: list[str]) -> Iterator[Hierarchy]:
    """Find the directory of each group of /proc/self/cgroup among lines of mountinfo; once for each hierarchy."""
    parsed = [_mount(line) for line in mounts]
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        names = frozenset(controllers.split(",")) - {""}
        for root, top, version, options in parsed:
            if version == V2 if not names else (version == 1 and names <= options):
                inside = _below(root, path)
                if inside is not None:
                    yield Hierarchy(version, names or _offered(top), top, top + inside)
                    break


def _mount(line: str) -> tuple[str, str, int, frozenset[str]]:
    """Root, mount point, version and options of one line of mountinfo (proc_pid_mountinfo(5))."""
    before, _, after = line.partition(" - ")
    fields, (kind, *rest) = before.split(), after.split()
    root, top = (_unescaped(field) for field in fields[3:5])
    return root, top.rstrip("/"), V2 if kind == "cgroup2" else 1, frozenset(rest[-1].split(","))


def _unescaped(field: str) -> str:
    return re.sub(_ESCAPE, lambda match: chr(int(match[1], 8)), field) if "\\" in field else field


def _below(root: str, path: str) -> str | None:
    """Return where `path` lies below a mount whose root is `root`; None: it shows another part of the tree."""
    if path.startswith("/.."):  # outside of our cgroup namespace
        return None
    if root == "/":
        return path.rstrip("/")
    return path.removeprefix(root) if path == root or path.startswith(root + "/") else None


def _offered(top: str) -> frozenset[str]:
    return words(f"{top}/cgroup.controllers")
