"""Requests from commands to the registry of approvals, and `--as-rule`, which writes an approval into a rule file.

The file is tried before the approval is given, and put in place once that counts.
"""

import argparse
import contextlib
import json
import os
import queue
import tempfile
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enforcer.approvals import client
from enforcer.cli.output import FailedError, print_lines, report_failure, warn
from enforcer.cli.parsing import argument, old_spelling
from enforcer.system.errors import ExeatError, HostError, UsageError
from proxy.approvals.approval_request import Kind
from rules.attempt import Caller, Protocol, RefChange
from rules.problems import RuleFileError

if TYPE_CHECKING:
    from rules.editing.insertion import AttemptToAllow, EditedFile
    from rules.loading.load import Loaded

_OURS, _ROOTS = "your own", "root's"  # approvals servers


TERMS: Final = (
    argument(
        "--for",
        "HOW...",
        "how long the approval lasts: `once`, `task`, `1h`, `until 2027-01-31`, `uses 3`, `bytes 2GB`",
        dest="lasts",
    ),
    argument(
        "--scope",
        "SCOPE",
        "what the approval covers: attempt, destination or rule; at most what the rule gives",
        default="",
    ),
    old_spelling("--covers", "--scope", "SCOPE"),
    argument(
        "--as-rule",
        "FILE",
        "also write a rule that allows it (default FILE: the file of the rule that asks, or the task's first)",
        nargs="?",
        const="",
        type=str,
    ),
)
WHY: Final = argument("--why", "TEXT", "reason, recorded in the journal and sent to the task", default="")
TOKEN_FILE: Final = argument("--token-file", "FILE", "answer as the owner of the token in this file (mode 0600)")


def print_result(arguments: argparse.Namespace, what: dict[str, Any] | list[dict[str, Any]], text: str = "") -> int:
    """Print values for programs, in a line each where that is wanted; else the text. Returns 0."""
    if arguments.format == "text":
        print_lines(text)
    elif arguments.format == "jsonl":
        for each in what if isinstance(what, list) else [what]:
            print(json.dumps(each))
    else:
        print(json.dumps(what, indent=2))
    return 0


def send_request(arguments: argparse.Namespace, what: Mapping[str, object]) -> list[dict[str, Any]]:
    """Ask this user's registry, and root's where it serves others; the answers of the first that can answer.

    One of this user's is started only if nobody else answers. Raises ExeatError, with what each of them says.
    """
    request = {**what, **read_token(arguments)}
    refused: dict[str, ExeatError] = {}  # by whose registry it was
    started = None if client.is_running() else client.ask
    for whose, ask in ((_OURS, client.ask_running), (_ROOTS, _elsewhere), (_OURS, started)):
        try:
            found = None if ask is None else ask(request)
        except ExeatError as error:
            refused[whose] = error
        else:
            if found is not None:
                return found
    raise _why(refused)


def _why(refused: Mapping[str, ExeatError]) -> ExeatError:
    """Return the one error that says what both registries answered: which of them has the question nobody knows."""
    if not refused:
        return HostError("the approvals server has just ended", "try again")
    texts = {whose: str(error) for whose, error in refused.items()}
    first = next(iter(refused.values()))
    if len(set(texts.values())) == 1:
        return first
    said = "; ".join(f"{whose} approvals server: {text}" for whose, text in texts.items())
    return FailedError(said, max(error.status for error in refused.values()))


def send_to_all(arguments: argparse.Namespace, what: Mapping[str, object]) -> list[dict[str, Any]]:
    """Ask this user's registry and root's, and return the answers of both. Raises ExeatError.

    Root's may refuse: whom it doesn't know it tells nothing, and that is told.
    """
    request = {**what, **read_token(arguments)}
    found = client.ask(request)
    try:
        found += _elsewhere(request) or []
    except ExeatError as error:
        warn(f"{_ROOTS} approvals server: {error}")
    return found


