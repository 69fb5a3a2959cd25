"""`exeat test`: run the tests that rule files carry."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enforcer.cli.check import add_lock

if TYPE_CHECKING:
    from rules.loading.cases import Question, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `exeat test` takes."""
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a rule file, or a directory of them; each is tested by itself",
    )
    add_lock(parser)
    parser.add_argument("--format", choices=("text", "json"), default="text", help="for people, or for programs")


def run(arguments: argparse.Namespace) -> int:
    """Run the tests. 0 when all passed, 1 when one failed, 2 when a file can't be used or there are no tests at all."""
    from enforcer.cli.check import locks_of, rule_files
    from rules.loading import cases
    from rules.loading.load import read
    from rules.problems import RuleFileError

    files, problems = rule_files(arguments.files)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 2
    results: list[Result] = []
    broken = False
    for file in files:
        try:
            loaded = read([file], locks_of(arguments))
        except RuleFileError as error:
            print(error, file=sys.stderr)
            broken = True
            continue
        if not loaded.tests:
            print(f"exeat: `{file}` has no `tests`", file=sys.stderr)
        results += cases.run(loaded.policy, loaded.tests)
    if not results:
        return 2
    failed = sum(bool(result.failure) for result in results)
    if arguments.format == "json":
        print(json.dumps({"tests": [_value(result) for result in results], "failed": failed}, indent=2))
    else:
        for result in results:
            _print(result)
        print(f"{len(results) - failed} passed, {failed} failed")
    return 2 if broken else 1 if failed else 0


def _value(result: "Result") -> dict[str, Any]:
    from rules.loading.cases import said

    case = result.case
    asked = case.question
    return {
        "attempt": asked.text,
        "task": asked.task,
        "labels": dict(asked.labels),
        "at": None if asked.at is None else asked.at.isoformat(),
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
    said = _circumstances(case.question)
    if result.failure:
        print(f"{case.file}:{case.line}:{case.column}: {result.failure}{said}")
    else:
        print(f"ok    {case.expect:<5}  {case.question.text}{said}")


def _circumstances(asked: "Question") -> str:
    """Say who asks, when and with what: tests may differ in nothing else."""
    from rules.problems import printable

    labels = ", ".join(f"{name}={value}" for name, value in sorted(asked.labels.items()))
    parts = [f"task {asked.task}"] * bool(asked.task) + [f"labels {labels}"] * bool(labels)
    parts += [] if asked.at is None else [f"at {asked.at}"]
    request = asked.request
    if request is not None:
        parts += [f"header {name}: {value}" for name, value in request.headers if name != "host"]
        parts += [f"credential {request.credential}"] if request.credential else []
    return f"  ({printable('; '.join(parts))})" if parts else ""
