"""`exeat run`: a task in a sandbox of its own, behind a gate of its own."""

import argparse
import errno
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.cli import box_options
from enforcer.limits.resource_limits import TIMED_OUT
from enforcer.policy import run_request
from enforcer.policy.path_resolution import covered, exposed, refuse_service
from enforcer.policy.rules_in_force import RULES_OPTION, SYSTEM, own_files, rule_files
from enforcer.policy.run_request import Wanted
from enforcer.run.host import StandaloneHost
from enforcer.sandbox.system_paths import homes, refuse_workspace
from enforcer.system import linux
from enforcer.system.control_socket import control
from enforcer.system.errors import ExeatError, HostError, UsageError
from enforcer.system.state import journal_directory
from rules.problems import RuleFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from enforcer.policy.rules_in_force import Seen
    from enforcer.run.dry_run import Line
    from enforcer.run.host import Host
    from enforcer.run.task import Result

DEFAULT_METRICS = "127.0.0.1:9464"
_COUNTED = ", or leave `--metrics` out: `exeat up --metrics` serves the metrics of all tasks that run under it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `exeat run` takes."""
    add_options(parser)
    add = parser.add_argument
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND [ARGUMENT...]", help="what to run, and its own words")
    parser.usage = "exeat run [--rules FILE] [OPTION...] -- COMMAND [ARGUMENT...]"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a run, whatever it runs."""
    add = parser.add_argument
    add("--rules", **RULES_OPTION)
    add("--task", metavar="NAME", help="the task's name, for rules and events (by default made from the command's)")
    add("--label", action="append", default=[], metavar="NAME=VALUE", help="a label of the task, for rules and events")
    add("--workspace", metavar="DIR", help="the directory the task may write (by default the current one)")
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="give the task one more variable, of yours or with this value",
    )
    add("--journal", metavar="DIR", type=Path, help="write the journal there ($XDG_STATE_HOME/exeat/journal)")
    add(
        "--metrics",
        nargs="?",
        const=DEFAULT_METRICS,
        metavar="HOST:PORT",
        help=f"serve Prometheus metrics while the task runs ({DEFAULT_METRICS} if no address is given)",
    )
    box_options.add_arguments(parser)
    add("--no-service", action="store_true", help="make it all here, also where `exeat up` runs")
    add("--plan", action="store_true", help="say every step that a start would take, and take none")
    add("--format", choices=("text", "json"), default="text", help="of the plan: for people, or for programs")
    add("--quiet", action="store_true", help="no summary at the end")


def run(arguments: argparse.Namespace, system: Path = SYSTEM) -> int:
    """Run the task. The status is its own, or 124 to 127 (timeout(1), env(1)). `system`: for tests, not for users."""
    return end_like(perform(arguments, system, StandaloneHost()))


def perform(arguments: argparse.Namespace, system: Path, host: "Host") -> int:
    """Run the task on a host; how it ended is a wait status, as waitpid(2) has it."""
    try:
        wanted = wanted_of(arguments, system, host.read_rules)
        if arguments.plan:
            from enforcer.run.dry_run import plan

            lines = plan(wanted)
        else:
            from enforcer.run import task

            host.announce()
            result = task.run(wanted, host)
    except RuleFileError as error:
        print(error, file=sys.stderr)
        return 2 << 8
    except ExeatError as error:
        print(f"exeat: {error}", file=sys.stderr)
        return error.status << 8
    except OSError as error:
        print(f"exeat: {error.strerror or error}", file=sys.stderr)
        return HostError.status << 8
    return _print_plan(lines, arguments.format) if arguments.plan else _told(result, quiet=arguments.quiet)


def _told(result: "Result", *, quiet: bool) -> int:
    """Say what there is to say of a run that is over, and give its wait status."""
    for problem in result.problems:
        print(f"exeat: {problem}", file=sys.stderr)
    for said in result.limited:
        print(f"exeat: the task reached a limit: {said}", file=sys.stderr)
    for said in result.workspace:
        print(f"exeat: {said}", file=sys.stderr)
    if not quiet:
        _summary(result)
    if result.cut_short:
        return TIMED_OUT << 8
    if result.status is None:
        return HostError.status << 8
    return result.status or (1 << 8 if result.problems else 0)


def _print_plan(lines: "Sequence[Line]", form: str) -> int:
    """Say what a start would do."""
    if form == "json":
        import json

        print(json.dumps([line._asdict() for line in lines], indent=2))
    else:
        width = max(len(line.where) for line in lines)
        print("\n".join(f"{line.where:<{width}}  {line.does}" for line in lines))
    return 0


def wanted_of(arguments: argparse.Namespace, system: Path, reading: "Callable[[Sequence[Path], Path], Seen]") -> Wanted:
    """Return what is asked for, under rules as `reading` has them. Raises ExeatError, RuleFileError; makes nothing."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise UsageError("no command to run; write it after `--`, as in `exeat run --rules web.yaml -- make`")
    name, labels = run_request.task_name(arguments.task, command[0]), run_request.task_labels(arguments.label)
    run_request.check_claims(name, labels, system)
    workspace = _directory(arguments.workspace or _here(), "--workspace")
    files = rule_files(arguments.rules)
    policy, asked, seen = reading([Path(path) for path in files], system)
    others = homes()
    refuse_workspace(workspace, os.path.expanduser("~"), others)
    box, shown = box_options.box_of(arguments, policy)
    shown = box_options.with_repository(workspace, box, policy, shown)
    writable = (workspace, *shown.write)
    obeyed = (*asked, *map(str, own_files()))  # by later runs, too
    if problems := exposed(obeyed, writable):
        raise UsageError(problems[0])
    refuse_service(control(), writable)
    return Wanted(
        argv=tuple(command),
        name=name,
        policy=policy,
        rules=files,
        workspace=workspace,
        labels=labels,
        system=system,
        asked=asked,
        seen=seen,
        covers=covered(obeyed, writable),
        homes=others,
        box=box,
        read=shown.read,
        write=shown.write,
        hide=shown.hide,
        names=shown.names,
        env=tuple(arguments.env),
        journal=arguments.journal.absolute() if arguments.journal else None,
        metrics=listen(arguments.metrics, _COUNTED) if arguments.metrics else None,
    )


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current directory is gone: go to one that is there") from error


