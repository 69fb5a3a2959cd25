"""`exeat test`: run the tests that rule files carry."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rules.cases import Result

NAME = "test"
HELP = "run the tests that rule files carry"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `exeat test` takes."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a rule file; each is tested by itself")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="for people, or for programs")


def run(arguments: argparse.Namespace) -> int:
    """Run the tests. 0 when all passed, 1 when one failed, 2 when a file can't be used or has no tests."""
    from rules import cases
    from rules.load import read
    from rules.problems import RuleFileError

    results: list[Result] = []
    for file in arguments.files:
        try:
            loaded = read([file])
        except RuleFileError as error:
            print(error, file=sys.stderr)
            return 2
        if not loaded.tests:
            print(f"exeat: `{file}` has no `tests`", file=sys.stderr)
            return 2
        results += cases.run(loaded.policy, loaded.tests)
    failed = sum(bool(result.failure) for result in results)
    if arguments.format == "json":
        print(json.dumps({"tests": [_value(result) for result in results], "failed": failed}, indent=2))
    else:
        for result in results:
            _print(result)
        print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _value(result: "Result") -> dict[str, Any]:
    from rules.cases import said

    case = result.case
    return {
        "attempt": case.question.text,
        "file": case.file,
        "line": case.line,
        "expect": case.expect.value,
        "verdict": said(result.decision).value,
        "reason": result.decision.reason.value,
        "rules": list(result.decision.rules),
        "passed": not result.failure,
        "failure": result.failure,
    }


def _print(result: "Result") -> None:
    case = result.case
    if result.failure:
        print(f"{case.file}:{case.line}:{case.column}: {result.failure}")
    else:
        print(f"ok    {case.expect:<5}  {case.question.text}")
