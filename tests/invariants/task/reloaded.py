"""A task with connections of every kind open while the rules change: some stay allowed, some don't."""

import socket
import sys
import threading

from .attempts import reason
from .http2 import h2_to, headers
from .steps import serve
from .wire import ask, connect, request, tls, until_the_end

FOREVER = "/slow/100000/0.05"
_open = {}
_hammer = {}


class Held:
    """An HTTP/2 connection with streams that don't end."""

    def __init__(self, host, *paths):
        import h2.config
        import h2.connection

        self.stream = h2_to(host)
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.http.initiate_connection()
        self.paths, self.seen = {}, {}
        for path in paths:
            number = self.http.get_next_available_stream_id()
            self.http.send_headers(number, headers(host, path=path), end_stream=True)
            self.paths[number], self.seen[path] = path, []
        self.stream.sendall(self.http.data_to_send())

    def wait(self, done):
        """Read until `done` holds of what was seen of each path, or the connection is over: how it ended then."""
        import h2.events

        while not done(self.seen):
            try:
                data = self.stream.recv(65536)
            except OSError as error:
                return reason(error)
            if not data:
                return "eof"
            for event in self.http.receive_data(data):
                path = self.paths.get(getattr(event, "stream_id", None))
                if path is None:
                    continue
                if isinstance(event, h2.events.DataReceived):
                    self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    self.seen[path].append("data")
                elif isinstance(event, h2.events.StreamReset):
                    self.seen[path].append("reset")
                elif isinstance(event, h2.events.StreamEnded):
                    self.seen[path].append("end")
            self.stream.sendall(self.http.data_to_send())
        return "open"


def begin():
    """Open them all; returns what of each was seen so far."""
    said = {}
    for word in ("kept", "lost"):
        inspected, spliced = f"{word}.more.allowed.example", f"{word}.more.spliced.example"
        idle = tls(inspected)
        said[f"{word} idle"] = ask(idle, request(inspected))["status"]
        _open[f"{word} idle"] = idle
        for name, stream, host in (
            ("inspected", tls(inspected), inspected),
            ("clear", connect(inspected, 80), inspected),
            ("spliced", tls(spliced), spliced),
        ):
            stream.sendall(request(host, FOREVER))
            said[f"{word} {name}"] = len(stream.recv(10))
            _open[f"{word} {name}"] = stream
        held = _open[f"{word} held"] = Held(inspected, FOREVER)
        said[f"{word} held"] = held.wait(lambda seen: "data" in seen[FOREVER])
    mixed = _open["mixed"] = Held("kept.more.allowed.example", FOREVER, "/events/100000")
    said["mixed"] = mixed.wait(lambda seen: all("data" in one for one in seen.values()))
    return said


def see():
    """Say how each is by now: what is kept brings more, what is lost ends."""
    said = {}
    for word in ("kept", "lost"):
        idle = _open[f"{word} idle"]
        said[f"{word} idle"] = ask(
            idle, request("kept.more.allowed.example" if word == "kept" else "lost.more.allowed.example")
        )
        said[f"{word} idle"] = said[f"{word} idle"].get("status") or said[f"{word} idle"]["error"]
        for name in ("inspected", "clear", "spliced"):
            stream = _open[f"{word} {name}"]
            if word == "kept":
                said[f"kept {name}"] = _more(stream)
            else:
                said[f"lost {name}"] = until_the_end(stream)["end"]
        held = _open[f"{word} held"]
        wanted = len(held.seen[FOREVER]) + 3 if word == "kept" else float("inf")
        said[f"{word} held"] = held.wait(lambda seen, wanted=wanted: len(seen[FOREVER]) >= wanted)
    return said


def see_mixed():
    """Say what became of two streams on one connection, of which one is denied by now."""
    mixed = _open["mixed"]
    ended = mixed.wait(lambda seen: "reset" in seen["/events/100000"])
    count = len(mixed.seen[FOREVER])
    after = mixed.wait(lambda seen: len(seen[FOREVER]) >= count + 3)
    return [ended, after, "reset" in mixed.seen[FOREVER]]


def _more(stream):
    try:
        for _ in range(3):
            if not stream.recv(65536):
                return "eof"
    except OSError as error:
        return reason(error)
    return "more"


def hammer():
    """Begin to ask without end: on kept connections, and on new ones."""
    _hammer.update(stop=False, done=0, errors=[], threads=[])
    for kind in ("inspected", "spliced", "clear", "new"):
        thread = threading.Thread(target=_ask_on, args=(kind,), daemon=True)
        thread.start()
        _hammer["threads"].append(thread)
    return True


def _ask_on(kind):
    host = f"kept.more.{'spliced' if kind == 'spliced' else 'allowed'}.example"

    def opened():
        return connect(host, 80) if kind == "clear" else tls(host)

    stream = opened()
    while not _hammer["stop"]:
        if kind == "new":
            stream.close()
            try:
                stream = opened()
            except OSError as error:
                _hammer["errors"].append(f"new: {reason(error)}")
                continue
        said = ask(stream, request(host, "/bytes/20000"))
        if said.get("size") == 20000:
            _hammer["done"] += 1
        else:
            _hammer["errors"].append(f"{kind}: {said}")
            return
    stream.close()


def stop():
    """End that, and say how much was asked, and what went wrong."""
    _hammer["stop"] = True
    for thread in _hammer["threads"]:
        thread.join(20)
    return [_hammer["done"], _hammer["errors"]]


def local(host, port):
    """Ask a service for a page, and say what came: a status, or how it failed."""
    try:
        stream = connect(host, port)
    except OSError as error:
        return reason(error)
    said = ask(stream, request(f"{host}:{port}", "/echo", "GET", "Connection: close"))
    stream.close()
    return said.get("reason") or said.get("status") or said.get("error")


def raw(host, port):
    """Connect, and say what the other side says first."""
    try:
        stream = connect(host, port)
        stream.settimeout(5)
        return stream.recv(100).decode("latin-1") or "eof"
    except OSError as error:
        return reason(error)


def resolve(host):
    """Look a name up."""
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        return reason(error)


if __name__ == "__main__":
    sys.path.append(sys.argv[1])  # where the h2 library is, shown by --read
    serve(begin, see, see_mixed, hammer, stop, local, raw, resolve)
