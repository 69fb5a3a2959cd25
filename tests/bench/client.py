"""The load: one program for every way to the origin, run outside a sandbox and inside one.

It needs nothing but Python, so that the sandbox can show it. Wishes come as lines of JSON on stdin, answers go as lines
of JSON to stdout, so that one that was started once can be asked again and again, in turns with another.

Blocking sockets in several processes: most of what a connection costs here is OpenSSL's and the kernel's.
"""

import contextlib
import json
import os
import re
import resource
import select
import socket
import ssl
import sys
import time
from dataclasses import dataclass

_MEGABYTE = bytearray(1 << 20)
_VIEW = memoryview(_MEGABYTE)
_SETTLE = 64 << 20  # bytes of a bulk transfer before the clock starts: windows and buffers have grown by then
_PATIENCE = 20.0  # seconds for one system call
_BEFORE = 0.3  # seconds of streams that don't count: the last of them is hardly open
_TOLD = re.compile(rb"data: ([0-9]+)\n")
_held = []  # connections that are kept until `release`


@dataclass(frozen=True)
class Place:
    """Where to connect, and as whom. `source` chooses which peer the kernel redirects the connection to."""

    name: str
    port: int
    tls: bool = True
    source: str = ""
    ca: str = ""  # empty: what the environment says, as it does in a sandbox

    def address(self):
        return socket.getaddrinfo(self.name, self.port, socket.AF_INET, socket.SOCK_STREAM)[0][4]

    def context(self):
        context = ssl.create_default_context(cafile=self.ca or os.environ["SSL_CERT_FILE"])
        context.set_alpn_protocols(["http/1.1"])
        return context

    def connect(self, address):
        sock = socket.socket()
        sock.settimeout(_PATIENCE)
        if self.source:
            sock.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT, ip(7): the port is chosen by connect
            sock.bind((self.source, 0))
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def open(self, address, context):
        sock = self.connect(address)
        return context.wrap_socket(sock, server_hostname=self.name) if self.tls else sock

    def request(self, path, connection):
        return f"GET {path} HTTP/1.1\r\nHost: {self.name}\r\nConnection: {connection}\r\n\r\n".encode()


def connections(place, seconds, parallel):
    """One connection after the other, each with a handshake, one request and its answer, in `parallel` processes."""
    request = place.request("/", "close")

    def prepare():
        address, context = place.address(), place.context()

        def once():
            with place.open(address, context) as sock:
                sock.sendall(request)
                answer = b""
                while data := sock.recv(4096):
                    answer += data
            _check(answer)

        return once

    return _parallel(prepare, seconds, parallel)


def hellos(place, seconds, parallel):
    """One connection after the other, each with a ClientHello and whatever comes back until the end: no handshake.

    What a proxy of bytes does is the same; what the two ends do costs a tenth, so that the proxy has all it can do.
    """

    def prepare():
        address, hello = place.address(), _hello(place)

        def once():
            with place.connect(address) as sock:
                sock.sendall(hello)
                answer = b""
                while data := sock.recv(4096):
                    answer += data
            if not answer.startswith(b"HTTP/1.1 400"):
                raise RuntimeError(f"not the answer of the origin: {answer[:200]!r}")

        return once

    return _parallel(prepare, seconds, parallel)


def requests(place, seconds, parallel, at=0.0):
    """One request after the other on a connection that is kept, in `parallel` processes, from `at` on (CLOCK_MONOTONIC)."""
    request = place.request("/", "keep-alive")

    def prepare():
        sock = place.open(place.address(), place.context())
        length = len(_answer(sock, request))

        def once():
            sock.sendall(request)
            begin = rest = sock.recv(4096)
            size = len(rest)
            while size < length:
                rest = _received(sock.recv(4096))
                size += len(rest)
            _check(begin)

        return once

    return _parallel(prepare, seconds, parallel, at)


def latency(place, times):
    """How long a client waits, from connect() to the end of the first answer, with nothing else going on."""
    address, context, request = place.address(), place.context(), place.request("/", "keep-alive")
    waited = []
    for _ in range(times + 5):
        began = time.perf_counter()
        with place.open(address, context) as sock:
            sock.sendall(request)
            answer = sock.recv(4096)
            waited.append(time.perf_counter() - began)
            _check(answer)
    return {"each": waited[5:]}


def waits(place, times):
    """How long a client waits for each answer on one connection that is kept, with nothing else going on."""
    request = place.request("/", "keep-alive")
    waited = []
    with place.open(place.address(), place.context()) as sock:
        for _ in range(times + 5):
            began = time.perf_counter()
            answer = _answer(sock, request)
            waited.append(time.perf_counter() - began)
            _check(answer)
    return {"each": waited[5:]}


