"""An HTTP/2 client by the h2 library, that sends whatever it is told to."""

import socket

import h2.config
import h2.connection
import h2.events
import pytest


class Client:
    """An HTTP/2 client that sends whatever it is told to."""

    def __init__(self, place, **settings):
        self.place = place
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="latin-1", validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )  # fmt: skip
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings.update(settings.get("local", {}))
        self.socket = place.connect(alpn=("h2",))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert self.socket.selected_alpn_protocol() == "h2"
        self.h2.initiate_connection()
        self.events = []
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def head(self, path="/", method="GET", authority=None, more=()):
        authority = self.place.host if authority is None else authority
        named = [(":authority", authority)] if authority else []
        return [(":method", method), (":scheme", "https"), *named, (":path", path), *more]

    def request(self, *words, end=True, **more):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, self.head(*words, **more), end_stream=end)
        self.flush()
        return stream

    def read(self):
        data = self.socket.recv(65536)
        if not data:
            self.events.append(None)
        else:
            self.events += self.h2.receive_data(data)
            self.flush()

    def wait(self, kind, stream=None):
        """Read until there is an event of a kind, of a stream, and return the first one."""
        while True:
            for event in self.events:
                if event is None and kind is None:
                    return None
                if kind and isinstance(event, kind) and stream in (None, getattr(event, "stream_id", None)):
                    return event
            if self.events and self.events[-1] is None:
                pytest.fail(f"the connection ended: {self.events}")
            self.read()

    def status(self, stream):
        return dict(self.wait(h2.events.ResponseReceived, stream).headers)[":status"]

    def body(self, stream):
        self.wait(h2.events.StreamEnded, stream)
        return b"".join(e.data for e in self.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream)

    def close(self):
        self.socket.close()
