"""The origin: nginx, and a program that sends raw bytes and events without end. One of each for everybody.

They run on the clients' core.

On world.HELLO nginx expects HTTP: to a ClientHello it says 400 and closes, which is as short as an answer gets.
"""

import contextlib
import select
import socket
import sys
import threading
import time
from pathlib import Path

from tests.bench import cost, servers, world

BODY = 1 << 30  # bytes of /1g, a file without blocks
_CHUNK = 1 << 20
_HELLO = 1 << 14
EVERY = 0.1  # seconds between two events of one stream

_NGINX = """
daemon off; worker_processes 1; user root; pid {work}/nginx.pid; error_log {work}/nginx.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; default_type text/plain; keepalive_requests 1000000000; sendfile on;
  client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work}; uwsgi_temp_path {work};
  scgi_temp_path {work};
  server {{
    listen {address}:{http} backlog=4096; listen {address}:{tls} ssl backlog=4096;
    listen {address}:{hello} backlog=4096;
    ssl_certificate {work}/origin.pem; ssl_certificate_key {work}/origin.pem;
    root {work}/origin;
    location = / {{ return 200 "{answer}"; }}
    location ~ \\.git/ {{ proxy_pass http://{address}:{git}; proxy_buffering off; client_max_body_size 0; }}
    location = /events {{ proxy_pass http://{address}:{events}; proxy_http_version 1.1; proxy_buffering off; }}
  }}
}}
"""


def start(work: Path, certificate: bytes, closing: contextlib.ExitStack) -> tuple[int, ...]:
    """Start both; `closing` ends them. Returns nginx's processes."""
    (work / "origin.pem").write_bytes(certificate)
    (work / "origin").mkdir()
    with (work / "origin" / "1g").open("wb") as file:
        file.truncate(BODY)
    settings = work / "nginx.conf"
    values = {"work": work, "address": world.ORIGIN, "http": world.HTTP, "tls": world.TLS, "hello": world.HELLO}
    values["events"], values["git"] = world.EVENTS, world.GIT
    settings.write_text(_NGINX.format(**values, answer="x" * 256))
    log = work / "nginx.out"
    started = []
    for argv, port in (
        ([servers.find("nginx"), "-c", settings, "-e", work / "nginx.log"], world.TLS),
        ([sys.executable, "-m", "tests.bench.origin"], world.BULK),
    ):
        process = servers.start(argv, core=servers.CLIENT_CORE, log=log)
        closing.callback(servers.stop, process)
        servers.wait_for(process, (world.ORIGIN, port), log)
        started.append(process.pid)
    return cost.family(started[0])


def _send_without_end() -> None:
    """Answer whatever is said with bytes until the other side has enough, one connection after the other."""
    data = memoryview(bytes(_CHUNK))
    with socket.create_server((world.ORIGIN, world.BULK)) as server:
        while True:
            sock, _ = server.accept()
            with sock, contextlib.suppress(OSError):
                if not sock.recv(_HELLO):
                    continue
                while True:
                    sock.sendall(data)


def _tell_without_end() -> None:
    """Send events on every stream that is open, one after the other: never many at the same time."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    streams: list[socket.socket] = []
    with socket.create_server((world.ORIGIN, world.EVENTS), backlog=1024) as server:
        turn, due = 0, time.monotonic()
        while True:
            due = max(due + EVERY / max(len(streams), 1), time.monotonic() - EVERY)
            while select.select([server], [], [], max(due - time.monotonic(), 0))[0]:
                sock, _ = server.accept()
                sock.recv(_HELLO)
                sock.sendall(head)
                streams.append(sock)
            if streams:
                turn = (turn + 1) % len(streams)
                try:
                    streams[turn].sendall(b"data: %d\n\n" % time.monotonic_ns())
                except OSError:
                    streams.pop(turn).close()


if __name__ == "__main__":
    threading.Thread(target=_tell_without_end, daemon=True).start()
    _send_without_end()
