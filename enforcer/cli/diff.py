"""`exeat diff`: what other rules would decide otherwise, by meaning and not by text."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rules.diff.compare import Compared
    from rules.diff.words import Statement
    from rules.matching.policy import Policy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `exeat diff` takes."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="OLD and NEW: a rule file each")
    for which in ("old", "new"):
        parser.add_argument(
            f"--{which}", action="append", default=[], type=Path, metavar="FILE", help=f"a file of the {which} rules"
        )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="for people, or for programs")


def run(arguments: argparse.Namespace) -> int:
    """Compare. 0 when both decide alike, 1 when not, 2 when the words or a file are wrong."""
    old, new = arguments.old, arguments.new
    if not old and not new and len(arguments.files) == 2:
        old, new = arguments.files[:1], arguments.files[1:]
    elif not old or not new or arguments.files:
        print(
            "exeat: name two rule files, as in `exeat diff old.yaml new.yaml`; or every file of each policy, "
            "as in `exeat diff --old a.yaml --old b.yaml --new c.yaml`",
            file=sys.stderr,
        )
        return 2
    from rules.diff.compare import compare
    from rules.diff.words import statements
    from rules.loading.load import read
    from rules.problems import RuleFileError

    try:
        before, after = read(old).policy, read(new).policy
    except RuleFileError as error:
        print(error, file=sys.stderr)
        return 2
    compared = compare(before, after)
    told = statements(compared)
    if arguments.format == "json":
        print(json.dumps(_value(before, after, compared, told), indent=2))
    else:
        _print(compared, told)
    return 0 if compared.is_empty else 1


def _value(before: "Policy", after: "Policy", compared: "Compared", told: "list[Statement]") -> dict[str, Any]:
    return {
        "old": {"files": list(map(str, before.sources)), "revision": before.revision},
        "new": {"files": list(map(str, after.sources)), "revision": after.revision},
        "settings": [setting._asdict() for setting in compared.settings],
        "differences": [statement.value() for statement in told],
        "complete": compared.complete,
    }


def _print(compared: "Compared", told: "list[Statement]") -> None:
    for setting in compared.settings:
        was, now = (value if value is not None else "not set" for value in (setting.was, setting.now))
        print(f"setting `{setting.key}`: was {was}, is {now}{_means(setting.key)}")
    for statement in told:
        print(statement.text)
    if not compared.complete:
        print("there are too many kinds of attempts to try all: what is told above is not everything")
    if compared.is_empty:
        print("both decide alike")
        return
    print("; ".join(_counted(compared, told)))


def _counted(compared: "Compared", told: "list[Statement]") -> "Iterator[str]":
    """Say how much differs: settings, then what is decided."""
    from rules.diff.words import BECOMES

    settings, things = len(compared.settings), len(told)
    if settings:
        yield "1 setting differs" if settings == 1 else f"{settings} settings differ"
    if things or not settings:
        counts = {word: sum(each.now.verdict == verdict for each in told) for verdict, word in BECOMES.items()}
        said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        yield f"{things} {'difference' if things == 1 else 'differences'}{f': {said}' if said else ''}"


def _means(key: str) -> str:
    """Say what a setting changes for attempts that no statement lists."""
    if key == "mode":
        return ": what no rule or but a default rule decides is let out in audit mode, and told"
    return ""
