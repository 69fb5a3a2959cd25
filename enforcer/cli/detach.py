"""`exeat detach`: take the gate from what was attached, which has no way out from then on."""

import argparse
import sys

from enforcer.system.errors import ExeatError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `exeat detach` takes."""
    parser.add_argument("namespace", metavar="PID|NETNS", help="as it was attached, or its task's id or name")


def run(arguments: argparse.Namespace) -> int:
    """Detach it; 0 when it was attached."""
    from enforcer.service import attach

    named = arguments.namespace
    try:
        attach.detach(attach.real(named) if "/" in named else named)
    except ExeatError as error:
        print(f"exeat: {error}", file=sys.stderr)
        return error.status
    return 0