def follow(arguments: argparse.Namespace, what: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """Follow this user's registry and root's at the same time, until both have ended. Raises ExeatError."""
    request = {**what, **read_token(arguments)}
    where = {_OURS: client.follow} if os.geteuid() == 0 else {_OURS: client.follow, _ROOTS: client.follow_host}
    heard: queue.SimpleQueue[dict[str, Any] | ExeatError | None] = queue.SimpleQueue()

    def listen(whose: str) -> None:
        try:
            for said in where[whose](request):
                heard.put(said)
        except Exception as error:  # noqa: BLE001  the main thread says it
            heard.put(_ended(error, "" if len(where) == 1 else f"{whose} approvals server: "))
        finally:
            heard.put(None)

    for whose in where:
        threading.Thread(target=listen, args=(whose,), daemon=True).start()
    refused: list[ExeatError] = []
    ended = 0
    while ended < len(where):
        said = heard.get()
        if isinstance(said, ExeatError):
            refused.append(said)
            if len(refused) < len(where):
                warn(str(said))
        elif said is not None:
            yield said
        else:
            ended += 1
    if len(refused) == len(where):
        raise refused[-1]


def _ended(error: Exception, whose: str) -> ExeatError:
    """Return why a registry is followed no longer."""
    if isinstance(error, ExeatError):
        return FailedError(f"{whose}{error}", error.status) if whose else error
    return FailedError(f"{whose}{type(error).__name__}: {error}", HostError.status)


def _elsewhere(request: Mapping[str, object]) -> list[dict[str, Any]] | None:
    """Ask root's registry; None: there is none, or it is this user's own. Raises ExeatError."""
    return None if os.geteuid() == 0 else client.ask_host(request)


def read_token(arguments: argparse.Namespace) -> dict[str, str]:
    """Read the token. Raises UsageError: what others could have read proves nothing."""
    if arguments.token_file is None:
        return {}
    from proxy.telemetry.exporters.exporter import UnavailableError, read_secret

    try:
        return {"token": read_secret(arguments.token_file)}
    except UnavailableError as error:
        raise UsageError(f"--token-file: {error}") from error


def send_answer(arguments: argparse.Namespace, vote: str) -> int:
    """Give an answer to one question, and say what came of it. 0 when it counts, 1 when it doesn't, 2 for misuse."""
    if not arguments.id:
        raise UsageError(f"which request? write `exeat {vote} ID`; `exeat approvals` lists the pending requests")
    request = {
        "what": "answer",
        "id": arguments.id,
        "vote": vote,
        "for": getattr(arguments, "lasts", []),
        "covers": getattr(arguments, "scope", ""),
        "why": arguments.why,
    }
    try:
        if vote == "reject" and (
            request["for"] or request["covers"] or getattr(arguments, "as_rule", None) is not None
        ):
            raise UsageError(
                "a rejection has no `--for`, `--scope` or `--as-rule`; `exeat approvals revoke ID` lifts it"
            )
        written = _as_rule(arguments)
        (said,) = send_request(arguments, request if written is None else {**request, "as_rule": written.named})
        if written is not None:
            said["text"] += "; " + (written.write() if said["final"] else "the last approval writes the rule")
    except ExeatError as error:
        return report_failure(error)
    return print_result(arguments, said, str(said["text"]))


def _as_rule(arguments: argparse.Namespace) -> "RuleFileEdit | None":
    """Make ready what `--as-rule` asks for, before anything is approved. Raises ExeatError."""
    file = getattr(arguments, "as_rule", None)
    if file is None:
        return None
    (shown,) = send_request(arguments, {"what": "show", "id": arguments.id})
    return RuleFileEdit.prepare(shown["card"], file, arguments)


class RuleFileEdit:
    """A rule file as it would be: it loads, its tests pass, and nothing else would be decided otherwise."""

    def __init__(self, edited: "EditedFile") -> None:
        self._edited = edited

    @property
    def named(self) -> str:
        """What is told of it in the journal."""
        return f"{self._edited.rule or f'an exemption from {self._edited.asks[0]}'} in {self._edited.path}"

    @classmethod
    def prepare(cls, card: Mapping[str, Any], file: str, arguments: argparse.Namespace) -> "RuleFileEdit":
        """Make it of a question. Raises ExeatError.

        In `file`, or in the one that has the rule that asks; where no rule does in the first of the task's own.
        """
        from rules.editing.insertion import EditError, add_rule

        question, task = card["question"], card["task"]
        asks = [asked["rule"] for asked in question["rules"]]
        if question["kind"] == Kind.MERGE:
            raise UsageError(
                "--as-rule: no rule can allow a merge: approve this one without --as-rule; nothing was approved"
            )
        if not asks and not card["needs_rule"]:
            raise UsageError(
                "--as-rule: no rule asks about this attempt: approve it without --as-rule; nothing was approved"
            )
        wanted = _wanted(question, task, tainted=bool(card["tainted_by"]))
        named = [Path(path) for path in task["rule_files"]]
        cannot = "the task has no known rule file: name one with `--as-rule FILE`"
        for path in [Path(file)] if file else _sources(named) if asks else named[:1]:
            try:
                return cls(add_rule(lambda instead: _read(named, instead), path, asks, wanted, arguments.why))
            except EditError as error:
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
            raise HostError(
                f"approved, but cannot write the rule to `{path}`: {error.strerror}; add it by hand"
            ) from error
        return f"written: {self.named}"


def _read(named: list[Path], instead: Mapping[Path, bytes]) -> "Loaded":
    from enforcer.policy.rule_files import SYSTEM, parse

    return parse(named, SYSTEM, instead)


def _sources(named: list[Path]) -> list[Path]:
    """List the files that the task's rules are read from. Raises ExeatError where they can't be."""
    try:
        return [Path(path) for path in _read(named, {}).policy.sources]
    except RuleFileError as error:
        raise UsageError(f"--as-rule: the rule files are broken: correct them first: {error.problems[0]}") from error
    except OSError as error:
        raise HostError(f"--as-rule: `{error.filename}` can't be read: {error.strerror}") from error


def _wanted(question: Mapping[str, Any], task: Mapping[str, Any], *, tainted: bool) -> "AttemptToAllow":
    """Return what was asked about as the editor of rules takes it. Raises ExeatError for what no rule speaks of."""
    from rules.editing.insertion import AttemptToAllow

    if not question["host"]:
        raise UsageError("--as-rule: only a network attempt can become a rule: approve it without --as-rule")
    try:
        return AttemptToAllow(
            Protocol(question["protocol"]),
            question["host"],
            question["port"],
            question["method"],
            question["path"],
            question["size"] != 0,
            question["websocket"],
            question["repo"],
            tuple((ref["ref"], RefChange(ref["change"])) for ref in question["refs"]),
            Caller(task["name"], task["labels"], datetime.now(UTC).date(), tainted),
        )
    except ValueError as error:
        raise UsageError(f"--as-rule: this can't be written as a rule: {error}") from error
