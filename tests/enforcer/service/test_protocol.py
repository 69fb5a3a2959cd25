"""What a client and the service say to each other: read whole or not at all."""

import contextlib
import os

import pytest
from hypothesis import given, settings, strategies

from enforcer.run.environment import parse_signal
from enforcer.service import control_client, protocol
from enforcer.service.protocol import MalformedRequestError, Run, pack, packet_request, unpack
from enforcer.system import control_socket
from enforcer.system.errors import HostError

WORDS = strategies.text(strategies.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
NAMES = WORDS.filter(lambda name: name and "=" not in name)
RUNS = strategies.builds(
    Run,
    words=strategies.lists(WORDS, max_size=5).map(tuple),
    environment=strategies.dictionaries(NAMES, WORDS, max_size=5),
    umask=strategies.integers(0, 0o777),
    ignored=strategies.integers(0, 2**64 - 1),
    nice=strategies.integers(-20, 19),
    limits=strategies.lists(strategies.tuples(strategies.integers(-1, 2**40), strategies.integers(-1, 2**40))).map(
        tuple
    ),
)


def read(data):
    file = os.memfd_create("request")
    try:
        os.write(file, data)
        return unpack(file)
    finally:
        os.close(file)


@settings(max_examples=50, deadline=None)
@given(RUNS)
def test_request_round_trips(run):
    assert read(pack(run)) == run


@settings(max_examples=50, deadline=None)
@given(RUNS, strategies.data())
def test_truncated_request_is_refused(run, data):
    whole = pack(run)
    with pytest.raises(MalformedRequestError):
        read(whole[: data.draw(strategies.integers(0, len(whole) - 1))])


@settings(max_examples=100, deadline=None)
@given(strategies.binary(max_size=200))
def test_arbitrary_bytes_are_refused(noise):
    with contextlib.suppress(MalformedRequestError):
        assert isinstance(read(noise), Run)
    assert parse_signal(noise) is None or noise.startswith(b"signal ")


def test_other_versions_are_refused():
    assert packet_request(protocol.packet_head(protocol.RUN)) == protocol.RUN
    for packet in (b"", b"exeat", b"exeat 2 run", b"EXEAT 1 run", b"exeat 11 run"):
        with pytest.raises(MalformedRequestError):
            packet_request(packet)


@pytest.mark.parametrize(
    "call", [b"", b"signal", b"signal 2", b"signal x 0", b"signal 2 2", b"signal -9 0", b"signals 2 0", b"signal 9 0"]
)
def test_unknown_message_ends_the_task(call):
    assert parse_signal(call) is None


def test_signal_message_names_signal_and_terminal():
    assert parse_signal(b"signal 2 1") == (2, True)
    assert parse_signal(b"signal 15 0") == (15, False)


def test_unknown_socket_path_has_a_remedy(monkeypatch):
    monkeypatch.setattr(control_socket, "control_path", lambda: "")
    with pytest.raises(
        HostError, match=r"the path of the service's socket is unknown; set XDG_RUNTIME_DIR .* EXEAT_CONTROL"
    ):
        control_client.send_request({"what": "ps"})
