"""`exeat check`: every problem of rule files, with its place and the correction."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rules.problems import Problem

NAME = "check"
HELP = "check rule files: every problem with its place and the correction"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `exeat check` takes."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a rule file; each is checked by itself")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="for people, or for programs")


def run(arguments: argparse.Namespace) -> int:
    """Check the files. 0 when nothing was found, 1 when something was, 2 when a file isn't there."""
    missing = [file for file in arguments.files if not file.is_file()]
    if missing:
        for file in missing:
            print(f"exeat: there is no file `{file}`", file=sys.stderr)
        return 2
    reports = [_check(file) for file in arguments.files]
    if arguments.format == "json":
        print(json.dumps({"files": reports}, indent=2))
    else:
        for report in reports:
            _print(report)
    return 1 if any(report["findings"] for report in reports) else 0


def _check(file: Path) -> dict[str, Any]:
    from rules.load import failures, read
    from rules.problems import RuleFileError

    report: dict[str, Any] = {"file": str(file), "findings": [], "rules": 0, "sources": [], "revision": ""}
    try:
        loaded = read([file])
    except RuleFileError as error:
        report["findings"] = [_finding(problem, "error") for problem in error.problems]
        return report
    report["rules"] = len(loaded.policy.rule_ids)
    report["sources"] = list(map(str, loaded.policy.sources))
    report["revision"] = loaded.policy.revision
    report["findings"] = [_finding(problem, "error") for problem in failures(loaded)]
    report["findings"] += [_finding(problem, "warning") for problem in loaded.warnings]
    return report


def _finding(problem: "Problem", severity: str) -> dict[str, Any]:
    place = {"file": problem.file, "line": problem.line, "column": problem.column}
    return {**place, "severity": severity, "message": problem.message}


def _print(report: dict[str, Any]) -> None:
    for finding in report["findings"]:
        warning = "warning: " if finding["severity"] == "warning" else ""
        print(f"{finding['file']}:{finding['line']}:{finding['column']}: {warning}{finding['message']}")
    if not report["findings"]:
        rules, files = report["rules"], len(report["sources"])
        print(f"{report['file']}: ok, {_count(rules, 'rule')} in {_count(files, 'file')}, {report['revision'][:12]}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
