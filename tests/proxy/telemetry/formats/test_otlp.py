"""OTLP logs: messages decoded by the protocol's own definition, with the same values."""

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from proxy.telemetry.events import Kind
from proxy.telemetry.formats.fields import nanoseconds, sentence
from proxy.telemetry.formats.otlp import attributes, logs_request, rejected
from tests.proxy.telemetry.formats.sample_records import event, everything, harmful, record, unknown
from tests.support.telemetry_lab import HOSTILE


def parsed(*records):
    """The request, with nothing in it that the definition doesn't know: it is made anew without unknown fields."""
    body = logs_request(records)
    converted = ExportLogsServiceRequest.FromString(body)
    converted.DiscardUnknownFields()
    assert sorted(converted.SerializeToString()) == sorted(body)
    return converted


def logs(converted):
    return [log for resource in converted.resource_logs for scope in resource.scope_logs for log in scope.log_records]


def plain(value):
    kind = value.WhichOneof("value")
    return [plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def test_every_event_survives_otlp_encoding():
    for each in everything():
        (log,) = logs(parsed(each))
        assert log.event_name == f"exeat.{each['kind']}"
        assert log.time_unix_nano == log.observed_time_unix_nano == nanoseconds(each)
        assert log.body.string_value == sentence(each)
        assert {pair.key: plain(pair.value) for pair in log.attributes} == attributes(each)
        assert 1 <= log.severity_number <= 24


def test_records_are_grouped_by_host_in_order():
    converted = parsed(*(event(host=host, id=str(number)) for number, host in enumerate("abab")))
    hosts = [
        {pair.key: plain(pair.value) for pair in each.resource.attributes}["host.name"]
        for each in converted.resource_logs
    ]
    assert hosts == ["a", "b"]
    ids = [{pair.key: plain(pair.value) for pair in log.attributes}["exeat.id"] for log in logs(converted)]
    assert ids == ["0", "2", "1", "3"]


@pytest.mark.parametrize("number", [0, 1, -1, 127, 128, 2**31, 2**53 + 1, -(2**63) + 1, 2**63 - 1])
def test_otlp_numbers_keep_their_value(number):
    (log,) = logs(parsed({**event(), "number": number, "half": 0.5, "none": 0.0, "yes": True, "no": False}))
    found = {pair.key: plain(pair.value) for pair in log.attributes}
    assert (found["exeat.number"], found["exeat.half"], found["exeat.none"]) == (number, 0.5, 0.0)
    assert (found["exeat.yes"], found["exeat.no"]) == (True, False)


def test_number_beyond_64_bits_is_left_out():
    converted = record(number=2**64, endless=float("inf"), other=float("nan"))
    assert {"exeat.number", "exeat.endless", "exeat.other"}.isdisjoint(attributes(converted))
    assert logs(parsed(converted))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_breaks_no_otlp_message(name):
    for kind in Kind:
        (log,) = logs(parsed(record(kind, HOSTILE[name])))
        assert harmful(log.body.string_value) == []
        for pair in log.attributes:
            value = plain(pair.value)
            assert [text for text in (value if isinstance(value, list) else [value]) if harmful(str(text))] == []


def test_attributes_have_the_names_of_the_conventions():
    found = attributes(event(
        destination={"name": "www.example.com", "address": "93.184.216.34", "port": 443}, protocol="tls",
        rules=["web:pages"], revision="0f", http={"method": "GET", "path": "/x"},
    ))  # fmt: skip
    expected = {
        "server.address": "www.example.com", "server.port": 443, "network.transport": "tcp",
        "network.protocol.name": "tls", "network.peer.address": "93.184.216.34", "network.peer.port": 443,
        "security_rule.name": "pages", "security_rule.ruleset.name": "web", "security_rule.version": "0f",
        "http.request.method": "GET", "url.path": "/x",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_unknown_fields_become_attributes():
    assert attributes(unknown())["exeat.later.deep"] == [1, "x"]


def test_partial_success_is_decoded():
    answer = ExportLogsServiceResponse()
    assert rejected(answer.SerializeToString()) == 0
    answer.partial_success.error_message = "too old"
    assert rejected(answer.SerializeToString()) == 0
    answer.partial_success.rejected_log_records = 300
    assert rejected(answer.SerializeToString()) == 300


@pytest.mark.parametrize(
    "answer", [b"\x0a", b"\x0a\xff\xff\xff\xff\xff", b"\xff" * 40, b"<html>", b"{}", b"\x0a\x02\x08", b"\x0b\x01"]
)
def test_malformed_otlp_response_counts_as_no_rejection(answer):
    assert rejected(answer) == 0
