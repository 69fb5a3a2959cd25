"""Fetches one document from a registry: bounded redirects, size and time, TLS verified, checked address dialed.

A public host must not lead us inside: unless the registry itself is inside, no host that it names may be. An answer
is only data: it becomes a host in a lock, or an error.
"""

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import urljoin

from rules.loading.preset_locks import Origin
from rules.values.addresses import Address, Opening, find_block, normalize
from rules.values.names import HostName

_STEP: Final = 8.0  # seconds that one read or connect may take
_WHOLE: Final = 25.0  # seconds for a request with its redirects
_LARGEST: Final = 16 << 20  # bytes of an answer
_MOST_REDIRECTS: Final = 3
_REDIRECTS: Final = (301, 302, 303, 307, 308)


class FetchError(Exception):
    """A host can't be requested, or may not be locked. The text says which and why."""


class UnknownHostError(FetchError):
    """A host has no address."""


class Answer(NamedTuple):
    """Answer of a registry. `url` is that of the last redirect."""

    url: str
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes
    passed: tuple[Origin, ...] = ()  # hosts that redirected to others


def look_up(host: str) -> list[str]:
    """Resolve a name with the resolver of the host."""
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)))


class Web:
    """Network access of discovery; `look_up` and `dial` are its I/O."""

    def __init__(
        self,
        look_up: Callable[[str], list[str]] = look_up,
        dial: Callable[[Address, int], socket.socket] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._look_up = look_up
        self._dial = dial or _dial
        self._context = context

    def addresses(self, origin: Origin, *, inside: bool) -> tuple[Address, ...]:
        """Find a host's addresses and check them; `inside`: it may be on a network that is not public.

        Raises FetchError. Loopback is never a registry's: a sandbox has its own.
        """
        try:
            texts = self._look_up(origin.host) if isinstance(origin.host, HostName) else [str(origin.host)]
            found = tuple(dict.fromkeys(normalize(text.partition("%")[0]) for text in texts))
        except (OSError, ValueError) as error:
            raise UnknownHostError(
                f"{origin.host} can't be looked up: {getattr(error, 'strerror', None) or error}"
            ) from error
        if not found:
            raise FetchError(f"{origin.host} has no address")
        for address in found:
            block = find_block(address)
            if block is None:
                continue
            if block.opening is not Opening.WITHIN or block.name == "loopback":
                raise FetchError(f"{origin.host} leads to {address} ({block.name}), which no task is to reach")
            if not inside:
                raise FetchError(
                    f"{origin.host} leads to {address} ({block.name}), and the registry that names it is public"
                )
        return found

    def get(self, url: str, accept: str, *, inside: bool) -> Answer:
        """Request a URL, and follow a few redirects, each checked like the first. Raises FetchError."""
        deadline = time.monotonic() + _WHOLE
        passed: list[Origin] = []
        for _ in range(_MOST_REDIRECTS + 1):
            answer = self._once(url, accept, deadline, inside=inside)
            place = answer.headers.get("location", "")
            if answer.status not in _REDIRECTS or not place:
                return answer._replace(passed=tuple(passed))
            following = urljoin(url, place)
            if url.startswith("https:") and not following.startswith("https:"):
                raise FetchError(f"{_shown(url)} redirects to {_shown(following)}, which is not https")
            passed.append(_origin(url))
            url = following
        raise FetchError(f"{_shown(url)} redirects more than {_MOST_REDIRECTS} times")

    def _once(self, url: str, accept: str, deadline: float, *, inside: bool) -> Answer:
        origin = _origin(url)
        error: Exception = FetchError("no address")
        for address in self.addresses(origin, inside=inside)[:3]:
            try:
                return self._request(url, origin, address, accept, deadline)
            except (OSError, http.client.HTTPException, ValueError) as failure:
                error = failure
        raise FetchError(f"{_shown(url)} can't be requested: {getattr(error, 'strerror', None) or error}") from error

    def _request(self, url: str, origin: Origin, address: Address, accept: str, deadline: float) -> Answer:
        host = str(origin.host)
        target = "/" + url.partition("://")[2].partition("#")[0].partition("/")[2]
        connection = http.client.HTTPConnection(host, origin.port, timeout=_STEP)
        connection.default_port = 443 if origin.scheme == "https" else 80  # for the Host header
        connection.sock = self._dial(address, origin.port)
        whole = connection.sock.dup()  # the timer ends it: a server may send a byte now and then for ever
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [whole])
        timer.start()
        try:
            if origin.scheme == "https":
                context = self._context or ssl.create_default_context()
                connection.sock = context.wrap_socket(connection.sock, server_hostname=host)
            headers = {"Accept": accept, "User-Agent": "exeat", "Accept-Encoding": "identity", "Connection": "close"}
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            body = bytearray()
            while chunk := response.read(65536):
                body += chunk
                if len(body) > _LARGEST:
                    raise FetchError(f"{_shown(url)} answers with more than {_LARGEST >> 20} MiB")
            if time.monotonic() > deadline:
                raise FetchError(f"{_shown(url)} takes more than {_WHOLE:g} seconds")
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(url, response.status, fields, bytes(body))
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                raise FetchError(f"{_shown(url)} takes more than {_WHOLE:g} seconds") from error
            raise
        finally:
            timer.cancel()
            timer.join()
            whole.close()
            connection.close()


def _cut(whole: socket.socket) -> None:
    with contextlib.suppress(OSError):
        whole.shutdown(socket.SHUT_RDWR)


def _dial(address: Address, port: int) -> socket.socket:
    return socket.create_connection((str(address), port), timeout=_STEP)


def _origin(url: str) -> Origin:
    """Return the origin of a URL. Raises FetchError."""
    scheme, separator, rest = url.partition("://")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    try:
        return Origin.parse(scheme + separator + rest[:end])
    except ValueError as error:
        raise FetchError(f"{_shown(url)} can't be requested: {error}") from error


def _shown(url: str) -> str:
    """Return a URL that is safe for a terminal, without its query and credentials."""
    scheme, separator, rest = url.partition("?")[0].partition("://")
    authority, slash, path = rest.partition("/")
    text = scheme + separator + authority.rpartition("@")[2] + slash + path
    text = text if len(text) <= 200 else text[:200] + "…"
    return text if text.isprintable() else ascii(text)[1:-1]
