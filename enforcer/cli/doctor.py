"""`exeat doctor`: checks whether this machine can run sandboxes, and says what to do if not."""

import argparse
import json
from dataclasses import asdict
from typing import Final

from enforcer.cli.parsing import FORMAT
from enforcer.doctor.checks import Finding, examine

ARGUMENTS: Final = (FORMAT,)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; 0 when nothing that is needed is missing, else 1."""
    findings = examine()
    missing = [finding for finding in findings if finding.needed and not finding.works]
    if arguments.format == "json":
        print(json.dumps({"ready": not missing, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return 1 if missing else 0
    width = max(len(finding.name) for finding in findings)
    told = {""}  # no remedy twice
    for finding in findings:
        print(f"{_mark(finding):<8}{finding.name:<{width}}  {finding.seen}")
        if not finding.works and finding.remedy not in told:
            told.add(finding.remedy)
            print(f"{'':<8}{'':<{width}}  to do: {finding.remedy}")
    print("\nthis machine can run sandboxes" if not missing else "\nthis machine cannot run sandboxes yet")
    return 1 if missing else 0


def _mark(finding: Finding) -> str:
    if finding.works:
        return "ok"
    if not finding.tried:
        return "untried"
    return "MISSING" if finding.needed else "limited"
