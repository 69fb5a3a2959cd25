"""`exeat approvals`, `approve` and `reject`: lists approval requests, and answers them."""

import argparse
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from enforcer.cli import approval_requests, output
from enforcer.cli.journals import parse_time
from enforcer.cli.output import count_of, format_elapsed, format_time, print_table
from enforcer.cli.parsing import FORMAT, argument
from enforcer.system.errors import ExeatError, UsageError
from proxy.approvals.people import hash_token
from rules.problems import did_you_mean, quote

_WAITS = ("ID", "TASK", "RULE", "APPROVED", "WAITS", "WHAT")
_WAS = ("TIME (UTC)", "ID", "TASK", "STATE", "BY", "WHAT")


def _list(arguments: argparse.Namespace, words: list[str]) -> int:
    _refuse_words(words, "list")
    found = _approvals(arguments, {"what": "list"})
    if arguments.format != "text":
        return approval_requests.print_result(arguments, found)
    if not found:
        print("no approval request is pending")
    else:
        found.sort(key=lambda each: bool(each["stale"]))  # what a client waits for first, else as it was asked
        print_table(_WAITS, map(_row, found))
        print(
            f"{count_of(len(found), 'request')}; `exeat approvals show ID` shows details, `exeat approve ID` allows it"
        )
    return 0


def _history(arguments: argparse.Namespace, words: list[str]) -> int:
    _refuse_words(words, "history")
    found = _approvals(arguments, {"what": "history", "since": arguments.since / 1e9})
    if arguments.format != "text":
        return approval_requests.print_result(arguments, found)
    if not found:
        print("there are no earlier approval requests")
        return 0
    print_table(_WAS, [row for each in found for row in _history_rows(each)])
    return 0


