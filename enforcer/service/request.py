"""What a request is to the process that carries it out: words to be read, and what of its client it takes on."""

import contextlib
import functools
import os
import resource
import signal
from typing import TYPE_CHECKING

from enforcer.cli import run as command
from enforcer.cli.parsing import Parser
from enforcer.system.signals import dispose

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

    from enforcer.service import protocol


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


def parsed(request: "protocol.Run") -> "Namespace":
    """Read the words of a run. Raises SystemExit, having said what is wrong with them."""
    return parser().read(request.words)


@functools.cache
def parser() -> Parser:
    """Return what reads the words of a run: the service makes it once, and each run is forked with it."""
    return Parser.of("run", command)
