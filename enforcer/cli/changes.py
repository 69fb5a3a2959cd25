"""`exeat changes`: shows, accepts and discards what tasks changed in a reviewed workspace."""

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from enforcer.cli.output import format_time, print_table
from enforcer.cli.parsing import FORMAT, argument
from enforcer.journal.signing import sign_ended_run
from enforcer.system.errors import ExeatError, UsageError
from enforcer.workspace import change_store, merge_approval
from enforcer.workspace.accept import (
    Outcome,
    Selection,
    accept,
    discard,
    load_changes,
    load_pending,
    remove_if_settled,
    select_changes,
)
from enforcer.workspace.change_store import Change, ChangeKind, StoredChanges, describe
from enforcer.workspace.git_objects import Difference
from enforcer.workspace.merge_decision import MergeInputs
from enforcer.workspace.protected_changes import Protection
from enforcer.workspace.safe_path import EntryType
from enforcer.workspace.show_changes import GitObjectCounter, count_lines, diff, diff_brought, list_notes
from proxy.telemetry.visible import visible
from rules.problems import did_you_mean

_VERBS = ("accept", "discard", "cat")
_HEAD = ("BEGAN (UTC)", "TASK", "NAME", "WORKSPACE", "STATE")
_WIDEST = 120  # columns of a list
_MOST_SAID = 100  # paths that were left for one reason


ARGUMENTS: Final = (
    argument(
        "words",
        "[accept|discard|cat] TASK [PATH...]",
        "a task, by id or name, and paths in its workspace; without a verb, show the changes; "
        "without a task, list the tasks with changes",
        nargs="*",
    ),
    argument("--stat", "", "one line for each change instead of the diff"),
    FORMAT,
    argument("--protected", "PATH...", "accept this protected path too"),
)


def run(arguments: argparse.Namespace) -> int:
    """Show, accept or discard. 0 when all that was asked for is done, 1 when something was left, 2 for wrong words."""
    words = list(arguments.words)
    verb = words.pop(0) if words and words[0] in _VERBS else ""
    if arguments.protected and verb != "accept":
        raise UsageError("--protected goes with `exeat changes accept`")
    if not words:
        if verb:
            raise UsageError(f"which task? write `exeat changes {verb} TASK`; `exeat changes` lists the tasks")
        return _list(arguments.format)
    stored = _find_changes(words[0])
    paths = [_relative(path, stored) for path in words[1:]]
    if verb == "cat":
        return _cat(stored, paths)

    selection = Selection(tuple(paths), tuple(_relative(path, stored) for path in arguments.protected))
    if verb:
        return (_accept if verb == "accept" else _discard)(stored, selection, arguments.format)
    return _show(stored, selection, arguments)


def _find_changes(task: str) -> StoredChanges:
    """Find the changes of a task. Raises UsageError for none, or several."""
    found = change_store.find()
    named = [one for one in found if one.meta.id == task] or [one for one in found if one.meta.name == task]
    shown = ascii(task)[1:-1]
    if not named:
        instead = did_you_mean(task, _VERBS) or "; `exeat changes` lists the tasks that have"
        raise UsageError(f"no task `{shown}` has changes{instead}")
    if len(named) > 1:
        ids = ", ".join(one.meta.id for one in named)
        raise UsageError(f"several tasks named `{shown}` have changes: name one by its id: {ids}")
    return named[0]


def _relative(path: str, stored: StoredChanges) -> str:
    """Return a path as changes have it: relative to the workspace."""
    inside = os.path.relpath(path, stored.meta.workspace) if os.path.isabs(path) else os.path.normpath(path)
    if inside == "." or inside.startswith("../") or inside == "..":
        raise UsageError(f"`{ascii(path)[1:-1]}` is not a path in the workspace `{stored.meta.workspace}`")
    return inside


def _protection(stored: StoredChanges) -> Protection:
    return Protection(stored.meta.protected, [asks.terms.by for asks in stored.meta.asks()])


def _list(form: str) -> int:
    rows: list[dict[str, Any]] = []
    for one in change_store.find():
        if _remove_if_empty(one):
            continue
        began = datetime.fromtimestamp(one.meta.began / 1e9, UTC)
        row = {"task": one.meta.id, "name": one.meta.name, "workspace": one.meta.workspace, "began": began.isoformat()}
        rows.append({**row, **_state(one)})
    if form == "json":
        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        print("no task has pending changes")
        return 0
    told = ("task", "name", "workspace", "state")
    shown = [
        (format_time(datetime.fromisoformat(row["began"]).timestamp()), *(row[key] for key in told)) for row in rows
    ]
    print_table(_HEAD, shown, _WIDEST)
    return 0