def _history_rows(each: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Give a question's row, and one for each grant of it."""
    state = "task ended" if each["state"] == "over" else each["state"] + (", lifted" if each.get("lifted") else "")
    why = f": {each['why']}" if each["why"] else ""
    when = format_time(each["answered"] or each["asked"])
    yield when, each["id"], each["name"], state, ", ".join(each["by"]), f"{each['line']}{why}"
    for grant in each["grants"]:
        yield "", grant["id"], "", "grant", "", grant["said"]


def _approvals(arguments: argparse.Namespace, what: dict[str, object]) -> list[dict[str, Any]]:
    """Return what was asked, of both registries, and of one task where it is named."""
    answers = approval_requests.send_to_all(arguments, what)
    for broken in dict.fromkeys(str(said["broken"]) for said in answers if "broken" in said):
        output.warn(broken)
    found = [each for said in answers for each in said["approvals"]]
    wanted = arguments.task
    return [each for each in found if wanted in (None, each["task"], each["name"])]


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    how = ", asked by the agent" if each["wish"] else ", the client has left" if each["stale"] else ""
    waits = format_elapsed(time.time() - each["asked"]) + how
    return each["id"], each["name"], ", ".join(each["rules"]), each["votes"], waits, each["line"]


def _show(arguments: argparse.Namespace, words: list[str]) -> int:
    (said,) = approval_requests.send_request(arguments, {"what": "show", "id": _only_word(words, "show ID")})
    return approval_requests.print_result(arguments, said["card"], said["text"])


def _watch(arguments: argparse.Namespace, words: list[str]) -> int:
    """Follow what is asked: each card as it comes, with a bell for a terminal."""
    _refuse_words(words, "watch")
    bell = "\a" if sys.stdout.isatty() else ""
    for said in approval_requests.follow(arguments, {"what": "watch"}):
        if arguments.format != "text":
            print(json.dumps(said), flush=True)
        else:
            output.print_lines(said["text"])
            print(bell if said["kind"] == "asked" else "", flush=True)
    print("exeat: the approvals server has ended; run `exeat approvals watch` again", file=sys.stderr)
    return 1


def _vote(vote: str, arguments: argparse.Namespace, words: list[str]) -> int:
    arguments.id = _only_word(words, f"{vote} ID")
    return approval_requests.send_answer(arguments, vote)


def _answer(arguments: argparse.Namespace, words: list[str]) -> int:
    """Give an answer as the owner of a token: for programs."""
    if len(words) != 2 or words[1] not in ("approve", "reject"):
        raise UsageError(
            "`exeat approvals answer` needs an ID and a verdict: write "
            "`exeat approvals answer ID approve --token-file FILE`, or `reject`"
        )
    if arguments.token_file is None:
        raise UsageError("`exeat approvals answer` needs --token-file; `exeat approve ID` answers as your user")
    arguments.id = words[0]
    return approval_requests.send_answer(arguments, words[1])


def _revoke(arguments: argparse.Namespace, words: list[str]) -> int:
    what = {"what": "revoke", "grant": _only_word(words, "revoke GRANT"), "why": arguments.why}
    (said,) = approval_requests.send_request(arguments, what)
    return approval_requests.print_result(arguments, said, said["text"])


def _token(arguments: argparse.Namespace, words: list[str]) -> int:
    """Make a token: what is to be kept secret once, and what goes into approvers.yaml."""
    _refuse_words(words, "token")

    token = secrets.token_urlsafe(32)
    digest = hash_token(token)
    if arguments.format != "text":
        print(json.dumps({"token": token, "hash": digest}))
    else:
        print(f"token, for its owner's --token-file and nobody else: {token}")
        print(f"for `tokens` of a person in approvers.yaml: {digest}")
    return 0


def _only_word(words: list[str], usage: str) -> str:
    if len(words) != 1:
        raise UsageError(f"write `exeat approvals {usage}`; `exeat approvals` lists the pending requests")
    return words[0]


def _refuse_words(words: list[str], verb: str) -> None:
    if words:
        raise UsageError(f"`exeat approvals {verb}` takes no arguments")


type _Does = Callable[[argparse.Namespace, list[str]], int]
_VERBS: dict[str, tuple[str, _Does]] = {
    "list": ("pending requests (the default)", _list),
    "watch": ("each request as it arrives", _watch),
    "show": ("all details of one request", _show),
    "history": ("earlier requests and their answers", _history),
    "approve": ("allow it", partial(_vote, "approve")),
    "reject": ("deny it", partial(_vote, "reject")),
    "answer": ("answer as the owner of a token, for programs", _answer),
    "revoke": ("end a grant", _revoke),
    "token": ("make a token and its hash", _token),
}


ARGUMENTS: Final = (
    argument(
        "words",
        "[list|watch|show ID|history|approve ID|reject ID|answer ID WORD|revoke GRANT|token]",
        "; ".join(f"{verb}: {says}" for verb, (says, _) in _VERBS.items()),
        nargs="*",
    ),
    *approval_requests.TERMS,
    approval_requests.WHY,
    argument("--task", "TASK", "list, history: only this task, by id or name"),
    argument(
        "--since", "WHEN", "history: only requests after this time: 30m, 1h, 2026-11-21", type=parse_time, default=0
    ),
    approval_requests.TOKEN_FILE,
    argument(
        "--format",
        ("text", "json", "jsonl"),
        "output format; jsonl prints one line for each value",
        default="text",
    ),
)
_ID: Final = argument("id", "ID", "approval request: its id, or the beginning of it")
REJECT_ARGUMENTS: Final = (_ID, approval_requests.WHY, approval_requests.TOKEN_FILE, FORMAT)
APPROVE_ARGUMENTS: Final = (*REJECT_ARGUMENTS, *approval_requests.TERMS)


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0 when it is done, 1 when an answer doesn't count, 2 for misuse."""
    verb, *words = arguments.words or ["list"]
    try:
        if verb not in _VERBS:
            hint = did_you_mean(verb, _VERBS) or f": use one of {', '.join(_VERBS)}"
            raise UsageError(f"invalid value {quote(verb)} for `exeat approvals`{hint}")
        return _VERBS[verb][1](arguments, words)
    except ExeatError as error:
        return output.report_failure(error)


def run_approve(arguments: argparse.Namespace) -> int:
    """Approve. 0 when it counts, 1 when it doesn't, 2 for misuse."""
    return approval_requests.send_answer(arguments, "approve")


def run_reject(arguments: argparse.Namespace) -> int:
    """Reject. 0 when it counts, 1 when it doesn't, 2 for misuse."""
    return approval_requests.send_answer(arguments, "reject")
