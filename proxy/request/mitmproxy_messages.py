"""Converts between our heads and mitmproxy's messages and HTTP events."""

import time

from mitmproxy import http
from mitmproxy.proxy.layers.http._base import HttpEvent

from proxy.request.messages import ResponseHead
from proxy.request.request_head import Head


class RequestHeaders(HttpEvent):
    """Event with a request's head. `end_stream`: no body follows."""

    def __init__(self, stream_id: int, request: Head, end_stream: bool) -> None:  # noqa: FBT001  as mitmproxy's
        self.stream_id = stream_id
        self.request = request
        self.end_stream = end_stream


class ResponseHeaders(HttpEvent):
    """Event with a response's head. `end_stream`: no body follows."""

    def __init__(self, stream_id: int, response: ResponseHead, end_stream: bool = False) -> None:  # noqa: FBT001, FBT002
        self.stream_id = stream_id
        self.response = response
        self.end_stream = end_stream


def request_of(head: Head) -> http.Request:
    """Convert a head to mitmproxy's request."""
    return http.Request(
        host="",
        port=0,
        method=head.method,
        scheme=head.scheme,
        authority=head.authority,
        path=head.path,
        http_version=head.version,
        headers=http.Headers(head.fields),
        content=None,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )


def response_of(head: ResponseHead, body: bytes | None = None) -> http.Response:
    """Convert a head, and a body if there is one, to mitmproxy's response."""
    return http.Response(
        http_version=head.version,
        status_code=head.status,
        reason=head.reason,
        headers=http.Headers(head.fields),
        content=body,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )


def head_of(request: http.Request) -> Head:
    """Convert mitmproxy's request to a head, as it was received."""
    data = request.data
    return Head(data.http_version, data.method, data.scheme, data.authority, data.path, data.headers.fields)


def response_head_of(response: http.Response) -> ResponseHead:
    """Convert mitmproxy's response to a head."""
    data = response.data
    return ResponseHead(data.http_version, data.status_code, data.reason, data.headers.fields)
