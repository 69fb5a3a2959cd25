"""`exeat check`: reports errors and lint findings of rule files, each with its place and correction.

It takes `approvers.yaml`, who may approve, and `identities.yaml`, who may claim what. Such a file is known by its keys,
and where those say nothing by its name. The one that counts has to be trusted, too.
"""

import argparse
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from enforcer.cli.output import count_of, parse_day
from enforcer.cli.parsing import argument
from enforcer.system.errors import HostError
from rules.files import read_file
from rules.lint import LintContext, lint
from rules.lint.findings import BROKEN, CHECKS, FAILED_TEST, READING, Finding, LintCheck, Severity, from_problem
from rules.loading.document import Mapping, parse
from rules.loading.identities import FILE_KEYS as OF_IDENTITIES
from rules.loading.identities import parse_identities
from rules.loading.load import Loaded, failures, read
from rules.loading.rule_file import FILE as RULES
from rules.problems import Problem, RuleFileError, did_you_mean

IDENTITIES: Final = "/etc/exeat/identities.yaml"
_SARIF_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_NUMBERS: Final = {check.code: number for number, check in enumerate(CHECKS)}
_SUFFIXES: Final = (".yaml", ".yml")
_ABOUT: Final = {"approvers": "who may approve", "identities": "who may claim which tasks"}
_TODO: Final = {
    "approvers": "mend it: until it is right nobody can approve anything",
    "identities": "mend it: until it is right nothing starts on a host that has it",
}


class _Report(NamedTuple):
    """What was found in one file and what it includes; `loaded` is None if it can't be read as rules."""

    file: Path
    findings: list[Finding]
    loaded: Loaded | None
    other: "OtherFile | None" = None  # what it is besides


def _code(text: str) -> str:
    for check in CHECKS:
        if text in {check.code, check.name}:
            if check.severity is Severity.ERROR:
                raise argparse.ArgumentTypeError(
                    f"`{text}` is an error, which can't be ignored: no task starts with it"
                )
            return check.code
    words = [word for check in CHECKS for word in (check.code, check.name)]
    raise argparse.ArgumentTypeError(f"`{text}` is not the code of a finding{did_you_mean(text, words)}")


LOCK: Final = argument("--lock", "FILE", "read package registries from this presets.lock instead of this machine's")


ARGUMENTS: Final = (
    argument(
        "files",
        "FILE",
        "a rule file, approvers.yaml, identities.yaml, or a directory of them; each is checked by itself, with "
        "its includes",
        nargs="+",
    ),
    argument(
        "--format",
        ("text", "json", "sarif"),
        "output format; sarif is SARIF 2.1.0, for code reviews",
        default="text",
    ),
    LOCK,
    argument("--strict", "", "exit with 1 for notes too"),
    argument("--ignore", "CODE...", "ignore warnings and notes with this code or name", type=_code),
    argument(
        "--at", "DATE", "evaluate `until` as of this day, as in 2027-01-31 (default: today in UTC)", type=parse_day
    ),
)


def run(arguments: argparse.Namespace) -> int:
    """Check the files. 0 when nothing was found but notes, 1 when something was, 2 when a file can't be read at all."""
    files, missing = rule_files(arguments.files)
    for problem in missing:
        print(problem, file=sys.stderr)
    if missing:
        return 2
    at = arguments.at or datetime.now(UTC).date()
    reports = [_check(file, at, frozenset(arguments.ignore), lock_files(arguments)) for file in files]
    if arguments.format == "json":
        print(json.dumps({"files": [_value(report) for report in reports]}, indent=2))
    elif arguments.format == "sarif":
        once = dict.fromkeys(finding for report in reports for finding in report.findings)  # of files included twice
        print(json.dumps(_sarif_log(once), indent=2))
    else:
        for report in reports:
            _print(report)
    harmless = frozenset() if arguments.strict else frozenset({Severity.NOTE})
    return int(any(finding.check.severity not in harmless for report in reports for finding in report.findings))


