"""`exeat export`: sends the journal to one receiver, in a process of its own that no task waits for."""

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import os
import signal
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import SplitResult, urlsplit

from enforcer.cli.journals import require_journal
from enforcer.cli.output import report_failure, warn
from enforcer.cli.parsing import JOURNAL, argument, metrics_option
from enforcer.journal.signing import keeper_directory
from enforcer.system.errors import ExeatError, HostError, UsageError
from enforcer.system.state import journal_directory, make_private
from proxy.telemetry.exporters.delivery import Delivery, DeliveryMetrics
from proxy.telemetry.exporters.exporter import FORMATS, Exporter, FileExporter, TlsTrust, UnavailableError
from proxy.telemetry.journal.bookmark import Bookmark, Reader

if TYPE_CHECKING:
    import socket

_DEFAULT_METRICS = "127.0.0.1:9465"
_PORTS: Final = {"otlp+http": 4318, "otlp+https": 4318, "http": 80, "https": 443, "syslog+tcp": 601, "syslog+tls": 6514}
_SECURE: Final = frozenset({"otlp+https", "https", "syslog+tls"})
_HERE: Final = frozenset({"localhost", "127.0.0.1", "::1"})


ARGUMENTS: Final = (
    argument(
        "--to",
        "URL",
        "receiver: otlp+https://HOST, https://HOST/PATH (a webhook), syslog+tls://HOST or file:PATH",
        required=True,
    ),
    argument(
        "--format",
        ("event", "ocsf", "ecs", "cef"),
        "format of each event (default: event; to a file: ocsf; OTLP has its own)",
    ),
    JOURNAL,
    argument("--once", "", "deliver what the journal holds now, and exit"),
    argument("--token-file", "FILE", "file with a bearer token (mode 0600), for webhooks and OTLP"),
    argument("--sign-with", "FILE", "file with the key that signs webhooks, `whsec_…` (mode 0600)"),
    argument("--ca", "FILE", "certificates to trust in addition to the host's (PEM)"),
    argument("--certificate", "FILE", "client certificate and its key, for a receiver that asks for one (PEM)"),
    argument("--position", "FILE", "file that stores the bookmark (default: beside the journal's keys)"),
    metrics_option("", _DEFAULT_METRICS),
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
    except UnavailableError as error:
        warn(str(error))
        return 1
    except ExeatError as error:
        return report_failure(error)
    except OSError as error:
        warn(f"cannot read or write `{error.filename or arguments.journal}`: {error.strerror}")
        return 125
    return 0


@contextlib.contextmanager
def _delivery(arguments: argparse.Namespace) -> Iterator[Delivery]:
    """Make ready what delivers: the sink, the position, which nobody else may use meanwhile, and the metrics."""
    journal = arguments.journal or journal_directory()
    to = make_sink(arguments)
    require_journal(journal)
    position = arguments.position or bookmark_file(journal, arguments.to, arguments.format)
    with _alone(position):
        try:
            bookmark = Bookmark(position)
            bookmark.save()  # from now on retention keeps for us what the receiver hasn't got
        except ValueError as error:
            raise HostError(str(error), "move it away to begin anew: everything is sent again") from error
        numbers = DeliveryMetrics(to.name)
        if arguments.metrics:
            _serve(arguments.metrics, numbers)
        yield Delivery(Reader(journal, bookmark), to, numbers, warn)


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


def _serve(address: str, numbers: DeliveryMetrics) -> None:
    """Answer scrapes from a thread: the one that delivers may wait for a receiver."""
    from enforcer.cli.run import open_metrics_port
    from proxy.telemetry.prometheus.scrape_server import ScrapeServer

    listener = open_metrics_port(address)

    async def forever(listener: "socket.socket") -> None:
        await ScrapeServer(listener, numbers).start()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(forever(listener)), daemon=True).start()


def _stop(_number: int, _frame: object) -> NoReturn:
    """End at once: the position is only ever replaced whole, and what it doesn't cover is sent again."""
    raise SystemExit(0)