def hold(place, count):
    """Keep connections open on which nothing happens any more, after one request and its answer on each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    address, context, request = place.address(), place.context(), place.request("/", "keep-alive")
    for _ in range(count):
        sock = place.open(address, context)
        _held.append(sock)
        _check(_answer(sock, request))
    return {"held": len(_held)}


def release():
    """Close what is held."""
    while _held:
        _held.pop().close()
    return {}


def streams(place, path, parallel, seconds):
    """How long after they were sent the events of several streams are read, all open at the same time.

    Each says in nanoseconds of CLOCK_MONOTONIC when it was sent, which is the same clock in a sandbox.
    """
    address, context, request = place.address(), place.context(), place.request(path, "keep-alive")
    waited = []
    with contextlib.ExitStack() as closing, select.epoll() as ready:
        opened = {}
        for _ in range(parallel):
            sock = closing.enter_context(place.open(address, context))
            sock.sendall(request)
            _check(sock.recv(4096))
            sock.setblocking(False)
            opened[sock.fileno()] = sock
            ready.register(sock, select.EPOLLIN)
        begins = time.monotonic() + _BEFORE
        ends = begins + seconds
        while (now := time.monotonic()) < ends:
            for number, _ in ready.poll(ends - now):
                data = b"".join(_pieces(opened[number]))
                read = time.monotonic_ns()
                waited += [(read - int(sent)) / 1e9 for sent in _TOLD.findall(data)] if now > begins else []
    return {"each": waited}


def _pieces(sock):
    """Whatever can be read now; OpenSSL may hold more than the kernel tells of."""
    with contextlib.suppress(ssl.SSLWantReadError, BlockingIOError):
        while True:
            yield _received(sock.recv(65536))


def lookups(name, times):
    """How long a lookup takes."""
    waited = []
    for _ in range(times):
        began = time.perf_counter()
        socket.getaddrinfo(name, 443, socket.AF_INET, socket.SOCK_STREAM)
        waited.append(time.perf_counter() - began)
    return {"each": waited}


def bulk(place, seconds):
    """As many raw bytes as come in `seconds` after a ClientHello: what a gate passes on is not its to decrypt.

    They are thrown away in the kernel (MSG_TRUNC, tcp(7)), so that reading them isn't what takes the time.
    """
    with place.connect(place.address()) as sock:
        sock.sendall(_hello(place))
        first, size, began = 0, 0, time.perf_counter()
        while first < _SETTLE and time.perf_counter() - began < seconds:
            first += _received(sock.recv_into(_VIEW, flags=socket.MSG_TRUNC))
        began = time.perf_counter()
        ends = began + seconds
        while time.perf_counter() < ends:
            size += _received(sock.recv_into(_VIEW, flags=socket.MSG_TRUNC))
        return {"done": size, "all": first + size, "seconds": time.perf_counter() - began}


def download(place, path):
    """One body to its end."""
    began = time.perf_counter()
    with place.open(place.address(), place.context()) as sock:
        sock.sendall(place.request(path, "close"))
        head = b""
        while b"\r\n\r\n" not in head:
            head += _received(sock.recv(4096))
        _check(head)
        left = _length(head) - len(head)
        while left > 0:
            left -= _received(sock.recv_into(_VIEW))
    return {"seconds": time.perf_counter() - began}


def _parallel(prepare, seconds, parallel, at=0.0):
    """Do what `prepare` returns over and over in several processes, which start together once each did it once.

    Not before `at`, so that another client can start at the same time; `began` is when it was.

    `done` is what ended within the time, `all` is everything that was done: what the CPU time was spent on.
    """
    go_reader, go_writer = os.pipe()
    answers = [_child(prepare, seconds, go_reader, go_writer) for _ in range(parallel)]
    os.close(go_reader)
    ready = [os.read(reader, 1) for reader, _ in answers]
    time.sleep(max(at - time.monotonic(), 0))
    began = time.monotonic()
    os.close(go_writer)  # the end of this pipe is the start of them all
    told = []
    for (reader, pid), first in zip(answers, ready, strict=True):
        with os.fdopen(reader, "rb") as file:
            told.append(json.loads(first + file.read() or b"{}"))  # one that failed before it was ready said so at once
        os.waitpid(pid, 0)
    errors = [one.get("error", "a process ended unexpectedly") for one in told if "done" not in one]
    if errors:
        raise RuntimeError(f"{len(errors)} of {parallel} clients failed: {errors[:1]}")
    done, everything = (sum(one[key] for one in told) for key in ("done", "all"))
    return {"done": done, "all": everything, "seconds": seconds, "began": began}


def _child(prepare, seconds, go_reader, go_writer):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return reader, pid
    told = {}
    try:
        os.close(reader)
        os.close(go_writer)
        once = prepare()
        once()
        os.write(writer, b" ")
        os.read(go_reader, 1)
        done, now, ends = 0, 0.0, time.perf_counter() + seconds
        while True:
            once()
            now = time.perf_counter()
            if now > ends:
                break
            done += 1
        told = {"done": done, "all": done + 2}
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
        told = {"error": f"{type(error).__name__}: {error}"}
    finally:
        os.write(writer, json.dumps(told).encode())
        os._exit(0)


def _answer(sock, request):
    """Ask, and read the whole answer."""
    sock.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer or len(answer) < _length(answer):
        answer += _received(sock.recv(4096))
    return answer


def _hello(place):
    """The first bytes that OpenSSL would send."""
    outgoing = ssl.MemoryBIO()
    connection = place.context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=place.name)
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def _received(data):
    if not data:
        raise EOFError("the connection ended early")
    return data


def _length(answer):
    """How long an answer is, head and body, by its head."""
    head, _, _ = answer.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
    return len(head) + 4 + int(fields[b"content-length"])


def _check(answer):
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"not the answer of the origin: {answer[:200]!r}")


_CAN = {
    one.__name__: one
    for one in (connections, hellos, requests, latency, waits, hold, release, streams, lookups, bulk, download)
}


def main():
    if cores := sys.argv[1:]:
        os.sched_setaffinity(0, map(int, cores))
    for line in sys.stdin:
        wish = json.loads(line)
        try:
            if "place" in wish:
                wish["place"] = Place(**wish["place"])
            answer = _CAN[wish.pop("what")](**wish)
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
