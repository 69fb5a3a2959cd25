"""Reading and writing the small files that a cgroup is driven by."""

import os


def put(path: str, text: str) -> None:
    """Write a file of the kernel's in one go. Raises OSError that names it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"write `{text}` to {path}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(descriptor)


def get(path: str) -> str:
    """Read one; nothing where there is none, or none for us."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall().decode("ascii", "replace")
    except OSError:
        return ""


def words(path: str) -> frozenset[str]:
    """Read one that is a list of words."""
    return frozenset(get(path).split())


def numbers(path: str) -> dict[str, int]:
    """Read one of lines like `oom_kill 3`; lines of another form are passed over."""
    found = {}
    for line in get(path).splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found


def whole(path: str) -> int | None:
    """Read one that is a number; None for `max`, for -1, and where there is none."""
    text = get(path).strip()
    return int(text) if text.isdigit() else None