def rule_files(given: list[Path]) -> tuple[list[Path], list[str]]:
    """List the files that are meant, and what is wrong with those that aren't there; a directory means its YAML."""
    files: list[Path] = []
    problems: list[str] = []
    for path in given:
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                inside = sorted(entry for entry in path.iterdir() if entry.suffix in _SUFFIXES and entry.is_file())
                files += inside
                if not inside:
                    problems.append(f"exeat: there is no rule file (`*.yaml`) in the directory `{path}`")
                continue
        except OSError as error:
            problems.append(f"{path}:1:1: `{path}` can't be read: {(error.strerror or str(error)).lower()}")
            continue
        if not stat.S_ISREG(mode) or not os.access(path, os.R_OK):
            why = "permission denied" if stat.S_ISREG(mode) else "it is not a file"
            problems.append(f"{path}:1:1: `{path}` can't be read: {why}")
        files.append(path)
    return files, problems


def lock_files(arguments: argparse.Namespace) -> list[Path] | None:
    """Give the lock files that `--lock` names; None for this machine's own."""
    return None if arguments.lock is None else [arguments.lock]


def _check(file: Path, at: date, ignored: frozenset[str], locks: list[Path] | None) -> _Report:
    if has_reserved_name(file) and (found := read_other_file(file)):
        return _Report(file, found.findings, None, found)
    try:
        loaded = read([file], locks)
    except RuleFileError as error:
        if found := read_other_file(file):
            return _Report(file, found.findings, None, found)
        return _Report(file, [from_problem(problem, BROKEN) for problem in error.problems], None)
    known = {check.code: check for check in CHECKS}
    findings = [from_problem(problem, FAILED_TEST) for problem in failures(loaded)]
    findings += [from_problem(problem, known.get(problem.code, READING)) for problem in loaded.warnings]
    findings += lint(loaded, LintContext(at, os.path.exists(IDENTITIES), _obeyed(loaded)))
    return _Report(file, [finding for finding in findings if finding.check.code not in ignored], loaded)


def _obeyed(loaded: Loaded) -> Callable[[str], bool]:
    """Return what says whether this host runs or obeys all of a path that files write."""
    if not loaded.policy.box.write:
        return lambda _path: False
    from enforcer.sandbox.system_paths import contains, home_directories
    from enforcer.workspace.protected_files import is_obeyed
    from enforcer.workspace.repository_scan import list_user_git_files

    of_host, of_git = home_directories(), list_user_git_files()

    def is_it(path: str) -> bool:
        real = os.path.realpath(os.path.expanduser(path))
        return is_obeyed(real, of_host) or any(contains(each, real) for each in of_git)

    return is_it


def check_file(file: Path, at: date) -> list[Finding]:
    """Check one rule file."""
    return _check(file, at, frozenset(), None).findings


def _value(report: _Report) -> dict[str, Any]:
    policy = report.loaded and report.loaded.policy
    return {
        "file": str(report.file),
        "kind": report.other.kind if report.other else "rules",
        "findings": [finding.value() for finding in report.findings],
        "rules": len(policy.rule_ids) if policy else 0,
        "sources": list(map(str, policy.sources)) if policy else [],
        "revision": policy.revision if policy else "",
    }


def _print(report: _Report) -> None:
    for finding in report.findings:
        print(finding)
    if report.other is not None and not report.findings:
        print(f"{report.file}: ok, {report.other.about}: {report.other.holds}")
    if report.loaded is None:
        return
    policy = report.loaded.policy
    severities = [finding.check.severity for finding in report.findings]
    counted = [count_of(severities.count(severity), severity) for severity in Severity if severity in severities]
    bad = any(severity is not Severity.NOTE for severity in severities)
    about = [count_of(len(policy.rule_ids), "rule") + " in " + count_of(len(report.loaded.files), "file")]
    about += [policy.revision[:12], *counted]
    print(f"{report.file}: {'not clean' if bad else 'ok'}, {', '.join(about)}")


def _sarif_log(findings: Iterable[Finding]) -> dict[str, Any]:
    """Make a SARIF log of one run; files are given relative to the working directory, which is `%SRCROOT%`."""
    from importlib.metadata import version  # 10 ms, which only this form needs

    driver = {"name": "exeat", "semanticVersion": version("exeat"), "rules": [_sarif_rule(check) for check in CHECKS]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_sarif_result(finding) for finding in findings],
    }
    return {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}