def _remove_if_empty(stored: StoredChanges) -> bool:
    """Whether a run that was killed has left nothing; then it is removed."""
    if stored.is_busy():
        return False
    try:
        if load_pending(stored):
            return False
        with _locked(stored):
            return remove_if_settled(stored)
    except ExeatError:
        return False  # `_state` says why


def _state(stored: StoredChanges) -> dict[str, Any]:
    if not stored.is_gathered and stored.is_busy():
        return {"state": "the task still runs", "changes": None}
    try:
        changes = load_pending(stored)
    except ExeatError as error:
        return {"state": str(error), "changes": None}

    return {"state": describe(changes), "changes": len(changes)}


def _select(stored: StoredChanges, selection: Selection) -> list[Change]:
    changes = load_pending(stored)
    select_changes(changes, selection)  # says what isn't there
    return [change for change in changes if selection.has(change.path)]


def _show(stored: StoredChanges, selection: Selection, arguments: argparse.Namespace) -> int:
    changes = _select(stored, selection)
    protection = _protection(stored)
    with MergeInputs.open(stored, read_only=True) as inputs:
        protection.inspect_git(inputs, stored.changes())
        if arguments.format == "json":
            values = [_value(inputs, change, protection, stat=arguments.stat) for change in changes]
            meta = {"task": stored.meta.id, "name": stored.meta.name, "workspace": stored.meta.workspace}
            print(json.dumps({**meta, "changes": values}, indent=2))
        else:
            how = _stat if arguments.stat else _diffs
            for line in how(inputs, changes, protection, None if selection.paths else GitObjectCounter()):
                print(line)
    return 0


def _diffs(
    inputs: MergeInputs, changes: list[Change], protection: Protection, counted: GitObjectCounter | None
) -> Iterator[str]:
    for change in changes:
        if counted is None or not counted.count_change(change, protection):
            yield from diff(inputs, change, protection)
    yield from diff_brought(protection, changes)
    for place, said in counted.summaries() if counted is not None else ():
        yield f"# {said}, in {visible(place)}: name that, and each is shown"


def _stat(
    inputs: MergeInputs, changes: list[Change], protection: Protection, counted: GitObjectCounter | None
) -> Iterator[str]:
    for change in changes:
        if counted is not None and counted.count_change(change, protection):
            continue
        lines = count_lines(inputs, change)
        size = "" if lines is None else f"  +{lines.added} -{lines.deleted}"
        said = "".join(f"  ({note})" for note in list_notes(change, protection))
        yield f"{change.kind:<8} {visible(change.path)}{size}{said}"
    told: set[str] = set()
    for change in changes:
        found = protection.git.get(change.path)
        for each in found.files if found is not None else ():
            line = f"{each.kind:<8} {visible(each.path)}  (in {each.where}, with {visible(change.path)}: protected)"
            if each.path not in told:
                told.add(each.path)
                yield line
    for place, said in counted.summaries() if counted is not None else ():
        yield f"{ChangeKind.ADDED:<8} {visible(place)}  ({said}: name that, and each is shown)"
    yield describe(changes)


def _value(inputs: MergeInputs, change: Change, protection: Protection, *, stat: bool) -> dict[str, Any]:
    lines = count_lines(inputs, change)
    found = protection.git.get(change.path)
    value: dict[str, Any] = {
        "path": change.path,
        "kind": change.kind.value,
        "was": None if change.base is None else _entry(change.base),
        "is": None if change.theirs is None else _entry(change.theirs),
        "known": change.known,
        "protected": protection.covers(change),
        "needs": list(protection.needs(change)),
        "brings": [_brought(each) for each in found.files] if found is not None else [],
        "why": found.why if found is not None else "",
        "leads_out": change.leads_out,
        "lines": None if lines is None else lines._asdict(),
    }
    return value if stat else {**value, "diff": list(diff(inputs, change, protection))}


