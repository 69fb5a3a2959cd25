"""`exeat explain`: what the rules decide about one attempt, and why."""

import argparse
import json
import sys
from pathlib import Path

NAME = "explain"
HELP = "say what the rules decide about one attempt, and why"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `exeat explain` takes."""
    parser.add_argument(
        "--rules", action="append", required=True, type=Path, metavar="FILE", help="a rule file; several are one policy"
    )
    parser.add_argument(
        "attempt", metavar="ATTEMPT", help="`GET https://host/path`, `host:port`, `tcp host:port` or `udp host:port`"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="for people, or for programs")


def run(arguments: argparse.Namespace) -> int:
    """Explain the attempt. 0 whatever the verdict, 2 when the attempt or the rules can't be read."""
    from rules.cases import parse_attempt
    from rules.explain import explain
    from rules.load import load
    from rules.problems import RuleFileError

    try:
        explanation = explain(load(arguments.rules), parse_attempt(arguments.attempt))
    except RuleFileError as error:
        print(error, file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"exeat: {error}", file=sys.stderr)
        return 2
    if arguments.format == "json":
        print(json.dumps(explanation.value(), indent=2))
    else:
        print("\n".join(explanation.lines()))
    return 0
