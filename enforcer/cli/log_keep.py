"""`exeat log keep`: how much of the journal is kept. Unless somebody says otherwise, all of it."""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

from enforcer import state
from enforcer.errors import HostError
from enforcer.keeping import place

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIMES = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


def run(arguments: argparse.Namespace, directory: Path) -> int:
    """Say or change it; 0 when that was done, 1 when it couldn't be, 2 for misuse."""
    from proxy.telemetry.journal.keeper import tend_now
    from proxy.telemetry.journal.keys import KeyProblem
    from proxy.telemetry.journal.retention import Keep

    try:
        state.make_private(state.state_directory())
        kept = place(directory) / "keep.json"
        keep = Keep.load(kept)
        if arguments.age is not None:
            keep = replace(keep, age=_amount(arguments.age, r"(\d{1,6})([hdw])", _TIMES, "--age", "90d"))
        if arguments.size is not None:
            keep = replace(keep, size=_amount(arguments.size, r"(\d{1,9})([KMGT]?)i?B?", _SIZES, "--size", "20G"))
        keep.save(kept)
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
    print(f"the journal is kept {age}, {size}")
    return 0


class _Misuse(Exception):  # noqa: N818  what is wrong, in words
    pass


def _amount(text: str, form: str, units: dict[str, int], option: str, example: str) -> int | None:
    if text == "none":
        return None
    found = re.fullmatch(form, text, re.ASCII)
    if found is None or int(found[1]) == 0:
        raise _Misuse(f"`{ascii(text)[1:-1]}` is nothing for `{option}`; write {example}, or none")
    return int(found[1]) * units[found[2]]
