"""`exeat approve`: let go on what the gate holds."""

import argparse

from enforcer.cli import deciding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `exeat approve` takes."""
    parser.add_argument("id", metavar="ID", help="the question, by the beginning of its id")
    deciding.add_terms(parser)
    deciding.add_as_rule(parser)
    deciding.add_why(parser)
    deciding.add_who(parser)


def run(arguments: argparse.Namespace) -> int:
    """Approve. 0 when it counts, 1 when it doesn't, 2 for misuse."""
    return deciding.answer(arguments, "approve")
