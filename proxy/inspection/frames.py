"""Limits HTTP/2 frames that cost work without progress, for each peer.

Most denials of service by HTTP/2 use frames that are cheap to send and have no content: SETTINGS and PING that require
an answer (CVE-2019-9512, -9515), empty DATA (CVE-2019-9518), PRIORITY (CVE-2019-9513), resets and frames that cause
resets (CVE-2023-44487, CVE-2025-8671), endless heads (CONTINUATION, VU#421644). One budget covers them all: such frames
spend it, frames with progress earn it. A peer that exceeds it gets ENHANCE_YOUR_CALM.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import h2.events
import h2.exceptions
from h2.connection import ConnectionState
from h2.events import InformationalResponseReceived, RequestReceived, ResponseReceived, TrailersReceived
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes
from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame, WindowUpdateFrame
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

from proxy.request.request_head import MOST_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from h2.config import H2Configuration
    from h2.events import Event
    from hpack import HeaderTuple
    from hyperframe.frame import ContinuationFrame, Frame, PushPromiseFrame

MOST_PACKED: Final = 128 * 1024  # bytes of a compressed header block; h2 limits the decompressed size (64 KB)
PATIENCE: Final = 1000.0  # frames without progress in a burst
REGAINED: Final = 20.0  # ... earned back a second, for pings that keep a connection open
EARNED_BY_HEAD: Final = 20.0  # frames for each request or response
EARNED_BY_DATA: Final = 2.0  # frames for each DATA frame that we send: peers measure latency with PING
LEAST_CREDIT: Final = 64  # bytes: smaller window updates spend the budget; some servers send one for every small read
# Bytes of the encoder's dynamic table. A peer may allow any size (RFC 7541 section 4.2), and hpack would use all of it
# and search it for each field.
MOST_TABLE: Final = 4096
FRAMES_AT_ONCE: Final = 32  # passed to h2 before the connection yields its turn
PIECE: Final = 16 * 1024  # bytes passed to h2 at a time: it moves its whole buffer for every frame

_TABLE: Final = int(SettingCodes.HEADER_TABLE_SIZE)
_KNOWN: Final = frozenset(int(code) for code in SettingCodes)


class FrameBudget:
    """Token bucket of frames without progress."""

    __slots__ = ("_frames_left", "_since")

    def __init__(self) -> None:
        self._frames_left = PATIENCE
        self._since = time.monotonic()

    def earn(self, frames: float) -> None:
        """Add to the budget for frames with progress, up to its initial size."""
        self._frames_left = min(self._frames_left + frames, PATIENCE)

    def spend(self) -> bool:
        """Take one frame from the budget; returns False if it is used up."""
        if self._frames_left < 1.0:
            now = time.monotonic()
            self.earn((now - self._since) * REGAINED)
            self._since = now
        if self._frames_left < 1.0:
            return False
        self._frames_left -= 1.0
        return True


class BoundedFrames(FrameBuffer):
    """h2's frame buffer with size limits: h2 buffers 16 MB of a frame, and 64 pieces of a header block."""

    def __next__(self) -> "Frame":
        if len(self._data) >= _TYPE_AT and int.from_bytes(self._data[:_TYPE_AT]) > self.max_frame_size:
            raise h2.exceptions.FrameTooLargeError("a frame is longer than we said it may be")
        return super().__next__()

    def _update_header_buffer(self, f: "Frame | None") -> "Frame | None":
        whole = super()._update_header_buffer(f)
        pieces: list[HeadersFrame | ContinuationFrame | PushPromiseFrame] = self._headers_buffer
        if pieces and sum(len(piece.data) for piece in pieces) > MOST_PACKED:
            raise h2.exceptions.DenialOfServiceError("a block of fields has no end")
        return whole

    @property
    def size(self) -> int:
        """Bytes buffered of an incomplete frame or header block."""
        pieces = self._headers_buffer
        return len(self._data) + (sum([len(piece.data) for piece in pieces]) if pieces else 0)

    def pieces(self, data: bytes) -> "Iterator[bytes]":
        """Split received bytes before each stream's head, which may expand to 64 KB, and after FRAMES_AT_ONCE frames.

        Frames of one stream stay together: if h2 can't parse all of them, none counts.
        """
        buffered_head = bytes(self._data[:_HEAD])
        start, at, frames, stream = 0, self._preamble_len - len(self._data), 0, b""
        while True:
            head = data[at : at + _HEAD] if at >= 0 else buffered_head + data[: _HEAD - len(buffered_head)]
            if len(head) < _HEAD:
                break
            begins = head[_TYPE_AT] == HeadersFrame.type and head[_STREAM_AT:] != stream
            if at > start and ((begins and stream) or frames == FRAMES_AT_ONCE):
                yield data[start:at]
                start, frames = at, 0
            if begins:
                stream = head[_STREAM_AT:]
            frames += 1
            at += _HEAD + int.from_bytes(head[:_TYPE_AT])
        if start < len(data):
            yield data[start:]

    def in_fields(self) -> bool:
        """Whether a header block is incomplete."""
        return bool(self._headers_buffer) or (len(self._data) > _TYPE_AT and self._data[_TYPE_AT] in _FIELDS)


