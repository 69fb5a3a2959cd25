"""`exeat ps`: the tasks that the service runs."""

import argparse
import json
import sys
import time

from enforcer.cli.columns import table
from enforcer.system.errors import ExeatError

_WIDEST = 40  # columns
_HEAD = ("TASK", "NAME", "PID", "WORKER", "SINCE", "APPROVALS", "WHERE")
_NOTHING: dict[str, object] = {"pending": 0, "tainted": False}
_UNHEARD: dict[str, object] = {"pending": None, "tainted": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `exeat ps` takes."""
    parser.add_argument("--format", choices=("text", "json"), default="text", help="text for people, json for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print a line a task."""
    from enforcer.service.control_client import ask

    try:
        known, otherwise = _known()
        found = [
            {**each, **known.get(str(each["task"]), otherwise)}
            for part in ask({"what": "list"})
            for each in part["sandboxes"]
        ]
    except ExeatError as error:
        print(f"exeat: {error}", file=sys.stderr)
        return error.status
    if arguments.format == "json":
        print(json.dumps(found, indent=2))
        return 0
    for line in table(_HEAD, map(_row, found), _WIDEST):
        print(line)
    return 0


def _known() -> tuple[dict[str, dict[str, object]], dict[str, object]]:
    """Return what the registry of approvals knows of tasks, by their ids, and what is so of all others."""
    from enforcer.approvals.client import ask_running

    try:
        tasks = [each for said in ask_running({"what": "tasks"}) or () for each in said["tasks"]]
    except ExeatError as error:
        print(f"exeat: which tasks wait, or are tainted, is not known: {error}", file=sys.stderr)
        return {}, _UNHEARD
    return {str(each["task"]): {"pending": each["pending"], "tainted": each["tainted"]} for each in tasks}, _NOTHING


def _row(each: dict[str, object]) -> tuple[str, ...]:
    since = int(time.time() - float(str(each["began"])))
    ran = f"{since // 3600}:{since // 60 % 60:02}:{since % 60:02}"
    worker = "-" if each["worker"] is None else str(each["worker"])
    where = each["attached"] or each["workspace"]
    pending = f"{each['pending']} pending" if each["pending"] else ""
    approvals = ", ".join(part for part in (pending, "tainted" if each["tainted"] else "") if part)
    approvals = approvals or ("?" if each["tainted"] is None else "-")
    return tuple(map(str, (each["task"], each["name"], each["pid"], worker, ran, approvals, where)))
