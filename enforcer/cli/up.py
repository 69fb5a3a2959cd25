"""`exeat up`: the service in the foreground, which makes the sandboxes of `exeat run` and serves them."""

import argparse
import os
import sys
from pathlib import Path

from enforcer.cli import run as run_command
from enforcer.cli.run import DEFAULT_METRICS, listen
from enforcer.policy.rules_in_force import SYSTEM
from enforcer.system.errors import ExeatError, HostError

_MOST_WORKERS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `exeat up` takes."""
    add = parser.add_argument
    add("--workers", type=int, metavar="N", help="serve sandboxes in N processes (by default one for each core)")
    add(
        "--metrics",
        nargs="?",
        const=DEFAULT_METRICS,
        metavar="HOST:PORT",
        help=f"serve Prometheus metrics of all tasks ({DEFAULT_METRICS} if no address is given)",
    )
    add("--journal", metavar="DIR", type=Path, help="write the journal there ($XDG_STATE_HOME/exeat/journal)")


def run(arguments: argparse.Namespace, system: Path = SYSTEM) -> int:
    """Serve until told to end (SIGTERM). `system`: for tests, not for users."""
    _have_streams()
    try:
        _serve(arguments, system)
    except ExeatError as error:
        print(f"exeat: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"exeat: {error.strerror or error}", file=sys.stderr)
        return HostError.status
    return 0


def _have_streams() -> None:
    """Have the standard ones also where who started this has closed them: runs are given theirs in their places."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def _serve(arguments: argparse.Namespace, system: Path) -> None:
    from enforcer.cli import status_if_unsaid
    from enforcer.cli.parsing import Parser
    from enforcer.service.control_server import Control
    from enforcer.service.request import RunCommand
    from enforcer.service.service import Service, raise_limits
    from enforcer.service.systemd import Notifier, passed
    from enforcer.system import state
    from enforcer.worker import trust, worker

    size = arguments.workers or len(os.sched_getaffinity(0))
    if not 0 < size <= _MOST_WORKERS:
        raise HostError(f"--workers: there may be 1 to {_MOST_WORKERS}")
    notifier, sockets = Notifier(), passed()
    control = Control(sockets[0][1] if sockets else None)
    try:
        raise_limits()
        state.make_private(state.state_directory())
        journal = state.make_private(arguments.journal.absolute() if arguments.journal else state.journal_directory())
        trusted = trust.public_authority(state.authority_directory(), state.make_private(state.cache_directory()))
        stations = worker.Stations(
            state.authority_directory(),
            trusted.fingerprint,
            trusted.expires,
            trusted.certificate.encode(),
            journal,
            None,
        )
        metrics = listen(arguments.metrics) if arguments.metrics else None
        command = RunCommand(
            Parser.of("run", run_command).read, run_command.wanted_of, run_command.perform, status_if_unsaid
        )
        service = Service(control, stations, size, system=system, command=command, notifier=notifier, metrics=metrics)
    except BaseException:
        control.close()
        raise
    shown = "" if metrics is None else ", metrics on {}:{}".format(*metrics.getsockname()[:2])
    print(f"exeat: serving with {size} workers on {control.path}{shown}", file=sys.stderr, flush=True)
    try:
        service.run()
    finally:
        service.close()