_HEAD: Final = 9  # bytes of a frame's head (RFC 9113 section 4.1)
_TYPE_AT, _STREAM_AT = 3, 5  # in it
_FIELDS: Final = frozenset({HeadersFrame.type, 0x09})  # ... and CONTINUATION


@dataclass
class MalformedMessage(h2.events.Event):
    """Event: a malformed message, an error of its stream only (RFC 9113 section 8.1.1)."""

    stream_id: int
    problem: str


class TrimmingDecoder(Decoder):
    """hpack's decoder, which also strips blanks from the ends of values (RFC 9110 section 5.5).

    Peers must reject such values (RFC 9113 section 8.2.1), so none may be forwarded. Pseudo-headers are unchanged.
    """

    def decode(self, data: bytes, raw: bool = False) -> "Iterable[HeaderTuple]":  # noqa: FBT001, FBT002  hpack's own
        """Return the fields of a header block. Raises OversizedHeaderListError for too many."""
        fields = [
            field.__class__(field[0], field[1].strip(b" \t")) if _is_blank_around(field) else field
            for field in super().decode(data, raw)
        ]
        if len(fields) > MOST_FIELDS:
            raise OversizedHeaderListError(f"there are more than {MOST_FIELDS} fields")
        return fields


def _is_blank_around(field: "HeaderTuple") -> bool:
    name, value = field
    return bool(value) and (value[0] in b" \t" or value[-1] in b" \t") and not name.startswith(b":")


