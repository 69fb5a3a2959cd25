"""`exeat log verify [DIR]`: whether a journal, or a copy of it, is as it was written."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.cli.log import backslashed, no_journal
from enforcer.journal.signing import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.telemetry.journal.segment_check import Keys
    from proxy.telemetry.journal.verify import Report


def run(arguments: argparse.Namespace, directory: Path) -> int:
    """Look at all of it. 0: intact; 1: it isn't, or nobody has signed it; 2: it can't be looked at."""
    from proxy.telemetry.journal.keys import KeyProblem
    from proxy.telemetry.journal.verify import verify

    directory = Path(arguments.what) if arguments.what is not None else directory
    if not directory.is_dir():
        return no_journal(directory)
    try:
        report = verify(directory, _trusted(arguments.key), _kept(arguments.kept), _Progress())
    except (OSError, KeyProblem) as error:
        said = f"cannot read `{error.filename}`: {error.strerror}" if isinstance(error, OSError) else error
        print(f"exeat: {said}", file=sys.stderr)
        return 2
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    return _say(report, arguments.format)


def _trusted(file: Path | None) -> "Keys":
    """Return the keys that may have signed: those in a file, or else this installation's own."""
    from proxy.telemetry.journal.keys import KeyProblem, known, read_public

    if file is None:
        return known(keys())
    try:
        return read_public(file.read_text("ascii", "replace"))
    except KeyProblem as error:
        raise KeyProblem(f"`{file}`: {error}") from error


def _kept(file: Path | None) -> "Iterator[tuple[str, bytes]]":
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


def _say(report: "Report", shape: str | None) -> int:
    if shape in ("json", "jsonl"):
        import json

        found = [each._asdict() for each in report.findings]
        said = {"intact": report.intact, "lines": report.lines, "segments": report.segments}
        print(json.dumps({**said, "signed": report.signed, "key": report.key, "head": report.head, "findings": found}))
        return 0 if report.intact else 1
    from proxy.telemetry.visible import visible

    backslashed()
    for each in report.findings:
        print(visible(f"{each.gravity}: {each}"))
    of = f"{report.lines:,} lines in {report.segments} segments".replace(",", " ")
    signed = (
        f"signed up to {report.signed} by the key {report.key}, {report.head[:16]}…" if report.signed else "unsigned"
    )
    print(visible(f"{'intact' if report.intact else 'NOT intact'}: {of}; {signed}"))
    return 0 if report.intact else 1
