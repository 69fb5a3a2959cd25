"""Between mitmproxy's messages and our values, for the gate and for the addon alike."""

from typing import TYPE_CHECKING

from mitmproxy import http

from proxy.inspection.heads import Head, without_upgrade

if TYPE_CHECKING:
    from proxy.inspection.heads import Asked
    from proxy.inspection.judging import Place
    from proxy.refusal import Page


def head_of(request: http.Request) -> Head:
    """Return a request's head as it came."""
    data = request.data
    return Head(data.http_version, data.method, data.scheme, data.authority, data.path, data.headers.fields)


def settle(request: http.Request, asked: "Asked", place: "Place") -> None:
    """Make a request that may pass say what was decided on, and only that: one host in one spelling, no upgrade."""
    data = request.data
    authority = place.authority
    if request.is_http2:
        data.authority = authority
    else:
        data.authority = b""  # origin-form (RFC 9112 section 3.2.1)
    if asked.spelled != authority:
        data.headers.fields = tuple(
            (name, authority if name.lower() == b"host" else value) for name, value in data.headers.fields
        )
    if asked.upgrade:
        data.headers.fields = without_upgrade(data.headers.fields)


def response_of(page: "Page") -> http.Response:
    """Return a page as mitmproxy sends it."""
    return http.Response(
        http_version=b"HTTP/1.1",
        status_code=page.status,
        reason=page.phrase.encode("ascii"),
        headers=http.Headers(page.headers),
        content=page.body,
        trailers=None,
        timestamp_start=0.0,
        timestamp_end=None,
    )
