"""Reads client configuration only from files that no task can have written.

A file counts if root or this user owns it and every directory above it, nobody else may write them, and it is in no
workspace. This module must never run a program: the one on the path may be the checkout's own.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Final

_LARGEST: Final = 4 << 20  # bytes
_OTHERS_WRITE: Final = 0o022


@dataclass(slots=True)
class Machine:
    """Machine with its configuration files. `notes` collects files that were ignored."""

    home: Path
    workspaces: tuple[Path, ...] = ()
    root: Path = Path("/")
    notes: list[str] = field(default_factory=list)

    def system(self, path: str) -> Path:
        """Return a path of the system, given without its first slash."""
        return self.root / path

    def found(self, *patterns: str) -> list[Path]:
        """List the existing paths of the system that match globs with `*` and `**`."""
        return [Path(path) for pattern in patterns for path in sorted(glob(str(self.root / pattern), recursive=True))]

    def text(self, path: Path) -> str | None:
        """Read a file; None if it does not exist, or may not be trusted."""
        data = self.data(path)
        if data is None:
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.notes.append(f"{path} was not read: it is not UTF-8")
            return None

    def data(self, path: Path) -> bytes | None:
        """Read the bytes of a file; None if it does not exist, or may not be trusted."""
        try:
            real = path.resolve(strict=True)
            why = self._why_not(real)
            if why is None:
                with real.open("rb") as file:
                    data = file.read(_LARGEST + 1)
                if len(data) <= _LARGEST:
                    return data
                why = f"it is larger than {_LARGEST >> 20} MiB"
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, RuntimeError) as error:
            why = str(getattr(error, "strerror", None) or error).lower()
        self.notes.append(f"{path} was not read: {why}")
        return None

    def _why_not(self, real: Path) -> str | None:
        inside = next((place for place in self.workspaces if real.is_relative_to(place)), None)
        if inside is not None:
            return f"it lies in the workspace {inside}, where a task can write"
        status = real.stat()
        if not stat.S_ISREG(status.st_mode):
            return "it is not a file"
        sticky = False
        for place in (real, *real.parents):
            if place == self.root.parent:
                break
            status = place.stat()
            if status.st_uid not in {0, os.geteuid()}:
                return f"{place} belongs to uid {status.st_uid}"
            sticky = stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
            if status.st_mode & _OTHERS_WRITE and not sticky:
                return f"{place} can be written by others"
        return None


def this_machine(workspaces: Iterable[Path]) -> Machine:
    """Return this machine. A workspace that `exeat run` refuses, such as a home, does not count."""
    import pwd

    from enforcer.sandbox.system_paths import refuse_workspace
    from enforcer.system.errors import ExeatError, HostError

    try:
        home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        # `HOME` is the environment's, and of that nothing is believed.
        message = f"uid {os.geteuid()} is no user of this machine, so nobody knows where its clients' settings are"
        raise HostError(f"{message}: give it a line in `/etc/passwd`, or let root lock for everybody") from None
    places: list[Path] = []
    for path in workspaces:
        real = path.resolve()
        try:
            refuse_workspace(str(real), str(home))
        except ExeatError:
            continue
        places.append(real)
    return Machine(home, tuple(places))
