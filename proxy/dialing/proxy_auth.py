"""Reads the login for the upstream proxy: one line, `user:password`, in a private file.

Implements invariant 8 for the login. The process that becomes the worker reads it, outside all sandboxes, from a file
that other users can't read, and sends it only to the proxy. It must never get into an event, log, page, argument or
environment, so not even errors contain it.
"""

import os
import stat
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from pathlib import Path

TOO_OPEN: Final = 0o077
_LONGEST: Final = 255  # bytes of a user and of a password (RFC 1929 section 2)
_LENGTH: Final = 2  # bytes


class LoginError(Exception):
    """The login file can't be used; the text says what is wrong with it, and contains nothing from it."""


class Login:
    """User and password for the upstream proxy."""

    __slots__ = ("password", "user")

    def __init__(self, user: bytes, password: bytes) -> None:
        self.user = user
        self.password = password

    def __eq__(self, other: object) -> bool:
        """Whether both are the same."""
        return isinstance(other, Login) and (self.user, self.password) == (other.user, other.password)

    def __hash__(self) -> int:
        """Return a hash of both."""
        return hash((self.user, self.password))

    def __repr__(self) -> str:
        """Show nothing."""
        return "Login(...)"

    def __reduce__(self) -> str:
        """Prevent pickling, so that no secret leaves the process by accident."""
        raise TypeError("a login is not to be pickled")


def read(path: "str | Path") -> Login:
    """Read a login from a regular file that is private to this user or root. Raises LoginError."""
    label = f"`{path}` (`upstream_auth`)"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _check_private(os.fstat(descriptor), label, path)
            return parse(os.read(descriptor, 4 * _LONGEST), str(path))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LoginError(f"{label} can't be read: {(error.strerror or str(error)).lower()}") from error


def _check_private(status: os.stat_result, label: str, path: "str | Path") -> None:
    if not stat.S_ISREG(status.st_mode):
        raise LoginError(f"{label} is not a plain file")
    if status.st_uid not in (0, os.geteuid()):
        raise LoginError(f"{label} belongs to uid {status.st_uid}, not to root or uid {os.geteuid()} that runs this")
    if status.st_nlink != 1:
        raise LoginError(f"{label} has other names (hard links), where a task could be shown it; make a copy of it")
    if status.st_mode & TOO_OPEN:
        raise LoginError(
            f"{label} is open to others (mode {stat.S_IMODE(status.st_mode):o}); "
            f"if nobody else can have read it, run `chmod 600 {path}`, else change the password too"
        )


def parse(data: bytes, path: str) -> Login:
    """Parse the line `user:password`. Raises LoginError."""
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    user, colon, password = line.partition(b":")
    if not colon or not user or not password:
        raise LoginError(f"`{path}` (`upstream_auth`) must hold one line, `user:password`")
    if any(byte < 0x20 or byte == 0x7F for byte in line):  # RFC 7617 section 2
        raise LoginError(f"`{path}` (`upstream_auth`) must hold one line, `user:password`, without control characters")
    if len(user) > _LONGEST or len(password) > _LONGEST:
        raise LoginError(f"`{path}` (`upstream_auth`) holds a user or a password of more than {_LONGEST} bytes")
    return Login(user, password)


def send(login: Login | None, file: BinaryIO) -> None:
    """Write a login, or that there is none, to a file that only the worker receives; `take` reads it."""
    for part in (b"", b"") if login is None else (login.user, login.password):
        data = len(part).to_bytes(_LENGTH) + part
        file.write(data)


def take(file: BinaryIO) -> Login | None:
    """Read what `send` wrote, and nothing after it. Raises ValueError."""
    parts = []
    for _ in range(2):
        size = int.from_bytes(_read_exactly(file, _LENGTH))
        parts.append(_read_exactly(file, size))
    return Login(*parts) if all(parts) else None


def _read_exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("the login is incomplete")
    return data
