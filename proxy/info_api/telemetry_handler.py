"""Receives the telemetry of a task's programs: OTLP over HTTP, as OpenTelemetry exporters send it.

It is recorded as the task's claim (`agent.said`), beside the gate's own events. Size, requests and records a second are
bounded; what exceeds a bound is refused in OTLP's terms, and counted.
"""

import json
import time
import zlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from proxy.event_loop.rate_limiter import RateLimiter
from proxy.info_api import otlp
from proxy.info_api.info_handler import Answer, refused
from proxy.info_api.requests import Port, RequestRefusedError
from proxy.telemetry.journal.writer import JournalWriteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from proxy.info_api.otlp import OtlpRecord
    from proxy.info_api.requests import Request
    from proxy.sandbox.recorder import Recorder
    from proxy.supervisor_channel.channel import Attribution

MOST_BYTES: Final = 256 * 1024  # of a request, as it is sent and unpacked
MOST_RECORDS: Final = 512  # of a request
REQUESTS: Final = (20, 4.0)  # at once, and a second
RECORDS: Final = (500, 50.0)
BYTES: Final = (1 << 20, 65536.0)  # unpacked: what a task's words may cost of the journal and of the gate's one thread
_JSON, _PROTOBUF = "application/json", "application/x-protobuf"
_READERS: Final = {"/v1/logs": otlp.logs, "/v1/traces": otlp.spans}
_REJECTED: Final = {"/v1/logs": "rejectedLogRecords", "/v1/traces": "rejectedSpans"}


class TelemetryHandler:
    """Receives the telemetry of one sandbox. For one thread."""

    port = Port(4318, frozenset({"POST"}), MOST_BYTES)
    most_connections = 4

    __slots__ = ("_bytes", "_recorder", "_records", "_requests", "connections")

    def __init__(self, recorder: "Recorder", clock: "Callable[[], float]" = time.monotonic) -> None:
        self._recorder = recorder
        self._requests = RateLimiter(*REQUESTS, clock)
        self._records = RateLimiter(*RECORDS, clock)
        self._bytes = RateLimiter(*BYTES, clock)
        self.connections = 0

    def work(
        self, request: "Request", attribution: "Callable[[], Attribution | None]"
    ) -> "Iterator[Answer | Attribution | None]":
        """Take a request's records a few at a time, and answer in the end. Never raises for what a task has written."""
        lost = 0
        try:
            self._admit()
            if (sender := attribution()) is not None and sender.waiting:
                yield sender
            process = None if sender is None else sender.process
            for number, sent in enumerate(self._read(request)):
                if number < MOST_RECORDS and self._records.take():
                    self._recorder.agent_said(sent.decode(), process)
                else:
                    lost += 1
                yield None
        except ValueError as error:
            yield refused(RequestRefusedError(HTTPStatus.BAD_REQUEST, f"that can't be read: {error}"[:200]))
        except RequestRefusedError as bad:
            yield refused(bad)
        except JournalWriteError:
            yield refused(RequestRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the journal can't be written"))
        else:
            yield _answer(request, lost)
        finally:
            self._recorder.telemetry_dropped(lost)

    def _admit(self) -> None:
        if not self._requests.take():
            raise RequestRefusedError(
                HTTPStatus.TOO_MANY_REQUESTS, "too many requests: send more at once, and less often"
            )

    def _read(self, request: "Request") -> "Iterable[OtlpRecord]":
        if request.path == "/v1/metrics":
            return ()  # the gate has numbers of its own; an exporter is not to try again for ever
        reader = _READERS.get(request.path)
        if reader is None:
            raise RequestRefusedError(HTTPStatus.NOT_FOUND, "there is `/v1/logs` and `/v1/traces`")
        if request.kind not in {_JSON, _PROTOBUF}:
            raise RequestRefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"`Content-Type` is `{_PROTOBUF}` or `{_JSON}`"
            )
        body = _unpacked(request)
        if self._bytes.take(len(body)) < len(body):
            raise RequestRefusedError(HTTPStatus.TOO_MANY_REQUESTS, "too many bytes: send less")
        return reader(body, as_json=request.kind == _JSON)


def _unpacked(request: "Request") -> bytes:
    if request.coding in {"", "identity"}:
        return request.body
    if request.coding != "gzip":
        raise RequestRefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "`Content-Encoding` is `gzip`, or none")
    unpacking = zlib.decompressobj(wbits=31)
    try:
        body = unpacking.decompress(request.body, MOST_BYTES)
    except zlib.error as error:
        raise RequestRefusedError(HTTPStatus.BAD_REQUEST, f"that is no gzip: {error}") from None
    if unpacking.unconsumed_tail or not unpacking.eof:
        raise RequestRefusedError(HTTPStatus.CONTENT_TOO_LARGE, f"a request may have {MOST_BYTES} bytes, unpacked too")
    return body


def _answer(request: "Request", lost: int) -> Answer:
    """Say so if some were refused: opentelemetry.io, "OTLP Specification", Partial Success."""
    why = "more than there is room for"
    if request.kind == _JSON:
        said = {"partialSuccess": {_REJECTED[request.path]: str(lost), "errorMessage": why}} if lost else {}
        return Answer(HTTPStatus.OK, _JSON, json.dumps(said).encode())
    return Answer(HTTPStatus.OK, _PROTOBUF, _packed(request.path, lost, why) if lost else b"")


def _packed(path: str, lost: int, why: str) -> bytes:
    # Loaded already, with the request; only who sends protobuf pays for it
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace

    if path == "/v1/logs":
        rejected = logs.ExportLogsPartialSuccess(rejected_log_records=lost, error_message=why)
        return logs.ExportLogsServiceResponse(partial_success=rejected).SerializeToString()
    spans = trace.ExportTracePartialSuccess(rejected_spans=lost, error_message=why)
    return trace.ExportTraceServiceResponse(partial_success=spans).SerializeToString()
