"""`exeat export`: sends the journal to one receiver, in a process of its own that no task waits for."""

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from enforcer.cli.parsing import JOURNAL, argument, metrics
from enforcer.journal.export_sink import position_file, sink
from enforcer.system.errors import ExeatError, HostError, UsageError
from enforcer.system.state import journal_directory
from proxy.telemetry.exporters.delivery import Delivery, Numbers
from proxy.telemetry.exporters.exporter import Unavailable
from proxy.telemetry.journal.bookmark import Bookmark, Reader
from proxy.telemetry.visible import visible

if TYPE_CHECKING:
    import socket

_DEFAULT_METRICS = "127.0.0.1:9465"


ARGUMENTS: Final = (
    argument(
        "--to",
        "URL",
        "where to: otlp+https://HOST, https://HOST/PATH (a webhook), syslog+tls://HOST, file:PATH, …",
        required=True,
    ),
    argument("--format", ("event", "ocsf", "ecs", "cef"), "what each event is sent as (OTLP has its own)"),
    JOURNAL,
    argument("--once", "", "deliver what is there now, and end; else go on with what is added"),
    argument("--token-file", "FILE", "a file that holds a bearer token, closed to others"),
    argument("--sign-with", "FILE", "a file that holds the key to sign webhooks with, closed to others"),
    argument("--ca", "FILE", "certificates to trust beside the host's own (PEM)"),
    argument("--certificate", "FILE", "our own certificate and its key, for a receiver that asks (PEM)"),
    argument("--position", "FILE", "where to keep how far this is (default: beside the journal's keys)"),
    metrics("", _DEFAULT_METRICS),
)


def run(arguments: argparse.Namespace) -> int:
    """Deliver. 0 when all was, 1 when the receiver didn't take it (`--once`), 2 for misuse, 125 for the host."""
    os.umask(0o077)
    sys.dont_write_bytecode = True  # under this umask no worker could read it, and it would compile at each start
    signal.signal(signal.SIGTERM, _stop)
    try:
        with _delivery(arguments) as delivery:
            if arguments.once:
                delivery.once()
            else:
                delivery.follow()
    except Unavailable as error:
        _say(str(error))
        return 1
    except ExeatError as error:
        _say(str(error))
        return error.status
    except OSError as error:
        _say(f"cannot read or write `{error.filename or arguments.journal}`: {error.strerror}")
        return 125
    return 0


@contextlib.contextmanager
def _delivery(arguments: argparse.Namespace) -> Iterator[Delivery]:
    """Make ready what delivers: the sink, the position, which nobody else may use meanwhile, and the metrics."""
    journal = arguments.journal or journal_directory()
    to = sink(arguments)
    if not journal.is_dir():
        raise UsageError(f"there is no journal in `{journal}`; name another with `--journal`")
    position = arguments.position or position_file(journal, arguments.to, arguments.format)
    with _alone(position):
        try:
            bookmark = Bookmark(position)
            bookmark.save()  # from now on retention keeps for us what the receiver hasn't got
        except ValueError as error:
            raise HostError(str(error), "move it away to begin anew: everything is sent again") from error
        numbers = Numbers(to.name)
        if arguments.metrics:
            _serve(arguments.metrics, numbers)
        yield Delivery(Reader(journal, bookmark), to, numbers, _say)


@contextlib.contextmanager
def _alone(position: Path) -> Iterator[None]:
    """Keep others from delivering from the same position (flock(2): freed when we end, however we do)."""
    lock = os.open(position.with_name(f".{position.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HostError(
            f"another `exeat export` delivers from `{position}`", "end it, or use another --position"
        ) from error
    try:
        yield
    finally:
        os.close(lock)


def _serve(address: str, numbers: Numbers) -> None:
    """Answer scrapes from a thread: the one that delivers may wait for a receiver."""
    from enforcer.cli.run import listen
    from proxy.telemetry.prometheus.scrape_server import ScrapeServer

    listener = listen(address)

    async def forever(listener: "socket.socket") -> None:
        await ScrapeServer(listener, numbers).start()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(forever(listener)), daemon=True).start()


def _stop(_number: int, _frame: object) -> NoReturn:
    """End at once: the position is only ever replaced whole, and what it doesn't cover is sent again."""
    raise SystemExit(0)


def _say(text: str) -> None:
    print(f"exeat: {visible(text)}", file=sys.stderr, flush=True)
