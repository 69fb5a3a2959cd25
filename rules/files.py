"""Reads rule files, and the public suffix list (publicsuffix.org/list): no other module of the rules opens a file."""

import os
import stat
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Final

_LARGEST: Final = 64 << 20  # bytes a file
_OTHERS_WRITE: Final = 0o022


def read_file(path: Path, *, trusted: bool = False) -> bytes:
    """Read a regular file of at most 64 MiB. Raises OSError, and ValueError with the problem.

    The open descriptor is checked, so the checked file is the one that is read. Opened with O_NONBLOCK, because a FIFO
    or device could block for ever. `trusted`: only root or the current user may own it or write to it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        if trusted and (status.st_uid not in {0, os.geteuid()} or status.st_mode & _OTHERS_WRITE):
            raise ValueError("others can write it; make it root's or yours, and `chmod go-w` it")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(_LARGEST + 1)
    finally:
        os.close(descriptor)
    if len(data) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
    return data


def user_configuration() -> Path | None:
    """Return the caller's configuration directory (XDG Base Directory Specification); None if there is no home."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if base.startswith("/"):  # the specification: a relative path is ignored
        return Path(base, "exeat")
    try:
        return Path.home() / ".config" / "exeat"
    except RuntimeError:
        return None


def describe_error(error: Exception) -> str:
    """Describe why a file could not be read."""
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)


_ICANN_END: Final = "// ===END ICANN DOMAINS==="


class Suffix(Enum):
    """Kind of registrant that can register names under a name."""

    PUBLIC = "public"  # anybody: com, co.uk
    PRIVATE = "private"  # customers of a provider: github.io
    NONE = "none"  # the owner of the name


def suffix_of_wildcard(below: str) -> Suffix:
    """Return the kind of registrant for names that a wildcard directly under the normalised name `below` matches.

    A rule `*.ck` of the list makes suffixes of the names below `ck`, so a wildcard under `ck` itself covers them too;
    and so does `*.amazonaws.com` with what stands under `s3.amazonaws.com`.
    """
    icann, private, above_private = _rules()
    _, _, parent = below.partition(".")
    for rules, kind in ((icann, Suffix.PUBLIC), (private, Suffix.PRIVATE)):
        listed = below in rules or f"*.{below}" in rules
        if listed or (f"*.{parent}" in rules and f"!{below}" not in rules):
            return kind
    return Suffix.PRIVATE if below in above_private else Suffix.NONE


@cache
def _rules() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Read the list from the data file of `publicsuffixlist`: its index takes longer to build than a task to start."""
    import publicsuffixlist  # 6 ms, and only rules with wildcards need it

    icann, _, private = Path(publicsuffixlist.PSLFILE).read_text("utf-8").partition(_ICANN_END)
    private_rules = _parse_suffixes(private)
    above = {rule.split(".", labels)[-1] for rule in private_rules for labels in range(1, rule.count(".") + 1)}
    return _parse_suffixes(icann), private_rules, frozenset(above)


def _parse_suffixes(section: str) -> frozenset[str]:
    """Read rules up to the first white space of each line; non-ASCII labels become A-labels."""
    lines = (line.split()[0] for line in section.splitlines() if line[:1].strip() and not line.startswith("//"))
    return frozenset(line if line.isascii() else _a_label(line) for line in lines)


def _a_label(rule: str) -> str:
    return ".".join(
        label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii") for label in rule.split(".")
    )
