"""`exeat attach`: give the gate to a network namespace that somebody else made, as a container's without a network."""

import argparse
import os
import sys
from pathlib import Path

from enforcer.policy import run_request
from enforcer.policy.rules_in_force import RULES_OPTION, SYSTEM, read_seen, rule_files
from enforcer.system.errors import ExeatError, HostError
from rules.problems import RuleFileError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `exeat attach` takes."""
    add = parser.add_argument
    add("namespace", metavar="PID|NETNS", help="a process that is in it, or the file that it is bound to")
    add("--rules", **RULES_OPTION)
    add("--task", metavar="NAME", help="the task's name, for rules and events (by default `attached`)")
    add("--label", action="append", default=[], metavar="NAME=VALUE", help="a label of the task, for rules and events")


def run(arguments: argparse.Namespace, system: Path = SYSTEM) -> int:
    """Attach it; 0 when it has the gate. `system`: for tests, not for users."""
    from enforcer.service import attach
    from proxy.telemetry.visible import visible

    try:
        name, labels = run_request.task_name(arguments.task, "attached"), run_request.task_labels(arguments.label)
        run_request.check_claims(name, labels, system)
        files = [Path(path) for path in rule_files(arguments.rules)]
        policy, asked, seen = read_seen(files, system)
        target = attach.target(arguments.namespace)
        answer = attach.attach(
            target,
            attach.Wanted(
                policy,
                tuple(os.path.join(os.getcwd(), path) for path in files),
                asked,
                seen,
                system,
                name,
                labels,
            ),
        )
    except RuleFileError as error:
        print(error, file=sys.stderr)
        return 2
    except ExeatError as error:
        print(f"exeat: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"exeat: {error.strerror or error}", file=sys.stderr)
        return HostError.status
    if policy.needs.approvals:
        print("exeat: nobody can be asked for it: what these rules ask about is denied there", file=sys.stderr)
    shown = visible(target.named)
    print(f"{answer['task']} is `{shown}`, as long as the service runs; `exeat detach {shown}` ends it")
    return 0
