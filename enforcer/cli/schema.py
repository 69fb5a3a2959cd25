"""`exeat schema`: the rule language, or the journal's event, as JSON Schema."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `exeat schema` takes."""
    parser.add_argument(
        "--format", choices=("json",), default="json", help="JSON Schema, draft-07; there is no other form"
    )
    parser.add_argument("--event", action="store_true", help="the schema of the journal's events, not of rule files")


def run(arguments: argparse.Namespace) -> int:
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
