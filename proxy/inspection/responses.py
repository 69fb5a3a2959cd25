"""What a server may answer: what can't be passed on without being read otherwise than it was meant. Pure."""

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from mitmproxy.net.http.validate import validate_headers

from proxy.inspection.http1_heads import is_bodiless

if TYPE_CHECKING:
    from mitmproxy import http

    from proxy.inspection.judging import Place

_SPLITS: Final = re.compile(rb"[\0\r\n]")  # never in a value (RFC 9110 section 5.5), whatever HTTP/1 makes of it
_LAST_STATUS: Final = 999
# Of a connection, not of the response (RFC 9110 section 7.6.1), or of a body: an informational response has none
_NOT_INFORMATIONAL: Final = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"te", b"content-length", b"transfer-encoding",
})  # fmt: skip
MOST_INFORMATIONAL: Final = 100  # responses (and empty lines, in HTTP/1) before a final one: each costs time


class Unreadable(str):
    """What is wrong with a server's response: whoever runs the server has to mend it."""

    __slots__ = ()


def advice_on_unreadable(place: "Place") -> str:
    """Say what helps where a server's response can't be passed on."""
    unread = "`tls: splice`" if place.tls else f"`ports: [{place.port}/tcp]`"
    return (
        "whoever runs the server can have it answer as RFC 9110 to 9113 say; "
        f"an admin can let the connection through unread, by a rule with {unread}"
    )


def announced(response: "http.Response") -> "http.Response":
    """Return an informational response with what is meant for its client, and no more."""
    fields = response.headers.fields
    response.headers.fields = tuple(field for field in fields if field[0].lower() not in _NOT_INFORMATIONAL)
    return response


def has_no_body(request: "http.Request", response: "http.Response | None") -> bool:
    """Whether a response is one of those that have no body (RFC 9110 section 6.4.1)."""
    assert response
    return request.method == "HEAD" or is_bodiless(response)


def body_length(request: "http.Request", response: "http.Response") -> int | None:
    """Return how many bytes the body has that is to come with a response; None: its head doesn't say."""
    if has_no_body(request, response):
        return 0
    length = response.headers.get("content-length", "")
    counts = length.isascii() and length.isdigit() and "transfer-encoding" not in response.headers
    return int(length) if counts else None


def ends_with_connection(request: "http.Request", response: "http.Response") -> bool:
    """Whether the end of an HTTP/1 connection is the end of a response's body (RFC 9112 section 6.3)."""
    fields = response.headers
    return not (has_no_body(request, response) or "content-length" in fields or "transfer-encoding" in fields)


def what_is_wrong(response: "http.Response") -> str | None:
    """Return why a response, informational or final, can't be passed on."""
    if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
        return "it switches to a protocol that nobody asked for"
    if not HTTPStatus.CONTINUE <= response.status_code <= _LAST_STATUS:
        return "its status is not one of a response"
    if _SPLITS.search(b"".join([value for _, value in response.headers.fields])):
        return "a header's value has a line break in it"
    try:
        validate_headers(response)
    except ValueError as error:
        return str(error)
    return None