def _directory(path: str, option: str) -> str:
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise UsageError(f"{option}: `{path}` is not a directory")
    return real


def listen(address: str, otherwise: str = "") -> socket.socket:
    """Open the metrics port now, so that one that is taken is said before anything runs: with `otherwise`, if so."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):(\d{1,5})", address)
    if match is None or int(match[3]) > 0xFFFF:
        raise UsageError(f"--metrics: `{address}` is not an address; write HOST:PORT, as in {DEFAULT_METRICS}")
    host, port = match[1] or match[2] or "127.0.0.1", int(match[3])
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.socket(family, kind, protocol)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(place)
        server.listen(16)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            said = f"the metrics port `{address}` is taken; name another port with `--metrics HOST:PORT`{otherwise}"
            raise HostError(said) from error
        raise HostError(
            f"the metrics port `{address}` cannot be opened: {error.strerror}; choose another with --metrics"
        ) from error
    server.setblocking(False)
    return server


def _summary(result: "Result") -> None:
    from enforcer.cli.hints import hints  # once the task has ended, nobody waits

    summary = result.summary
    said = "the gate was lost, and its counts with it" if summary is None else summary.describe()
    empty = summary is not None and summary.is_empty
    print(f"exeat: {said}", file=sys.stderr)
    said_more = () if summary is None else tuple(hints(summary, result.command))
    for hint in said_more:
        print(f"exeat: {hint}", file=sys.stderr)
    if empty and not result.limited and not said_more:
        return  # there is nothing to see
    elsewhere = "" if result.journal == journal_directory() else f"--journal {result.journal} "
    what = "what it came up against" if empty else "what was tried and why"
    print(f"exeat: see {what} with `exeat log {elsewhere}--task {result.task.id}`", file=sys.stderr)


def end_like(status: int) -> int:
    """End as the task did (a wait status): its exit status, or its signal on ourselves."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    number = -code
    linux.leave_no_core()  # of ours for a crash of the task's
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return 128 + number
