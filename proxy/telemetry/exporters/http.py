"""Exporters over HTTP: OTLP/HTTP (OpenTelemetry Protocol 1.x) and webhooks. A 2xx response is a receipt.

A batch is one request on its own connection. Redirects are not followed: the admin decides where events go. The whole
response must arrive within the timeout, so that a receiver can't hold the exporter by sending slowly.
"""

import base64
import hashlib
import hmac
import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy.telemetry.exporters.exporter import (
    Format,
    Item,
    RefusedError,
    TlsTrust,
    UnavailableError,
    current_context,
    read_secret,
)

if TYPE_CHECKING:
    from collections.abc import Buffer

_TIMEOUT: Final = 30.0  # seconds
_LONGEST_RESPONSE: Final = 1 << 16  # bytes
_REFUSAL_STATUSES: Final = frozenset({400, 413, 422})  # the batch is invalid or too large
_LONGEST_REASON: Final = 100


class Endpoint(NamedTuple):
    """Endpoint of a receiver: no user, no query."""

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | TlsTrust | None  # None: plain HTTP


class _DeadlineReader(io.RawIOBase):
    """Raw reader of a socket with one deadline for all reads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._socket_file = sock.makefile("rb", buffering=0)
        self._deadline = time.monotonic() + (sock.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer", /) -> int | None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(remaining)
        return self._socket_file.readinto(buffer)

    def close(self) -> None:
        self._socket_file.close()
        super().close()


class _DeadlineResponse(http.client.HTTPResponse):
    """HTTP response that must be complete within the timeout of its socket."""

    def __init__(self, sock: socket.socket, *more: Any, **named: Any) -> None:
        super().__init__(sock, *more, **named)
        reader, socket_file = _DeadlineReader(sock), self.fp
        self.fp = io.BufferedReader(reader)
        socket_file.close()  # still unread


class HttpPoster:
    """Posts bodies to one endpoint, with a bearer token if configured.

    `timeout` in seconds applies to each of connecting, sending and the response.
    """

    def __init__(self, endpoint: Endpoint, token: Path | None = None, timeout: float = _TIMEOUT) -> None:
        self._endpoint = endpoint
        self._token = token
        self._timeout = timeout

    def post(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """Return the response's body. Raises RefusedError, UnavailableError."""
        all_headers = {"User-Agent": "exeat", **headers}
        if self._token is not None:
            token = read_secret(self._token)
            all_headers["Authorization"] = token if " " in token else f"Bearer {token}"
        try:
            status, wait, answer = self._request(body, all_headers)
        except (OSError, http.client.HTTPException) as error:
            why = (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:_LONGEST_REASON]
            raise UnavailableError(f"{self._endpoint.host}:{self._endpoint.port}: {ascii(why)[1:-1]}") from error
        if 200 <= status < 300:
            return answer
        message = f"{self._endpoint.host}:{self._endpoint.port} answered {status}"
        raise RefusedError(message) if status in _REFUSAL_STATUSES else UnavailableError(message, wait)

    def _request(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, float | None, bytes]:
        host, port, path, trusted = self._endpoint
        tls = current_context(trusted)
        connection: http.client.HTTPConnection
        if tls is None:
            connection = http.client.HTTPConnection(host, port, timeout=self._timeout)
        else:
            connection = http.client.HTTPSConnection(host, port, timeout=self._timeout, context=tls)
        try:
            connection.response_class = _DeadlineResponse
            connection.request("POST", path, body, {**headers, "Connection": "close"})
            response = connection.getresponse()
            answer = response.read(_LONGEST_RESPONSE)
            return response.status, _parse_retry_after(response.getheader("Retry-After")), answer
        finally:
            connection.close()


class OtlpExporter:
    """Logs over OTLP/HTTP, in binary Protocol Buffers."""

    name = "otlp"

    def __init__(self, poster: HttpPoster) -> None:
        self._poster = poster

    def send(self, items: Sequence[Item]) -> None:
        """Export items in one request. A partial success is a refusal: it does not name the rejected records."""
        from proxy.telemetry.formats.otlp import logs_request, rejected  # 15 ms for protobuf, which webhooks don't need

        body = logs_request(item.record for item in items)
        count = rejected(self._poster.post(body, {"Content-Type": "application/x-protobuf"}))
        if count:
            raise RefusedError(f"the collector rejected {count} of {len(items)} records")


class WebhookExporter:
    """Posts lines of JSON to a URL; with a key, signed by Standard Webhooks."""

    name = "webhook"

    def __init__(self, poster: HttpPoster, line_format: Format, key: Path | None = None) -> None:
        self._poster = poster
        self._line_format = line_format
        self._key = key

    def send(self, items: Sequence[Item]) -> None:
        """Post items in one request; a repeated batch has the same `webhook-id`."""
        body = "".join(f"{self._line_format(item)}\n" for item in items).encode("utf-8", "backslashreplace")
        message_id = f"{items[0].record['id']}.{hashlib.sha256(body).hexdigest()[:32]}"
        headers = {"Content-Type": "application/x-ndjson", "webhook-id": message_id.replace(".", "_")}
        if self._key is not None:
            headers |= signature_headers(read_secret(self._key), headers["webhook-id"], int(time.time()), body)
        self._poster.post(body, headers)


def signature_headers(key: str, message_id: str, now: int, body: bytes) -> dict[str, str]:
    """Return the signature headers of a body: Standard Webhooks 1.0, symmetric signatures.

    The key is `whsec_` and base64. Raises UnavailableError for any other key.
    """
    try:
        secret = base64.b64decode(key.removeprefix("whsec_"), validate=True)
    except ValueError:
        secret = b""
    if len(secret) < 24:
        raise UnavailableError("the signing key is not `whsec_` and 24 bytes or more in base64")
    signed_content = b"%b.%d.%b" % (message_id.encode("ascii", "replace"), now, body)
    signature = base64.b64encode(hmac.new(secret, signed_content, hashlib.sha256).digest()).decode()
    return {"webhook-timestamp": str(now), "webhook-signature": f"v1,{signature}"}


def _parse_retry_after(text: str | None) -> float | None:
    """Return Retry-After if it is a number of seconds (RFC 9110 section 10.2.3)."""
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 9 else None
