"""Commands on rule files besides `exeat check`: `exeat test`, `diff` and `schema`."""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from enforcer.cli.check import LOCK, lock_files, rule_files
from enforcer.cli.parsing import FORMAT, argument
from enforcer.system.errors import UsageError
from rules.loading import cases
from rules.loading.cases import AttemptText, RuleTestResult, verdict_of
from rules.loading.load import read
from rules.matching.policy import Policy
from rules.problems import RuleFileError, escape_unprintable

if TYPE_CHECKING:
    from rules.diff.compare import PolicyDiff
    from rules.diff.statements import Statement


TEST_ARGUMENTS: Final = (
    argument("files", "FILE", "a rule file, or a directory of them; each is tested by itself", nargs="+"),
    LOCK,
    FORMAT,
)
DIFF_ARGUMENTS: Final = (
    argument("files", "FILE", "OLD and NEW: one rule file each", nargs="*"),
    argument("--old", "FILE...", "file of the old rules, where there are several; needs --new"),
    argument("--new", "FILE...", "file of the new rules; needs --old"),
    FORMAT,
)
SCHEMA_ARGUMENTS: Final = (
    argument("--format", ("json",), "output format: JSON Schema, draft-07", default="json"),
    argument("--event", "", "print the schema of the journal's events instead"),
)


def run_test(arguments: argparse.Namespace) -> int:
    """Run the tests. 0 when all passed, 1 when one failed, 2 when a file can't be used or there are no tests at all."""
    files, problems = rule_files(arguments.files)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 2
    results: list[RuleTestResult] = []
    broken = False
    for file in files:
        try:
            loaded = read([file], lock_files(arguments))
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
        print(json.dumps({"tests": [_test_value(result) for result in results], "failed": failed}, indent=2))
    else:
        for result in results:
            _print_test(result)
        print(f"{len(results) - failed} passed, {failed} failed")
    return 2 if broken else 1 if failed else 0


def _test_value(result: RuleTestResult) -> dict[str, Any]:
    case = result.case
    caller = case.question.caller
    return {
        "attempt": case.question.text,
        "task": caller.task,
        "labels": dict(caller.labels),
        "at": None if caller.at is None else caller.at.isoformat(),
        "file": case.file,
        "line": case.line,
        "expect": case.expect.value,
        "verdict": verdict_of(result.decision).value,
        "reason": result.decision.reason.value,
        "rules": list(result.decision.rules),
        "passed": not result.failure,
        "failure": result.failure,
    }


def _print_test(result: RuleTestResult) -> None:
    case = result.case
    said = _circumstances(case.question)
    if result.failure:
        print(f"{case.file}:{case.line}:{case.column}: {result.failure}{said}")
    else:
        print(f"ok    {case.expect:<5}  {case.question.text}{said}")


def _circumstances(asked: AttemptText) -> str:
    """Say who asks, when and with what: tests may differ in nothing else."""
    labels = ", ".join(f"{name}={value}" for name, value in sorted(asked.caller.labels.items()))
    parts = [f"task {asked.caller.task}"] * bool(asked.caller.task) + [f"labels {labels}"] * bool(labels)
    parts += [] if asked.caller.at is None else [f"at {asked.caller.at}"]
    request = asked.request
    if request is not None:
        parts += [f"header {name}: {value}" for name, value in request.headers if name != "host"]
        parts += [f"credential {request.credential}"] if request.credential else []
    return f"  ({escape_unprintable('; '.join(parts))})" if parts else ""


def run_diff(arguments: argparse.Namespace) -> int:
    """Compare. 0 when no decision differs, 1 when not, 2 when the words or a file are wrong."""
    old, new = arguments.old, arguments.new
    if not old and not new and len(arguments.files) == 2:
        old, new = arguments.files[:1], arguments.files[1:]
    elif not old or not new or arguments.files:
        raise UsageError(
            "name two rule files, as in `exeat diff old.yaml new.yaml`; or every file of each policy, "
            "as in `exeat diff --old a.yaml --old b.yaml --new c.yaml`"
        )
    from rules.diff.compare import compare
    from rules.diff.statements import describe_diff

    before, after = read(old).policy, read(new).policy
    compared = compare(before, after)
    told = describe_diff(compared)
    if arguments.format == "json":
        print(json.dumps(_diff_value(before, after, compared, told), indent=2))
    else:
        _print_diff(compared, told)
    return 0 if compared.is_empty else 1


def _diff_value(before: Policy, after: Policy, compared: "PolicyDiff", told: "list[Statement]") -> dict[str, Any]:
    return {
        "old": {"files": list(map(str, before.sources)), "revision": before.revision},
        "new": {"files": list(map(str, after.sources)), "revision": after.revision},
        "settings": [setting._asdict() for setting in compared.settings],
        "differences": [statement.value() for statement in told],
        "complete": compared.complete,
    }


def _print_diff(compared: "PolicyDiff", told: "list[Statement]") -> None:
    # What a setting changes for attempts that no statement lists
    means = ": what no rule or but a default rule decides is let out in audit mode, and told"
    for setting in compared.settings:
        was, now = (value if value is not None else "not set" for value in (setting.was, setting.now))
        print(f"setting `{setting.key}`: was {was}, is {now}{means if setting.key == 'mode' else ''}")
    for statement in told:
        print(statement.text)
    if not compared.complete:
        print("there are too many kinds of attempts to compare all: the list above is not complete")
    if compared.is_empty:
        print("no decision differs")
        return
    print("; ".join(_counted(compared, told)))


def _counted(compared: "PolicyDiff", told: "list[Statement]") -> Iterator[str]:
    """Say how much differs: settings, then what is decided."""
    from rules.diff.statements import VERDICT_WORDS

    settings, things = len(compared.settings), len(told)
    if settings:
        yield "1 setting differs" if settings == 1 else f"{settings} settings differ"
    if things or not settings:
        counts = {word: sum(each.now.verdict == verdict for each in told) for verdict, word in VERDICT_WORDS.items()}
        said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        yield f"{things} {'difference' if things == 1 else 'differences'}{f': {said}' if said else ''}"


def run_schema(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    assert arguments.format == "json"
    if arguments.event:
        from proxy.telemetry.schema import event_schema

        schema = event_schema()
    else:
        from rules.loading.json_schema import rule_file_schema

        schema = rule_file_schema()
    print(json.dumps(schema, indent=2))
    return 0
