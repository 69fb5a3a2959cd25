"""A request for a run, to the process that carries it out: how to read its words, and what to take on of its client."""

import contextlib
import os
import resource
import signal
from typing import TYPE_CHECKING, NamedTuple

from enforcer.system.processes import dispose

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from enforcer.policy.rule_files import Seen
    from enforcer.policy.run_request import Wanted
    from enforcer.run.host import Host
    from enforcer.service import protocol


class RunCommand(NamedTuple):
    """`exeat run` as the command line has it: the service is given it, made once, and each run is forked with it."""

    read: "Callable[[Sequence[str]], Namespace]"  # raises SystemExit, having said what is wrong with the words
    wanted: "Callable[[Namespace, Path, Callable[[Sequence[Path], Path], Seen]], Wanted]"
    perform: "Callable[[Namespace, Path, Host], int]"  # returns a wait status
    status_if_unsaid: "Callable[[OSError], int | None]"  # the status where our output can't be written


def take_on(request: "protocol.Run") -> None:
    """Be to the task what its caller is: environment, umask, limits, priority, and what it has set to be ignored."""
    _take_environment(request.environment)
    os.umask(request.umask)
    for number, (soft, hard) in enumerate(request.limits):
        with contextlib.suppress(OSError, ValueError):  # less than the service itself may have, it can't be given
            resource.setrlimit(number, (soft, hard))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, request.nice)
    dispose({signal.SIGPIPE, *(number for number in range(1, 65) if request.ignored >> (number - 1) & 1)})


def _take_environment(wanted: "Mapping[str, str]") -> None:
    """Have these variables and no others, writing what differs: each putenv(3) copies memory that many runs share."""
    for name in [name for name in os.environ if name not in wanted]:
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
