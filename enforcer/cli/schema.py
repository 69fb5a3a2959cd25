"""`exeat schema`: the rule language as JSON Schema, for editors."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `exeat schema` takes."""
    parser.add_argument(
        "--format", choices=("json",), default="json", help="JSON Schema, draft-07; there is no other form"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    assert arguments.format == "json"
    from rules.grammar.json_schema import rule_file_schema

    print(json.dumps(rule_file_schema(), indent=2))
    return 0
