"""`exeat stop`: end a task that the service runs."""

import argparse
import sys

from enforcer.system.errors import ExeatError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `exeat stop` takes."""
    parser.add_argument("task", metavar="TASK", help="its id or its name, as `exeat ps` shows them")
    parser.add_argument("--kill", action="store_true", help="at once: without it the task has 10 seconds to end")


def run(arguments: argparse.Namespace) -> int:
    """Tell the task to end (SIGTERM); 0 when it was told."""
    from enforcer.service.control_client import ask

    try:
        (answer,) = ask({"what": "stop", "name": arguments.task, "kill": arguments.kill})
        if not answer["stopped"]:
            if answer["found"]:
                raise UsageError(f"`{arguments.task}` are several: {', '.join(answer['found'])}; name one by its id")
            if answer["attached"]:
                name = arguments.task
                raise UsageError(
                    f"`{name}` is attached, and not the service's to end: `exeat detach {name}` takes its gate"
                )
            raise UsageError(f"the service runs no task `{arguments.task}`; see `exeat ps`")
    except ExeatError as error:
        print(f"exeat: {error}", file=sys.stderr)
        return error.status
    return 0