def make_sink(arguments: argparse.Namespace) -> Exporter:
    """Return the sink that `--to` and what belongs to it say. Raises UsageError."""
    url: str = arguments.to
    if url.startswith("file:"):
        return _file(arguments, Path(url.removeprefix("file:")))
    parts = _address(url)
    _fits(arguments, parts)
    tls = _trust(arguments) if parts.scheme in _SECURE else None
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    shape = FORMATS[arguments.format or "event"]
    if parts.scheme.startswith("syslog+"):
        from proxy.telemetry.exporters.syslog import SyslogExporter

        return SyslogExporter(host, port, shape, tls)
    from proxy.telemetry.exporters import http

    path = parts.path if parts.path not in {"", "/"} else "/v1/logs" if parts.scheme.startswith("otlp+") else "/"
    poster = http.HttpPoster(http.Endpoint(host, port, path, tls), arguments.token_file)
    if parts.scheme.startswith("otlp+"):
        return http.OtlpExporter(poster)
    return http.WebhookExporter(poster, shape, arguments.sign_with)


def bookmark_file(journal: Path, url: str, shape: str | None) -> Path:
    """Return where the position of this journal in this sink is kept: there retention looks, too. Raises HostError."""
    own = hashlib.sha256(f"{url}\n{shape or ''}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return make_private(keeper_directory(journal) / "sinks") / f"{url.partition(':')[0].replace('+', '-')}-{own}.json"


def _address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--to: `{ascii(url)[1:-1]}`: {error}") from error
    if parts.scheme not in _PORTS:
        raise UsageError(f"--to: `{ascii(url)[1:-1]}` begins with none of {', '.join(sorted(_PORTS))}, file")
    if not parts.hostname or port == 0:
        raise UsageError(f"--to: `{ascii(url)[1:-1]}` names no host: write it as in https://siem.example/path")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError("--to: the list of processes shows this URL to all users: put secrets into --token-file")
    return parts


def _fits(arguments: argparse.Namespace, parts: SplitResult) -> None:
    """Refuse what belongs to another kind of sink, and a secret that would be sent in the clear."""
    scheme = parts.scheme
    if scheme.startswith("otlp+") and arguments.format:
        raise UsageError("--format: OTLP has a format of its own")
    if not scheme.endswith(("http", "https")) and arguments.token_file:
        raise UsageError(f"--token-file: there is no place for a token in `{scheme}`")
    if scheme not in {"http", "https"} and arguments.sign_with:
        raise UsageError("--sign-with: only webhooks are signed")
    if scheme not in _SECURE and (arguments.ca or arguments.certificate):
        raise UsageError(f"--ca and --certificate belong to TLS, and `{scheme}` is in the clear")
    if scheme not in _SECURE and arguments.token_file and parts.hostname not in _HERE:
        raise UsageError("--token-file: the token would be sent in the clear: use https")


def _trust(arguments: argparse.Namespace) -> TlsTrust:
    """Return what receivers are checked by: the host's own roots, and what was named beside them. Raises UsageError."""
    for ca, certificate in ((arguments.ca, None), (arguments.ca, arguments.certificate)):
        try:
            found = TlsTrust(ca, certificate)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"cannot use `{certificate or ca}`: {error.strerror or error}") from error
    return found


def _file(arguments: argparse.Namespace, path: Path) -> Exporter:
    unfit: dict[str, Any] = {
        "--token-file": arguments.token_file, "--sign-with": arguments.sign_with, "--ca": arguments.ca,
        "--certificate": arguments.certificate,
    }  # fmt: skip
    for option, value in unfit.items():
        if value:
            raise UsageError(f"{option} can't be used with a file: leave it out")
    if not path.is_absolute():
        raise UsageError(f"--to: `{path}` is not an absolute path: write it as in file:/var/log/exeat.ocsf.jsonl")
    return FileExporter(path, FORMATS[arguments.format or "ocsf"])
