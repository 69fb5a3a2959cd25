"""`exeat log verify`, `keys` and `retention`: verifies the journal, manages its keys, and sets its retention.

Private halves of keys are never shown or written elsewhere.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from enforcer.cli.journals import require_journal
from enforcer.cli.log import escape_unprintable
from enforcer.cli.output import count_of, warn
from enforcer.journal.keeper import seal_ended, tend_now
from enforcer.journal.signing import keeper_directory, keys_directory
from enforcer.system import state
from enforcer.system.errors import UsageError
from proxy.telemetry.events import Kind, Mark
from proxy.telemetry.journal.keys import (
    SigningKeyError,
    create_key,
    current_key_id,
    format_public_key,
    load_public_keys,
    load_signer,
    read_public,
    rotate_key,
    to_pem,
)
from proxy.telemetry.journal.ledger import Ledger, LedgerEntry
from proxy.telemetry.journal.retention import RetentionPolicy
from proxy.telemetry.journal.segment_check import Keys
from proxy.telemetry.journal.verify import Report, verify
from proxy.telemetry.visible import visible
from rules.loading import fields
from rules.problems import did_you_mean, quote

_ACTIONS = ("list", "make", "export", "rotate")
_TIMES = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


def run_verify(arguments: argparse.Namespace, directory: Path) -> int:
    """Look at all of it. 0: intact; 1: it isn't, or nobody has signed it; 2: it can't be looked at."""
    directory = Path(arguments.what) if arguments.what is not None else directory
    require_journal(directory)
    try:
        report = verify(directory, _trusted(arguments.key), _copied_lines(arguments.copy), _Progress())
    except (OSError, SigningKeyError) as error:
        said = f"cannot read `{error.filename}`: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise UsageError(said) from error
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    return _say(report, arguments.format)


def _trusted(file: Path | None) -> Keys:
    """Return the keys that may have signed: those in a file, or else this installation's own."""
    if file is None:
        return load_public_keys(keys_directory())
    try:
        return read_public(file.read_text("ascii", "replace"))
    except SigningKeyError as error:
        raise SigningKeyError(f"`{file}`: {error}") from error


def _copied_lines(file: Path | None) -> Iterator[tuple[str, bytes]]:
    if file is not None:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield f"{file.name}:{number}", line


class _Progress:
    """Says on a terminal how far it is, whenever a hundredth more is done."""

    def __init__(self) -> None:
        self._said = -1
        self._wanted = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        part = 100 * done // total if total else 100
        if self._wanted and part != self._said:
            self._said = min(part, 100)
            sys.stderr.write(f"\rverifying: {self._said} %")
            sys.stderr.flush()


def _say(report: Report, shape: str | None) -> int:
    if shape in ("json", "jsonl"):
        found = [each._asdict() for each in report.findings]
        said = {"intact": report.intact, "lines": report.lines, "segments": report.segments}
        print(json.dumps({**said, "signed": report.signed, "key": report.key, "head": report.head, "findings": found}))
        return 0 if report.intact else 1

    escape_unprintable()
    for each in report.findings:
        print(visible(f"{each.gravity}: {each}"))
    lines = f"{report.lines:,} line{'s' * (report.lines != 1)}".replace(",", " ")
    signed = (
        f"signed up to {report.signed} by the key {report.key}, {report.head[:16]}…" if report.signed else "unsigned"
    )
    segments = count_of(report.segments, "segment")
    print(visible(f"{'intact' if report.intact else 'NOT intact'}: {lines} in {segments}; {signed}"))
    return 0 if report.intact else 1


def run_keys(arguments: argparse.Namespace, directory: Path) -> int:
    """Do it; 0 when it was done, 2 when it couldn't be."""
    action = arguments.what or "list"
    if action not in _ACTIONS:
        instead = did_you_mean(action, _ACTIONS) or f": use one of {', '.join(_ACTIONS)}"
        raise UsageError(f"invalid value {quote(action)} for `exeat log keys`{instead}")
    try:
        state.make_private(state.state_directory())
        _do(action, directory)
    except (SigningKeyError, OSError) as error:
        raise UsageError(str(error)) from error
    return 0


def _do(action: str, directory: Path) -> None:
    if action == "make":
        try:
            print(create_key(keys_directory()).id)
        except FileExistsError as error:
            raise UsageError("a key exists already; `exeat log keys rotate` makes a new one") from error
        return
    try:
        now = current_key_id(keys_directory())
    except FileNotFoundError as error:
        raise UsageError("there is no key yet; the first `exeat run` makes one") from error
    if action == "rotate":
        _rotate(directory)
        return
    for name, key in load_public_keys(keys_directory()).items():
        if action == "export":
            print(to_pem(key), end="")
        else:
            print(f"{name}  {'signs now' if name == now else 'signed before'}")


def _rotate(directory: Path) -> None:
    """Have another key sign, and the one before say so in the ledger: whoever trusts that one trusts both.

    What killed writers have left is signed first: it would be older than the newest signature, and in no ledger.
    """
    lock = keeper_directory(directory) / "ledger.lock"
    if directory.is_dir():
        seal_ended(directory, Ledger(directory, load_signer(keys_directory()), lock), warn)
    before, after = rotate_key(keys_directory())
    print(after.id)
    if directory.is_dir():
        ledger = Ledger(directory, before, lock)
        ledger.write([LedgerEntry(Kind.JOURNAL_KEY, Mark(after.id), format_public_key(after.public))])


def run_retention(arguments: argparse.Namespace, directory: Path) -> int:
    """Say or change it; 0 when that was done, 2 when it couldn't be."""
    try:
        state.make_private(state.state_directory())
        kept = keeper_directory(directory) / "keep.json"
        keep = RetentionPolicy.load(kept)
        if arguments.age is not None:
            keep = replace(keep, age=_age(arguments.age))
        if arguments.size is not None:
            keep = replace(keep, size=_size_limit(arguments.size))
        if arguments.age is not None or arguments.size is not None:
            keep.save(kept)
        default = "" if kept.exists() else ", by default"
        if arguments.now and directory.is_dir():
            tend_now(directory, keeper_directory(directory))
    except (OSError, ValueError, SigningKeyError) as error:
        raise UsageError(str(error)) from error
    age = "for ever" if keep.age is None else f"for {keep.age / 86_400:g} days"
    size = "however much it is" if keep.size is None else f"up to {keep.size / (1 << 30):g} GiB"
    print(f"the journal is kept {age}, {size}{default}")
    return 0


def _age(text: str) -> int | None:
    if text == "none":
        return None
    found = re.fullmatch(r"(\d{1,6})([hdw])", text, re.ASCII)
    if found is None or int(found[1]) == 0:
        raise UsageError(f"invalid value `{ascii(text)[1:-1]}` for `--age`: use `90d` or the like, or `none`")
    return int(found[1]) * _TIMES[found[2]]


def _size_limit(text: str) -> int | None:
    if text == "none":
        return None
    try:
        return fields.parse_size(text)
    except ValueError as error:
        raise UsageError(f"`--size`: {error}; or write none") from error
