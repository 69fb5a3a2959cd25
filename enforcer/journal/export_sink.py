"""Makes an exporter from the options of `exeat export`, and locates its bookmark."""

import hashlib
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from enforcer.journal.signing import place
from enforcer.system.errors import UsageError
from enforcer.system.state import make_private

if TYPE_CHECKING:
    import argparse

    from proxy.telemetry.exporters.credentials import Trust
    from proxy.telemetry.exporters.exporter import Sink

_PORTS: Final = {"otlp+http": 4318, "otlp+https": 4318, "http": 80, "https": 443, "syslog+tcp": 601, "syslog+tls": 6514}
_SECURE: Final = frozenset({"otlp+https", "https", "syslog+tls"})
_HERE: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def sink(arguments: "argparse.Namespace") -> "Sink":
    """Return the sink that `--to` and what belongs to it say. Raises UsageError."""
    url: str = arguments.to
    if url.startswith("file:"):
        return _file(arguments, Path(url.removeprefix("file:")))
    parts = _address(url)
    _fits(arguments, parts)
    tls = _trust(arguments) if parts.scheme in _SECURE else None
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    from proxy.telemetry.exporters.exporter import FORMATS

    shape = FORMATS[arguments.format or "event"]
    if parts.scheme.startswith("syslog+"):
        from proxy.telemetry.exporters.syslog import SyslogSink

        return SyslogSink(host, port, shape, tls)
    from proxy.telemetry.exporters import http

    path = parts.path if parts.path not in {"", "/"} else "/v1/logs" if parts.scheme.startswith("otlp+") else "/"
    poster = http.Poster(http.Place(host, port, path, tls), arguments.token_file)
    if parts.scheme.startswith("otlp+"):
        return http.OtlpSink(poster)
    return http.WebhookSink(poster, shape, arguments.sign_with)


def position_file(journal: Path, url: str, shape: str | None) -> Path:
    """Return where the position of this journal in this sink is kept: there retention looks, too. Raises HostError."""
    own = hashlib.sha256(f"{url}\n{shape or ''}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return make_private(place(journal) / "sinks") / f"{url.partition(':')[0].replace('+', '-')}-{own}.json"


def _address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--to: `{ascii(url)[1:-1]}`: {error}") from error
    if parts.scheme not in _PORTS:
        raise UsageError(f"--to: `{ascii(url)[1:-1]}` begins with none of {', '.join(sorted(_PORTS))}, file")
    if not parts.hostname or port == 0:
        raise UsageError(f"--to: `{ascii(url)[1:-1]}` names no host to send to")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError("--to: a URL that everybody can see in the list of processes: put secrets into --token-file")
    return parts


def _fits(arguments: "argparse.Namespace", parts: SplitResult) -> None:
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


def _trust(arguments: "argparse.Namespace") -> "Trust":
    """Return what receivers are checked by: the host's own roots, and what was named beside them. Raises UsageError."""
    from proxy.telemetry.exporters.credentials import Trust

    for ca, certificate in ((arguments.ca, None), (arguments.ca, arguments.certificate)):
        try:
            found = Trust(ca, certificate)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"cannot use `{certificate or ca}`: {error.strerror or error}") from error
    return found


def _file(arguments: "argparse.Namespace", path: Path) -> "Sink":
    from proxy.telemetry.exporters.exporter import FORMATS, FileSink

    unfit: dict[str, Any] = {
        "--token-file": arguments.token_file, "--sign-with": arguments.sign_with, "--ca": arguments.ca,
        "--certificate": arguments.certificate,
    }  # fmt: skip
    for option, value in unfit.items():
        if value:
            raise UsageError(f"{option} doesn't belong to a file")
    if not path.is_absolute():
        raise UsageError(f"--to: `{path}` is not a whole path, as in file:/var/log/exeat.ocsf.jsonl")
    return FileSink(path, FORMATS[arguments.format or "ocsf"])
