"""Bodies in chunks at the gate's own counters: as exporters of telemetry send them, bounded, and in one reading."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.info_api.requests import MOST_AROUND, Request, RequestRefusedError, read_head, read_request
from proxy.info_api.telemetry_handler import MOST_BYTES, TelemetryHandler
from tests.proxy.info_api.parsing import parse

COUNTER = TelemetryHandler.port
HEAD = b"POST /v1/logs HTTP/1.1\r\nHost: exeat.internal:4318\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"


def chunks(*pieces, end=b"0\r\n\r\n"):
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def fed(data, size):
    """Have a request read as it comes, so many bytes at a time: what it is once it is whole, or the status of a refusal."""
    kept, head = bytearray(), None
    try:
        for at in range(0, len(data), size):
            kept += data[at : at + size]
            head = head or read_head(kept, COUNTER)
            if head is not None and (asked := read_request(head, kept)) is not None:
                return asked
    except RequestRefusedError as bad:
        return int(bad.status)
    return None


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "sent",
    [
        chunks(b'{"a":', b"1}"),
        chunks(b'{"a":1}', end=b"0\r\nTrailer: x\r\n\r\n"),
        b'3;ext=1\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n',
    ],
)
def test_chunked_body_is_read_in_any_pieces(sent, size):
    asked = fed(HEAD + sent, size)
    assert isinstance(asked, Request)
    assert asked.body == b'{"a":1}'


REFUSED = {
    "a length besides": (HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n") + chunks(b"x"), 400),
    "two codings": (HEAD.replace(b"chunked", b"gzip, chunked") + chunks(b"x"), 411),
    "said twice": (HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") + chunks(b"x"), 400),
    "another coding": (HEAD.replace(b"chunked", b"xchunked") + chunks(b"x"), 411),
    "no size": (HEAD + b"x\r\n", 400),
    "a negative size": (HEAD + b"-1\r\n\r\n", 400),
    "a chunk that is longer than it says": (HEAD + b"1\r\nxx\r\n0\r\n\r\n", 400),
    "a bare line end": (HEAD + b"1\nx\r\n0\r\n\r\n", 400),
    "more than there is room for": (HEAD + chunks(*[b"x" * 65536] * (MOST_BYTES // 65536 + 1)), 413),
    "a size that is never reached": (HEAD + b"ffffffff\r\n" + b"x" * (MOST_BYTES + MOST_AROUND + 1), 413),
    "chunks of one byte": (HEAD + chunks(*[b"x"] * 5000), 413),
    "an extension without an end": (HEAD + b"1;" + b"x" * (MOST_BYTES + MOST_AROUND), 413),
    "trailers without an end": (HEAD + b"0\r\n" + b"a: b\r\n" * 4000, 400),
    "where no body is taken": (HEAD.replace(b"POST", b"PUT"), 405),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("size", [4096, 1 << 20])
def test_malformed_or_oversized_chunks_are_refused(sent, status, size):
    assert fed(sent, size) == status


@given(st.binary(max_size=200))
def test_arbitrary_chunks_raise_only_the_documented_error(data):
    try:
        found = parse(HEAD + data, COUNTER)
    except RequestRefusedError:
        return
    assert found is None or isinstance(found, Request)
