"""What an HTTP/2 client sends behind a refusal is no attempt of its own, whatever order its frames come in."""

import itertools

import h2.config
import h2.connection
import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from tests.proxy.inspection.inspection_clients import wait_for
from tests.proxy.inspection.inspection_harness import site

FRAMES = {
    "all of the body": DataFrame(1, data=b"secret", flags=["END_STREAM"]),
    "a part": DataFrame(1, data=b"sec"),
    "the end": DataFrame(1, data=b"", flags=["END_STREAM"]),
    "a reset": RstStreamFrame(1, error_code=8),
    "a farewell": GoAwayFrame(0, last_stream_id=0, error_code=0),
    "credit": WindowUpdateFrame(0, window_increment=100),
    "an acknowledgement": SettingsFrame(0, flags=["ACK"]),
}
ENDS = {"all of the body", "the end", "a reset"}
ORDERS = [order for order in itertools.permutations(FRAMES, 2) if not (order[0] in ENDS and FRAMES[order[1]].stream_id)]


def upload(place):
    """The head of an upload that the rules don't let out, as it is sent."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    head = {":method": "GET", ":path": "/echo", ":scheme": "https", ":authority": place.host, "content-length": "6"}
    client.send_headers(1, list(head.items()))
    return client.data_to_send()


@pytest.mark.parametrize("order", ORDERS, ids=" and ".join)
def test_a_refused_upload_is_told_once(gate, origins, order):
    place = site(gate, origins.web("good.example"), http="{methods: [GET]}")
    with place.connect(alpn=("h2",)) as connection:
        connection.sendall(upload(place))
        wait_for(gate.decided)
        connection.sendall(b"".join(FRAMES[name].serialize() for name in order))
    wait_for(lambda: gate.closed)
    assert gate.decided() == [("GET", "/echo", "blocked", "body_not_allowed")]


def test_an_upload_is_told_once_also_when_it_comes_in_one_piece_with_what_follows(gate, origins):
    place = site(gate, origins.web("good.example"), http="{methods: [GET]}")
    refused = ("GET", "/echo", "blocked", "body_not_allowed")
    expected = []
    for order in ORDERS:
        with place.connect(alpn=("h2",)) as connection:
            connection.sendall(upload(place) + b"".join(FRAMES[name].serialize() for name in order))
            expected.append(refused)
            wait_for(lambda: len(gate.decided()) >= len(expected))
        gate.wait_closed(len(expected))
        assert gate.decided() == expected, order