class BoundedH2Connection(BufferedH2Connection):
    """h2 connection state with limits on what its peer may send.

    For a malformed message h2 ends the connection; here it only ends the stream (`MalformedMessage`).
    """

    incoming_buffer: BoundedFrames

    def __init__(self, config: "H2Configuration") -> None:
        super().__init__(config)
        self.incoming_buffer = BoundedFrames(server=not config.client_side)
        trimming = TrimmingDecoder(self.decoder.max_header_list_size)
        trimming.max_allowed_table_size = self.decoder.max_allowed_table_size
        self.decoder = trimming
        self._budget = FrameBudget()
        self._creditable = (
            0  # bytes that window updates may cover: twice the sent bytes, for the stream and the connection
        )

    def receive_data(self, data: bytes) -> "list[Event]":
        """Parse received bytes, in pieces."""
        events: list[Event] = []
        for at in range(0, len(data), PIECE):
            events += super().receive_data(data[at : at + PIECE])
        return events

    def _receive_frame(self, frame: "Frame") -> "list[Event]":
        if isinstance(frame, SettingsFrame):
            # Unknown settings must be ignored (RFC 9113 section 6.5.2), but h2 would store up to 65536 of them
            frame.settings = {code: value for code, value in frame.settings.items() if code in _KNOWN}
            if (table := frame.settings.get(_TABLE)) is not None:
                frame.settings[_TABLE] = min(table, MOST_TABLE)
        if brings_nothing(frame) and not self._is_due_credit(frame):
            self._spend_budget()
        events = super()._receive_frame(frame)
        for event in events:
            if isinstance(event, RequestReceived | ResponseReceived):
                self._budget.earn(EARNED_BY_HEAD)
            elif isinstance(event, InformationalResponseReceived):
                self._spend_budget()
        return events

    def _receive_headers_frame(self, frame: HeadersFrame) -> "tuple[list[Frame], list[Event]]":
        stream = self.streams.get(frame.stream_id)
        expected = None if stream is None else stream._expected_content_length  # noqa: SLF001  a trailer may set it
        try:
            frames, events = super()._receive_headers_frame(frame)
        except h2.exceptions.ProtocolError as error:
            buffered_head = stream is not None or (not self.config.client_side and frame.stream_id in self.streams)
            if not buffered_head or not self._is_message_error(error):
                raise
            return [], [MalformedMessage(frame.stream_id, str(error))]
        if stream is not None and _ignores_length(events[0]):
            stream._expected_content_length = None  # noqa: SLF001
        if stream is not None and expected is not None and isinstance(events[0], TrailersReceived):
            actual = stream._actual_content_length  # noqa: SLF001  h2 compares them only where DATA ends a message
            if expected != actual:
                events = [
                    MalformedMessage(frame.stream_id, str(h2.exceptions.InvalidBodyLengthError(expected, actual)))
                ]
        return frames, events

    def _receive_data_frame(self, frame: DataFrame) -> "tuple[list[Frame], list[Event]]":
        try:
            return super()._receive_data_frame(frame)
        except h2.exceptions.InvalidBodyLengthError as error:
            malformed = MalformedMessage(frame.stream_id, str(error))
            if error.actual_length > error.expected_length:
                self.acknowledge_received_data(frame.flow_controlled_length, frame.stream_id)
                return [], [malformed]
            data = h2.events.DataReceived(stream_id=frame.stream_id)  # data before the error counts
            data.data, data.flow_controlled_length = frame.data, frame.flow_controlled_length
            return [], [data, malformed]

    def _is_message_error(self, error: h2.exceptions.ProtocolError) -> bool:
        """Whether an error in a header block concerns the message, not its compression."""
        packing = isinstance(error.__cause__, HPACKError | IndexError | TypeError)
        plain = type(error) is h2.exceptions.ProtocolError
        return plain and not packing and self.state_machine.state is not ConnectionState.CLOSED

    def _prepare_for_sending(self, frames: "list[Frame]") -> None:
        for frame in frames:
            if isinstance(frame, DataFrame):
                self._creditable += 2 * len(frame.data)
                self._budget.earn(EARNED_BY_DATA)
        super()._prepare_for_sending(frames)

    def _is_due_credit(self, frame: "Frame") -> bool:
        """Whether a frame is a window update for sent data, of at least LEAST_CREDIT bytes."""
        if not isinstance(frame, WindowUpdateFrame) or not LEAST_CREDIT <= frame.window_increment <= self._creditable:
            return False
        self._creditable -= frame.window_increment
        return True

    def _spend_budget(self) -> None:
        if not self._budget.spend():
            raise h2.exceptions.DenialOfServiceError("too many frames without progress")


def _ignores_length(event: "Event") -> bool:
    """Whether a response's Content-Length doesn't apply to its body, which h2 would check."""
    return isinstance(event, InformationalResponseReceived) or (
        isinstance(event, ResponseReceived) and dict(event.headers).get(b":status") == b"304"
    )


def brings_nothing(frame: "Frame") -> bool:
    """Whether a frame is neither part of a message nor its end."""
    if isinstance(frame, DataFrame):
        return not frame.data and "END_STREAM" not in frame.flags
    return not isinstance(frame, HeadersFrame)
