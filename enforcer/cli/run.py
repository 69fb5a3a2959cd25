"""`exeat run`: a task in a sandbox of its own, behind a gate of its own."""

import argparse
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.errors import ExeatError, HostError, UsageError
from enforcer.state import journal_directory
from enforcer.wanted import Wanted
from rules.load import load
from rules.problems import RuleFileError

if TYPE_CHECKING:
    from enforcer.task import Result

DEFAULT_METRICS = "127.0.0.1:9464"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `exeat run` takes."""
    add = parser.add_argument
    add("--rules", action="append", required=True, metavar="FILE", help="a rule file; may be given more than once")
    add("--name", help="the task's name in events (by default the command's)")
    add("--workspace", metavar="DIR", help="the directory the task may write (by default the current one)")
    add("--read", action="append", default=[], metavar="DIR", help="show one more directory, read-only")
    add("--env", action="append", default=[], metavar="NAME[=VALUE]", help="give the task one more variable")
    add("--journal", metavar="DIR", type=Path, help="write the journal there ($XDG_STATE_HOME/exeat/journal)")
    add(
        "--metrics",
        nargs="?",
        const=DEFAULT_METRICS,
        metavar="HOST:PORT",
        help=f"serve Prometheus metrics while the task runs ({DEFAULT_METRICS} if no address is given)",
    )
    add("--quiet", action="store_true", help="no summary at the end")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND [ARGUMENT...]")


def run(arguments: argparse.Namespace) -> int:
    """Run the task; the exit status is its own, or 125, 126, 127 as in env(1)."""
    try:
        wanted = _wanted(arguments)
        from enforcer import task

        result = task.run(wanted)
    except RuleFileError as error:
        print(error, file=sys.stderr)
        return 2
    except ExeatError as error:
        print(f"exeat: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"exeat: {error.strerror or error}", file=sys.stderr)
        return HostError.status
    for problem in result.problems:
        print(f"exeat: {problem}", file=sys.stderr)
    if not arguments.quiet:
        _summary(result)
    return _end_like(result.status) or (1 if result.problems else 0)


def _wanted(arguments: argparse.Namespace) -> Wanted:
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise UsageError("no command to run; write it after `--`, as in `exeat run --rules web.yaml -- make`")
    policy = load([Path(path) for path in arguments.rules])
    workspace = _directory(arguments.workspace or os.getcwd(), "--workspace")
    name = arguments.name or os.path.basename(command[0]) or "task"
    return Wanted(
        argv=tuple(command),
        name=name,
        policy=policy,
        rules=tuple(arguments.rules),
        workspace=workspace,
        read=tuple(dict.fromkeys(_directory(path, "--read") for path in arguments.read)),
        env=tuple(arguments.env),
        journal=arguments.journal.absolute() if arguments.journal else None,
        metrics=_listen(arguments.metrics) if arguments.metrics else None,
    )


def _directory(path: str, option: str) -> str:
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise UsageError(f"{option}: `{path}` is not a directory")
    return real


def _listen(address: str) -> socket.socket:
    """Open the metrics port now, so that one that is taken is said before anything runs."""
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
        raise HostError(
            f"the metrics port `{address}` cannot be opened: {error.strerror}; choose another with --metrics"
        ) from error
    server.setblocking(False)
    return server


def _summary(result: "Result") -> None:
    summary = result.summary
    said = "the gate was lost, and its counts with it" if summary is None else summary.describe()
    print(f"exeat: {said}", file=sys.stderr)
    elsewhere = "" if result.journal == journal_directory() else f"--journal {result.journal} "
    print(f"exeat: see what was tried and why with `exeat log {elsewhere}--task {result.task.id}`", file=sys.stderr)


def _end_like(status: int | None) -> int:
    """End as the task did: its exit status, or its signal on ourselves."""
    if status is None:
        return HostError.status
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    number = -code
    # No core of ours for a crash of the task's.
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return 128 + number