def _sarif_rule(check: LintCheck) -> dict[str, Any]:
    return {
        "id": check.code,
        "name": "".join(word.title() for word in check.name.split("-")),
        "shortDescription": {"text": check.meaning},
        "help": {"text": check.remedy},
        "defaultConfiguration": {"level": check.severity.value},
    }


def _sarif_result(finding: Finding) -> dict[str, Any]:
    check = finding.check
    text = finding.message if check.severity is Severity.ERROR else f"{finding.message}; {check.remedy}"
    return {
        "ruleId": check.code,
        "ruleIndex": _NUMBERS[check.code],
        "level": check.severity.value,
        "message": {"text": text},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": _artifact(finding.file),
                    "region": {"startLine": finding.line, "startColumn": finding.column},
                }
            }
        ],
    }


def _artifact(file: str) -> dict[str, str]:
    """Name a file: below the working directory relative to it, as reviews want it, and else by its whole path."""
    relative = os.path.relpath(file)
    if relative.startswith(".."):
        return {"uri": "file://" + quote(os.path.abspath(file))}
    return {"uri": quote(relative), "uriBaseId": "%SRCROOT%"}


class OtherFile(NamedTuple):
    """A file that is none of rules, and what is wrong with it."""

    kind: str  # approvers, identities
    findings: list[Finding]
    holds: str  # in words; empty where it is broken

    @property
    def about(self) -> str:
        """Say what such a file is about."""
        return _ABOUT[self.kind]


def has_reserved_name(file: Path) -> bool:
    """Whether a file has the name of one."""
    return file.stem in _ABOUT


def read_other_file(file: Path) -> OtherFile | None:
    """Read a file as what it is; None: it is a rule file, or can't be told from one."""
    try:
        data = read_file(file)
    except (OSError, ValueError):
        return None  # whoever takes it for a rule file says so
    kind = _kind(data, file)
    if not kind:
        return None
    read, in_force, trusted = _readers(kind)
    try:
        holds = read(data, str(file))
        if os.path.abspath(file) == str(in_force):
            trusted(file)
    except RuleFileError as error:
        return OtherFile(kind, _findings(kind, error.problems), "")
    except HostError as error:
        return OtherFile(kind, _findings(kind, [Problem(str(file), 1, 1, str(error))]), "")
    return OtherFile(kind, [], holds)


def _findings(kind: str, problems: Sequence[Problem]) -> list[Finding]:
    check = BROKEN._replace(remedy=_TODO[kind])
    return [from_problem(problem, check) for problem in problems]


def _kind(data: bytes, file: Path) -> str:
    """Say what kind of file this is; empty: of rules."""
    from proxy.approvals.approvers_file import FILE_KEYS as APPROVERS

    root = parse(data, str(file), [])
    keys = set(root.pairs) if isinstance(root, Mapping) else set()
    for kind, own in (("", RULES.keys), ("approvers", APPROVERS), ("identities", OF_IDENTITIES)):
        if keys & set(own) - {"version"}:
            return kind
    return file.stem if has_reserved_name(file) else ""


def _readers(kind: str) -> tuple[Callable[[bytes, str], str], Path, Callable[[Path], object]]:
    """Return what reads its text, where the one that counts lies, and what reads that one."""
    if kind == "approvers":
        from enforcer.approvals import approvers

        def trusted(file: Path) -> None:
            from proxy.approvals.approvers_file import read_people

            approvers.trust(file)
            read_people(file)

        return _approvers, approvers.place(), trusted
    from enforcer.policy import run_request

    return _identities, run_request.identities_file(), lambda _: run_request.read_identities()


def _approvers(data: bytes, file: str) -> str:
    from proxy.approvals.approvers_file import parse_people

    found = parse_people(data, file)
    people = "1 person" if len(found.people) == 1 else f"{len(found.people)} people"
    counted = [(found.groups, "group"), (found.reviewers, "reviewer"), (found.notices, "notifier")]
    return ", ".join([people, *(count_of(len(many), what) for many, what in counted if many)])


def _identities(data: bytes, file: str) -> str:
    count = len(parse_identities(data, file).entries)
    return "1 identity" if count == 1 else f"{count} identities"
