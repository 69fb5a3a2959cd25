"""`--as-rule`: an approval written down in a rule file, tried before it is given and put there once it counts."""

import argparse
import contextlib
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enforcer.system.errors import HostError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rules.editing import Edited, Wanted
    from rules.loading.load import Loaded


class Written:
    """A rule file as it would be: it loads, its tests pass, and nothing else would be decided otherwise."""

    def __init__(self, edited: "Edited") -> None:
        self._edited = edited

    @property
    def named(self) -> str:
        """What is told of it in the journal."""
        return f"{self._edited.rule or f'an exemption from {self._edited.asks[0]}'} in {self._edited.path}"

    @classmethod
    def prepare(cls, card: "Mapping[str, Any]", file: str, arguments: argparse.Namespace) -> "Written":
        """Make it of a question. Raises ExeatError.

        In `file`, or in the one that has the rule that asks; where no rule does in the first of the task's own.
        """
        from proxy.approvals.approval_request import Kind
        from rules.editing import CannotWrite, written

        question, task = card["question"], card["task"]
        asks = [asked["rule"] for asked in question["rules"]]
        if question["kind"] == Kind.MERGE:
            raise UsageError(
                "--as-rule: no rule lets changes be merged, each is approved as it is; nothing was approved"
            )
        if not asks and not card["needs_rule"]:
            raise UsageError("--as-rule: no rule asks about it; nothing was approved")
        wanted = _wanted(question, task, tainted=bool(card["tainted_by"]))
        named = [Path(path) for path in task["rule_files"]]
        cannot = "it is known of no rule file that it is the task's"
        for path in [Path(file)] if file else _sources(named) if asks else named[:1]:
            try:
                return cls(written(lambda instead: _read(named, instead), path, asks, wanted, arguments.why))
            except CannotWrite as error:
                cannot = str(error)
                if "in another file" not in cannot:
                    break
        raise UsageError(f"--as-rule: {cannot}; nothing was approved")

    def write(self) -> str:
        """Put it in the place of the file that is there; return what was done, as a sentence. Raises HostError."""
        path = self._edited.path.resolve()
        try:
            before = path.stat()
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as out:
                    out.write(self._edited.data)
                    out.flush()
                    os.fchmod(out.fileno(), before.st_mode & 0o7777)
                    with contextlib.suppress(PermissionError):
                        os.fchown(out.fileno(), before.st_uid, before.st_gid)
                    os.fsync(out.fileno())
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            raise HostError(f"it was approved, and `{path}` could not be written: {error.strerror}") from error
        return f"written: {self.named}"


def _read(named: list[Path], instead: "Mapping[Path, bytes]") -> "Loaded":
    from enforcer.policy.rules_in_force import SYSTEM, parse

    return parse(named, SYSTEM, instead)


def _sources(named: list[Path]) -> list[Path]:
    """List the files that the task's rules are read from. Raises ExeatError where they can't be."""
    from rules.problems import RuleFileError

    try:
        return [Path(path) for path in _read(named, {}).policy.sources]
    except RuleFileError as error:
        raise UsageError(f"--as-rule: the rules are broken as they are: {error.problems[0]}") from error
    except OSError as error:
        raise HostError(f"--as-rule: `{error.filename}` can't be read: {error.strerror}") from error


def _wanted(question: "Mapping[str, Any]", task: "Mapping[str, Any]", *, tainted: bool) -> "Wanted":
    """Return what was asked about as the editor of rules takes it. Raises ExeatError for what no rule speaks of."""
    from rules.attempt import Change, Protocol
    from rules.editing import Wanted

    if not question["host"]:
        raise UsageError("--as-rule: only what goes out can be written down as a rule")
    try:
        return Wanted(
            Protocol(question["protocol"]),
            question["host"],
            question["port"],
            question["method"],
            question["path"],
            question["size"] != 0,
            question["websocket"],
            question["repo"],
            tuple((ref["ref"], Change(ref["change"])) for ref in question["refs"]),
            task["name"],
            task["labels"],
            datetime.now(UTC).date(),
            tainted,
        )
    except ValueError as error:
        raise UsageError(f"--as-rule: this can't be written as a rule: {error}") from error