def _brought(each: Difference) -> dict[str, Any]:
    was, now = (f"{version.mode:06o} {version.name}" if version.mode else None for version in (each.was, each.now))
    return {"path": each.path, "kind": each.kind.value, "where": each.where, "was": was, "is": now}


def _entry(entry: Any) -> dict[str, Any]:
    return {"what": entry.what.value, "mode": f"{entry.mode:04o}", "size": entry.size, "target": entry.target or None}


def _cat(stored: StoredChanges, paths: list[str]) -> int:
    """Write what the task left at a path, byte for byte: for whoever settles a conflict by hand."""
    if len(paths) != 1:
        raise UsageError("name one path, as in `exeat changes cat TASK PATH`")
    change = next((change for change in load_pending(stored) if change.path == paths[0]), None)
    if change is None or change.theirs is None or change.theirs.what is not EntryType.FILE:
        raise UsageError(f"the task left no file at `{ascii(paths[0])[1:-1]}` that is pending")
    with MergeInputs.open(stored, read_only=True) as inputs, os.fdopen(inputs.open_new(change), "rb") as file:
        import shutil

        shutil.copyfileobj(file, sys.stdout.buffer)
    return 0


def _accept(stored: StoredChanges, selection: Selection, form: str) -> int:
    with _locked(stored):
        protection = _protection(stored)
        outcomes = accept(
            stored, selection, protection, lambda question: merge_approval.submit(stored.meta, question, _waiting)
        )
        taken = [outcome.change for outcome in outcomes if outcome.accepted]
        left = [outcome for outcome in outcomes if not outcome.accepted]
        remove_if_settled(stored)
    if form == "json":
        values = [
            {
                "path": o.change.path,
                "accepted": o.accepted,
                "how": o.method.value if o.accepted else None,
                "why": o.reason,
            }
            for o in outcomes
        ]
        print(json.dumps({"task": stored.meta.id, "changes": values}, indent=2))
        return 1 if left else 0
    _print_left(left)
    print(f"accepted: {describe(taken)}")
    if left:
        said = "1 change stays as it is" if len(left) == 1 else f"{len(left)} changes stay as they are"
        print(f"{said} on both sides; see `exeat changes {stored.meta.id}`", file=sys.stderr)
        _print_how_to_settle(stored, [each.change for each in left if not protection.covers(each.change)])
    return 1 if left else 0


def _print_how_to_settle(stored: StoredChanges, left: list[Change]) -> None:
    """Say how a conflict is settled, by the first file that has one."""
    path = next((each.path for each in left if each.theirs is not None and each.theirs.what is EntryType.FILE), None)
    if path is not None:
        which = f"{stored.meta.id} {shlex.quote(visible(path))}"
        said = f"edit the file as it should be (`exeat changes cat {which}` prints the task's)"
        print(f"to settle a conflict, {said}, then `exeat changes discard {which}`", file=sys.stderr)


def _waiting(approval: str, until: float) -> None:
    seconds = max(round(until - time.time()), 0)
    said = f"protected changes need an approval, asked for as {approval}: `exeat approve {approval}` gives it"
    print(f"exeat: {said}; waiting {seconds}s for it", file=sys.stderr, flush=True)


def _print_left(left: list[Outcome]) -> None:
    """Say of each what was left, and of very many for one reason how many more."""
    said = Counter[str]()
    for outcome in left:
        said[outcome.reason] += 1
        if said[outcome.reason] <= _MOST_SAID:
            print(f"left: {visible(outcome.change.path)}: {visible(outcome.reason)}", file=sys.stderr)
    for why, times in said.items():
        if times > _MOST_SAID:
            print(f"left: {times - _MOST_SAID} more: {visible(why)}", file=sys.stderr)


def _discard(stored: StoredChanges, selection: Selection, form: str) -> int:
    with _locked(stored):
        changes = discard(stored, selection)
        remove_if_settled(stored)
    if form == "json":
        print(json.dumps({"task": stored.meta.id, "discarded": [change.path for change in changes]}, indent=2))
    else:
        print(f"discarded: {describe(changes)}")
    return 0


@contextlib.contextmanager
def _locked(stored: StoredChanges) -> Iterator[None]:
    """Have these changes to ourselves, and what is told of them signed."""
    load_changes(stored)
    stored.lock()
    try:
        yield
    finally:
        stored.unlock()
    sign_ended_run(Path(stored.meta.journal))
