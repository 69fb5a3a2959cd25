"""Findings as SARIF 2.1.0 (OASIS), which code reviews show beside the lines they are about."""

import os.path
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import quote

from rules.lint.findings import CHECKS, Check, Finding, Severity

SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_NUMBERS: Final = {check.code: number for number, check in enumerate(CHECKS)}


def log_of(findings: Iterable[Finding]) -> dict[str, Any]:
    """Make a log of one run; files are given relative to the working directory, which is `%SRCROOT%`."""
    driver = {"name": "exeat", "semanticVersion": version("exeat"), "rules": [_rule(check) for check in CHECKS]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding) for finding in findings],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(check: Check) -> dict[str, Any]:
    return {
        "id": check.code,
        "name": "".join(word.title() for word in check.name.split("-")),
        "shortDescription": {"text": check.says},
        "help": {"text": check.todo},
        "defaultConfiguration": {"level": check.severity.value},
    }


def _result(finding: Finding) -> dict[str, Any]:
    check = finding.check
    text = finding.message if check.severity is Severity.ERROR else f"{finding.message}; {check.todo}"
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
