"""`exeat log keep`: how much of the journal is kept; by default a year of it."""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

from enforcer.journal.signing import place
from enforcer.system import state
from enforcer.system.errors import HostError

_TIMES = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


def run(arguments: argparse.Namespace, directory: Path) -> int:
    """Say or change it; 0 when that was done, 1 when it couldn't be, 2 for misuse."""
    from enforcer.journal.keeper import tend_now
    from proxy.telemetry.journal.keys import KeyProblem
    from proxy.telemetry.journal.retention import Keep

    try:
        state.make_private(state.state_directory())
        kept = place(directory) / "keep.json"
        keep = Keep.load(kept)
        if arguments.age is not None:
            keep = replace(keep, age=_age(arguments.age))
        if arguments.size is not None:
            keep = replace(keep, size=_size(arguments.size))
        if arguments.age is not None or arguments.size is not None:
            keep.save(kept)
        default = "" if kept.exists() else ", by default"
        if arguments.now and directory.is_dir():
            tend_now(directory, place(directory))
    except _Misuse as error:
        print(f"exeat: {error}", file=sys.stderr)
        return 2
    except (HostError, OSError, ValueError, KeyProblem) as error:
        print(f"exeat: {error}", file=sys.stderr)
        return 1
    age = "for ever" if keep.age is None else f"for {keep.age / 86_400:g} days"
    size = "however much it is" if keep.size is None else f"up to {keep.size / (1 << 30):g} GiB"
    print(f"the journal is kept {age}, {size}{default}")
    return 0


class _Misuse(Exception):  # noqa: N818  what is wrong, in words
    pass


def _age(text: str) -> int | None:
    if text == "none":
        return None
    found = re.fullmatch(r"(\d{1,6})([hdw])", text, re.ASCII)
    if found is None or int(found[1]) == 0:
        raise _Misuse(f"invalid value `{ascii(text)[1:-1]}` for `--age`: use `90d` or the like, or `none`")
    return int(found[1]) * _TIMES[found[2]]


def _size(text: str) -> int | None:
    from rules.loading import values

    if text == "none":
        return None
    try:
        return values.size(text)
    except ValueError as error:
        raise _Misuse(f"`--size`: {error}; or write none") from error
