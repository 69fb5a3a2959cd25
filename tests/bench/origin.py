"""The origin: nginx, and a program that sends raw bytes without end. One of each for everybody, on the clients' core.

On world.HELLO nginx expects HTTP: to a ClientHello it says 400 and closes, which is as short as an answer gets.
"""

import contextlib
import socket
import sys
from pathlib import Path

from tests.bench import servers, world

BODY = 1 << 30  # bytes of /1g, a file without blocks
_CHUNK = 1 << 20
_HELLO = 1 << 14

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
  }}
}}
"""


def start(work: Path, certificate: bytes, closing: contextlib.ExitStack) -> None:
    """Start both; `closing` ends them."""
    (work / "origin.pem").write_bytes(certificate)
    (work / "origin").mkdir()
    with (work / "origin" / "1g").open("wb") as file:
        file.truncate(BODY)
    settings = work / "nginx.conf"
    values = {"work": work, "address": world.ORIGIN, "http": world.HTTP, "tls": world.TLS, "hello": world.HELLO}
    settings.write_text(_NGINX.format(**values, answer="x" * 256))
    log = work / "nginx.out"
    for argv, port in (
        ([servers.find("nginx"), "-c", settings, "-e", work / "nginx.log"], world.TLS),
        ([sys.executable, "-m", "tests.bench.origin"], world.BULK),
    ):
        process = servers.start(argv, core=servers.CLIENT_CORE, log=log)
        closing.callback(servers.stop, process)
        servers.wait_for(process, (world.ORIGIN, port), log)


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


if __name__ == "__main__":
    _send_without_end()
